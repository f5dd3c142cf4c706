using System.Diagnostics.Metrics;
using System.Runtime.CompilerServices;
using Grpc.Net.Client;
using Grpc.Net.Client.Configuration;
using Microsoft.Extensions.Logging;
using Microsoft.Extensions.ServiceDiscovery;

namespace PoolingInvoker;

/// <summary>How many channels a <see cref="ChannelPool"/> keeps, how many calls each takes, how long one waits, how they are made.</summary>
/// <remarks>The pool copies the options when it is created: a later change has no effect on it, unless it is given to <see cref="ChannelPool.UpdateOptions"/>.</remarks>
public sealed class ChannelPoolOptions
{
    // The longest time that a timer takes: TimeSpan.FromMilliseconds(int.MaxValue), a little under 25 days.
    internal static readonly TimeSpan LongestWait = TimeSpan.FromMilliseconds(int.MaxValue);

    // What is longer is as long as this: there is room for what is added to it, and multiplied.
    private static readonly TimeSpan LongestAge = TimeSpan.FromDays(36_500);
    private static readonly TimeSpan LongestRecovery = TimeSpan.FromDays(1);

    /// <summary>
    /// Gets or sets the name of the pool, which its log, its events and Polly's telemetry (as the instance of the pipeline) carry. Where a
    /// process has several pools to the same target, it tells them apart.
    /// </summary>
    /// <value>The default value is <see langword="null"/>: the target, as in <c>users:5000</c>; of several addresses all.</value>
    public string? Name { get; set; }

    /// <summary>Gets or sets how many channels the pool makes with its first call or when it is connected, and keeps.</summary>
    /// <value>The default value is 1. From 0 to <see cref="MaxPoolSize"/>.</value>
    public int MinPoolSize { get; set; } = 1;

    /// <summary>Gets or sets how many channels there are at the most. Draining ones, which take no new calls, are not counted.</summary>
    /// <value>The default value is 100. At least 1, and at least <see cref="MinPoolSize"/>.</value>
    public int MaxPoolSize { get; set; } = 100;

    /// <summary>Gets or sets how many calls a channel carries at a time, at the most. With 1 each call has a channel to itself.</summary>
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
    /// A ninth channel, and each after it, is made only where there would be more than eight times as many calls on each: by then the first have
    /// reached servers enough, and calls that share a connection cost less.
    /// </summary>
    /// <value>The default value is 12. At least 1. <see langword="null"/> makes another channel only when all are full.</value>
    public int? TargetConcurrentCallsPerChannel { get; set; } = 12;

    /// <summary>
    /// Gets or sets how busy the channel of a key may be, as a multiple of the mean of all channels, before calls with that key go to the next
    /// one. A channel that carries fewer than <see cref="TargetConcurrentCallsPerChannel"/> calls is not busy.
    /// </summary>
    /// <value>The default value is 1.25. At least 1. <see cref="double.PositiveInfinity"/> keeps calls with a key where they are until that is full.</value>
    public double AffinityLoadFactor { get; set; } = 1.25;

    /// <summary>
    /// Gets or sets how long a call waits for room on a channel when the pool is full. A deadline of the call's own comes first,
    /// and a call that waits for ready (<c>CallOptions.WithWaitForReady</c>) waits for its deadline alone.
    /// </summary>
    /// <value>The default value is 30 seconds. Zero does not wait; <see cref="Timeout.InfiniteTimeSpan"/> waits without limit.</value>
    public TimeSpan AcquireTimeout { get; set; } = TimeSpan.FromSeconds(30);

    /// <summary>Gets or sets how many calls may wait for room at a time. One more is refused at once.</summary>
    /// <value>The default value is 10,000. At least 0.</value>
    public int MaxCallsWaiting { get; set; } = 10_000;

    /// <summary>
    /// Gets or sets the age at which a channel is replaced, so that a pool behind a load balancer finds new servers.
    /// From each channel's age a part of up to 10 % is taken off, drawn once, so that channels of the same age do not go together.
    /// Calls on a replaced channel are not cut: it closes when the last one is over.
    /// </summary>
    /// <value>The default value is 30 minutes. <see cref="Timeout.InfiniteTimeSpan"/> keeps channels for ever.</value>
    public TimeSpan PooledChannelLifetime { get; set; } = TimeSpan.FromMinutes(30);

    /// <summary>Gets or sets how long a channel above <see cref="MinPoolSize"/> may carry no call before it is closed.</summary>
    /// <value>The default value is 10 minutes. <see cref="Timeout.InfiniteTimeSpan"/> keeps idle channels.</value>
    public TimeSpan PooledChannelIdleTimeout { get; set; } = TimeSpan.FromMinutes(10);

    /// <summary>Gets or sets how long <see cref="ChannelPool.DisposeAsync"/> waits for calls in flight before it cancels them.</summary>
    /// <value>
    /// The default value is 30 seconds. Zero does not wait; <see cref="Timeout.InfiniteTimeSpan"/> waits without limit.
    /// A channel that is replaced is never cut by this time.
    /// </value>
    public TimeSpan DrainTimeout { get; set; } = TimeSpan.FromSeconds(30);

    /// <summary>Gets or sets the age of a lease at which the pool reports it in the log, with the stack that took it.</summary>
    /// <value>The default value is <see cref="TimeSpan.Zero"/>, which turns it off: capturing stacks costs time on each call.</value>
    public TimeSpan LeakDetectionThreshold { get; set; }

    /// <summary>Gets or sets a callback that changes the options of each channel before it is made. It runs once a channel.</summary>
    /// <remarks>A handler set here must be a new one each time: channels that share one share its connections, which is an error.</remarks>
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
    public Func<CallInvoker, CancellationToken, Task>? PrimeCallback { get; set; }

    /// <summary>
    /// Gets or sets who is told of what the pool does with its channels, and why. It is told one event after the other, in order, on a thread
    /// of the pool's choice; what it throws is lost. Where it is slower than the pool up to 1,000 events wait, and those beyond are dropped, which
    /// an event of the kind <see cref="ChannelPoolEventKind.Dropped"/> says in their place.
    /// </summary>
    /// <value>The default value is <see langword="null"/>. <see cref="LoggerFactory"/> is told the same, and more.</value>
    public Action<ChannelPoolEvent>? OnEvent { get; set; }

    /// <summary>
    /// Gets or sets how long the calls on a channel may wait, while nothing at all comes from its connection, before the channel is asked for
    /// a sign of life: with an HTTP/2 PING (RFC 9113, section 6.7), and with <see cref="ProbeCallback"/>. Meanwhile it is chosen only if there is no
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
    public Func<CallInvoker, CancellationToken, Task>? ProbeCallback { get; set; }

    /// <summary>
    /// Gets or sets the budget of retries and hedges of all invokers over the pool, so that a server in trouble is not buried under them (gRFC A6). A
    /// failed attempt that another one could follow takes one token, a call that succeeds gives <c>TokenRatio</c> back, and while no more
    /// than half of <c>MaxTokens</c> are left no call is sent again. So in the long run there is a retry for each five calls that succeed, and
    /// a burst of 500 before that. A request that never left costs nothing.
    /// </summary>
    /// <value>The default value is 1,000 tokens with a ratio of 0.2. At least 1, and at least 0.001. <see langword="null"/> turns it off.</value>
    public RetryThrottlingPolicy? RetryThrottling { get; set; } = new() { MaxTokens = 1_000, TokenRatio = 0.2 };

    /// <summary>
    /// Gets or sets how many bytes of requests all calls over the pool keep together. A call for which there is no space is committed.
    /// Each request counts for 128 bytes more than it has.
    /// </summary>
    /// <value>The default value is 16 MiB. Zero keeps nothing.</value>
    public long MaxRetryBufferSize { get; set; } = 16 * 1024 * 1024;

    /// <summary>
    /// Gets or sets the share of the calls that an endpoint of service discovery has, beside those of the others, as <see
    /// cref="ChannelAddress.Weight"/> is for those of a list. It is asked for each endpoint of each list. Where it throws, or gives what is not from
    /// 1 to 1,000,000, the list is not taken, which the log tells, and the last one stays.
    /// </summary>
    /// <value>The default value is <see langword="null"/>: the same for all.</value>
    public Func<ServiceEndpoint, int>? EndpointWeight { get; set; }

    /// <summary>
    /// Gets or sets the priority of an endpoint of service discovery, as <see cref="ChannelAddress.Priority"/> is that of an address of a list. It
    /// is asked for each endpoint of each list. Where it throws, or gives what is not from 0 to 128, the list is not taken, which the log tells,
    /// and the last one stays.
    /// </summary>
    /// <value>The default value is <see langword="null"/>: the same for all.</value>
    public Func<ServiceEndpoint, int>? EndpointPriority { get; set; }

    /// <summary>
    /// Gets or sets how many endpoints of a priority may be lost before the next priority gets calls: the part of them that is well, times this
    /// factor, is the part of the calls that they get, as far as there are as many (Envoy's overprovisioning factor). With 1.4, and two of
    /// four well, they get 70 % of the calls.
    /// </summary>
    /// <value>The default value is 1.4. At least 1.</value>
    public double OverprovisioningFactor { get; set; } = 1.4;

    /// <summary>
    /// Gets or sets how long an endpoint that could not be reached must have been well before calls go back to its priority. Then they do so
    /// gradually, within the same time again. Where there is no other priority calls go back at once.
    /// </summary>
    /// <value>The default value is 10 seconds. From zero to one day.</value>
    public TimeSpan RecoveryDelay { get; set; } = TimeSpan.FromSeconds(10);

    /// <summary>
    /// Gets or sets how many channels are kept to each priority that gets no calls, so that it can take them at once. They are made after
    /// those that calls need, and count against <see cref="MaxPoolSize"/>.
    /// </summary>
    /// <value>The default value is 0: such a priority has no channels. At least 0.</value>
    public int StandbyPoolSize { get; set; }

    /// <summary>Gets or sets where the pool writes its log, under the category <c>PoolingInvoker.ChannelPool</c>.</summary>
    /// <value>The default value is <see langword="null"/>: no log.</value>
    public ILoggerFactory? LoggerFactory { get; set; }

    /// <summary>Gets or sets where the pool gets the meter <c>PoolingInvoker</c>, which has its metrics.</summary>
    /// <value>The default value is <see langword="null"/>: one meter for all pools that have none.</value>
    public IMeterFactory? MeterFactory { get; set; }

    /// <summary>Gets or sets the clock of the pool, of its retries and of what it waits for.</summary>
    /// <value>The default value is <see cref="TimeProvider.System"/>.</value>
    public TimeProvider TimeProvider { get; set; } = TimeProvider.System;

    /// <summary>Where work of the pool's own is done, and who listens is told: on a thread of its own choice, in nobody's context.</summary>
    internal Action<Action> Queue { get; set; } = static work => ThreadPool.UnsafeQueueUserWorkItem(static work => ((Action)work!)(), work);

    /// <summary>The options of which these are the copy.</summary>
    internal ChannelPoolOptions? Given { get; private set; }

    internal void Configure(GrpcChannelOptions options)
    {
        ConfigureChannel?.Invoke(options);
        if (options.Credentials is { } credentials)
        {
            options.Credentials = new CallersChannelCredentials(credentials);
        }
    }

    /// <summary>Whether the server answers the <see cref="ProbeCallback"/> before the token fires; true if there is none.</summary>
    internal async Task<bool> IsAnsweredAsync(CallInvoker invoker, CancellationToken cancellationToken)
    {
        try
        {
            var answering = ProbeCallback is null ? Task.CompletedTask : ProbeCallback(invoker, cancellationToken);
            answering.Observe(); // it may go on for longer than it is waited for
            await answering.WaitAsync(cancellationToken).ConfigureAwait(false);
            return true;
        }
        catch (Exception exception) // Whatever it throws, it says whether a server has spoken.
        {
            return CallFaults.Judge(exception).Origin == FaultOrigin.Server;
        }
    }

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
        Require(
            AffinityLoadFactor >= 1,
            FormattableString.Invariant($"AffinityLoadFactor is {AffinityLoadFactor}. It must be at least 1, or double.PositiveInfinity to keep calls with a key together whatever their number."));
        Require(
            OverprovisioningFactor >= 1 && OverprovisioningFactor < double.PositiveInfinity,
            FormattableString.Invariant($"OverprovisioningFactor is {OverprovisioningFactor}. It must be at least 1, which counts each endpoint that is lost."));
        Require(
            RecoveryDelay >= TimeSpan.Zero && RecoveryDelay <= LongestRecovery,
            $"RecoveryDelay is {RecoveryDelay}. It must be from zero, which sends calls back at once, to {LongestRecovery}.");
        Require(StandbyPoolSize >= 0, $"StandbyPoolSize is {StandbyPoolSize}. It must be at least 0.");
        Require(MaxCallsWaiting >= 0, $"MaxCallsWaiting is {MaxCallsWaiting}. It must be at least 0.");
        RequireWait(AcquireTimeout);
        RequireWait(DrainTimeout);
        Require(
            LeakDetectionThreshold >= TimeSpan.Zero,
            $"LeakDetectionThreshold is {LeakDetectionThreshold}. It must be positive, or zero to turn leak detection off.");
        Require(
            ProbeTimeout > TimeSpan.Zero && ProbeTimeout <= LongestWait,
            $"ProbeTimeout is {ProbeTimeout}. It must be positive, and at most {LongestWait}. To turn probes off set ProbeDelay to Timeout.InfiniteTimeSpan.");
        Require(
            RetryThrottling is null or { MaxTokens: > 0, TokenRatio: >= 0.001 },
            $"RetryThrottling has MaxTokens {RetryThrottling?.MaxTokens} and TokenRatio {RetryThrottling?.TokenRatio}. MaxTokens must be at least 1 and TokenRatio at least 0.001; set RetryThrottling to null to turn it off.");
        Require(MaxRetryBufferSize >= 0, $"MaxRetryBufferSize is {MaxRetryBufferSize}. It must be at least 0.");
        Require(TimeProvider is not null, "TimeProvider is null. Leave it at TimeProvider.System for the clock of the machine.");
        var copy = (ChannelPoolOptions)MemberwiseClone();
        copy.Given = this;
        copy.RetryThrottling = RetryThrottling is { } budget ? new() { MaxTokens = budget.MaxTokens, TokenRatio = budget.TokenRatio } : null;
        copy.PooledChannelLifetime = Age(PooledChannelLifetime);
        copy.PooledChannelIdleTimeout = Age(PooledChannelIdleTimeout);
        copy.LeakDetectionThreshold = Saturated(LeakDetectionThreshold);
        copy.ProbeDelay = Age(ProbeDelay);
        return copy;
    }

    /// <summary>The same with what may change, of options that are valid, while a pool is at work.</summary>
    internal ChannelPoolOptions With(ChannelPoolOptions changed)
    {
        var copy = (ChannelPoolOptions)MemberwiseClone();
        (copy.MinPoolSize, copy.MaxPoolSize) = (changed.MinPoolSize, changed.MaxPoolSize);
        (copy.MaxConcurrentCallsPerChannel, copy.TargetConcurrentCallsPerChannel) = (changed.MaxConcurrentCallsPerChannel, changed.TargetConcurrentCallsPerChannel);
        copy.AffinityLoadFactor = changed.AffinityLoadFactor;
        (copy.OverprovisioningFactor, copy.RecoveryDelay, copy.StandbyPoolSize) = (changed.OverprovisioningFactor, changed.RecoveryDelay, changed.StandbyPoolSize);
        (copy.AcquireTimeout, copy.MaxCallsWaiting, copy.DrainTimeout) = (changed.AcquireTimeout, changed.MaxCallsWaiting, changed.DrainTimeout);
        (copy.PooledChannelLifetime, copy.PooledChannelIdleTimeout) = (changed.PooledChannelLifetime, changed.PooledChannelIdleTimeout);
        (copy.ProbeDelay, copy.ProbeTimeout, copy.MaxRetryBufferSize) = (changed.ProbeDelay, changed.ProbeTimeout, changed.MaxRetryBufferSize);

        // The same object stands for the same budget, with the tokens that it has left.
        var isSameBudget = (RetryThrottling?.MaxTokens, RetryThrottling?.TokenRatio) == (changed.RetryThrottling?.MaxTokens, changed.RetryThrottling?.TokenRatio);
        copy.RetryThrottling = isSameBudget ? RetryThrottling : changed.RetryThrottling;
        return copy;
    }

    private static TimeSpan Saturated(TimeSpan age) => age < LongestAge ? age : LongestAge;

    private static void RequireWait(TimeSpan value, [CallerArgumentExpression(nameof(value))] string name = "") => Require(
        value == Timeout.InfiniteTimeSpan || (value >= TimeSpan.Zero && value <= LongestWait),
        $"{name} is {value}. It must be from zero to {LongestWait}, or Timeout.InfiniteTimeSpan to wait without limit.");

    private static TimeSpan Age(TimeSpan value, [CallerArgumentExpression(nameof(value))] string name = "")
    {
        var isAge = value == Timeout.InfiniteTimeSpan || value > TimeSpan.Zero;
        Require(isAge, $"{name} is {value}. It must be positive, or Timeout.InfiniteTimeSpan to turn it off.");
        return Saturated(value);
    }

    internal static void Require(bool isValid, string message, string? parameter = null)
    {
        if (!isValid)
        {
            throw new ArgumentException(message, parameter);
        }
    }
}
