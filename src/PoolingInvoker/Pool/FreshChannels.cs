namespace PoolingInvoker;

/// <summary>Makes channels while others are silent, until a server shows on one of them that it is there.</summary>
internal sealed class FreshChannels(PoolState state, ChannelConnector connector)
{
    private const int AtATime = 3;

    /// <summary>The first outcome that says something; others are taken out as they come.</summary>
    public static async Task<T?> FirstAsync<T>(List<Task<T>> asking)
    {
        while (asking.Count > 0)
        {
            var asked = await Task.WhenAny(asking).ConfigureAwait(false);
            asking.Remove(asked);
            var outcome = await asked.ConfigureAwait(false);
            if (!EqualityComparer<T>.Default.Equals(outcome, default))
            {
                return outcome;
            }
        }

        return default;
    }

    /// <summary>
    /// Gives the first channel on which a server answers, or null when it is not wanted any more. Some are made at a time, or one in the
    /// place of a channel that is given up, with a pause after each ProbeTimeout.
    /// </summary>
    public async Task<PooledChannel?> FindAsync(PooledChannel? inPlaceOf, Func<bool> isWanted)
    {
        var backoff = state.NewBackoff();
        while (true)
        {
            if (await FirstAnsweredAsync(inPlaceOf).ConfigureAwait(false) is { } fresh)
            {
                return fresh;
            }

            using (state.Enter())
            {
                backoff.Dialed();
            }

            await Task.Delay(backoff.Pause, state.Time, state.Closing.Token).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
            using var section = state.Enter();
            if (state.IsDisposed || !isWanted())
            {
                return null;
            }
        }
    }

    private async Task<PooledChannel?> FirstAnsweredAsync(PooledChannel? inPlaceOf)
    {
        var asking = Enumerable.Range(0, inPlaceOf is null ? AtATime : 1).Select(_ => AskAsync()).ToList();
        var first = await FirstAsync(asking).ConfigureAwait(false);
        asking.ForEach(late => late.ContinueWith(asked => Discard(asked.Result), TaskScheduler.Default));
        return first;

        async Task<PooledChannel?> AskAsync()
        {
            var fresh = state.IsDisposed ? null : connector.Create(inPlaceOf, out _);
            if (fresh is null || await IsAliveAsync(fresh).ConfigureAwait(false))
            {
                return fresh;
            }

            Discard(fresh);
            return null;
        }

        void Discard(PooledChannel? unwanted)
        {
            using var section = state.Enter();
            state.Discard(unwanted);
        }
    }

    // A server has sent its SETTINGS, and answers the probe of the user's, if there is one.
    private async Task<bool> IsAliveAsync(PooledChannel channel)
    {
        using var timeout = new CancellationTokenSource(state.Options.ProbeTimeout, state.Time);
        return await ChannelConnector.FailureOfAsync(channel.ConnectAsync(timeout.Token)).ConfigureAwait(false) is null
            && await state.Options.IsAnsweredAsync(channel.CallInvoker, timeout.Token).ConfigureAwait(false)
            && await ChannelConnector.FailureOfAsync(connector.PrimeAsync(channel)).ConfigureAwait(false) is null;
    }
}
