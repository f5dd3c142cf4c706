using System.Collections.Concurrent;
using System.Diagnostics.CodeAnalysis;
using Google.Protobuf;
using Google.Protobuf.Reflection;
using Grpc.Core;
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
    private readonly Dictionary<string, ServiceDescriptor> _services = services.GroupBy(static service => service.FullName)
        .ToDictionary(static group => group.Key, static group => group.Last(), StringComparer.Ordinal);

    public bool IsIdempotent(IMethod method) => _known.TryGetValue(method.FullName, out var known) ? known : _known.GetOrAdd(method.FullName, Find(method));

    private bool Find(IMethod method)
    {
        if (isIdempotent is null)
        {
            var service = _services.GetValueOrDefault(method.ServiceName)
                ?? method.GetType().GenericTypeArguments.Select(message => ServiceOf(method, message)).FirstOrDefault(static found => found is not null);
            return service?.FindMethodByName(method.Name)?.GetOptions() is
            { HasIdempotencyLevel: true, IdempotencyLevel: IdempotencyLevel.NoSideEffects or IdempotencyLevel.Idempotent };
        }

        try
        {
            return isIdempotent(method);
        }
        catch (Exception exception) // A callback that cannot answer must not hide why the call failed.
        {
            log.IsIdempotentThrew(method.FullName, exception);
            return false;
        }
    }

    [UnconditionalSuppressMessage("Trimming", "IL2067", Justification = "A generated message keeps its constructor; what has been trimmed away is taken for not idempotent.")]
    private static ServiceDescriptor? ServiceOf(IMethod method, Type messageType)
    {
        try
        {
            return typeof(IMessage).IsAssignableFrom(messageType) && Activator.CreateInstance(messageType) is IMessage message
                ? message.Descriptor?.File.Services.FirstOrDefault(service => service.FullName == method.ServiceName)
                : null;
        }
        catch // What a message written by hand throws must not hide why the call failed.
        {
            return null;
        }
    }
}
