using System.Collections;

namespace PoolingInvoker;

/// <summary>
/// What the application holds of a stream: its call object leads here, reader and writer are it, and nothing of the pool leads here. So when the
/// application drops all of them without ending the call it is collected, and the call is ended for it.
/// </summary>
internal abstract class CallHandle : IEnumerable<KeyValuePair<string, object>>
{
    // Made once, as the delegates of a bare channel are.
    public static readonly Func<object, Task<Metadata>> GetHeaders = static state => CallOf(state).GetResponseHeadersAsync(holder: state);
    public static readonly Func<object, Status> GetStatus = static state => CallOf(state).GetStatus();
    public static readonly Func<object, Metadata> GetTrailers = static state => CallOf(state).GetTrailers();
    public static readonly Action<object> EndCall = static state =>
    {
        CallOf(state).Dispose();
        GC.SuppressFinalize(state); // that of a handle
    };

    // Not on the thread of the finalizers, which what ends a call could hold up.
    ~CallHandle() => ThreadPool.UnsafeQueueUserWorkItem(static call => call.Reclaim(), Call, preferLocal: false);

    protected abstract PooledCall Call { get; }

    public IEnumerator<KeyValuePair<string, object>> GetEnumerator() => Call.GetEnumerator();

    IEnumerator IEnumerable.GetEnumerator() => GetEnumerator();

    // A unary call ends without the application's doing: it needs no handle, and its call object holds the call itself.
    private static PooledCall CallOf(object state) => state as PooledCall ?? ((CallHandle)state).Call;
}
