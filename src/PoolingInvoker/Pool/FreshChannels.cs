namespace PoolingInvoker;

/// <summary>Channels that are made while others are silent, and on which a server has to show that it is there.</summary>
internal sealed class FreshChannels(PoolState state, ChannelConnector connector)
{
    public static readonly TimeSpan FirstPause = TimeSpan.FromSeconds(0.1);

    private const int AtATime = 3;

    private static readonly TimeSpan LongestPause = TimeSpan.FromSeconds(1);

    public static TimeSpan Longer(TimeSpan pause) => pause * 2 < LongestPause ? pause * 2 : LongestPause;

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
    /// A quarantined channel has no calls that would show whether a server is there. While there are calls on others it is tried out, and replaced by
    /// the next one if there is none: one dial in ProbeTimeout and a pause, of 0.1 s at first and 1 s later.
    /// </summary>
    public async Task TryOutAsync(PooledChannel channel)
    {
        for (var pause = FirstPause; ; pause = Longer(pause))
        {
            if (await IsAliveAsync(channel).ConfigureAwait(false))
            {
                using (state.Enter())
                {
                    channel.FoundAlive();
                    state.Active.Update(channel);
                }

                return;
            }

            await Task.Delay(pause, state.Time).ConfigureAwait(false);
            using (state.Enter())
            {
                channel.AwaitsTryOut = state.Leases == 0; // by the look, when there are calls again
                if (channel is not { Health: ChannelHealth.Quarantined, State: PooledChannelState.Active, AwaitsTryOut: false } || state.IsDisposed)
                {
                    return;
                }

                connector.MarkReplacing(channel, countsAsDial: false);
            }

            if (connector.ReplaceUnconnected(channel, "no server answered on it", ChannelHealth.Quarantined) is { } next)
            {
                channel.Transport?.Abort();
                channel = next;
            }
        }
    }

    /// <summary>Makes some channels at a time, and gives the first one on which a server answers; null if none does.</summary>
    public async Task<PooledChannel?> FirstAnsweredAsync()
    {
        if (state.IsDisposed)
        {
            return null;
        }

        var asking = Enumerable.Range(0, AtATime).Select(_ => AskAsync()).ToList();
        var first = await FirstAsync(asking).ConfigureAwait(false);
        asking.ForEach(late => late.ContinueWith(asked => Discard(asked.Result), TaskScheduler.Default));
        return first;

        async Task<PooledChannel?> AskAsync()
        {
            var fresh = connector.Create(inPlaceOf: null, out _);
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

    // Whether a server is there for a fresh channel: it has sent its SETTINGS, and answers the probe of the user's, if there is one.
    private async Task<bool> IsAliveAsync(PooledChannel channel)
    {
        using var timeout = new CancellationTokenSource(state.Options.ProbeTimeout, state.Time);
        return await ChannelConnector.FailureOfAsync(channel.ConnectAsync(timeout.Token)).ConfigureAwait(false) is null
            && await state.Options.IsAnsweredAsync(channel.CallInvoker, timeout.Token).ConfigureAwait(false)
            && await ChannelConnector.FailureOfAsync(connector.PrimeAsync(channel)).ConfigureAwait(false) is null;
    }
}
