using System.Collections;
using System.Collections.Concurrent;
using System.Diagnostics.CodeAnalysis;
using System.Reflection;
using Grpc.Core;

namespace PoolingInvoker;

/// <summary>
/// Which methods are safe to run twice: the user's word, or the <c>idempotency_level</c> of the .proto. Generated messages know the
/// descriptor of their file, and through it the services in it. It is read by reflection, so that the library does not depend on
/// Google.Protobuf; what cannot be read is not idempotent.
/// </summary>
internal sealed class MethodIdempotency(Func<IMethod, bool>? isIdempotent, PoolingInvokerLog log)
{
    private readonly ConcurrentDictionary<string, bool> _known = new(StringComparer.Ordinal);

    public bool IsIdempotent(IMethod method, Type requestType, Type responseType) =>
        _known.TryGetValue(method.FullName, out var known) ? known : _known.GetOrAdd(method.FullName, Find(method, requestType, responseType));

    private bool Find(IMethod method, Type requestType, Type responseType)
    {
        if (isIdempotent is null)
        {
            return IsMarkedIdempotent(method, requestType) || IsMarkedIdempotent(method, responseType);
        }

        try
        {
            return isIdempotent(method);
        }
#pragma warning disable CA1031 // A callback that cannot answer must not hide why the call failed.
        catch (Exception exception)
#pragma warning restore CA1031
        {
            log.IsIdempotentThrew(method.FullName, exception);
            return false;
        }
    }

    // messageType.Descriptor.File.Services[method.ServiceName].Methods[method.Name].GetOptions().IdempotencyLevel
    [UnconditionalSuppressMessage("Trimming", "IL2070", Justification = "What has been trimmed away is taken for not idempotent.")]
    [UnconditionalSuppressMessage("Trimming", "IL2075", Justification = "What has been trimmed away is taken for not idempotent.")]
    private static bool IsMarkedIdempotent(IMethod method, Type messageType)
    {
        try
        {
            var file = Get(messageType.GetProperty("Descriptor", BindingFlags.Public | BindingFlags.Static)?.GetValue(null), "File");
            var descriptor = Named(Get(Named(Get(file, "Services"), "FullName", method.ServiceName), "Methods"), "Name", method.Name);
            var options = descriptor?.GetType().GetMethod("GetOptions", Type.EmptyTypes)?.Invoke(descriptor, null);
            return Get(options, "IdempotencyLevel")?.ToString() is "NoSideEffects" or "Idempotent";
        }
        catch (Exception exception) when (exception is TargetInvocationException or AmbiguousMatchException or NotSupportedException)
        {
            return false;
        }

        static object? Get(object? target, string property) => target?.GetType().GetProperty(property)?.GetValue(target);

        static object? Named(object? list, string property, string name) =>
            (list as IEnumerable)?.Cast<object>().FirstOrDefault(item => name.Equals(Get(item, property)));
    }
}
