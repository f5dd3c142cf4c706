namespace PoolingInvoker;

/// <summary>What has happened to the connections of a channel while an attempt was under way on it.</summary>
internal enum ConnectionFact
{
    Unknown, // the transport is the user's own, and nothing is seen of it
    Unharmed, // the connection stood, or the handler broke it over what it had read
    UnharmedOrSilent, // the same, but the handler sends keep-alive pings, and may have broken the connection because none was answered
    Lost, // the peer closed or reset the connection, said GOAWAY, or the pool broke it because it was silent
    NotConnected, // no connection could be made
    NotCompatible, // nor will one be: the certificate is refused, the proxy refuses, or the server does not speak HTTP/2
}
