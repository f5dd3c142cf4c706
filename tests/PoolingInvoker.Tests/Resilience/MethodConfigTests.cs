using Google.Protobuf;
using Google.Protobuf.WellKnownTypes;
using Grpc.Core;
using Grpc.Net.Client.Configuration;
using Polly;
using Polly.Retry;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;
using PoolingInvoker.Tests.Calls;

namespace PoolingInvoker.Tests.Resilience;

/// <summary>What holds for single methods, and which of them are idempotent.</summary>
public sealed class MethodConfigTests : ScriptedCalls
{
    private const string Service = "user.v1.User";
    private const string OtherService = "test.Other";

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public async Task TheMethod_ComesBeforeTheService_AndThatBeforeTheDefault(bool reversed)
    {
        PooledMethodConfig[] configs = [Config(1, Name(Service, "GetName")), Config(2, Name(Service)), Config(4, MethodName.Default)];
        var invoker = NewInvoker(options => Array.ForEach(reversed ? [.. configs.Reverse()] : configs, options.MethodConfigs.Add));
        Assert.Equal(2, await AttemptsAsync(invoker, Service, "GetName"));
        Assert.Equal(3, await AttemptsAsync(invoker, Service, "GetProfile"));
        Assert.Equal(5, await AttemptsAsync(invoker, OtherService, "GetName"));
        Assert.Equal(2, await AttemptsAsync(invoker, Service, "GetName"));
    }

    [Fact]
    public async Task WithoutADefault_TheOthersDoAsTheInvokerDoes()
    {
        var invoker = NewInvoker(options =>
        {
            options.Retry.MaxRetryAttempts = 2;
            options.MethodConfigs.Add(Config(1, Name(Service, "GetName"), Name(OtherService, "Get")));
        });
        Assert.Equal(2, await AttemptsAsync(invoker, Service, "GetName"));
        Assert.Equal(2, await AttemptsAsync(invoker, OtherService, "Get"));
        Assert.Equal(3, await AttemptsAsync(invoker, Service, "GetProfile"));
        Assert.Equal(3, await AttemptsAsync(invoker, OtherService, "GetName"));
    }

    [Fact]
    public async Task AnEmptyName_IsTheSameAsNone()
    {
        var invoker = NewInvoker(options =>
        {
            options.MethodConfigs.Add(Config(1, Name(Service, "")));
            options.MethodConfigs.Add(Config(2, Name("", "")));
        });
        Assert.Equal(2, await AttemptsAsync(invoker, Service, "GetName"));
        Assert.Equal(3, await AttemptsAsync(invoker, OtherService, "Get"));
    }

    [Fact]
    public async Task ARetryOfZero_TurnsItOff_ForWhatNeverLeftToo()
    {
        var (client, _) = NewClient(static options => options.MethodConfigs.Add(Config(0, Name(Service, "GetName"))));
        Server.ThenRefuse();
        await Assert.ThrowsAsync<RpcException>(() => client.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon());

        Server.ThenRefuse().ThenName("anna");
        var calling = client.RenameAsync(new RenameRequest()).ResponseAsync;
        await Elapse(calling);
        await calling.Soon();
    }

    [Fact]
    public async Task APipelineOfItsOwn_IsThatOfTheMethodAlone()
    {
        var invoker = NewInvoker(static options => options.MethodConfigs.Add(new PooledMethodConfig
        {
            Names = { Name(Service, "GetName") },
            ConfigurePipeline = static pipeline => pipeline.AddRetry(new RetryStrategyOptions { MaxRetryAttempts = 6, Delay = TimeSpan.Zero }),
        }));
        Assert.Equal(7, await AttemptsAsync(invoker, Service, "GetName"));
        Assert.Equal(4, await AttemptsAsync(invoker, Service, "GetProfile"));
    }

    [Fact]
    public async Task AConfigWithoutRetry_DoesAsTheInvokerDoes()
    {
        var invoker = NewInvoker(static options =>
        {
            options.ConfigurePipeline = static pipeline => pipeline.AddRetry(new RetryStrategyOptions { MaxRetryAttempts = 6, Delay = TimeSpan.Zero });
            options.MethodConfigs.Add(new PooledMethodConfig { Names = { Name(Service, "GetName") } });
            options.MethodConfigs.Add(Config(1, Name(Service, "GetProfile")));
        });
        Assert.Equal(7, await AttemptsAsync(invoker, Service, "GetName"));
        Assert.Equal(2, await AttemptsAsync(invoker, Service, "GetProfile"));
    }

    [Theory]
    [InlineData("Rename", null, true, true)]
    [InlineData("GetName", null, false, false)]
    [InlineData("Rename", null, null, false)]
    [InlineData("GetName", null, null, true)]
    [InlineData("Rename", false, true, true)] // over the callback, too
    [InlineData("GetName", true, false, false)]
    [InlineData("Rename", true, null, true)]
    public async Task IsIdempotent_HasTheLastWord(string method, bool? callback, bool? config, bool again)
    {
        var (client, _) = NewClient(options =>
        {
            options.IsIdempotent = callback is { } word ? _ => word : null;
            options.MethodConfigs.Add(new PooledMethodConfig { Names = { Name(Service, method) }, Idempotent = config });
        });
        Server.ThenBreak().ThenName("anna");
        Task calling = method == "GetName"
            ? client.GetNameAsync(new GetNameRequest()).ResponseAsync
            : client.RenameAsync(new RenameRequest()).ResponseAsync;
        await Elapse(calling);
        Assert.Equal(again, calling.IsCompletedSuccessfully);
        Assert.Equal(again ? 2 : 1, Server.Requests.Count);
    }

    [Fact]
    public void Mistakes_AreSaidSo()
    {
        AssertError("names no method. Add MethodName.Default", new PooledMethodConfig());
        AssertError("The Names of a method config contain null", new PooledMethodConfig { Names = { null! } });
        AssertError("Two method configs name the method 'GetName' of the service 'user.v1.User'. Name each once.", Config(1, Name(Service, "GetName")), Config(2, Name(Service, "GetName")));
        AssertError("Name each once.", Config(1, Name(Service), Name(Service, "")));
        AssertError("Name each once.", Config(1, MethodName.Default), Config(1, Name(null)));
        AssertError("either hedged or retried", new PooledMethodConfig
        {
            Names = { MethodName.Default },
            Hedging = new ChannelHedgingStrategyOptions(),
            Retry = new ChannelRetryStrategyOptions(),
        });
        AssertError("either hedged or retried", new PooledMethodConfig
        {
            Names = { MethodName.Default },
            Hedging = new ChannelHedgingStrategyOptions(),
            ConfigurePipeline = static _ => { },
        });

        AssertError("MethodConfigs contains null", [null!]);
        AssertError("names '/user.v1.User/GetName'", Config(1, Name("/user.v1.User", "GetName")));
        AssertError("names 'user.v1.User//GetName'", Config(1, Name(Service, "/GetName")));
        AssertErrorOf("ServiceDescriptors contains null", static options => options.ServiceDescriptors.Add(null!));
        AssertErrorOf("ShouldHandle is null", static options => options.Retry.ShouldHandle = null!);

        static void AssertError(string message, params PooledMethodConfig[] configs) =>
            AssertErrorOf(message, options => Array.ForEach(configs, options.MethodConfigs.Add));

        static void AssertErrorOf(string message, Action<PoolingCallInvokerOptions> configure)
        {
            using var pool = new ChannelPool(new StubPolicy());
            var options = new PoolingCallInvokerOptions();
            configure(options);
            Assert.Contains(message, Assert.Throws<ArgumentException>(() => new PoolingCallInvoker(pool, options)).Message, StringComparison.Ordinal);
        }
    }

    [Theory]
    [InlineData("GetName", false, null, false)] // nothing leads from the messages to the service
    [InlineData("GetName", true, null, true)]
    [InlineData("Rename", true, null, false)]
    [InlineData("NoSuchMethod", true, null, false)]
    [InlineData("GetName", true, false, false)] // the callback has the last word
    [InlineData("Rename", true, true, true)]
    public async Task AServiceThatIsNamed_SaysWhichOfItsMethodsAreIdempotent(string name, bool named, bool? callback, bool again)
    {
        var invoker = NewInvoker(options =>
        {
            options.IsIdempotent = callback is { } word ? _ => word : null;
            if (named)
            {
                options.ServiceDescriptors.Add(User.Descriptor);
                options.ServiceDescriptors.Add(User.Descriptor); // once more does no harm
            }
        });
        Server.ThenBreak().ThenReply(new StringValue { Value = "anna" });
        var calling = invoker.AsyncUnaryCall(NewMethod(Service, name), host: null, default, new Empty()).ResponseAsync;
        await Elapse(calling);
        Assert.Equal(again, calling.IsCompletedSuccessfully);
        Assert.Equal(again ? 2 : 1, Server.Requests.Count);
    }

    private static PooledMethodConfig Config(int retries, params MethodName[] names)
    {
        var config = new PooledMethodConfig { Retry = new ChannelRetryStrategyOptions { MaxRetryAttempts = retries }, Idempotent = true };
        Array.ForEach(names, config.Names.Add);
        return config;
    }

    private static MethodName Name(string? service, string? method = null) => new() { Service = service, Method = method };

    private static Method<Empty, StringValue> NewMethod(string service, string name) => new(
        MethodType.Unary,
        service,
        name,
        Marshallers.Create(static message => message.ToByteArray(), Empty.Parser.ParseFrom),
        Marshallers.Create(static message => message.ToByteArray(), StringValue.Parser.ParseFrom));

    // Makes a call of messages that say nothing of the service, which fails before it leaves, and says how often it was tried.
    private async Task<int> AttemptsAsync(PoolingCallInvoker invoker, string service, string name)
    {
        var before = Server.Requests.Count;
        for (var i = 0; i < 10; i++)
        {
            Server.ThenRefuse();
        }

        var calling = invoker.AsyncUnaryCall(NewMethod(service, name), host: null, default, new Empty()).ResponseAsync;
        await Elapse(calling);
        await Assert.ThrowsAsync<RpcException>(() => calling.Soon());
        return Server.Requests.Count - before;
    }
}
