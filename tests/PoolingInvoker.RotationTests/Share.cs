using System.Globalization;

namespace PoolingInvoker.RotationTests;

/// <summary>How calls are spread over servers.</summary>
internal sealed class Share
{
    private readonly (string Server, int Calls)[] _calls;

    /// <param name="servers">All servers, those that were not reached too.</param>
    /// <param name="before">The calls of each until a moment.</param>
    /// <param name="after">The calls of each until a later one: what counts is what lies between.</param>
    public Share(IEnumerable<string> servers, IReadOnlyDictionary<string, int> before, IReadOnlyDictionary<string, int> after) =>
        _calls = [.. servers.Select(server => (server, after.GetValueOrDefault(server) - before.GetValueOrDefault(server)))];

    /// <summary>The calls of the server that had most, by what each had on average. 1 is even.</summary>
    public double MaxByMean => _calls.Max(static server => server.Calls) / _calls.Average(static server => server.Calls);

    public override string ToString() => string.Create(CultureInfo.InvariantCulture,
        $"{string.Join(", ", _calls.Select(static server => $"{server.Server} {server.Calls}"))}, the most by the mean {MaxByMean:0.000}");
}
