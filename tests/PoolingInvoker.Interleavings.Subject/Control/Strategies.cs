namespace PoolingInvoker.Interleavings;

/// <summary>
/// Every schedule that preempts an actor, which could go on, no more often than a number of times, one after the other: most bugs need
/// one or two such preemptions. A schedule is a row of picks; the next one has its last pick changed that can be.
/// </summary>
internal sealed class EverySchedule(int maxPreemptions) : IStrategy
{
    private readonly List<(int Pick, int Of)> _picks = [];
    private int _position;
    private int _preemptions;

    /// <summary>Gets whether there are schedules with more preemptions.</summary>
    public bool IsBounded { get; private set; }

    public int Pick(IReadOnlyList<int> actors, bool mayStay)
    {
        if (mayStay && _preemptions == maxPreemptions)
        {
            IsBounded = true;
            return 0;
        }

        if (_position == _picks.Count)
        {
            _picks.Add((0, actors.Count));
        }

        var pick = _picks[_position++].Pick;
        _preemptions += mayStay && pick > 0 ? 1 : 0;
        return pick;
    }

    /// <summary>Goes to the next schedule, and says whether there is one.</summary>
    public bool MoveNext()
    {
        _position = _preemptions = 0;
        while (_picks.Count > 0)
        {
            var (pick, of) = _picks[^1];
            _picks.RemoveAt(_picks.Count - 1);
            if (pick + 1 < of)
            {
                _picks.Add((pick + 1, of));
                return true;
            }
        }

        return false;
    }
}

/// <summary>
/// One schedule drawn by a seed, as PCT draws it: each actor has a priority, the highest that can go on does, and at a few moments who
/// runs is put last.
/// </summary>
internal sealed class SeededSchedule(int seed) : IStrategy
{
    private readonly Random _random = new(seed);
    private readonly Dictionary<int, double> _priorities = [];

    public int Pick(IReadOnlyList<int> actors, bool mayStay)
    {
        if (actors[0] == actors[^1])
        {
            return _random.Next(actors.Count); // no actors but two ways to go on
        }

        if (mayStay && _random.Next(8) == 0)
        {
            _priorities[actors[0]] = -_random.NextDouble();
        }

        var best = 0;
        for (var i = 1; i < actors.Count; i++)
        {
            best = Priority(actors[i]) > Priority(actors[best]) ? i : best;
        }

        return best;
    }

    private double Priority(int actor) =>
        _priorities.TryGetValue(actor, out var priority) ? priority : _priorities[actor] = _random.NextDouble();
}
