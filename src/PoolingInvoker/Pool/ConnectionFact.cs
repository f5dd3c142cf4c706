namespace PoolingInvoker;

/// <summary>What has happened to the connections of a channel while an attempt was under way on it.</summary>
internal enum ConnectionFact
{
    /// <summary>The transport is the user's own, and nothing is seen of it.</summary>
    Unknown,

    /// <summary>Nothing: the connection stood, or the handler broke it over what it had read.</summary>
    Unharmed,

    /// <summary>As <see cref="Unharmed"/>, but the handler sends keep-alive pings, and may have broken the connection because none was answered.</summary>
    UnharmedOrSilent,

    /// <summary>The peer closed or reset the connection, said GOAWAY, or the pool broke it because it was silent.</summary>
    Lost,

    /// <summary>No connection could be made.</summary>
    NotConnected,

    /// <summary>No connection could be made, nor will one be: the certificate is refused, the proxy refuses, or the server does not speak HTTP/2.</summary>
    NotCompatible,
}
