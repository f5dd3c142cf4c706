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

    private void BeginReplacingUnsynchronized(PooledChannel channel, bool countsAsDial = true)
    {
        if (!channel.Proven && countsAsDial)
        {
            _backoff.Dialed();
        }

        channel.State = PooledChannelState.Replacing;
        _replacing++;
        _active.Update(channel);
    }

    // As above, but it takes leases meanwhile.
    private void BeginRefreshingUnsynchronized(PooledChannel channel)
    {
        channel.State = PooledChannelState.Refreshing;
        _replacing++;
    }

    private void BeginReplacing(PooledChannel channel, string because) => BeginWork(() => ReplaceAsync(channel, because));

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
        var closes = false;
        bool takesOver;
        bool disposed;
        int creates;
        lock (_lock)
        {
            _replacing--;
            disposed = _disposed;
            error ??= GoneUnsynchronized(created);
            takesOver = created is not null && !disposed && (error is null || IsLostUnsynchronized(old));
            if (takesOver)
            {
                if (error is not null)
                {
                    FailedUnsynchronized(created, error);
                }
                else if (isConnected)
                {
                    created!.Server?.Reached();
                }

                closes = PublishInPlaceOfUnsynchronized(old, created!);
            }
            else if (!disposed)
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
            }

            ServeWaitersUnsynchronized();
            creates = ReserveUnsynchronized();
            CompleteDisposeUnsynchronized();
            AssertLawsUnsynchronized();
        }

        if (takesOver)
        {
            _diary.Replaced(created!, old, because);
        }
        else if (created is not null)
        {
            DisposeChannel(created);
        }

        if (error is not null && !takesOver && !disposed)
        {
            _diary.ReplacementFailed(old, error);
        }

        if (closes)
        {
            DisposeChannel(old);
        }

        BeginCreating(creates, "calls need it");
        return takesOver;
    }

    // Why a channel that was connected, and perhaps primed, is of no use.
    private static IOException? GoneUnsynchronized(PooledChannel? created) => created is { IsGoing: true }
        ? new IOException($"The server of channel #{created.Id} took no more calls on the connection (GOAWAY) before the channel had joined.")
        : null;

    // Whether a new channel is better in any case, even if it could not be connected: there is no other one to go to, and calls end on it
    // with what there is to say.
    private bool IsLostUnsynchronized(PooledChannel old) =>
        old.State == PooledChannelState.Replacing && (_active.Count == 1 || old.BrokenState(thorough: true) == ConnectivityState.Shutdown);

    // Whether the old one has no leases, and closes.
    private bool PublishInPlaceOfUnsynchronized(PooledChannel old, PooledChannel created)
    {
        // Statement order is important: the pool is never without either of them.
        PublishUnsynchronized(created);
        _replaced++;
        return DrainUnsynchronized(old);
    }

    // Whether it has no leases, and closes.
    private bool DrainUnsynchronized(PooledChannel channel)
    {
        _active.Remove(channel);
        LeaveEndpointUnsynchronized(channel);
        channel.State = PooledChannelState.Draining;
        _draining++;
        if (channel.Leases > 0)
        {
            return false;
        }

        CloseUnsynchronized(channel);
        return true;
    }

    // What is left to do for one that was closed under the lock, and that none takes the place of.
    private void Retire(PooledChannel channel, string reason)
    {
        _diary.Retired(channel, reason);
        DisposeChannel(channel);
    }

    // Whoever closes a channel under the lock disposes it outside.
    private void CloseUnsynchronized(PooledChannel channel)
    {
        Debug.Assert(channel.State == PooledChannelState.Draining, "Only a draining channel closes.");
        channel.State = PooledChannelState.Closed;
        _draining--;
    }

    // The calls on it are about to fail: those that are sent again are not to meet it before the first of them has come back.
    internal void ConnectionLost(PooledChannel channel)
    {
        lock (_lock)
        {
            channel.Failed |= channel.Leases > 0;
            if (!channel.Proven && !_disposed)
            {
                // A server that closes before it has answered anything is dialled again as one that could not be connected to.
                _lastConnectFailed = true;
                _backoff.Dialed();
            }

            _active.Update(channel);
            AssertLawsUnsynchronized();
        }
    }

    /// <summary>
    /// A server takes no new calls on the connection of a channel (GOAWAY): it is too old for it, or has carried enough, or the server goes.
    /// From here on the channel takes no leases. Gives what is left to do, which may take its time.
    /// </summary>
    internal Action? ServerGoes(PooledChannel channel)
    {
        const string Reason = "its server takes no more calls on the connection (GOAWAY)";
        lock (_lock)
        {
            var isIdle = channel.Leases == 0 && _waiters.Count == 0;
            if (channel.State == PooledChannelState.Refreshing)
            {
                channel.State = PooledChannelState.Replacing; // by the one that is being connected
                _active.Update(channel);
                return null;
            }

            if (channel.State != PooledChannelState.Active || channel.Index < 0 || _disposed)
            {
                channel.IsGoing = channel.State == PooledChannelState.Connecting; // whoever brings it up sees to it
                return null;
            }

            if (isIdle && _active.Count + _creating > MinimumUnsynchronized)
            {
                DrainUnsynchronized(channel);
                AssertLawsUnsynchronized();
                return () => Retire(channel, Reason);
            }

            BeginReplacingUnsynchronized(channel, countsAsDial: false);
            AssertLawsUnsynchronized();
            return isIdle ? () => Renew(channel, Reason) : () => BeginReplacing(channel, Reason);
        }
    }
}
