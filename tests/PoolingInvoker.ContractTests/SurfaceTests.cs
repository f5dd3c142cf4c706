using System.Collections.Concurrent;
using Grpc.Core;
using Grpc.Net.Client;
using PoolingInvoker.Testing;

namespace PoolingInvoker.ContractTests;

/// <summary>
/// Each member of each call object, called before and after each way of ending, twice and the second time from another thread: what it gives
/// over a pool is what it gives on a bare channel, as docs/contract.md has it.
/// </summary>
public sealed class SurfaceTests(ContractServer server) : IClassFixture<ContractServer>
{
    private static readonly MethodType[] Kinds = [MethodType.Unary, MethodType.ClientStreaming, MethodType.ServerStreaming, MethodType.DuplexStreaming];

    [Fact]
    public async Task EachMember_GivesWhatItGivesOnABareChannel()
    {
        var rows = new ConcurrentBag<SurfaceRow>();
        var ends = from kind in Kinds
                   from end in SurfaceEnd.All
                   where end.IsOf(kind)
                   orderby end.By == Cause.Deadline descending
                   select (Kind: kind, End: end);
        await Parallel.ForEachAsync(ends, new ParallelOptions { MaxDegreeOfParallelism = 8 }, async (end, _) =>
        {
            var cells = from moment in Enum.GetValues<Moment>()
                        where moment != Moment.Ended || end.End.By is Cause.Token or Cause.Dispose or Cause.ChannelDisposed
                        from member in SurfaceCall.Members(end.Kind)
                        where moment == Moment.Before || member.Name != SurfaceCall.LargeWrite
                        select (Moment: moment, Member: member);
            var subjects = Subject.All.ToDictionary(static kind => kind, kind => new Subject(kind, server.Address));
            await Parallel.ForEachAsync(cells, new ParallelOptions { MaxDegreeOfParallelism = end.End.By == Cause.Deadline ? 64 : 4 }, async (cell, _) =>
            {
                var told = new Dictionary<string, string>();
                foreach (var (kind, subject) in subjects.Where(subject => Holds(subject.Key, end.Kind, end.End, cell.Moment, cell.Member)))
                {
                    var isShared = !end.End.EndsOthers && cell.Member.Name != SurfaceCall.LargeWrite && kind != Subject.Waiting;
                    using var own = isShared ? null : new Subject(kind, server.Address);
                    told[kind] = await TellAsync(own ?? subject, end.Kind, end.End, cell.Moment, cell.Member);
                }

                rows.Add(new SurfaceRow(end.Kind, cell.Moment, cell.Member.Name, end.End, told));
            });
            foreach (var subject in subjects.Values)
            {
                await Waiting.Until(() => subject.IsFull || subject.Pool?.Pool.GetStatistics() is null or { CallsInFlight: 0, CallsWaiting: 0 });
                subject.Dispose();
            }
        });

        var wrong = await SurfaceTable.CheckAsync([.. rows]);
        Assert.True(wrong.Count == 0, string.Join(Environment.NewLine, wrong));
    }

    // A call that waits for a lease has nothing of a server yet, and its writes wait.
    private static bool Holds(string subject, MethodType kind, SurfaceEnd end, Moment moment, Member member) =>
        subject != Subject.Waiting || (end.By != Cause.Server && !end.HasMessageOf(kind) && !(moment == Moment.Before && member.IsWrite));

    private async Task<string> TellAsync(Subject subject, MethodType kind, SurfaceEnd end, Moment moment, Member member)
    {
        await subject.IsReady;
        for (var patience = TimeSpan.FromSeconds(0.5); ; patience *= 2)
        {
            var id = Guid.NewGuid().ToString();
            using var cancellation = new CancellationTokenSource();
            var deadline = DateTime.UtcNow + patience;
            using var call = new SurfaceCall(subject.Invoker, kind, new CallOptions(
                new Metadata { { "ending", end.HasMessageOf(kind) ? Ending.HeldAfterMessage : Ending.Held }, { "then", end.Then }, { "id", id } },
                end.By == Cause.Deadline ? deadline : null,
                cancellation.Token));
            try
            {
                await (subject.IsFull ? Task.CompletedTask : server.Reached(id).WaitAsync(end.By == Cause.Deadline ? patience : Waiting.Long));
                await (end.HasMessageOf(kind) ? call.ReadMessageAsync() : Task.CompletedTask);
            }
            catch (Exception exception) when (end.By == Cause.Deadline && exception is TimeoutException or RpcException { StatusCode: StatusCode.DeadlineExceeded })
            {
                continue; // the machine is busy: it has ended before
            }

            var told = moment == Moment.Before ? await TwiceAsync(waits: member.Waits) : [];
            if (end.By == Cause.Deadline && DateTime.UtcNow > deadline - (patience / 4))
            {
                continue;
            }

            switch (end.By)
            {
                case Cause.Server:
                    server.Release(id);
                    break;
                case Cause.Token:
                    await cancellation.CancelAsync();
                    break;
                case Cause.Dispose:
                    call.Dispose();
                    break;
                case Cause.ChannelDisposed:
                    subject.Dispose();
                    break;
                default:
                    break; // it will come
            }

            if (moment == Moment.Seen)
            {
                await call.SeeTheEndAsync();
            }

            var results = await Task.WhenAll(moment == Moment.Before ? told : await TwiceAsync(waits: false));
            server.Release(id);
            return string.Join("; then ", results.Distinct());

            async Task<Task<string>[]> TwiceAsync(bool waits)
            {
                var first = call.TellAsync(member);
                await (waits ? Task.CompletedTask : first);
                var second = await Task.Factory.StartNew(() => call.TellAsync(member), CancellationToken.None, TaskCreationOptions.None, TaskScheduler.Default);
                await (waits ? Task.CompletedTask : second);
                return [first, second];
            }
        }
    }

    /// <summary>A bare channel, or a pool.</summary>
    private sealed class Subject : IDisposable
    {
        public const string Waiting = "a pool that is full";

        private readonly GrpcChannel? _channel;

        public Subject(string kind, Uri address)
        {
            if (kind == SurfaceRow.Bare)
            {
                _channel = GrpcChannel.ForAddress(address);
                (Invoker, IsReady) = (_channel.CreateCallInvoker(), Task.CompletedTask);
                return;
            }

            var options = new PoolingCallInvokerOptions { IsIdempotent = kind == Idempotent ? static _ => true : null, Retry = { Delay = TimeSpan.Zero } };
            if (kind == Waiting)
            {
                (options.Pool.MaxPoolSize, options.Pool.MaxConcurrentCallsPerChannel) = (1, 1);
            }

            Invoker = Pool = PoolingCallInvoker.ForAddress(address, options);
            (IsFull, IsReady) = (kind == Waiting, kind == Waiting ? Pool.Pool.AcquireAsync().Soon() : Pool.ConnectAsync().Soon());
        }

        public static IReadOnlyList<string> All => [SurfaceRow.Bare, "a pool", Idempotent, Waiting];

        public CallInvoker Invoker { get; }

        public PoolingCallInvoker? Pool { get; }

        public bool IsFull { get; }

        public Task IsReady { get; }

        private const string Idempotent = "a pool that may send it again";

        public void Dispose()
        {
            _channel?.Dispose();
            Pool?.Dispose();
        }
    }
}
