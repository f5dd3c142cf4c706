using Grpc.Core;

namespace PoolingInvoker;

/// <summary>Whether channel credentials are those of TLS, as they say themselves.</summary>
internal sealed class ChannelTls : ChannelCredentialsConfiguratorBase
{
    private bool _isSecure;

    public static bool IsIn(ChannelCredentials? credentials)
    {
        var configurator = new ChannelTls();
        credentials?.InternalPopulateConfiguration(configurator, credentials);
        return configurator._isSecure;
    }

    public override void SetInsecureCredentials(object state) => _isSecure = false;

    public override void SetSslCredentials(object state, string? rootCertificates, KeyCertificatePair? keyCertificatePair, VerifyPeerCallback? verifyPeerCallback) =>
        _isSecure = true;

    public override void SetCompositeCredentials(object state, ChannelCredentials channelCredentials, CallCredentials callCredentials) =>
        channelCredentials.InternalPopulateConfiguration(this, channelCredentials);
}
