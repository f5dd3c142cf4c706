namespace PoolingInvoker;

/// <summary>
/// Replaces all channels that there are, because the user wants it: a few at a time, each new one connected before the old one drains. A
/// round has those whose making had begun when it was asked for. Each is tried once; one that cannot be replaced stays.
/// </summary>
internal sealed class PoolRefresh(PoolState state, ChannelConnector connector, IChannelFactory factory)
{
    private readonly List<Round> _rounds = []; // that are not over, each with more channels than the one before

    public async Task RunAsync(CancellationToken cancellationToken)
    {
        state.ThrowIfDisposed();
        factory.DropPrepared();
        state.Balancer?.Watcher?.RefreshSoon();
        Round? round;
        using (state.Enter())
        {
            state.ThrowIfDisposed();
            var last = state.LastId;
            round = _rounds.Find(round => round.Last == last);
            if (round is null)
            {
                round = new Round(last);
                _rounds.Add(round);
                state.Refresh = Go;
            }
        }

        await round.Over.Task.WaitAsync(cancellationToken).ConfigureAwait(false);
    }

    // At the end of each section, while there are rounds.
    private void Go()
    {
        if (state.IsDisposed)
        {
            End([.. _rounds], static _ => PoolState.NewDisposedException());
        }
        else if (state.Moves is > 0 and var moves)
        {
            var old = state.Active.Where(channel => channel.State == PooledChannelState.Active && IsToBeTried(channel, _rounds[^1].Last));
            foreach (var channel in old.OrderBy(static channel => channel.Id).Take(moves).ToList())
            {
                channel.RefreshedFor = _rounds[^1].Last;
                connector.Refresh(channel, PoolReason.Refreshed);
            }

            End(_rounds.FindAll(IsOver), ErrorOf);
        }
    }

    private static bool IsToBeTried(PooledChannel channel, long last) => channel.Id <= last && channel.RefreshedFor < last;

    private bool IsOver(Round round) => !state.Making.Exists(id => id <= round.Last) && !state.Channels.Values.Any(channel => channel.Id <= round.Last && channel.State switch
    {
        PooledChannelState.Active => channel.RefreshedFor < round.Last,
        PooledChannelState.Draining or PooledChannelState.Closed => false,
        _ => true,
    });

    private Exception? ErrorOf(Round round)
    {
        var stay = state.Active.Where(channel => channel.Id <= round.Last).ToList();
        return stay.Count == 0 ? null : new HttpRequestException(
            HttpRequestError.ConnectionError,
            $"{stay.Count} of the channels could not be replaced, and stay: {string.Join(", ", stay.Select(static channel => $"#{channel.Id} to {channel.Endpoint}"))}. {stay[0].ReplaceError?.Message}",
            stay.Count == 1 ? stay[0].ReplaceError : new AggregateException(stay.Select(static channel => channel.ReplaceError!)));
    }

    private void End(List<Round> rounds, Func<Round, Exception?> failureOf)
    {
        foreach (var round in rounds)
        {
            if (failureOf(round) is { } failure)
            {
                round.Over.TrySetException(failure);
                _ = round.Over.Task.Exception; // has been seen, although its caller may not wait any more
            }
            else
            {
                round.Over.TrySetResult();
            }
        }

        _rounds.RemoveAll(rounds.Contains);
        state.Refresh = _rounds.Count > 0 ? Go : null;
    }

    private sealed class Round(long last)
    {
        public long Last => last; // channel
        public TaskCompletionSource Over { get; } = new(TaskCreationOptions.RunContinuationsAsynchronously);
    }
}
