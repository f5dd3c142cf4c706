using System.Diagnostics;

namespace PoolingInvoker;

/// <summary>
/// What telemetry sees of one call: a span that covers its retries, with a span for each attempt below it, and its duration. It is made only
/// where somebody listens. What a listener throws is lost: it would cost a lease.
/// </summary>
internal sealed class CallTrace
{
    public const string AttemptNumber = "pool.attempt.number";

    private static readonly ActivitySource Source = new(PoolInstruments.Name, PoolInstruments.Version);

    private readonly PoolMetrics _pool;
    private readonly TimeProvider _time;
    private readonly string _method;
    private readonly long _began;
    private readonly Activity? _span;
    private readonly List<Attempt> _attempts = []; // guarded by itself, as all below
    private Attempt? _goesOnWith; // the attempt with whose end the call ends
    private bool _isEnded;

    private CallTrace(PoolMetrics pool, TimeProvider time, string method)
    {
        (_pool, _time, _method, _began) = (pool, time, method.TrimStart('/'), time.GetTimestamp());
        using var caller = new Surroundings(null);
        _span = Start(_method, []);
    }

    public static bool IsHeard => Source.HasListeners();

    public static CallTrace? Begin(PoolMetrics pool, TimeProvider time, string method) =>
        IsHeard || pool.MeasuresCalls ? new CallTrace(pool, time, method) : null;

    /// <summary>The span of the call is the current one until this is disposed, and in all that begins meanwhile.</summary>
    public Surroundings Enter() => new(_span);

    /// <summary>What is started until this is disposed is an attempt of the call.</summary>
    public Surroundings AttemptBegins(object attempt, int channel, string endpoint, bool isHedged)
    {
        var one = new Attempt(attempt, channel, endpoint);
        int number;
        lock (_attempts)
        {
            _attempts.Add(one);
            number = _attempts.Count;
        }

        var surroundings = new Surroundings(_span);
        if (_span is not { IsAllDataRequested: true })
        {
            return surroundings;
        }

        KeyValuePair<string, object?>[] tags =
        [
            new(AttemptNumber, number),
            new("pool.attempt.kind", number == 1 ? "first" : isHedged ? "hedge" : "retry"),
            new("pool.channel.id", channel),
            new("pool.endpoint", endpoint),
        ];
        try
        {
            if (ChannelSpans.AreHeard)
            {
                return surroundings.With(ChannelSpans.Expect(_span, tags));
            }
        }
        catch
        {
        }

        one.Span = Start($"Attempt.{_method}", tags);
        return surroundings;
    }

    public void AttemptEnded(object attempt, Exception? failure)
    {
        Attempt? one;
        bool isLast;
        lock (_attempts)
        {
            one = _attempts.Find(one => one.Key == attempt);
            if (one is not { IsEnded: false })
            {
                return;
            }

            (one.IsEnded, one.Failure) = (true, failure);
            isLast = _goesOnWith == one;
        }

        Stop(one.Span, failure);
        if (isLast)
        {
            End(failure, one.Channel, one.Endpoint);
        }
    }

    /// <summary>No more attempts are made. The call has ended, or ends with an attempt that goes on, and as that does.</summary>
    public void Completed(Exception? failure, int? channel, string? endpoint, object? goesOnWith)
    {
        lock (_attempts)
        {
            _goesOnWith = goesOnWith is null ? null : _attempts.Find(one => one.Key == goesOnWith);
            if (_goesOnWith is { IsEnded: false })
            {
                return;
            }

            failure = _goesOnWith is null ? failure : _goesOnWith.Failure;
        }

        End(failure, channel, endpoint);
    }

    private void End(Exception? failure, int? channel, string? endpoint)
    {
        lock (_attempts)
        {
            if (_isEnded)
            {
                return;
            }

            _isEnded = true;
        }

        var (status, error) = Describe(failure);
        KeyValuePair<string, object?>[] tags = [new("rpc.system.name", "grpc"), new("rpc.method", _method), new("rpc.status_code", status)];
        _pool.CallEnded(_time.GetElapsedTime(_began), error is null ? tags : [.. tags, new("error.type", error)]);
        _span?.SetTag("pool.channel.id", channel)?.SetTag("pool.endpoint", endpoint);
        Stop(_span, failure);
    }

    private static (string Status, string? Error) Describe(Exception? failure) => failure switch
    {
        null or RpcException { StatusCode: StatusCode.OK } => ("OK", null),
        RpcException { StatusCode: var code } when SnakeCase.Of(code).ToUpperInvariant() is var name => (name, name),
        OperationCanceledException => ("CANCELLED", "CANCELLED"),
        _ => ("UNKNOWN", failure.GetType().FullName),
    };

    private static void Stop(Activity? span, Exception? failure)
    {
        if (span is null)
        {
            return;
        }

        if (span.IsAllDataRequested)
        {
            var (status, error) = Describe(failure);
            span.SetTag("rpc.status_code", status).SetTag("error.type", error);
            span.SetStatus(error is null ? ActivityStatusCode.Unset : ActivityStatusCode.Error, failure is RpcException { Status.Detail: var detail } ? detail : failure?.Message);
        }

        // Whoever ends a span makes the one before it the current one, be it on a thread of the application's.
        using var caller = new Surroundings(null);
        try
        {
            span.Stop();
        }
        catch
        {
        }
    }

    private Activity? Start(string name, KeyValuePair<string, object?>[] tags)
    {
        try
        {
            return Source.HasListeners()
                ? Source.StartActivity(name, ActivityKind.Client, parentContext: default, [new("rpc.system.name", "grpc"), new("rpc.method", _method), .. _pool.Tags, .. tags])
                : null;
        }
        catch
        {
            return null;
        }
    }

    private sealed class Attempt(object key, int channel, string endpoint)
    {
        public object Key => key;
        public int Channel => channel;
        public string Endpoint => endpoint;
        public Activity? Span { get; set; }
        public bool IsEnded { get; set; }
        public Exception? Failure { get; set; }
    }

    /// <summary>What is the current span of this thread, until it is disposed and what was so before is again.</summary>
    public readonly struct Surroundings : IDisposable
    {
        private readonly Activity? _before = Activity.Current;
        private readonly ExecutionContext? _context; // where the span before has ended: the runtime makes none of those the current one again
        private readonly bool _expects;

        public Surroundings(Activity? span)
        {
            _context = _before is { IsStopped: true } ? ExecutionContext.Capture() : null;
            SetCurrent(span ?? _before);
        }

        private Surroundings(Surroundings without, bool expects) => (_before, _context, _expects) = (without._before, without._context, expects);

        public Surroundings With(bool expects) => new(this, expects);

        public void Dispose()
        {
            if (_expects)
            {
                ChannelSpans.ExpectNone();
            }

            if (_context is not null && Activity.Current != _before)
            {
                ExecutionContext.Restore(_context);
            }
            else
            {
                SetCurrent(_before);
            }
        }

        // One that has ended is not taken: the runtime would throw, and catch that itself.
        private static void SetCurrent(Activity? span)
        {
            if (span is null or { IsStopped: false } && span != Activity.Current)
            {
                Activity.Current = span;
            }
        }
    }
}
