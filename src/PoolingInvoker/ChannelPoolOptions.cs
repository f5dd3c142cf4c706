using System.Runtime.CompilerServices;
using Grpc.Core;
using Grpc.Net.Client;
using Microsoft.Extensions.Logging;

namespace PoolingInvoker;

/// <summary>
/// How many channels a <see cref="ChannelPool"/> keeps, how many calls each of them takes, how long a call waits for one,
/// and how its channels are made.
/// </summary>
/// <remarks>The pool copies the options when it is created: a later change has no effect on it.</remarks>
public sealed class ChannelPoolOptions
{
    // The longest time that a timer takes: TimeSpan.FromMilliseconds(int.MaxValue), a little under 25 days.
    internal static readonly TimeSpan LongestWait = TimeSpan.FromMilliseconds(int.MaxValue);

    // What is longer is as long as this: there is room for what is added to it, and multiplied.
    private static readonly TimeSpan LongestAge = TimeSpan.FromDays(36_500);

    /// <summary>
    /// Gets or sets the number of channels that the pool makes with its first call, or when it is connected, and below which it does not shrink.
    /// </summary>
    /// <value>The default value is 1. From 0 to <see cref="MaxPoolSize"/>.</value>
    public int MinPoolSize { get; set; } = 1;

    /// <summary>
    /// Gets or sets the number of channels that are never exceeded. Draining channels, which take no new calls, are not counted.
    /// </summary>
    /// <value>The default value is 100. At least 1, and at least <see cref="MinPoolSize"/>.</value>
    public int MaxPoolSize { get; set; } = 100;

    /// <summary>
    /// Gets or sets the number of calls that one channel carries at a time, at the most. The value 1 gives each call a channel to itself.
    /// </summary>
    /// <value>
    /// The default value is <see langword="null"/>: as many as its server announces (SETTINGS_MAX_CONCURRENT_STREAMS, RFC 9113, section
    /// 6.5.2), which is no limit if it announces none. Where that cannot be seen, because the transport is one of your own or speaks
    /// HTTP/1.1 or HTTP/3, it stands for 100. Otherwise at least 1; a server that announces less gets no more than that.
    /// </value>
    public int? MaxConcurrentCallsPerChannel { get; set; }

    /// <summary>
    /// Gets or sets the number of calls that one channel should carry at a time: when for a tenth of a second there have been more on each,
    /// another channel is made, up to <see cref="MaxPoolSize"/>, and when there are fewer for a while calls keep to fewer channels, the others
    /// close. While there may be more channels, streams that last keep to some of their own, so that bulk does not starve small calls.
    /// From the ninth channel on, each is made for four times as many calls: by then the first have reached servers enough, and calls that share
    /// a connection cost less.
    /// </summary>
    /// <value>
    /// The default value is 12. At least 1. <see langword="null"/> makes another channel only when all are full, as a bare channel does with
    /// its connections.
    /// </value>
    public int? TargetConcurrentCallsPerChannel { get; set; } = 12;

    /// <summary>
    /// Gets or sets how long a call waits for room on a channel when the pool is full. A deadline of the call's own comes first,
    /// and a call that waits for ready (<c>CallOptions.WithWaitForReady</c>) waits for its deadline alone.
    /// </summary>
    /// <value>The default value is 30 seconds. Zero does not wait; <see cref="Timeout.InfiniteTimeSpan"/> waits without limit.</value>
    public TimeSpan AcquireTimeout { get; set; } = TimeSpan.FromSeconds(30);

    /// <summary>
    /// Gets or sets how many calls may wait for room at a time. One more is refused at once.
    /// </summary>
    /// <value>The default value is 10,000. At least 0.</value>
    public int MaxCallsWaiting { get; set; } = 10_000;

    /// <summary>
    /// Gets or sets the age at which a channel is replaced, so that a pool behind a load balancer finds new servers.
    /// From each channel's age a part of up to 10 % is taken off, drawn once, so that channels of the same age do not go together.
    /// Calls on a replaced channel are not cut: it closes when the last one is over.
    /// </summary>
    /// <value>The default value is 30 minutes. <see cref="Timeout.InfiniteTimeSpan"/> keeps channels for ever.</value>
    public TimeSpan PooledChannelLifetime { get; set; } = TimeSpan.FromMinutes(30);

    /// <summary>
    /// Gets or sets how long a channel above <see cref="MinPoolSize"/> may carry no call before it is closed.
    /// </summary>
    /// <value>The default value is 10 minutes. <see cref="Timeout.InfiniteTimeSpan"/> keeps idle channels.</value>
    public TimeSpan PooledChannelIdleTimeout { get; set; } = TimeSpan.FromMinutes(10);

    /// <summary>
    /// Gets or sets how long <see cref="ChannelPool.DisposeAsync"/> waits for calls in flight before it cancels them.
    /// </summary>
    /// <value>
    /// The default value is 30 seconds. Zero does not wait; <see cref="Timeout.InfiniteTimeSpan"/> waits without limit.
    /// A channel that is replaced is never cut by this time.
    /// </value>
    public TimeSpan DrainTimeout { get; set; } = TimeSpan.FromSeconds(30);

    /// <summary>
    /// Gets or sets the age of a lease at which the pool reports it in the log, with the stack that took it.
    /// </summary>
    /// <value>The default value is <see cref="TimeSpan.Zero"/>, which turns it off: capturing stacks costs time on each call.</value>
    public TimeSpan LeakDetectionThreshold { get; set; }

    /// <summary>
    /// Gets or sets a callback that changes the options of each channel before it is made. It runs once a channel.
    /// </summary>
    /// <remarks>
    /// A handler set here must be a new one each time: channels that share a handler share its connections, which makes the pool
    /// one channel with extra steps, and is an error.
    /// </remarks>
    /// <value>The default value is <see langword="null"/>.</value>
    public Action<GrpcChannelOptions>? ConfigureChannel { get; set; }

    /// <summary>
    /// Gets or sets a callback that changes the <see cref="SocketsHttpHandler"/> of each channel before it is used:
    /// TLS, keep-alive pings, proxies. It runs once a channel, before <see cref="ConfigureChannel"/>.
    /// </summary>
    /// <value>The default value is <see langword="null"/>.</value>
    public Action<SocketsHttpHandler>? ConfigureHandler { get; set; }

    /// <summary>
    /// Gets or sets a call, or several, that each channel makes when it is connected and before it takes calls: to fill caches, to log in. It
    /// has 10 seconds. A channel whose call fails is not used, as one that cannot be connected is not, unless there is no other.
    /// </summary>
    /// <value>The default value is <see langword="null"/>.</value>
    public Func<CallInvoker, CancellationToken, Task>? PrimeAsync { get; set; }

    /// <summary>
    /// Gets or sets who is told of what the pool does with its channels, and why. It is told one event after the other, in order, on a thread
    /// of the pool's choice; what it throws is lost. Where it is slower than the pool up to 1,000 events wait, and those beyond are dropped, which
    /// an event of the kind <see cref="ChannelPoolEventKind.Dropped"/> says in their place.
    /// </summary>
    /// <value>The default value is <see langword="null"/>. <see cref="LoggerFactory"/> is told the same, and more.</value>
    public Action<ChannelPoolEvent>? OnEvent { get; set; }

    /// <summary>
    /// Gets or sets how long the calls on a channel may wait, while nothing at all comes from its connection, before the channel is asked for
    /// a sign of life: with an HTTP/2 PING (RFC 9113, section 6.7), and with <see cref="Probe"/>. Meanwhile it is chosen only if there is no
    /// other. One that answers is left alone for four times as long, and again; a slow method is not disturbed. After three pings in one
    /// silence there is one in five minutes, so that no server takes offence.
    /// </summary>
    /// <value>The default value is 1 second. <see cref="Timeout.InfiniteTimeSpan"/> turns it off.</value>
    public TimeSpan ProbeDelay { get; set; } = TimeSpan.FromSeconds(1);

    /// <summary>
    /// Gets or sets how long the pool waits for the sign of life. A channel that gives none is given up: it is replaced, and its calls end
    /// with <c>Unavailable</c>, as if the server had gone, so that those that are idempotent are sent again. If no other channel, or less
    /// than a quarter of them, shows life, a server must first have answered on a fresh one.
    /// </summary>
    /// <value>The default value is 1 second. Must be positive.</value>
    public TimeSpan ProbeTimeout { get; set; } = TimeSpan.FromSeconds(1);

    /// <summary>
    /// Gets or sets a small call that is made beside the ping, and on a fresh channel after the SETTINGS of its server. That the server answers
    /// counts, not what: a status that it sends is an answer. For channels over a transport of your own it is the only way to ask.
    /// </summary>
    /// <value>The default value is <see langword="null"/>.</value>
    public Func<CallInvoker, CancellationToken, Task>? Probe { get; set; }

    /// <summary>
    /// Gets or sets where the pool writes its log, under the category <c>PoolingInvoker.ChannelPool</c>.
    /// </summary>
    /// <value>The default value is <see langword="null"/>: no log.</value>
    public ILoggerFactory? LoggerFactory { get; set; }

    /// <summary>
    /// Gets or sets the clock of the pool, of its retries and of what it waits for.
    /// </summary>
    /// <value>The default value is <see cref="TimeProvider.System"/>.</value>
    public TimeProvider TimeProvider { get; set; } = TimeProvider.System;

    /// <summary>Where work of the pool's own is done, and who listens is told: on a thread of its own choice, in nobody's context.</summary>
    internal Action<Action> Queue { get; set; } = static work => ThreadPool.UnsafeQueueUserWorkItem(static work => ((Action)work!)(), work);

    internal void Configure(GrpcChannelOptions options)
    {
        ConfigureChannel?.Invoke(options);
        if (options.Credentials is { } credentials)
        {
            options.Credentials = new CallersChannelCredentials(credentials);
        }
    }

    /// <summary>Whether the server answers the <see cref="Probe"/> of the user's; true if there is none.</summary>
    internal Task<bool> IsAnsweredAsync(CallInvoker invoker, CancellationToken cancellationToken) =>
        Probe is null ? Task.FromResult(true) : ChannelProbe.IsAnsweredAsync(Probe, invoker, cancellationToken);

    internal ChannelPoolOptions ValidatedCopy()
    {
        Require(MaxPoolSize >= 1, $"MaxPoolSize is {MaxPoolSize}. It must be at least 1.");
        Require(MinPoolSize >= 0, $"MinPoolSize is {MinPoolSize}. It must be at least 0.");
        Require(MinPoolSize <= MaxPoolSize, $"MinPoolSize ({MinPoolSize}) is larger than MaxPoolSize ({MaxPoolSize}). Lower the one or raise the other.");
        Require(
            MaxConcurrentCallsPerChannel is null or >= 1,
            $"MaxConcurrentCallsPerChannel is {MaxConcurrentCallsPerChannel}. It must be at least 1, or null for the default.");
        Require(
            TargetConcurrentCallsPerChannel is null or >= 1,
            $"TargetConcurrentCallsPerChannel is {TargetConcurrentCallsPerChannel}. It must be at least 1, or null to fill channels before there is another one.");
        Require(MaxCallsWaiting >= 0, $"MaxCallsWaiting is {MaxCallsWaiting}. It must be at least 0.");
        RequireWait(AcquireTimeout);
        RequireWait(DrainTimeout);
        RequireAge(PooledChannelLifetime);
        RequireAge(PooledChannelIdleTimeout);
        Require(
            LeakDetectionThreshold >= TimeSpan.Zero,
            $"LeakDetectionThreshold is {LeakDetectionThreshold}. It must be positive, or zero to turn leak detection off.");
        RequireAge(ProbeDelay);
        Require(
            ProbeTimeout > TimeSpan.Zero && ProbeTimeout <= LongestWait,
            $"ProbeTimeout is {ProbeTimeout}. It must be positive, and at most {LongestWait}. To turn probes off set ProbeDelay to Timeout.InfiniteTimeSpan.");
        Require(TimeProvider is not null, "TimeProvider is null. Leave it at TimeProvider.System for the clock of the machine.");
        var copy = (ChannelPoolOptions)MemberwiseClone();
        copy.PooledChannelLifetime = Saturated(PooledChannelLifetime);
        copy.PooledChannelIdleTimeout = Saturated(PooledChannelIdleTimeout);
        copy.LeakDetectionThreshold = Saturated(LeakDetectionThreshold);
        copy.ProbeDelay = Saturated(ProbeDelay);
        return copy;
    }

    private static TimeSpan Saturated(TimeSpan age) => age < LongestAge ? age : LongestAge;

    private static void RequireWait(TimeSpan value, [CallerArgumentExpression(nameof(value))] string name = "") => Require(
        value == Timeout.InfiniteTimeSpan || (value >= TimeSpan.Zero && value <= LongestWait),
        $"{name} is {value}. It must be from zero to {LongestWait}, or Timeout.InfiniteTimeSpan to wait without limit.");

    private static void RequireAge(TimeSpan value, [CallerArgumentExpression(nameof(value))] string name = "") => Require(
        value == Timeout.InfiniteTimeSpan || value > TimeSpan.Zero,
        $"{name} is {value}. It must be positive, or Timeout.InfiniteTimeSpan to turn it off.");

    internal static void Require(bool isValid, string message, string? parameter = null)
    {
        if (!isValid)
        {
            throw new ArgumentException(message, parameter);
        }
    }
}
