using Grpc.Core;
using Grpc.Core.Interceptors;
using Grpc.Net.Client.Configuration;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Calls;

/// <summary>Which channel calls with a key go to.</summary>
public sealed class AffinityTests : ScriptedCalls
{
    private const int Channels = 5;

    private static readonly TimeSpan Delay = TimeSpan.FromMilliseconds(100);
    private static readonly string[] Keys = [.. Enumerable.Range(0, 12).Select(static number => $"session-{number}")];

    [Fact]
    public async Task CallsOfAllKinds_WithTheSameKey_GoToTheSameChannel()
    {
        var invoker = await NewConnectedAsync();
        HashSet<int> channels = [];
        foreach (var key in Keys)
        {
            var client = new User.UserClient(invoker.WithAffinity(key));
            Server.Forget();
            Server.ThenName("anna").ThenName("anna").ThenReply(new NameReply()).ThenReplyAfterRequests(new ImportNamesReply()).ThenReply(new ChatMessage()).ThenName("anna");
            var since = Server.Requests.Count;
            await client.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon();
            await Task.Run(() => client.GetName(new GetNameRequest())).Soon();
            using (var listing = client.ListNames(new ListNamesRequest()))
            {
                await ReadAsync(listing.ResponseStream);
            }

            using (var importing = client.ImportNames())
            {
                await importing.RequestStream.CompleteAsync().Soon();
                await importing.ResponseAsync.Soon();
            }

            using (var chat = client.Chat())
            {
                await chat.RequestStream.CompleteAsync().Soon();
                await ReadAsync(chat.ResponseStream);
            }

            await new User.UserClient(invoker.WithAffinity(key)).GetNameAsync(new GetNameRequest()).ResponseAsync.Soon();
            Assert.Equal(6, Server.Requests.Count - since);
            channels.Add(Assert.Single(Server.Requests.Skip(since).Select(static request => request.Channel).Distinct()));
        }

        Assert.InRange(channels.Count, 3, Channels);
        Assert.Equal((Keys.Length * 6, 0), Moves(invoker.Pool));
    }

    [Fact]
    public async Task TheKey_MayComeFromTheRequest_AndWithAffinityComesFirst_AndTheOptionsOfTheCallBeforeBoth()
    {
        List<(IMethod Method, object? Request)> asked = [];
        var invoker = await NewConnectedAsync(options => options.AffinityKey = (method, request) =>
        {
            asked.Add((method, request));
            return request is GetNameRequest get ? Keys[get.Id] : null;
        });
        var client = new User.UserClient(invoker);
        var channelOf = new Dictionary<string, int>();
        foreach (var key in Keys)
        {
            channelOf[key] = await ChannelOfAsync(new User.UserClient(invoker.WithAffinity(key)), new GetNameRequest());
        }

        Assert.Empty(asked);
        for (var i = 0; i < Keys.Length; i++)
        {
            var other = Keys[(i + 1) % Keys.Length];
            var request = new GetNameRequest { Id = i };
            Assert.Equal(channelOf[Keys[i]], await ChannelOfAsync(client, request));
            Assert.Same(request, Assert.Single(asked).Request);
            Assert.Equal("/user.v1.User/GetName", asked[0].Method.FullName);
            asked.Clear();
            Assert.Equal(channelOf[other], await ChannelOfAsync(client, request, new CallOptions().WithAffinity(other)));
            Assert.Equal(channelOf[other], await ChannelOfAsync(new User.UserClient(invoker.WithAffinity(Keys[i])), request, new CallOptions().WithAffinity(other)));
            asked.Clear();
        }

        Server.ThenReplyAfterRequests(new ImportNamesReply());
        using var importing = client.ImportNames();
        await importing.RequestStream.CompleteAsync().Soon();
        await importing.ResponseAsync.Soon();
        Assert.Null(Assert.Single(asked).Request);
    }

    [Fact]
    public async Task ACallWithoutAKey_GoesAnywhere()
    {
        var invoker = await NewConnectedAsync(static options => options.AffinityKey = static (_, request) => ((GetNameRequest)request!).Id == 0 ? null : string.Empty);
        foreach (var client in (User.UserClient[])[new(invoker), new(invoker.WithAffinity(string.Empty))])
        {
            HashSet<int> channels = [];
            for (var i = 0; channels.Count < Channels; i++)
            {
                channels.Add(await ChannelOfAsync(client, new GetNameRequest { Id = i % 2 }));
            }
        }

        Assert.Equal((0, 0), Moves(invoker.Pool));
    }

    [Fact]
    public async Task WhatTheFunctionThrows_TheCallThrowsAsItStarts_AndNothingIsLeased()
    {
        var invoker = await NewConnectedAsync(static options => options.AffinityKey = static (_, _) => throw new FormatException("no key"));
        var client = new User.UserClient(invoker);
        Action[] calls =
        [
            () => client.GetNameAsync(new GetNameRequest()),
            () => client.GetName(new GetNameRequest()),
            () => client.ListNames(new ListNamesRequest()),
            () => client.ImportNames(),
            () => client.Chat(),
        ];
        Assert.All(calls, static call => Assert.Equal("no key", Assert.Throws<FormatException>(call).Message));
        Assert.Empty(Server.Requests);
        Assert.Equal(0, invoker.Pool.GetStatistics().CallsInFlight);
    }

    [Fact]
    public async Task ARetry_GoesElsewhere_AndTheCallsAfterIt_UntilTheChannelIsWellAgain()
    {
        var invoker = await NewConnectedAsync();

        // Where a server has answered on all channels a retry is made at once: no time passes.
        while (Server.Requests.DistinctBy(static request => request.Channel).Count() < Channels)
        {
            await ChannelOfAsync(new User.UserClient(invoker), new GetNameRequest());
        }

        foreach (var key in Keys[..4])
        {
            var client = new User.UserClient(invoker.WithAffinity(key));
            var own = await ChannelOfAsync(client, new GetNameRequest());
            var moved = Moves(invoker.Pool).Moved;
            Server.ThenStatus(StatusCode.Unavailable).ThenName("anna");
            await client.GetNameAsync(new GetNameRequest()).ResponseAsync.Soon();
            var (first, second) = (Server.Requests[^2].Channel, Server.Requests[^1].Channel);
            Assert.Equal(own, first);
            Assert.NotEqual(own, second);
            Assert.Equal(moved + 1, Moves(invoker.Pool).Moved);

            Assert.Equal(second, await ChannelOfAsync(client, new GetNameRequest()));
            Assert.Equal(moved + 2, Moves(invoker.Pool).Moved);
            await Elapse(() => invoker.Pool.State.Channels.Values.All(static channel => channel.Health != ChannelHealth.Penalized));
            Assert.Equal(own, await ChannelOfAsync(client, new GetNameRequest()));
        }
    }

    [Fact]
    public async Task Hedges_AreOnChannelsOfTheirOwn_AndTheFirstOnThatOfTheKey()
    {
        var invoker = await NewConnectedAsync(static options => options.MethodConfigs.Add(new PooledMethodConfig
        {
            Names = { new MethodName { Service = "user.v1.User" } },
            Hedging = new ChannelHedgingStrategyOptions { Delay = Delay, MaxHedgedAttempts = 1 },
        }));
        var client = new User.UserClient(invoker.WithAffinity(Keys[0]));
        var own = await ChannelOfAsync(client, new GetNameRequest());
        for (var i = 0; i < 5; i++)
        {
            Server.ThenHang().ThenName("anna");
            var (due, requests) = (Time.Dues.Count(static due => due == Delay), Server.Requests.Count);
            var calling = client.GetNameAsync(new GetNameRequest()).ResponseAsync;
            await Waiting.Until(() => Time.Dues.Count(static due => due == Delay) > due && Server.Requests.Count == requests + 1);
            Time.Advance(Delay);
            await calling.Soon();
            Assert.Equal(own, Server.Requests[^2].Channel);
            Assert.NotEqual(own, Server.Requests[^1].Channel);
        }
    }

    [Fact]
    public async Task AChannelThatIsFull_GivesWay_AndIsBack()
    {
        var invoker = await NewConnectedAsync(static options => options.Pool.MaxConcurrentCallsPerChannel = 1);
        var client = new User.UserClient(invoker.WithAffinity(Keys[0]));
        var own = await ChannelOfAsync(client, new GetNameRequest());
        var end = new TaskCompletionSource();
        Server.ThenReplyAfter(end.Task, new GetNameReply());
        var holding = client.GetNameAsync(new GetNameRequest()).ResponseAsync;
        await Waiting.Until(() => Server.Requests.Count == 2);
        Assert.Equal(own, Server.Requests[1].Channel);
        Assert.NotEqual(own, await ChannelOfAsync(client, new GetNameRequest()));
        end.SetResult();
        await holding.Soon();
        Assert.Equal(own, await ChannelOfAsync(client, new GetNameRequest()));
        Assert.Equal((4, 1), Moves(invoker.Pool));
    }

    [Fact]
    public async Task TheKeyInTheOptionsOfACall_PassesInterceptors_AndNoServerGetsIt()
    {
        var invoker = await NewConnectedAsync();
        List<string> seen = [];
        var client = new User.UserClient(invoker.Intercept(headers =>
        {
            seen.AddRange(headers.Select(static header => header.Key));
            headers.Add("traced", "yes");
            return headers;
        }));
        foreach (var key in Keys)
        {
            var own = await ChannelOfAsync(new User.UserClient(invoker.WithAffinity(key)), new GetNameRequest());
            Assert.Equal(own, await ChannelOfAsync(client, new GetNameRequest(), NewOptions(key)));
            Server.ThenStatus(StatusCode.Unavailable).ThenName("anna");
            var calling = client.GetNameAsync(new GetNameRequest(), NewOptions(key)).ResponseAsync;
            await Elapse(calling);
            await calling.Soon();
            await Elapse(() => invoker.Pool.State.Channels.Values.All(static channel => channel.Health != ChannelHealth.Penalized));
        }

        Assert.Equal(["tenant", "pooling-invoker-affinity"], seen.Distinct());
        Assert.All(Server.Requests, static sent => Assert.DoesNotContain(sent.Request.Headers, static header => header.Key.Contains("affinity", StringComparison.Ordinal)));
        Assert.Equal(3 * Keys.Length, Server.Requests.Count(static sent => sent.Request.Headers.Contains("tenant") && sent.Request.Headers.Contains("traced")));

        static CallOptions NewOptions(string key) => new CallOptions(new Metadata { { "tenant", "7" } }).WithAffinity("another").WithAffinity(key);
    }

    [Fact]
    public void NoKey_IsAnError()
    {
        var invoker = NewInvoker();
        Assert.Throws<ArgumentNullException>(() => invoker.WithAffinity(null!));
        Assert.Throws<ArgumentNullException>(() => new CallOptions().WithAffinity(null!));
    }

    private static (long Calls, long Moved) Moves(ChannelPool pool) => (pool.GetStatistics().AffinityCalls, pool.GetStatistics().AffinityMoves);

    private static async Task ReadAsync<T>(IAsyncStreamReader<T> reader)
    {
        while (await reader.MoveNext(CancellationToken.None).Soon())
        {
            Assert.NotNull(reader.Current);
        }
    }

    private async Task<PoolingCallInvoker> NewConnectedAsync(Action<PoolingCallInvokerOptions>? configure = null)
    {
        var invoker = NewInvoker(options =>
        {
            options.Pool.MinPoolSize = options.Pool.MaxPoolSize = Channels;
            configure?.Invoke(options);
        });
        await invoker.ConnectAsync().Soon();
        return invoker;
    }

    private async Task<int> ChannelOfAsync(User.UserClient client, GetNameRequest request, CallOptions options = default)
    {
        Server.ThenName("anna");
        await client.GetNameAsync(request, options).ResponseAsync.Soon();
        return Server.Requests[^1].Channel;
    }
}
