using System.Globalization;
using System.Security.Cryptography.X509Certificates;
using Grpc.Core;
using Grpc.Net.Client;
using Microsoft.Extensions.Time.Testing;
using PoolingInvoker.Demo.Servers;
using PoolingInvoker.FunctionalTests;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FaultTests;

/// <summary>What came of a fault for one kind of call.</summary>
/// <param name="Outcome">What the caller saw: "OK", or the status.</param>
/// <param name="Calls">The calls made.</param>
/// <param name="Attempts">The attempts that servers have seen; where there is none, those that were made.</param>
/// <param name="Executed">How often servers have executed it.</param>
/// <param name="Connections">The connections that were made, where they are counted.</param>
internal sealed record Cell(string Outcome, int Calls, int Attempts, int Executed, int? Connections)
{
    public override string ToString()
    {
        var attempts = Calls > 1 ? $", {Attempts} attempts" : Attempts > 1 ? $", attempt {Attempts}" : "";
        var did = Connections is not { } connections ? $"ran {Executed}×"
            : Outcome == FaultRow.UnavailableOrInternal ? "1 connection or more"
            : $"{connections} connection{(connections == 1 ? "" : "s")}";
        return string.Create(CultureInfo.InvariantCulture, $"{(Calls > 1 ? $"{Calls} × " : "")}{Outcome}{attempts}; {did}");
    }
}

/// <summary>A fault, in the ways of all kinds of calls at the same time, each on a pool or a channel of its own.</summary>
internal sealed class FaultRow : IAsyncDisposable
{
    public const string WithoutRequests = "OK without requests, and no write failed";
    public const string UnavailableOrInternal = "Unavailable or Internal";
    public const string WithoutRequestsAfterAFailure = "a write fails, then OK without it";

    private readonly Fault _fault;
    private readonly Journal _journal;
    private readonly FaultServer? _server;
    private readonly bool _overPool;
    private readonly List<IAsyncDisposable> _parts = [];
    private readonly X509Certificate2 _certificate = TestCertificate.New(Fault.Host);
    private readonly TaskCompletionSource _strike = new(TaskCreationOptions.RunContinuationsAsynchronously);
    private FaultServer? _victim;
    private int _toCome;

    private FaultRow(Fault fault, Journal journal, FaultServer? server, bool overPool)
    {
        _fault = fault;
        _journal = journal;
        _server = server;
        _overPool = overPool;
    }

    private bool HasVictim => _fault.Kind is FaultKind.Killed or FaultKind.Stopped;

    /// <summary>Over a pool and over a bare channel.</summary>
    public static async Task<(Fault Fault, IReadOnlyList<Cell?> Pool, IReadOnlyList<Cell?> Bare)> RunBothAsync(
        Fault fault,
        Journal journal,
        FaultServer? server)
    {
        var pool = RunAsync(fault, journal, server, overPool: true);
        var bare = RunAsync(fault, journal, server, overPool: false);
        return (fault, await pool, await bare);
    }

    /// <param name="fault">The fault.</param>
    /// <param name="journal">The journal of the server.</param>
    /// <param name="server">
    /// A server that plays scripted faults, and takes the calls that go on elsewhere; none where the fault is that there is none.
    /// </param>
    /// <param name="overPool">Over a pool, or over a bare channel.</param>
    /// <returns>A cell for each column; null where the fault cannot strike.</returns>
    public static async Task<IReadOnlyList<Cell?>> RunAsync(Fault fault, Journal journal, FaultServer? server, bool overPool)
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

        _certificate.Dispose();
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
    private async Task<Callee> PrepareAsync(Column column)
    {
        Uri address;
        ClosedPort? port = null;
        SocketServer? listener = null;
        if (_fault.Kind == FaultKind.Refused)
        {
            port = Keep(new ClosedPort());
            address = port.Address;
        }
        else if (_fault.Listen is { } listen)
        {
            listener = Keep(listen(_certificate));
            address = new Uri($"{_fault.Scheme}://{Fault.Host}:{listener.EndPoint.Port}");
        }
        else if (!HasVictim)
        {
            address = _server!.Address;
        }
        else
        {
            // The balancer gives the first connection to its second server, and the next one to the first.
            address = Keep(new L4Balancer(_server!.Address, _victim!.Address)).Address;
        }

        CallInvoker invoker;
        if (_overPool)
        {
            var options = new PoolingCallInvokerOptions
            {
                // Longer than the pause after which a pool may dial again that has never reached anybody.
                Retry = { Delay = TimeSpan.FromMilliseconds(port is null ? 10 : 200), UseJitter = false },
                Pool = { ConfigureHandler = _fault.Handler },
            };
            if (listener is not null && !_fault.IsSlow)
            {
                // As if the call took no time: that pause does not pass, however slow the machine is.
                options.Pool.TimeProvider = new FakeTimeProvider(TimeProvider.System.GetUtcNow());
                options.Retry.Delay = TimeSpan.Zero;
            }

            if (port is not null && _fault.StrikesOnce)
            {
                options.Retry.OnRetry = _ =>
                {
                    port.Open(_server!.Address);
                    return ValueTask.CompletedTask;
                };
            }

            invoker = Keep(PoolingCallInvoker.ForAddress(address, options));
        }
        else
        {
            var channel = GrpcChannel.ForAddress(address, ChannelOptions());
            Keep(new Disposal(channel));
            invoker = channel.CreateCallInvoker();
        }

        if (port is null && listener is null)
        {
            await new User.UserClient(invoker).GetNameAsync(new GetNameRequest { Id = 1 }).ResponseAsync.Soon();
        }

        return new Callee(invoker, port, listener);
    }

    private GrpcChannelOptions ChannelOptions()
    {
        if (_fault.Handler is not { } configure)
        {
            return new GrpcChannelOptions();
        }

        var handler = new SocketsHttpHandler { EnableMultipleHttp2Connections = true };
        configure(handler);
        return new GrpcChannelOptions { HttpHandler = handler, DisposeHttpClient = true };
    }

    private async Task<Cell> RunAsync(Column column, Callee ready)
    {
        var id = Guid.NewGuid().ToString("N");
        var headers = new Metadata { { "x-call-id", id } };
        if (_fault.Script.Length > 0)
        {
            headers.Add("x-fault", _fault.Script);
            headers.Add("x-fault-times", _fault.Times);
            headers.Add("x-fault-at", column.At);
            headers.Add("x-fault-server", (_victim ?? _server!).Name);
            if (_fault.Calls == 1)
            {
                headers.Add("x-fault-hold", "1");
            }
        }

        // An attempt that finds the port closed shows in no journal.
        var another = ready is { Port: null, Listener: null } ? 2 : 1;
        var pool = (ready.Invoker as PoolingCallInvoker)?.Pool;
        var outcome = "OK";
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
                outcome = WithoutRequestsAfterAFailure;
            }
            catch (InvalidDataException) when (!_overPool)
            {
                outcome = WithoutRequests;
            }
            catch (RpcException exception)
            {
                // On a busy machine a bare channel may wait for ever there.
                var isEither = exception.StatusCode is StatusCode.Unavailable or StatusCode.Internal or StatusCode.DeadlineExceeded;
                outcome = _fault.IsARace && !_overPool && isEither ? UnavailableOrInternal : exception.StatusCode.ToString();
            }
            catch (Exception exception) when (exception is IOException or HttpRequestException or InvalidOperationException)
            {
                outcome = exception.GetType().Name;
            }

            // Before the call is disposed: the lease of a call that is over comes back by itself.
            await Waiting.Until(() => pool is null || pool.GetStatistics().CallsInFlight == 0);
        }

        foreach (var server in (FaultServer?[])[_server, _victim])
        {
            await (server?.SyncAsync() ?? Task.CompletedTask);
        }

        var connections = ready.Listener is null ? (int?)null : await ready.Listener.CountAsync();
        var attempts = connections is null ? _journal.Count("attempt", id) : 1 + (int)(pool?.GetStatistics().Retries ?? 0);
        return new Cell(outcome, _fault.Calls, attempts, _journal.Count("executed", id), connections);
    }

    private async Task StrikeAsync(string id)
    {
        if (_fault.Kind is FaultKind.Refused or FaultKind.NoServer || _fault.Calls > 1)
        {
            return; // it needs no help
        }

        await _journal.Reaches("held", id, 1).Soon();
        if (!HasVictim)
        {
            _server!.Strike(id);
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

    private TPart Keep<TPart>(TPart part)
        where TPart : IAsyncDisposable
    {
        lock (_parts)
        {
            _parts.Add(part);
        }

        return part;
    }

    private sealed record Callee(CallInvoker Invoker, ClosedPort? Port, SocketServer? Listener);

    private sealed class Disposal(IDisposable part) : IAsyncDisposable
    {
        public ValueTask DisposeAsync()
        {
            part.Dispose();
            return ValueTask.CompletedTask;
        }
    }
}
