using System.Globalization;

namespace PoolingInvoker;

/// <summary>What a caller gave beside the request, as it was when the call was started. Most calls give nothing, and share one.</summary>
internal class GivenOptions(string? host, CallOptions options)
{
    private const string PreviousAttemptsHeader = "grpc-previous-rpc-attempts"; // gRFC A6

    private static readonly GivenOptions Nothing = new(null, default);

    public string? Host => host;
    public CallOptions Options => options;
    public virtual ulong Key => 0; // what the pool knows of the key of the call, if it has one
    public virtual CallTrace? Trace => null; // of the call, where somebody listens

    public static GivenOptions Of(string? host, CallOptions options, ulong key, CallTrace? trace)
    {
        if (options.Headers is { } headers)
        {
            key = AffinityHeader.KeyIn(headers) ?? key;
            options = options.WithHeaders(headers.Count > 0 ? Copy(headers) : null!); // the caller may use its object again
        }

        return key != 0 || trace is not null ? new MarkedOptions(host, options, key, trace)
            : host is null && options is { Headers: null, Deadline: null, WriteOptions: null, Credentials: null, PropagationToken: null, IsWaitForReady: false }
                && !options.CancellationToken.CanBeCanceled ? Nothing
            : new GivenOptions(host, options);
    }

    public static TimeSpan DueTime(DateTime? deadline, TimeProvider time)
    {
        if (deadline is not { } value || value == DateTime.MaxValue)
        {
            return Timeout.InfiniteTimeSpan;
        }

        var due = value - time.GetUtcNow().UtcDateTime;
        return due < TimeSpan.Zero ? TimeSpan.Zero
            : due > ChannelPoolOptions.LongestWait ? ChannelPoolOptions.LongestWait
            : due;
    }

    /// <summary>The options of an attempt. The loop waits for ready; a channel of the user's own waits by itself.</summary>
    public CallOptions ForAttempt(PooledChannel channel, int previousAttempts)
    {
        var attempt = options.IsWaitForReady && channel.Transport is not null ? options.WithWaitForReady(false) : options;
        attempt = attempt.Credentials is { } credentials ? attempt.WithCredentials(new CallersCredentials(credentials)) : attempt;
        return previousAttempts > 0 ? attempt.WithHeaders(Copy(attempt.Headers, previousAttempts)) : attempt;
    }

    /// <summary>A copy without the headers that are the pool's own.</summary>
    public static Metadata Copy(Metadata? headers, int previousAttempts = 0)
    {
        var copy = new Metadata();
        for (var i = 0; i < headers?.Count; i++) // an enumerator of Metadata is an object of its own
        {
            if (headers[i].Key is var name && name != AffinityHeader.Name && (previousAttempts == 0 || name != PreviousAttemptsHeader))
            {
                copy.Add(headers[i]);
            }
        }

        if (previousAttempts > 0)
        {
            copy.Add(PreviousAttemptsHeader, previousAttempts.ToString(CultureInfo.InvariantCulture));
        }

        return copy;
    }

    private sealed class MarkedOptions(string? host, CallOptions options, ulong key, CallTrace? trace) : GivenOptions(host, options)
    {
        public override ulong Key => key;
        public override CallTrace? Trace => trace;
    }
}
