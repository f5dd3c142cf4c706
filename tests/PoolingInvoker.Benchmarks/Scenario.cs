namespace PoolingInvoker.Benchmarks;

/// <summary>One figure of a scenario.</summary>
/// <param name="Name">What it is of, with its unit.</param>
/// <param name="MoreIsBetter">Whether a higher one is the better one.</param>
/// <param name="Goal">The goal, as the table shows it.</param>
/// <param name="IsReached">Whether the goal is reached, by the figure of the pool and that of the first contender. Null if there is no goal.</param>
internal sealed record Figure(string Name, bool MoreIsBetter, string Goal = "", Func<double, double, bool>? IsReached = null)
{
    public static Figure AtMost(string name, double ratio) => new(name, MoreIsBetter: false, $"≤ {ratio} ×", (pool, first) => pool <= first * ratio);

    public static Figure AtLeast(string name, double ratio) => new(name, MoreIsBetter: true, $"≥ {ratio} ×", (pool, first) => pool >= first * ratio);
}

/// <summary>
/// A situation in which contenders are measured, one after the other, round by round, so that what the machine does beside meets all alike.
/// The first contender is what the others are compared with, and the last one is the pool.
/// </summary>
internal abstract class Scenario : IAsyncDisposable
{
    private readonly Dictionary<Contender, Client> _clients = [];

    /// <summary>The word that picks it on the command line.</summary>
    public abstract string Key { get; }

    public abstract string Name { get; }

    public abstract IReadOnlyList<Figure> Figures { get; }

    public virtual IReadOnlyList<Contender> Contenders { get; } = [Contender.DefaultChannel, Contender.OneConnection, Contender.InTurn, Contender.GetAndPut, Contender.Pool];

    /// <summary>How many rounds beside the first, which is for the compiler: few where a round says much.</summary>
    public virtual int Rounds(bool quick) => quick ? 1 : 3;

    /// <summary>Starts the servers.</summary>
    public virtual Task StartAsync() => Task.CompletedTask;

    /// <summary>One round of one contender.</summary>
    /// <param name="contender">The contender.</param>
    /// <param name="quick">Whether the round is to be short.</param>
    /// <returns>The figures, in the order of <see cref="Figures"/>.</returns>
    public abstract Task<double[]> MeasureAsync(Contender contender, bool quick);

    public virtual async ValueTask DisposeAsync()
    {
        GC.SuppressFinalize(this);
        foreach (var client in _clients.Values)
        {
            await client.DisposeAsync();
        }
    }

    /// <summary>The client of a contender, which stays from round to round.</summary>
    protected Client ClientOf(Contender contender, Uri address)
    {
        if (!_clients.TryGetValue(contender, out var client))
        {
            _clients.Add(contender, client = contender.Connect(address));
        }

        return client;
    }
}
