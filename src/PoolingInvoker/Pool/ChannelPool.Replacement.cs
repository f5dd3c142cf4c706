using System.Diagnostics;
using Grpc.Core;

namespace PoolingInvoker;

// How one channel takes the place of another.
public partial class ChannelPool
{
    // A channel on which a server has answered is replaced at once; one that has never worked when the pool may dial again.
    private string? ReasonToReplaceUnsynchronized(PooledChannel channel, bool thorough)
    {
        if (channel.State != PooledChannelState.Active || (!channel.Proven && !_backoff.MayDial))
        {
            return null;
        }

        return channel.BrokenState(thorough) is { } state ? $"it was in {state}"
            : channel.Failed ? "a call failed because of it"
            : null;
    }

    private void ReplaceUnsynchronized(PooledChannel channel, string reason, bool countsAsDial = true, bool isIdle = false)
    {
        BeginReplacingUnsynchronized(channel, countsAsDial);
        AfterUnsynchronized(() => BeginReplacing(channel, reason, isIdle));
    }

    // As above, but it takes leases meanwhile.
    private void RefreshUnsynchronized(PooledChannel channel, string reason, bool isIdle = false)
    {
        channel.State = PooledChannelState.Refreshing;
        _replacing++;
        AfterUnsynchronized(() => BeginReplacing(channel, reason, isIdle));
    }

    private void RetireUnsynchronized(PooledChannel channel, string reason)
    {
        _diary.Retired(channel, reason);
        DrainUnsynchronized(channel);
    }

    private void BeginReplacingUnsynchronized(PooledChannel channel, bool countsAsDial)
    {
        if (!channel.Proven && countsAsDial)
        {
            _backoff.Dialed();
        }

        channel.State = PooledChannelState.Replacing;
        _replacing++;
        _active.Update(channel);
    }

    // What takes the place of one that is idle connects with its first call, unless it has to be primed.
    private void BeginReplacing(PooledChannel channel, string because, bool isIdle = false)
    {
        if (isIdle && _options.PrimeAsync is null)
        {
            ReplaceUnconnected(channel, because);
        }
        else
        {
            BeginWork(() => ReplaceAsync(channel, because));
        }
    }

    // Makes the replacement of a channel that is being replaced or refreshed, and publishes it when it is connected. As a rule the old one
    // stays if that fails.
    private async Task ReplaceAsync(PooledChannel old, string because)
    {
        var created = CreateChannel(out var error, old);
        var isConnected = false;
        if (created is not null)
        {
            var connecting = ConnectChannelAsync(created);
            if (await IsWorthWaitingAsync(created, connecting, old).ConfigureAwait(false))
            {
                error = await BringUpAsync(created, connecting).ConfigureAwait(false);
                isConnected = error is null;
            }
        }

        Publish(old, created, error, isConnected, because);
    }

    // Makes the replacement and publishes it as it is; it connects with its first call. The old one stays if none can be made.
    private PooledChannel? ReplaceUnconnected(PooledChannel old, string because, bool onProbation = false)
    {
        var created = CreateChannel(out var error, old);
        if (created is not null)
        {
            created.IsOnProbation = onProbation;
        }

        return Publish(old, created, error, isConnected: false, because) ? created : null;
    }

    private bool Publish(PooledChannel old, PooledChannel? created, Exception? error, bool isConnected, string because)
    {
        using (Enter("calls need it"))
        {
            _replacing--;
            error ??= GoneUnsynchronized(created);
            if (created is not null && !_disposed && (error is null || IsLostUnsynchronized(old)))
            {
                if (error is not null)
                {
                    FailedUnsynchronized(created, error, replaces: true);
                }
                else if (isConnected)
                {
                    created.Server?.Reached();
                }

                PublishInPlaceOfUnsynchronized(old, created, because);
                return true;
            }

            DiscardUnsynchronized(created);
            if (!_disposed)
            {
                // Its connection broke, and there is none to be had. It goes on, and is replaced when the pool may dial again.
                _backoff.Dialed();
                if (created is not null)
                {
                    CouldNotReachUnsynchronized(created);
                }

                old.Proven &= old.State == PooledChannelState.Refreshing;
                old.Pulse.IsGivenUp = false;
                old.LastError = _lastCreationError = error;
                old.State = PooledChannelState.Active;
                _active.Update(old);
                _diary.ReplacementFailed(old, error!);
            }

            return false;
        }
    }

    // One that never joined.
    private void DiscardUnsynchronized(PooledChannel? channel)
    {
        if (channel is not null)
        {
            AfterUnsynchronized(() => DisposeChannel(channel));
        }
    }

    // Why a channel that was connected, and perhaps primed, is of no use.
    private static IOException? GoneUnsynchronized(PooledChannel? created) => created is { IsGoing: true }
        ? new IOException($"The server of channel #{created.Id} took no more calls on the connection (GOAWAY) before the channel had joined.")
        : null;

    // Whether a new channel is better in any case, even if it could not be connected: there is no other one to go to, and calls end on it
    // with what there is to say.
    private bool IsLostUnsynchronized(PooledChannel old) =>
        old.State == PooledChannelState.Replacing && (_active.Count == 1 || old.BrokenState(thorough: true) == ConnectivityState.Shutdown);

    private void PublishInPlaceOfUnsynchronized(PooledChannel old, PooledChannel created, string because)
    {
        // Statement order is important: the pool is never without either of them.
        PublishUnsynchronized(created);
        _replaced++;
        _diary.Replaced(created, old, because);
        DrainUnsynchronized(old);
    }

    private void DrainUnsynchronized(PooledChannel channel)
    {
        _active.Remove(channel);
        LeaveEndpointUnsynchronized(channel);
        channel.State = PooledChannelState.Draining;
        _draining++;
        if (channel.Leases == 0)
        {
            CloseUnsynchronized(channel);
        }
    }

    private void CloseUnsynchronized(PooledChannel channel)
    {
        Debug.Assert(channel.State == PooledChannelState.Draining, "Only a draining channel closes.");
        channel.State = PooledChannelState.Closed;
        _draining--;
        AfterUnsynchronized(() => DisposeChannel(channel));
    }

    // The calls on it are about to fail: those that are sent again are not to meet it before the first of them has come back.
    internal void ConnectionLost(PooledChannel channel)
    {
        using (Enter())
        {
            channel.Failed |= channel.Leases > 0;
            _active.Update(channel);
        }
    }

    /// <summary>
    /// A server takes no new calls on the connection of a channel (GOAWAY): it is too old for it, or has carried enough, or the server goes.
    /// From here on the channel takes no leases.
    /// </summary>
    internal void ServerGoes(PooledChannel channel)
    {
        const string Reason = "its server takes no more calls on the connection (GOAWAY)";
        using (Enter(isReading: true))
        {
            var isIdle = channel.Leases == 0 && _waiters.Count == 0;
            if (channel.State == PooledChannelState.Refreshing)
            {
                channel.State = PooledChannelState.Replacing; // by the one that is being connected
                _active.Update(channel);
                return;
            }

            if (channel.State != PooledChannelState.Active || channel.Index < 0 || _disposed)
            {
                channel.IsGoing = channel.State == PooledChannelState.Connecting; // whoever brings it up sees to it
            }
            else if (isIdle && _active.Count + _creating > MinimumUnsynchronized)
            {
                RetireUnsynchronized(channel, Reason);
            }
            else
            {
                ReplaceUnsynchronized(channel, Reason, countsAsDial: false, isIdle);
            }
        }
    }
}
