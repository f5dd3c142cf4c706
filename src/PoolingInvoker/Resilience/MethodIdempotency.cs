using System.Collections.Concurrent;
using System.Diagnostics.CodeAnalysis;
using Google.Protobuf;
using Google.Protobuf.Reflection;
using IdempotencyLevel = Google.Protobuf.Reflection.MethodOptions.Types.IdempotencyLevel;

namespace PoolingInvoker;

/// <summary>
/// Which methods are safe to run twice: the user's word, or the <c>idempotency_level</c> of the .proto. It is found in the services that
/// the user has named, or else through the messages of the method, which know their file and the services in it. What cannot be found is
/// not idempotent.
/// </summary>
internal sealed class MethodIdempotency(Func<IMethod, bool>? isIdempotent, IEnumerable<ServiceDescriptor> services, PoolingInvokerLog log)
{
    private readonly ConcurrentDictionary<string, bool> _known = new(StringComparer.Ordinal);
    private readonly ServiceDescriptor[] _services = [.. services];

    public bool IsIdempotent(IMethod method) => _known.TryGetValue(method.FullName, out var known) ? known : _known.GetOrAdd(method.FullName, Find(method));

    /// <summary>The service that the method is of, if it can be found.</summary>
    public ServiceDescriptor? ServiceOf(IMethod method)
    {
        try
        {
            return Declared(method);
        }
        catch (Exception) // A message written by hand has its own ideas.
        {
            return null;
        }
    }

    private bool Find(IMethod method)
    {
        try
        {
            return isIdempotent?.Invoke(method) ?? IsDeclared(method);
        }
        catch (Exception exception) // A callback, or a message written by hand, that cannot answer must not hide why the call failed.
        {
            log.IsIdempotentThrew(method.FullName, exception);
            return false;
        }
    }

    private bool IsDeclared(IMethod method) => Declared(method)?.FindMethodByName(method.Name)?.GetOptions() is
    { HasIdempotencyLevel: true, IdempotencyLevel: IdempotencyLevel.NoSideEffects or IdempotencyLevel.Idempotent };

    private ServiceDescriptor? Declared(IMethod method) =>
        Array.FindLast(_services, service => service.FullName == method.ServiceName)
            ?? method.GetType().GenericTypeArguments.Select(message => ServiceOf(method, message)).FirstOrDefault(static found => found is not null);

    [UnconditionalSuppressMessage("Trimming", "IL2067", Justification = "A generated message keeps its constructor; what has been trimmed away is taken for not idempotent.")]
    private static ServiceDescriptor? ServiceOf(IMethod method, Type messageType) =>
        typeof(IMessage).IsAssignableFrom(messageType) && Activator.CreateInstance(messageType) is IMessage message
            ? message.Descriptor?.File.Services.FirstOrDefault(service => service.FullName == method.ServiceName)
            : null;
}
