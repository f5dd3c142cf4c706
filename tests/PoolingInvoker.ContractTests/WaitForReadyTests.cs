using System.Text;
using Grpc.Core;
using Grpc.Net.Client;
using Grpc.Net.Client.Balancer;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Logging;
using Microsoft.Extensions.Logging.Abstractions;
using Microsoft.Extensions.ObjectPool;
using PoolingInvoker.Testing;

namespace PoolingInvoker.ContractTests;

/// <summary>A call that waits for ready, on channels of the user's own whose resolver has nothing yet.</summary>
public sealed class WaitForReadyTests(ContractServer server) : IClassFixture<ContractServer>
{
    [Theory]
    [InlineData(false, false)]
    [InlineData(true, false)]
    [InlineData(false, true)]
    [InlineData(true, true)]
    public async Task ACallWaits_UntilTheResolverHasAddresses(bool fails, bool pooled)
    {
        var policy = new Policy(fails ? ResolverResult.ForFailure(new Status(StatusCode.Unavailable, "not yet")) : ResolverResult.ForResult([]));
        using var channel = policy.Create();
        using var pool = new ChannelPool(policy);
        var text = Marshallers.Create(Encoding.UTF8.GetBytes, Encoding.UTF8.GetString);
        var method = new Method<string, string>(MethodType.Unary, "contract", "Unary", text, text);
        var options = new CallOptions(new Metadata { { "ending", Ending.Response } }).WithWaitForReady();
        var call = (pooled ? new PoolingCallInvoker(pool) : channel.CreateCallInvoker()).AsyncUnaryCall(method, null, options, "hello");
        await Waiting.Until(() => policy.Asked > 0);
        await (pooled ? Waiting.Until(() => pool.GetStatistics().CallsInFlight == 1) : Task.CompletedTask);
        Assert.False(call.ResponseAsync.IsCompleted);

        policy.Set(ResolverResult.ForResult([new BalancerAddress(server.Address.Host, server.Address.Port)]));
        Assert.Equal("one", await call.ResponseAsync.Soon());
    }

    private sealed class Policy(ResolverResult first) : ResolverFactory, IPooledObjectPolicy<GrpcChannel>
    {
        private readonly List<StepResolver> _resolvers = [];
        private ResolverResult _result = first;

        public override string Name => "steps";

        /// <summary>How many resolvers have given a result.</summary>
        public int Asked
        {
            get
            {
                lock (_resolvers)
                {
                    return _resolvers.Count(static resolver => resolver.HasStarted);
                }
            }
        }

        public GrpcChannel Create() => GrpcChannel.ForAddress("steps:///server", new GrpcChannelOptions
        {
            Credentials = ChannelCredentials.Insecure,
            ServiceProvider = new ServiceCollection().AddSingleton<ResolverFactory>(this).BuildServiceProvider(),
        });

        public bool Return(GrpcChannel obj) => true;

        public override Resolver Create(ResolverOptions options)
        {
            lock (_resolvers)
            {
                _resolvers.Add(new StepResolver(this, NullLoggerFactory.Instance));
                return _resolvers[^1];
            }
        }

        public void Set(ResolverResult result)
        {
            lock (_resolvers)
            {
                _result = result;
                _resolvers.FindAll(static resolver => resolver.HasStarted).ForEach(static resolver => resolver.Refresh());
            }
        }

        private sealed class StepResolver(Policy policy, ILoggerFactory loggers) : PollingResolver(loggers)
        {
            public bool HasStarted { get; private set; }

            protected override Task ResolveAsync(CancellationToken cancellationToken)
            {
                Listener(policy._result);
                HasStarted = true;
                return Task.CompletedTask;
            }
        }
    }
}
