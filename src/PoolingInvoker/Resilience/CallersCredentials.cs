namespace PoolingInvoker;

/// <summary>
/// Call credentials of the caller's. What their callbacks throw is marked: it may look like a broken connection, and is none of this channel's.
/// </summary>
internal sealed class CallersCredentials(CallCredentials inner) : CallCredentials
{
    public override void InternalPopulateConfiguration(CallCredentialsConfiguratorBase configurator, object? state) =>
        inner.InternalPopulateConfiguration(new Relay(configurator), state);

    private sealed class Relay(CallCredentialsConfiguratorBase configurator) : CallCredentialsConfiguratorBase
    {
        public override void SetCompositeCredentials(object? state, IReadOnlyList<CallCredentials> credentials) =>
            configurator.SetCompositeCredentials(state, [.. credentials.Select(static part => new CallersCredentials(part))]);

        public override void SetAsyncAuthInterceptorCredentials(object? state, AsyncAuthInterceptor interceptor) =>
            configurator.SetAsyncAuthInterceptorCredentials(state, async (context, metadata) =>
            {
                try
                {
                    await interceptor(context, metadata).ConfigureAwait(false);
                }
                catch (Exception exception)
                {
                    CallFaults.MarkAsCallers(exception);
                    throw;
                }
            });
    }
}

/// <summary>Channel credentials, of which those for calls are <see cref="CallersCredentials"/>.</summary>
internal sealed class CallersChannelCredentials(ChannelCredentials inner) : ChannelCredentials
{
    public override void InternalPopulateConfiguration(ChannelCredentialsConfiguratorBase configurator, object state) =>
        inner.InternalPopulateConfiguration(new Relay(configurator), state);

    private sealed class Relay(ChannelCredentialsConfiguratorBase configurator) : ChannelCredentialsConfiguratorBase
    {
        public override void SetInsecureCredentials(object state) => configurator.SetInsecureCredentials(state);

        public override void SetSslCredentials(object state, string? rootCertificates, KeyCertificatePair? keyCertificatePair, VerifyPeerCallback? verifyPeerCallback) =>
            configurator.SetSslCredentials(state, rootCertificates, keyCertificatePair, verifyPeerCallback);

        public override void SetCompositeCredentials(object state, ChannelCredentials channelCredentials, CallCredentials callCredentials) =>
            configurator.SetCompositeCredentials(state, channelCredentials, new CallersCredentials(callCredentials));
    }
}
