using System.Globalization;
using System.Net;
using Microsoft.Extensions.Time.Testing;

namespace PoolingInvoker.Tests.Pool;

/// <summary>Which endpoint a channel goes to, for one client and for many.</summary>
public sealed class PoolEndpointsTests(ITestOutputHelper output)
{
    private readonly FakeTimeProvider _time = new();

    [Fact]
    public void AChannelGoesToTheEndpointWithTheFewest()
    {
        var endpoints = New(seed: 1, List(7));
        List<PoolEndpoint> taken = [];
        for (var channels = 1; channels <= 40; channels++)
        {
            taken.Add(endpoints.Take(channels, inPlaceOf: null));
            Assert.InRange(taken.Max(static endpoint => endpoint.Channels) - taken.Min(static endpoint => endpoint.Channels), 0, 1);
            Assert.Equal(Math.Min(channels, 7), taken.Distinct().Count());
        }
    }

    [Fact]
    public void AReplacement_StaysWhereItsChannelWas_IfThatIsEven()
    {
        var endpoints = New(seed: 1, List(3));
        var taken = Enumerable.Range(1, 6).Select(channels => endpoints.Take(channels, inPlaceOf: null)).ToList();
        endpoints.Leave(taken[0]);
        taken.RemoveAt(0);
        for (var round = 0; round < 3; round++)
        {
            for (var i = 0; i < taken.Count; i++)
            {
                var replacement = endpoints.Take(taken.Count, taken[i]);
                Assert.Same(taken[i], replacement);
                endpoints.Leave(taken[i]);
            }
        }
    }

    [Fact]
    public void EachPool_HasItsOwnOrder()
    {
        var list = List(20);
        var first = Enumerable.Range(1, 600).Select(seed => New(seed, list).Take(1, inPlaceOf: null).Endpoint).CountBy(static endpoint => endpoint).ToDictionary();
        Assert.Equal(20, first.Count);
        Assert.InRange(first.Values.Max(), 30, 60);
    }

    [Fact]
    public void WhatIsTriedAgain_IsLeftOutForLongerEachTime_AlsoWhenTheListChanges()
    {
        var list = List(3);
        var endpoints = New(seed: 1, list);
        var failing = endpoints.Take(1, inPlaceOf: null);
        endpoints.Leave(failing);
        var expected = 1.0;
        for (var i = 0; i < 12; i++)
        {
            failing.Failed();
            endpoints.Update(i % 2 == 0 ? [.. list, Endpoint(9)] : list);
            _time.Advance(TimeSpan.FromSeconds(0.79 * expected));
            Assert.DoesNotContain(failing, TakeAndLeave(endpoints));
            Assert.True(endpoints.IsUneven(3));
            _time.Advance(TimeSpan.FromSeconds(0.42 * expected));
            Assert.Contains(failing, TakeAndLeave(endpoints));
            expected = Math.Min(30, 1.6 * expected);
        }
    }

    [Fact]
    public void WhereAllAreLeftOut_EachIsTriedInItsTurn()
    {
        var endpoints = New(seed: 1, List(4));
        List<ChannelEndpoint> tried = [];
        for (var i = 0; i < 40; i++)
        {
            var endpoint = endpoints.Take(1, inPlaceOf: null);
            tried.Add(endpoint.Endpoint);
            endpoint.Failed();
            endpoints.Leave(endpoint);
            _time.Advance(TimeSpan.FromSeconds(0.1));
        }

        Assert.All(tried.Chunk(4), static round => Assert.Equal(4, round.Distinct().Count()));
    }

    [Fact]
    public void AnEndpointThatIsGone_IsKnownUntilItsLastChannelLeaves()
    {
        var list = List(2);
        var endpoints = New(seed: 1, list);
        var (first, second) = (endpoints.Take(1, inPlaceOf: null), endpoints.Take(2, inPlaceOf: null));
        endpoints.Update([second.Endpoint]);
        Assert.True(first.IsGone);
        Assert.True(endpoints.IsUneven(2));
        Assert.Same(second, endpoints.Take(2, first));
        endpoints.Leave(first);
        Assert.False(endpoints.IsUneven(2));
        endpoints.Update(list);
        Assert.Equal(second.Endpoint, endpoints.Imbalance(2)!.Value.From.Endpoint);
        Assert.NotSame(first, endpoints.Imbalance(2)!.Value.To);
    }

    [Fact]
    public void AnEndpointThatIsBackInTime_IsTheSame()
    {
        var list = List(2);
        var endpoints = New(seed: 1, list);
        var taken = endpoints.Take(1, inPlaceOf: null);
        endpoints.Update([.. list.Where(endpoint => endpoint != taken.Endpoint)]);
        endpoints.Update(list);
        Assert.False(taken.IsGone);
        Assert.NotSame(taken, endpoints.Take(2, inPlaceOf: null));
        Assert.False(endpoints.IsUneven(2));
    }

    /// <summary>
    /// A client with fewer channels than there are endpoints keeps those that it has, when others come and go: of 300 endpoints 10 are
    /// replaced, which is one in 30, and of its 50 it should change as many.
    /// </summary>
    [Fact]
    public void TheSubsetOfAClient_IsStable()
    {
        List<int> moved = [];
        List<int> turned = [];
        for (var seed = 0; seed < 200; seed++)
        {
            var list = List(300);
            var endpoints = New(seed, list);
            var channels = Enumerable.Range(1, PoolEndpoints.SubsetSize).Select(count => endpoints.Take(count, inPlaceOf: null)).ToList();
            var before = Subset(seed, list);
            var changed = (List<ChannelEndpoint>)[.. list.Skip(10), .. Enumerable.Range(300, 10).Select(Endpoint)];
            turned.Add(Subset(seed, changed).Except(before).Count());

            // As the pool does it: what is gone is replaced, and then what is uneven moves.
            endpoints.Update(changed);
            var was = channels.Select(static channel => channel.Endpoint).ToHashSet();
            for (var i = 0; i < channels.Count; i++)
            {
                if (channels[i].IsGone)
                {
                    var old = channels[i];
                    channels[i] = endpoints.Take(channels.Count, old);
                    endpoints.Leave(old);
                }
            }

            Assert.Null(endpoints.Imbalance(channels.Count));
            Assert.Equal(channels.Count, channels.Distinct().Count());
            moved.Add(channels.Count(channel => !was.Contains(channel.Endpoint)));
        }

        output.WriteLine(string.Create(CultureInfo.InvariantCulture,
            $"10 of 300 endpoints are replaced: of its 50 a client changes {moved.Average():0.00} on average and {moved.Max()} at the most; of the 50 that it would choose anew {turned.Average():0.00} and {turned.Max()} are others"));
        Assert.InRange(moved.Average(), 1, 2.5);
        Assert.InRange(moved.Max(), 1, 9);
        Assert.InRange(turned.Max(), 1, 14);

        HashSet<ChannelEndpoint> Subset(int seed, IReadOnlyList<ChannelEndpoint> list)
        {
            var endpoints = New(seed, list);
            return [.. Enumerable.Range(1, PoolEndpoints.SubsetSize).Select(count => endpoints.Take(count, inPlaceOf: null).Endpoint)];
        }
    }

    /// <summary>
    /// A fleet: 1,000 clients and 300 servers. Were each client to connect to all there would be 300,000 connections, 1,000 at each server:
    /// they grow as clients times servers. With a subset each client has as many as its subset is large, however many servers there are,
    /// and each server as many as the clients times the subset by the servers: here 167 in place of 1,000. The clients draw by themselves,
    /// so the servers have more or less by chance: the deviation is some 1 / √(connections of a server), and the worst of 300 some three
    /// times that.
    /// </summary>
    [Fact]
    public void ManyClientsTogether_UseAllServersEvenly()
    {
        const int Clients = 1_000;
        const int Servers = 300;
        const int Fleets = 5; // what is asserted is the median
        var list = List(Servers);
        output.WriteLine("subset  connections  of a client  of a server  the most by the mean  load, the most by the mean");
        Dictionary<int, double> channelsMaxByMean = [];
        foreach (var size in (int[])[10, 20, PoolEndpoints.SubsetSize, 100])
        {
            List<double> channels = [];
            List<double> loads = [];
            for (var fleet = 0; fleet < Fleets; fleet++)
            {
                var random = new Random(fleet);
                var connections = new Dictionary<ChannelEndpoint, int>();
                var load = new Dictionary<ChannelEndpoint, double>();
                for (var client = 0; client < Clients; client++)
                {
                    var endpoints = New((fleet * Clients) + client, list);
                    var calls = -Math.Log(1 - random.NextDouble()); // few clients call much, and many little
                    for (var count = 1; count <= size; count++)
                    {
                        var endpoint = endpoints.Take(count, inPlaceOf: null).Endpoint;
                        connections[endpoint] = connections.GetValueOrDefault(endpoint) + 1;
                        load[endpoint] = load.GetValueOrDefault(endpoint) + (calls / size);
                    }
                }

                Assert.Equal(Servers, connections.Count);
                Assert.Equal(Clients * size, connections.Values.Sum());
                channels.Add(connections.Values.Max() / connections.Values.Average());
                loads.Add(load.Values.Max() / load.Values.Average());
            }

            channelsMaxByMean[size] = Median(channels);
            output.WriteLine(string.Create(CultureInfo.InvariantCulture,
                $"{size,6}  {Clients * size,11:#,0}  {size,11}  {(double)Clients * size / Servers,11:0}  {Median(channels),20:0.000}  {Median(loads),26:0.000}"));
        }

        output.WriteLine(string.Create(CultureInfo.InvariantCulture, $"{"all",6}  {Clients * Servers,11:#,0}  {Servers,11}  {Clients,11:0}"));
        Assert.True(channelsMaxByMean[PoolEndpoints.SubsetSize] <= 1.25, $"The most by the mean is {channelsMaxByMean[PoolEndpoints.SubsetSize]:0.000}.");

        static double Median(List<double> values) => values.Order().ElementAt(values.Count / 2);
    }

    private static ChannelEndpoint Endpoint(int number) => new(new IPEndPoint(new IPAddress([10, 0, (byte)(number >> 8), (byte)number]), 5000));

    private static List<ChannelEndpoint> List(int count) => [.. Enumerable.Range(0, count).Select(Endpoint)];

    // Where as many channels go as there are endpoints.
    private static List<PoolEndpoint> TakeAndLeave(PoolEndpoints endpoints)
    {
        var taken = Enumerable.Range(0, endpoints.Count).Select(_ => endpoints.Take(endpoints.Count, inPlaceOf: null)).ToList();
        taken.ForEach(endpoints.Leave);
        return taken;
    }

    private PoolEndpoints New(int seed, IReadOnlyList<ChannelEndpoint> list)
    {
        var endpoints = new PoolEndpoints(_time, new Random(seed));
        endpoints.Update(list);
        return endpoints;
    }
}
