using System.Buffers;
using System.Runtime.CompilerServices;

namespace PoolingInvoker;

/// <summary>
/// A request of a stream on its way to a channel. One that may have to be sent again is serialised once: later attempts send its bytes.
/// </summary>
/// <remarks>Not generic: a channel is called with this type, and may be a pool again, which a native program would have no end of.</remarks>
internal sealed class ReplayableRequest(object message, WriteOptions? writeOptions, bool keepsBytes)
{
    private const int Overhead = 128; // what keeping a request takes beside its bytes

    private static readonly ConditionalWeakTable<IMethod, IMethod> Methods = []; // a channel remembers every one that it is given

    private object? _message = message; // gone when there are bytes
    private ReadOnlyMemory<byte>? _bytes;

    public WriteOptions? WriteOptions => writeOptions;
    public int Size => Overhead + (_bytes?.Length ?? 0);

    /// <summary>The method as channels see it, whose requests can be sent again.</summary>
    public static Method<ReplayableRequest, TResponse> MethodOf<TRequest, TResponse>(Method<TRequest, TResponse> method)
        where TRequest : class
        where TResponse : class => (Method<ReplayableRequest, TResponse>)Methods.GetValue(method, static key =>
        {
            var method = (Method<TRequest, TResponse>)key;
            var marshaller = method.RequestMarshaller;
            return new Method<ReplayableRequest, TResponse>(
                method.Type,
                method.ServiceName,
                method.Name,
                new Marshaller<ReplayableRequest>(
                    (request, context) => request.Serialize(marshaller, context), static _ => throw new NotSupportedException()),
                method.ResponseMarshaller);
        });

    private void Serialize<TRequest>(Marshaller<TRequest> marshaller, SerializationContext context)
    {
        if (!keepsBytes)
        {
            marshaller.ContextualSerializer((TRequest)_message!, context);
            return;
        }

        if (_bytes is { } bytes)
        {
            context.SetPayloadLength(bytes.Length);
            context.GetBufferWriter().Write(bytes.Span);
            context.Complete();
            return;
        }

        var kept = new KeepingContext(context);
        marshaller.ContextualSerializer((TRequest)_message!, kept);
        if (kept.Bytes is { } written)
        {
            (_bytes, _message) = (written, null);
        }
    }

    /// <summary>Keeps what is given to the context of the channel, which says what a marshaller does wrong.</summary>
    private sealed class KeepingContext(SerializationContext inner) : SerializationContext
    {
        private ArrayBufferWriter<byte>? _writer;
        private IBufferWriter<byte>? _inner;
        private int _length;

        public ReadOnlyMemory<byte>? Bytes { get; private set; }

        public override void Complete(byte[] payload)
        {
            inner.Complete(payload);
            Bytes = payload;
        }

        public override void SetPayloadLength(int payloadLength)
        {
            inner.SetPayloadLength(payloadLength);
            _length = payloadLength;
        }

        public override IBufferWriter<byte> GetBufferWriter()
        {
            _inner = inner.GetBufferWriter();
            return _writer ??= _length > 0 ? new ArrayBufferWriter<byte>(_length) : new ArrayBufferWriter<byte>();
        }

        public override void Complete()
        {
            _inner?.Write(_writer!.WrittenSpan);
            inner.Complete();
            Bytes = _writer?.WrittenMemory;
        }
    }
}
