using System.Globalization;
using Grpc.Core;
using Grpc.Net.Client;
using PoolingInvoker.Demo.Servers;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FaultTests;

/// <summary>What came of a fault for one kind of call.</summary>
/// <param name="Outcome">What the caller saw: "OK", or the status.</param>
/// <param name="Calls">The calls made.</param>
/// <param name="Attempts">The attempts that servers have seen.</param>
/// <param name="Executed">How often servers have executed it.</param>
/// <param name="Leases">The leases that were out when it was over.</param>
internal sealed record Cell(string Outcome, int Calls, int Attempts, int Executed, int Leases)
{
    public override string ToString()
    {
        var attempts = Calls > 1 ? $", {Attempts} attempts" : Attempts > 1 ? $", attempt {Attempts}" : "";
        return string.Create(CultureInfo.InvariantCulture, $"{(Calls > 1 ? $"{Calls} × " : "")}{Outcome}{attempts}; ran {Executed}×");
    }
}

/// <summary>A fault, in the ways of all kinds of calls at the same time, each on a pool or a channel of its own.</summary>
internal sealed class FaultRow : IAsyncDisposable
{
    private readonly Fault _fault;
    private readonly Journal _journal;
    private readonly FaultServer _server;
    private readonly bool _overPool;
    private readonly List<IAsyncDisposable> _parts = [];
    private readonly TaskCompletionSource _strike = new(TaskCreationOptions.RunContinuationsAsynchronously);
    private FaultServer? _victim;
    private int _toCome;

    private FaultRow(Fault fault, Journal journal, FaultServer server, bool overPool)
    {
        _fault = fault;
        _journal = journal;
        _server = server;
        _overPool = overPool;
    }

    private bool HasVictim => _fault.Kind is FaultKind.Killed or FaultKind.Stopped;

    /// <param name="fault">The fault.</param>
    /// <param name="journal">The journal of the server.</param>
    /// <param name="server">A server that plays scripted faults, and takes the calls that go on elsewhere.</param>
    /// <param name="overPool">Over a pool, or over a bare channel.</param>
    /// <returns>A cell for each column; null where the fault cannot strike.</returns>
    public static async Task<IReadOnlyList<Cell?>> RunAsync(Fault fault, Journal journal, FaultServer server, bool overPool)
    {
        await using var row = new FaultRow(fault, journal, server, overPool);
        return await row.RunAsync();
    }

    public async ValueTask DisposeAsync()
    {
        foreach (var part in Enumerable.Reverse(_parts))
        {
            await part.DisposeAsync();
        }
    }

    private async Task<IReadOnlyList<Cell?>> RunAsync()
    {
        if (HasVictim)
        {
            _victim = Keep(await FaultServer.StartAsync("victim", _journal));
        }

        var columns = Column.All.Where(column => _fault.Points.Contains(column.Point)).ToList();
        _toCome = columns.Count;
        var ready = await Task.WhenAll(columns.Select(PrepareAsync));
        var cells = await Task.WhenAll(columns.Zip(ready, RunAsync));
        return [.. Column.All.Select(column => columns.IndexOf(column) is var index && index >= 0 ? cells[index] : null)];
    }

    // Whom to call, and, unless there is nobody, a connection that is known to work.
    private async Task<(CallInvoker Invoker, ClosedPort? Port)> PrepareAsync(Column column)
    {
        var address = _server.Address;
        ClosedPort? port = null;
        if (_fault.Kind == FaultKind.Refused)
        {
            port = Keep(new ClosedPort());
            address = port.Address;
        }
        else if (HasVictim)
        {
            // The balancer gives the first connection to its second server, and the next one to the first.
            address = Keep(new L4Balancer(_server.Address, _victim!.Address)).Address;
        }

        CallInvoker invoker;
        if (_overPool)
        {
            var options = new PoolingCallInvokerOptions
            {
                // Longer than the pause after which a pool may dial again that has never reached anybody.
                Retry = { Delay = TimeSpan.FromMilliseconds(port is null ? 10 : 200), UseJitter = false },
            };
            if (port is not null && _fault.StrikesOnce)
            {
                options.Retry.OnRetry = _ =>
                {
                    port.Open(_server.Address);
                    return ValueTask.CompletedTask;
                };
            }

            invoker = Keep(PoolingCallInvoker.ForAddress(address, options));
        }
        else
        {
            var channel = GrpcChannel.ForAddress(address);
            Keep(new Disposal(channel));
            invoker = channel.CreateCallInvoker();
        }

        if (port is null)
        {
            await new User.UserClient(invoker).GetNameAsync(new GetNameRequest { Id = 1 }).ResponseAsync.Soon();
        }

        return (invoker, port);
    }

    private async Task<Cell> RunAsync(Column column, (CallInvoker Invoker, ClosedPort? Port) ready)
    {
        var id = Guid.NewGuid().ToString("N");
        var headers = new Metadata { { "x-call-id", id } };
        if (_fault.Script.Length > 0)
        {
            headers.Add("x-fault", _fault.Script);
            headers.Add("x-fault-times", _fault.Times);
            headers.Add("x-fault-at", column.At);
            headers.Add("x-fault-server", (_victim ?? _server).Name);
            if (_fault.Calls == 1)
            {
                headers.Add("x-fault-hold", "1");
            }
        }

        // An attempt that finds the port closed shows in no journal.
        var another = ready.Port is null ? 2 : 1;
        var pool = (ready.Invoker as PoolingCallInvoker)?.Pool;
        var outcome = "OK";
        var leases = 0;
        for (var i = 0; i < _fault.Calls && outcome == "OK"; i++)
        {
            var options = new CallOptions(headers, DateTime.UtcNow.AddSeconds(_overPool ? _fault.PoolDeadline : _fault.BareDeadline));
            using var call = new Conversation(
                new User.UserClient(ready.Invoker),
                options,
                () => StrikeAsync(id),
                task => _fault.IsNoticed ? Task.WhenAny(task, _journal.Reaches("stream", id, another)).Soon() : Task.CompletedTask);
            try
            {
                await column.Call(call);
                outcome = call.WriteFailure is null ? "OK" : "OK, though a write failed";
            }
            catch (InvalidDataException exception) when (exception.InnerException is not null)
            {
                outcome = "a write fails, then OK without it";
            }
            catch (InvalidDataException) when (!_overPool)
            {
                outcome = "OK without requests, and no write failed";
            }
            catch (RpcException exception)
            {
                outcome = exception.StatusCode.ToString();
            }
            catch (Exception exception) when (exception is IOException or HttpRequestException or InvalidOperationException)
            {
                outcome = exception.GetType().Name;
            }

            // Before the call is disposed: the lease of a call that is over comes back by itself.
            leases = await LeasesAsync(pool);
        }

        await _server.SyncAsync();
        if (_victim is not null)
        {
            await _victim.SyncAsync();
        }

        return new Cell(outcome, _fault.Calls, _journal.Count("attempt", id), _journal.Count("executed", id), leases);
    }

    private async Task StrikeAsync(string id)
    {
        if (_fault.Kind == FaultKind.Refused || _fault.Calls > 1)
        {
            return; // it needs no help
        }

        await _journal.Reaches("held", id, 1).Soon();
        if (!HasVictim)
        {
            _server.Strike(id);
            return;
        }

        // One victim for all calls: it dies when the last of them has come to its point.
        if (Interlocked.Decrement(ref _toCome) == 0)
        {
            await (_fault.Kind == FaultKind.Killed ? _victim!.KillAsync() : _victim!.StopAsync());
            _strike.SetResult();
        }

        await _strike.Task.Soon();
    }

    private static async Task<int> LeasesAsync(ChannelPool? pool)
    {
        if (pool is null)
        {
            return 0;
        }

        var since = TimeProvider.System.GetTimestamp();
        while (pool.GetStatistics().CallsInFlight > 0 && TimeProvider.System.GetElapsedTime(since) < TimeSpan.FromSeconds(5))
        {
            await Task.Delay(1);
        }

        return pool.GetStatistics().CallsInFlight;
    }

    private TPart Keep<TPart>(TPart part)
        where TPart : IAsyncDisposable
    {
        lock (_parts)
        {
            _parts.Add(part);
        }

        return part;
    }

    private sealed class Disposal(IDisposable part) : IAsyncDisposable
    {
        public ValueTask DisposeAsync()
        {
            part.Dispose();
            return ValueTask.CompletedTask;
        }
    }
}
