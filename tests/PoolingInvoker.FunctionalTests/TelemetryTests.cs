using System.Collections.Concurrent;
using System.Diagnostics;
using System.Diagnostics.Metrics;
using Microsoft.Extensions.Logging;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>What a user's telemetry shows of calls over a pool that connects, grows and replaces, is what it shows over a bare channel.</summary>
[Collection(nameof(LoadTests))] // listeners hear the whole process
public sealed class TelemetryTests(ITestOutputHelper output)
{
    private const int Calls = 60;

    [Fact]
    public async Task TheCallsOfUsers_AreAllThatShows()
    {
        var bare = await RunAsync(overPool: false);
        var pool = await RunAsync(overPool: true);
        output.WriteLine($"bare: {bare}\npool: {pool}");
        Assert.Equal(2 * Calls, bare.Requests);
        Assert.Equal(bare, pool);
    }

    private static async Task<Seen> RunAsync(bool overPool)
    {
        var port = "";
        var spans = new ConcurrentQueue<string>();
        var requests = new ConcurrentQueue<string>();
        using var log = new Lines();
        using var activities = new ActivityListener
        {
            ShouldListenTo = static source => !source.Name.StartsWith("Experimental.", StringComparison.Ordinal),
            Sample = static (ref ActivityCreationOptions<ActivityContext> _) => ActivitySamplingResult.AllData,
            ActivityStopped = activity =>
            {
                if (activity.Source.Name is "System.Net.Http" or "Grpc.Net.Client" || activity.OperationName.StartsWith("Grpc.Net.Client", StringComparison.Ordinal))
                {
                    spans.Enqueue($"{activity.OperationName} {activity.Status}");
                }
            },
        };
        ActivitySource.AddActivityListener(activities);
        using var meters = new MeterListener
        {
            InstrumentPublished = static (instrument, listener) =>
            {
                if (instrument.Name is "http.client.request.duration")
                {
                    listener.EnableMeasurementEvents(instrument);
                }
            },
        };
        meters.SetMeasurementEventCallback<double>((_, _, tags, _) =>
        {
            var ours = false;
            var error = "";
            foreach (var tag in tags)
            {
                ours |= tag.Key == "server.port" && $"{tag.Value}" == port;
                error = tag.Key == "error.type" ? $"{tag.Value}" : error;
            }

            if (ours)
            {
                requests.Enqueue(error);
            }
        });
        meters.Start();

        var gate = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
        await using var server = await HttpServer.StartAsync(async context =>
        {
            await Volatile.Read(ref gate).Task;
            await HttpServer.ReplyAsync(context, []);
        });
        port = $"{server.Address.Port}";
        await using (var client = TestClient.Create(overPool, server.Address, channel: options => options.LoggerFactory = log, pool: static options => options.Pool.MaxConcurrentCallsPerChannel = 10))
        {
            // Cold, and then all channels in use.
            await CallAsync(client, server, Calls, gate);
            if (client.Pooled is { } pooled)
            {
                Assert.True(pooled.Pool.GetStatistics().Channels > 1, "The pool has not grown.");
            }

            Volatile.Write(ref gate, new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously));
            await CallAsync(client, server, 2 * Calls, gate);
        }

        return new Seen(
            requests.Count,
            string.Join(", ", requests.Where(static error => error.Length > 0)),
            string.Join(", ", spans.GroupBy(static span => span).OrderBy(static kind => kind.Key).Select(static kind => $"{kind.Count()} {kind.Key}")),
            log.Show());
    }

    private static async Task CallAsync(TestClient client, HttpServer server, int upTo, TaskCompletionSource gate)
    {
        var calls = Enumerable.Range(0, Calls).Select(_ => client.User.GetNameAsync(new GetNameRequest()).ResponseAsync).ToArray();
        await Waiting.Until(() => server.Requests.Count(static path => path.EndsWith("/GetName", StringComparison.Ordinal)) == upTo);
        gate.SetResult();
        await Task.WhenAll(calls).Soon();
    }

    private sealed record Seen(int Requests, string Errors, string Spans, string Log);

    // What Grpc.Net.Client writes of calls; connections and balancing are its own business.
    private sealed class Lines : ILoggerFactory, ILogger
    {
        private readonly ConcurrentDictionary<string, int> _lines = new();

        public string Show() => string.Join(", ", _lines.OrderBy(static line => line.Key).Select(static line => $"{line.Value} {line.Key}"));

        public void AddProvider(ILoggerProvider provider)
        {
        }

        public ILogger CreateLogger(string categoryName) => categoryName.StartsWith("Grpc.Net.Client.Internal", StringComparison.Ordinal) ? this : Microsoft.Extensions.Logging.Abstractions.NullLogger.Instance;

        public IDisposable? BeginScope<TState>(TState state)
            where TState : notnull => null;

        public bool IsEnabled(LogLevel logLevel) => logLevel >= LogLevel.Information;

        public void Log<TState>(LogLevel logLevel, EventId eventId, TState state, Exception? exception, Func<TState, Exception?, string> formatter) =>
            _lines.AddOrUpdate($"{logLevel} {eventId.Name}", 1, static (_, count) => count + 1);

        public void Dispose()
        {
        }
    }
}
