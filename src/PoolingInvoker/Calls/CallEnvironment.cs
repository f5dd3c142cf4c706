using System.Collections.Concurrent;
using System.Runtime.CompilerServices;
using Grpc.Net.Client.Configuration;

namespace PoolingInvoker;

/// <summary>What all calls of one invoker share.</summary>
internal sealed class CallEnvironment
{
    // Of each pool, for all invokers over it.
    private static readonly ConditionalWeakTable<ChannelPool, CallShares> Shares = [];

    private readonly CallPlan _plan; // of all methods that have none of their own
    private readonly Dictionary<string, CallPlan> _plans = [];
    private readonly ConcurrentDictionary<string, CallPlan> _planOf = new(StringComparer.Ordinal);
    private readonly string[] _named; // services that the configs name
    private readonly ConcurrentDictionary<string, bool> _called = new(StringComparer.Ordinal); // services, where there are configs
    private readonly MethodIdempotency _idempotency;
    private readonly Func<IMethod, object?, string?>? _affinityKey;
    private readonly CallShares _shares;

    public CallEnvironment(ChannelPool pool, PoolingCallInvokerOptions options)
    {
        Pool = pool;
        _plan = CallResilience.Plan(options, pool);
        foreach (var config in options.MethodConfigs)
        {
            Require(config is not null, "MethodConfigs contains null.");
            Require(config!.Names.Count > 0, "A method config names no method. Add MethodName.Default to its Names for all methods.");
            Require(!config.Names.Contains(null!), "The Names of a method config contain null.");
            var plan = CallResilience.Plan(options, pool, config);
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

        _named = [.. _plans.Keys.Select(static key => key[1..key.LastIndexOf('/')]).Where(static service => service.Length > 0).Distinct()];
        _affinityKey = options.AffinityKey;
        Require(!options.ServiceDescriptors.Contains(null!), "ServiceDescriptors contains null.");
        _idempotency = new MethodIdempotency(options.IsIdempotent, options.ServiceDescriptors, pool.State.Log);
        Require(
            options.MaxRetryBufferPerCallSize >= 0,
            $"MaxRetryBufferPerCallSize is {options.MaxRetryBufferPerCallSize}. It must be at least 0.");
        MaxReplaySize = options.MaxRetryBufferPerCallSize;
        _shares = Shares.GetValue(pool, static pool => new CallShares(pool.State));
        Values = CallOptionValues.Of(options);

        static void Require(bool isValid, string message) => ChannelPoolOptions.Require(isValid, message, nameof(options));
    }

    public ChannelPool Pool { get; }
    public IReadOnlyList<(string Name, object? Value)> Values { get; } // of the options
    public RetryBudget? Budget => _shares.Budget; // null if retries and hedges are not counted
    public ReplaySpace ReplaySpace => _shares.ReplaySpace;
    public long MaxReplaySize { get; }

    public CallPlan PlanOf(IMethod method) => _plans.Count == 0 ? _plan
        : _planOf.TryGetValue(method.FullName, out var plan) ? plan
        : _planOf.GetOrAdd(method.FullName, FindPlan(method));

    /// <summary>What a caller gave, with the key of the call, and the trace of its call where somebody listens.</summary>
    public GivenOptions Given(IMethod method, string? host, CallOptions options, ulong key) =>
        GivenOptions.Of(host, options, key, CallTrace.Begin(Pool.State.Metrics, Pool.State.Time, method.FullName));

    public bool IsIdempotent(IMethod method) => PlanOf(method).IsIdempotent ?? _idempotency.IsIdempotent(method);

    /// <summary>What the pool knows of the key of a call, or 0. What the user's function throws, the call throws as it starts.</summary>
    public ulong KeyOf(IMethod method, object? request) => _affinityKey is null ? 0 : ChannelAffinity.KeyOf(_affinityKey(method, request));

    private CallPlan FindPlan(IMethod method)
    {
        if (_called.TryAdd(method.ServiceName, true)) // a service is known with the first call of it
        {
            TellMistyped(method);
            TellUnnamed(method);
        }

        return _plans.GetValueOrDefault(method.FullName)
            ?? _plans.GetValueOrDefault($"/{method.ServiceName}/")
            ?? _plans.GetValueOrDefault("//")
            ?? _plan;
    }

    // Nobody knows which services there are. One that is named, and that no call is of, may be mistyped, called later, or called through another
    // invoker with the same options.
    private void TellUnnamed(IMethod method)
    {
        if (_named.Length > 0 && !_named.Any(_called.ContainsKey))
        {
            Pool.State.Log.ServiceNotNamed(string.Join(", ", _named), method.ServiceName);
        }
    }

    private void TellMistyped(IMethod method)
    {
        var prefix = $"/{method.ServiceName}/";
        var named = _plans.Keys.Where(key => key.Length > prefix.Length && key.StartsWith(prefix, StringComparison.Ordinal)).ToList();
        if (named.Count > 0 && _idempotency.ServiceOf(method) is { } service)
        {
            var methods = service.Methods.Select(static known => known.Name).ToList();
            foreach (var key in named.Where(key => !methods.Contains(key[prefix.Length..])))
            {
                Pool.State.Log.MethodUnknown(key[1..], string.Join(", ", methods));
            }
        }
    }

    // In a service config an empty name is the same as none.
    private static string KeyOf(MethodName name) => $"/{name.Service}/{name.Method}";
}
