using System.Collections.Concurrent;
using System.Runtime.CompilerServices;
using Grpc.Core;
using Grpc.Net.Client.Configuration;

namespace PoolingInvoker;

/// <summary>What all calls of one invoker share.</summary>
internal sealed class CallEnvironment
{
    // Of each pool, for all invokers over it.
    private static readonly ConditionalWeakTable<ChannelPool, RetryBudget> Budgets = [];
    private static readonly ConditionalWeakTable<ChannelPool, ReplaySpace> Spaces = [];

    private readonly CallPlan _plan; // of all methods that have none of their own
    private readonly Dictionary<string, CallPlan> _plans = [];
    private readonly ConcurrentDictionary<string, CallPlan> _planOf = new(StringComparer.Ordinal);
    private readonly MethodIdempotency _idempotency;

    public CallEnvironment(ChannelPool pool, PoolingCallInvokerOptions options)
    {
        Pool = pool;
        _plan = CallResilience.Plan(options, pool.State.Time);
        foreach (var config in options.MethodConfigs)
        {
            Require(config is not null, "MethodConfigs contains null.");
            Require(config!.Names.Count > 0, "A method config names no method. Add MethodName.Default to its Names for all methods.");
            var plan = CallResilience.Plan(options, pool.State.Time, config);
            foreach (var name in config.Names)
            {
                Require(
                    !string.IsNullOrEmpty(name.Service) || string.IsNullOrEmpty(name.Method),
                    $"A method config names the method '{name.Method}' without its service. Set Service, as in 'user.v1.User'.");
                Require(
                    KeyOf(name).Count(static letter => letter == '/') == 2,
                    $"A method config names '{name.Service}/{name.Method}'. Service is as in 'user.v1.User', and Method as in 'GetName', with no '/'.");
                Require(
                    _plans.TryAdd(KeyOf(name), plan),
                    $"Two method configs name the method '{name.Method}' of the service '{name.Service}'. Name each once.");
            }
        }

        Require(!options.ServiceDescriptors.Contains(null!), "ServiceDescriptors contains null.");
        _idempotency = new MethodIdempotency(options.IsIdempotent, options.ServiceDescriptors, pool.State.Log);
        ChannelPoolOptions.Require(
            options.RetryThrottling is null or { MaxTokens: > 0, TokenRatio: >= 0.001 },
            $"RetryThrottling has MaxTokens {options.RetryThrottling?.MaxTokens} and TokenRatio {options.RetryThrottling?.TokenRatio}. MaxTokens must be at least 1 and TokenRatio at least 0.001; set RetryThrottling to null to turn it off.");
        Budget = options.RetryThrottling is { MaxTokens: { } maxTokens, TokenRatio: { } tokenRatio } ? Budgets.GetValue(pool, _ => new RetryBudget(maxTokens, tokenRatio)) : null;
        Require(
            options is { MaxRetryBufferPerCallSize: >= 0, MaxRetryBufferSize: >= 0 },
            $"MaxRetryBufferPerCallSize is {options.MaxRetryBufferPerCallSize} and MaxRetryBufferSize {options.MaxRetryBufferSize}. Both must be at least 0.");
        ReplaySpace = Spaces.GetValue(pool, _ => new ReplaySpace(options.MaxRetryBufferSize));
        MaxReplaySize = options.MaxRetryBufferPerCallSize;

        static void Require(bool isValid, string message) => ChannelPoolOptions.Require(isValid, message, nameof(options));
    }

    public ChannelPool Pool { get; }
    public RetryBudget? Budget { get; } // null if retries and hedges are not counted
    public ReplaySpace ReplaySpace { get; }
    public long MaxReplaySize { get; }

    public CallPlan PlanOf(IMethod method) => _plans.Count == 0 ? _plan
        : _planOf.TryGetValue(method.FullName, out var plan) ? plan
        : _planOf.GetOrAdd(method.FullName, FindPlan(method));

    public bool IsIdempotent(IMethod method) => PlanOf(method).IsIdempotent ?? _idempotency.IsIdempotent(method);

    private CallPlan FindPlan(IMethod method) =>
        _plans.GetValueOrDefault(method.FullName) ?? _plans.GetValueOrDefault($"/{method.ServiceName}/") ?? _plans.GetValueOrDefault("//") ?? _plan;

    // In a service config an empty name is the same as none.
    private static string KeyOf(MethodName name) => $"/{name.Service}/{name.Method}";
}
