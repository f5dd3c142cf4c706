using System.Diagnostics;

namespace PoolingInvoker;

/// <summary>
/// The spans that Grpc.Net.Client makes of calls on a channel. Where somebody listens to them they are the attempts of a call, and get what is to
/// be said of an attempt; where nobody does they are left out of the trace.
/// </summary>
internal static class ChannelSpans
{
    private const string Name = "Grpc.Net.Client";
    private const string Operation = $"{Name}.GrpcOut";

    // Listeners choose by name. Those of Grpc.Net.Client itself are internal, and made with its first call.
    private static readonly ActivitySource SourceOfThatName = new(Name);
    private static readonly DiagnosticListener ListenerOfThatName = new(Name);
    private static readonly Lazy<IDisposable> ListensToSource = new(static () =>
    {
        var listener = new ActivityListener
        {
            ShouldListenTo = static source => source.Name == Name && source != SourceOfThatName,
            ActivityStarted = static span => Tag(span),
        };
        ActivitySource.AddActivityListener(listener);
        return listener;
    });

    private static readonly Lazy<IDisposable> ListensToDiagnostics = new(static () => DiagnosticListener.AllListeners.Subscribe(new Diagnostics()));

    [ThreadStatic]
    private static Activity? _call;

    [ThreadStatic]
    private static KeyValuePair<string, object?>[]? _tags;

    public static bool AreHeard => SourceOfThatName.HasListeners() || ListenerOfThatName.IsEnabled(Operation);

    /// <summary>The next span below the call that starts on this thread is of this attempt.</summary>
    public static bool Expect(Activity call, KeyValuePair<string, object?>[] tags)
    {
        _ = SourceOfThatName.HasListeners() ? ListensToSource.Value : ListensToDiagnostics.Value;
        (_call, _tags) = (call, tags);
        return true;
    }

    public static void ExpectNone() => (_call, _tags) = (null, null);

    /// <summary>
    /// Below a span of an attempt Grpc.Net.Client has made one of its own all the same, which nobody gets to see: what comes now is not to have it
    /// for its parent. The method that calls this is asynchronous, and the span is the current one again when it has returned.
    /// </summary>
    public static void LeaveOutUnheard()
    {
        if (CallTrace.IsHeard && Activity.Current is { OperationName: Operation, Source.Name: "", Parent: { } attempt } && attempt.GetTagItem(CallTrace.AttemptNumber) is not null)
        {
            Activity.Current = attempt;
        }
    }

    private static void Tag(Activity? span)
    {
        if (_tags is { } tags && span is { OperationName: Operation } && span.Parent == _call)
        {
            foreach (var (name, value) in tags)
            {
                span.SetTag(name, value);
            }
        }
    }

    private sealed class Diagnostics : IObserver<DiagnosticListener>, IObserver<KeyValuePair<string, object?>>
    {
        public void OnNext(DiagnosticListener listener)
        {
            if (listener.Name == Name && listener != ListenerOfThatName)
            {
                listener.Subscribe(this, static name => name == $"{Operation}.Start");
            }
        }

        public void OnNext(KeyValuePair<string, object?> written)
        {
            if (written.Key == $"{Operation}.Start")
            {
                Tag(Activity.Current);
            }
        }

        public void OnCompleted()
        {
        }

        public void OnError(Exception error)
        {
        }
    }
}
