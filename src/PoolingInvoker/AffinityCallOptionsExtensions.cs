namespace PoolingInvoker;

/// <summary>Gives a single call a key, whatever is between its client and the pool.</summary>
public static class AffinityCallOptionsExtensions
{
    /// <summary>
    /// Gives a call a key, as <see cref="PoolingCallInvoker.WithAffinity"/> does, for a client that was made by others:
    /// <c>client.GetNameAsync(request, new CallOptions().WithAffinity(sessionId))</c>. It comes before all other keys.
    /// </summary>
    /// <remarks>
    /// A hash of the key goes as a header through the interceptors of the client to the pool, which takes it out. Where there is no pool the
    /// server gets it.
    /// </remarks>
    /// <param name="options">The options of the call. They stay as they are.</param>
    /// <param name="key">The key. With an empty one the call goes anywhere.</param>
    public static CallOptions WithAffinity(this CallOptions options, string key)
    {
        ArgumentNullException.ThrowIfNull(key);
        return options.WithHeaders(AffinityHeader.AddTo(options.Headers, ChannelAffinity.KeyOf(key)));
    }
}
