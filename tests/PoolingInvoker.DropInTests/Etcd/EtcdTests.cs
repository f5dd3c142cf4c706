using System.Globalization;
using dotnet_etcd;
using Etcdserverpb;
using Google.Protobuf;
using Grpc.Core;
using Grpc.Net.Client;
using Mvccpb;
using PoolingInvoker.Testing;

namespace PoolingInvoker.DropInTests.Etcd;

/// <summary>dotnet-etcd, and the clients that it is generated from, over the pool to a real etcd.</summary>
[Trait("Tier", "all")]
public sealed class EtcdTests(EtcdServer etcd) : IClassFixture<EtcdServer>
{
    private const long NoSuchLease = 4711;

    public static TheoryData<PoolKind> EachPool => DropIn.EachPool;

    [Theory]
    [MemberData(nameof(EachPool))]
    public async Task PutRangeAndDelete(PoolKind pool)
    {
        var seen = await SameAsBareAsync(pool, static async (client, folder, transcript) =>
        {
            await client.PutAsync($"{folder}/1", "one");
            await client.PutAsync($"{folder}/2", "two");
            transcript.Add(await client.GetValAsync($"{folder}/1"));
            AddRange(await client.GetRangeAsync(folder), folder, transcript);
            transcript.Add($"deleted: {(await client.DeleteRangeAsync(folder)).Deleted}");
            AddRange(await client.GetRangeAsync(folder), folder, transcript);
        });
        Assert.Equal(["one", "range: /1=one, /2=two", "deleted: 2", "range: "], seen);
    }

    [Theory]
    [MemberData(nameof(EachPool))]
    public async Task BlockingPutAndRange(PoolKind pool)
    {
        var seen = await SameAsBareAsync(pool, static (client, folder, transcript) =>
        {
            client.Put($"{folder}/1", "one");
            AddRange(client.GetRange(folder), folder, transcript);
            return Task.CompletedTask;
        });
        Assert.Equal(["range: /1=one"], seen);
    }

    [Theory]
    [MemberData(nameof(EachPool))]
    public async Task Transaction(PoolKind pool)
    {
        var seen = await SameAsBareAsync(pool, static async (client, folder, transcript) =>
        {
            for (var i = 0; i < 2; i++)
            {
                var response = await client.TransactionAsync(PutIfAbsent(ByteString.CopyFromUtf8($"{folder}/1"), $"{i}"));
                transcript.Add($"{response.Succeeded}");
                AddRange(await client.GetRangeAsync(folder), folder, transcript);
            }
        });
        Assert.Equal(["True", "range: /1=0", "False", "range: /1=0"], seen);

        static TxnRequest PutIfAbsent(ByteString key, string value) => new()
        {
            Compare = { new Compare { Key = key, Target = Compare.Types.CompareTarget.Version, Result = Compare.Types.CompareResult.Equal, Version = 0 } },
            Success = { new RequestOp { RequestPut = new PutRequest { Key = key, Value = ByteString.CopyFromUtf8(value) } } },
            Failure = { new RequestOp { RequestRange = new RangeRequest { Key = key } } },
        };
    }

    [Theory]
    [MemberData(nameof(EachPool))]
    public async Task Errors(PoolKind pool)
    {
        var seen = await SameAsBareAsync(pool, static async (client, folder, transcript) =>
        {
            await transcript.StepAsync("revoke", async () => $"{await client.LeaseRevokeAsync(new LeaseRevokeRequest { ID = NoSuchLease })}");
            await transcript.StepAsync("put", async () => $"{await client.PutAsync(new PutRequest { Key = ByteString.CopyFromUtf8(folder), Lease = NoSuchLease })}");
            await transcript.StepAsync("empty key", async () => $"{await client.PutAsync(new PutRequest())}");
            await transcript.StepAsync("future", async () => $"{await client.GetAsync(new RangeRequest { Key = ByteString.CopyFromUtf8(folder), Revision = long.MaxValue })}");
            transcript.Step("blocking", () => $"{client.LeaseRevoke(new LeaseRevokeRequest { ID = NoSuchLease })}");
            transcript.Add($"time to live: {(await client.LeaseTimeToLiveAsync(new LeaseTimeToLiveRequest { ID = NoSuchLease })).TTL}");
        });
        Assert.Equal(
            [
                "revoke: NotFound 'etcdserver: requested lease not found' []",
                "put: NotFound 'etcdserver: requested lease not found' []",
                "empty key: InvalidArgument 'etcdserver: key is not provided' []",
                "future: OutOfRange 'etcdserver: mvcc: required revision is a future revision' []",
                "blocking: NotFound 'etcdserver: requested lease not found' []",
                "time to live: -1",
            ],
            seen.Select(static line => line.Replace("[content-type=application/grpc]", "[]", StringComparison.Ordinal)));
    }

    [Theory]
    [MemberData(nameof(EachPool))]
    public async Task LeaseKeepAlive_OfAStreamThatIsCompleted(PoolKind pool)
    {
        var seen = await SameAsBareAsync(pool, static async (client, folder, transcript) =>
        {
            var lease = (await client.LeaseGrantAsync(new LeaseGrantRequest { TTL = 60 })).ID;
            await client.PutAsync(new PutRequest { Key = ByteString.CopyFromUtf8($"{folder}/1"), Value = ByteString.CopyFromUtf8("one"), Lease = lease });
            var requests = new[] { new LeaseKeepAliveRequest { ID = lease }, new LeaseKeepAliveRequest { ID = lease }, new LeaseKeepAliveRequest { ID = NoSuchLease } };
            await client.LeaseKeepAlive(requests, response => transcript.Add($"{response.ID == lease}, {response.TTL}"), CancellationToken.None);
            transcript.Add($"granted: {(await client.LeaseTimeToLiveAsync(new LeaseTimeToLiveRequest { ID = lease })).GrantedTTL}");
            await client.LeaseRevokeAsync(new LeaseRevokeRequest { ID = lease });
            AddRange(await client.GetRangeAsync(folder), folder, transcript);
        });
        Assert.Equal(["True, 60", "True, 60", "False, 0", "granted: 60", "range: "], seen);
    }

    /// <summary>This one starts its call with a token whose source it has disposed by the time that it reads and writes.</summary>
    [Theory]
    [MemberData(nameof(EachPool))]
    public async Task LeaseKeepAlive_UntilTheLeaseIsRevoked(PoolKind pool)
    {
        var seen = await SameAsBareAsync(pool, static async (client, folder, transcript) =>
        {
            var lease = (await client.LeaseGrantAsync(new LeaseGrantRequest { TTL = 60 })).ID;
            using var ended = new CancellationTokenSource();
            var keepingAlive = client.LeaseKeepAlive(ended, lease, keepAliveTimeout: 10, communicationTimeout: 30_000);
            await client.PutAsync(folder, "");
            Assert.False(keepingAlive.IsCompleted);
            await client.LeaseRevokeAsync(new LeaseRevokeRequest { ID = lease });
            await keepingAlive;
            transcript.Add($"{ended.IsCancellationRequested}");
        });
        Assert.Equal(["True"], seen);
    }

    [Theory]
    [MemberData(nameof(EachPool))]
    public async Task LeaseKeepAlive_ThatIsCancelled(PoolKind pool)
    {
        var seen = await SameAsBareAsync(pool, static async (client, folder, transcript) =>
        {
            var lease = (await client.LeaseGrantAsync(new LeaseGrantRequest { TTL = 60 })).ID;
            using var cancellation = new CancellationTokenSource();
            var answered = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
            var keepingAlive = client.LeaseKeepAlive(
                [new LeaseKeepAliveRequest { ID = lease }],
                _ =>
                {
                    cancellation.Cancel();
                    answered.SetResult();
                },
                cancellation.Token);
            await answered.Task;
            await transcript.StepAsync("keep alive", async () =>
            {
                await keepingAlive;
                return "";
            });
            await client.LeaseRevokeAsync(new LeaseRevokeRequest { ID = lease });
        });
        Assert.NotEmpty(seen);
    }

    [Theory]
    [MemberData(nameof(EachPool))]
    public async Task Watch_SeesAPut(PoolKind pool)
    {
        var seen = await SameAsBareAsync(pool, static async (client, folder, transcript) =>
        {
            var deleted = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
            var id = await client.WatchRangeAsync(folder, response =>
            {
                foreach (var change in response.Events)
                {
                    transcript.Add($"{change.Type} {change.Kv.Key.ToStringUtf8()[folder.Length..]} {change.Kv.Value.ToStringUtf8()}");
                    if (change.Type == Event.Types.EventType.Delete)
                    {
                        deleted.SetResult();
                    }
                }
            });
            await client.PutAsync($"{folder}/1", "one");
            await client.PutAsync($"{folder}/1", "two");
            await client.DeleteAsync($"{folder}/1");
            await deleted.Task;
            client.CancelWatch(id);
        });
        Assert.Equal(["Put /1 one", "Put /1 two", "Delete /1 "], seen);
    }

    [Theory]
    [MemberData(nameof(EachPool))]
    public async Task Watch_WithTheGeneratedClient(PoolKind pool)
    {
        var seen = await DropIn.SameAsBareAsync(etcd.Address, pool, static async (invoker, transcript) =>
        {
            var key = ByteString.CopyFromUtf8(NewFolder());
            using var watch = new Watch.WatchClient(invoker).Watch();
            await watch.RequestStream.WriteAsync(new WatchRequest { CreateRequest = new WatchCreateRequest { Key = key, WatchId = 7 } });
            await ReadAsync(watch.ResponseStream, transcript);
            foreach (var value in new[] { "one", "two" })
            {
                await new KV.KVClient(invoker).PutAsync(new PutRequest { Key = key, Value = ByteString.CopyFromUtf8(value) });
                await ReadAsync(watch.ResponseStream, transcript);
            }

            await watch.RequestStream.WriteAsync(new WatchRequest { CancelRequest = new WatchCancelRequest { WatchId = 7 } });
            await ReadAsync(watch.ResponseStream, transcript);
            await watch.RequestStream.CompleteAsync();

            // The stream stays open even so, until it is left.
            watch.Dispose();
            transcript.Step("status", () => Transcript.Describe(watch.GetStatus()));
        });
        Assert.Equal(["7 created", "7 one", "7 two", "7 canceled"], seen.Take(4));
    }

    [Theory]
    [MemberData(nameof(EachPool))]
    public async Task Watch_ThatIsCancelled(PoolKind pool)
    {
        var seen = await DropIn.SameAsBareAsync(etcd.Address, pool, static async (invoker, transcript) =>
        {
            using var cancellation = new CancellationTokenSource();
            using var watch = new Watch.WatchClient(invoker).Watch(cancellationToken: cancellation.Token);
            await watch.RequestStream.WriteAsync(new WatchRequest { CreateRequest = new WatchCreateRequest { Key = ByteString.CopyFromUtf8(NewFolder()), WatchId = 7 } });
            await ReadAsync(watch.ResponseStream, transcript);
            var next = watch.ResponseStream.MoveNext(CancellationToken.None);
            await cancellation.CancelAsync();
            await transcript.StepAsync("next", async () => $"{await next}");
            transcript.Step("status", () => Transcript.Describe(watch.GetStatus()));
        });
        Assert.Equal("7 created", seen[0]);
        Assert.StartsWith("next: Cancelled ", seen[1], StringComparison.Ordinal);
    }

    [Theory]
    [MemberData(nameof(EachPool))]
    public async Task Snapshot(PoolKind pool)
    {
        await PutMegabyteAsync();
        var seen = await SameAsBareAsync(pool, static async (client, _, transcript) =>
        {
            var (messages, bytes, remaining) = (0, 0L, ulong.MaxValue);
            await client.Snapshot(
                new SnapshotRequest(),
                response => (messages, bytes, remaining) = (messages + 1, bytes + response.Blob.Length, response.RemainingBytes),
                CancellationToken.None);
            transcript.Add($"many messages: {messages > 10}, a megabyte: {bytes > 1_000_000}, remaining: {remaining}");
            transcript.Add($"version: {(await client.StatusAsync(new StatusRequest())).Version}");
        });
        Assert.Equal("many messages: True, a megabyte: True, remaining: 0", seen[0]);
    }

    [Theory]
    [MemberData(nameof(EachPool))]
    public async Task Snapshot_LeftInTheMiddle(PoolKind pool)
    {
        await PutMegabyteAsync();
        var seen = await DropIn.SameAsBareAsync(etcd.Address, pool, static async (invoker, transcript) =>
        {
            using var snapshot = new Maintenance.MaintenanceClient(invoker).Snapshot(new SnapshotRequest());
            transcript.Add($"{await snapshot.ResponseStream.MoveNext(CancellationToken.None)}, {snapshot.ResponseStream.Current.RemainingBytes > 0}");
        });
        Assert.Equal(["True, True"], seen);
    }

    [Theory]
    [MemberData(nameof(EachPool))]
    public async Task Lock_IsWaitedFor(PoolKind pool)
    {
        var seen = await SameAsBareAsync(pool, static async (client, folder, transcript) =>
        {
            var lease = (await client.LeaseGrantAsync(new LeaseGrantRequest { TTL = 60 })).ID;
            var other = (await client.LeaseGrantAsync(new LeaseGrantRequest { TTL = 60 })).ID;
            var first = await client.LockAsync(folder, lease);
            using var cancellation = new CancellationTokenSource();
            var impatient = client.LockAsync(folder, other, cancellationToken: cancellation.Token);
            Assert.False(impatient.IsCompleted);
            await cancellation.CancelAsync();
            await transcript.StepAsync("impatient", async () => $"{await impatient}");

            var second = client.LockAsync(folder, other);
            await client.UnlockAsync(first.Key.ToStringUtf8());
            transcript.Add($"another key: {(await second).Key != first.Key}");
            await client.LeaseRevokeAsync(new LeaseRevokeRequest { ID = lease });
            await client.LeaseRevokeAsync(new LeaseRevokeRequest { ID = other });
        });
        Assert.StartsWith("impatient: Cancelled ", seen[0], StringComparison.Ordinal);
        Assert.Equal("another key: True", seen[1]);
    }

    [Theory]
    [MemberData(nameof(EachPool))]
    public async Task AnElectionThatIsObserved(PoolKind pool)
    {
        var seen = await SameAsBareAsync(pool, static async (client, folder, transcript) =>
        {
            var lease = (await client.LeaseGrantAsync(new LeaseGrantRequest { TTL = 60 })).ID;
            var leader = (await client.CampaignAsync(folder, lease, "one")).Leader;
            var observed = 0;
            await foreach (var response in client.ObserveAsync(folder))
            {
                transcript.Add(response.Kv.Value.ToStringUtf8());
                if (++observed == 2)
                {
                    break;
                }

                await client.ProclaimAsync(leader, "two");
            }

            await client.ResignAsync(leader);
            await client.LeaseRevokeAsync(new LeaseRevokeRequest { ID = lease });
        });
        Assert.Equal(["one", "two"], seen);
    }

    [Fact]
    public async Task ManyAtATime()
    {
        const int Callers = 100;
        await using var pool = PoolingCallInvoker.ForAddress(etcd.Address, new PoolingCallInvokerOptions
        {
            Pool = { MaxPoolSize = 4, MaxConcurrentCallsPerChannel = 30 },
        });
        using var client = new EtcdClient(pool);
        var folder = NewFolder();
        await Task.WhenAll(Enumerable.Range(0, Callers).Select(number => Task.Run(async () =>
        {
            var key = ByteString.CopyFromUtf8($"{folder}/{number.ToString(CultureInfo.InvariantCulture)}");
            using var watch = new Watch.WatchClient(pool).Watch();
            await watch.RequestStream.WriteAsync(new WatchRequest { CreateRequest = new WatchCreateRequest { Key = key } });
            Assert.True(await watch.ResponseStream.MoveNext(CancellationToken.None));
            await client.PutAsync(new PutRequest { Key = key, Value = key });
            Assert.True(await watch.ResponseStream.MoveNext(CancellationToken.None));
            Assert.Equal(key, watch.ResponseStream.Current.Events.Single().Kv.Value);
        }))).Soon();
        Assert.Equal(Callers, (await client.GetRangeAsync(folder).Soon()).Count);
        Assert.InRange(pool.Pool.GetStatistics().ChannelsCreated, 1, 4);
        await DropIn.NothingIsLeftAsync(pool);
        Assert.Equal(0, pool.Pool.GetStatistics().LeaksReclaimed);
    }

    [Fact]
    public async Task AWatch_WhoseEtcdIsKilled_EndsAsOnABareChannel()
    {
        var victim = new EtcdServer();
        try
        {
            await victim.InitializeAsync();
            using var channel = GrpcChannel.ForAddress(victim.Address);
            await using var pool = PoolingCallInvoker.ForAddress(victim.Address);
            CallInvoker[] invokers = [channel.CreateCallInvoker(), pool];
            var watches = new List<AsyncDuplexStreamingCall<WatchRequest, WatchResponse>>();
            foreach (var invoker in invokers)
            {
                var watch = new Watch.WatchClient(invoker).Watch();
                await watch.RequestStream.WriteAsync(new WatchRequest { CreateRequest = new WatchCreateRequest { Key = ByteString.CopyFromUtf8("key") } }).Soon();
                Assert.True(await watch.ResponseStream.MoveNext(CancellationToken.None).Soon());
                watches.Add(watch);
            }

            await victim.KillAsync();
            foreach (var (watch, invoker) in watches.Zip(invokers))
            {
                // What the transport says beside the status is a matter of chance: the end of the connection, or its reset.
                var cut = await Assert.ThrowsAsync<RpcException>(() => watch.ResponseStream.MoveNext(CancellationToken.None).Soon());
                Assert.Equal(StatusCode.Unavailable, cut.StatusCode);
                Assert.Equal(cut.Status, watch.GetStatus());
                var refused = await Assert.ThrowsAsync<RpcException>(() =>
                    new KV.KVClient(invoker).RangeAsync(new RangeRequest { Key = ByteString.CopyFromUtf8("key") }).ResponseAsync.Soon());
                Assert.Equal(StatusCode.Unavailable, refused.StatusCode);
            }

            await DropIn.NothingIsLeftAsync(pool);
        }
        finally
        {
            await victim.DisposeAsync();
        }
    }

    // Each conversation has a folder of its own: the etcd is one for all.
    private Task<IReadOnlyList<string>> SameAsBareAsync(PoolKind pool, Func<EtcdClient, string, Transcript, Task> converse) =>
        DropIn.SameAsBareAsync(etcd.Address, pool, async (invoker, transcript) =>
        {
            using var client = new EtcdClient(invoker);
            await converse(client, NewFolder(), transcript);
        });

    private async Task PutMegabyteAsync()
    {
        using var channel = GrpcChannel.ForAddress(etcd.Address);
        var client = new KV.KVClient(channel);
        for (var i = 0; i < 10; i++)
        {
            await client.PutAsync(new PutRequest { Key = ByteString.CopyFromUtf8($"large/{i}"), Value = ByteString.CopyFrom(new byte[100_000]) }).ResponseAsync.Soon();
        }
    }

    private static async Task ReadAsync(IAsyncStreamReader<WatchResponse> responses, Transcript transcript)
    {
        Assert.True(await responses.MoveNext(CancellationToken.None));
        var response = responses.Current;
        var what = response.Created ? "created" : response.Canceled ? "canceled" : response.Events.Single().Kv.Value.ToStringUtf8();
        transcript.Add($"{response.WatchId} {what}");
    }

    private static void AddRange(RangeResponse response, string folder, Transcript transcript) =>
        transcript.Add("range: " + string.Join(", ", response.Kvs.Select(pair => $"{pair.Key.ToStringUtf8()[folder.Length..]}={pair.Value.ToStringUtf8()}")));

    private static string NewFolder() => Guid.NewGuid().ToString();
}
