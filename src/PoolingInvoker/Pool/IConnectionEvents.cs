namespace PoolingInvoker;

/// <summary>What a server says of the connections of a channel.</summary>
internal interface IConnectionEvents
{
    /// <summary>It takes so many streams at a time.</summary>
    void ServerTakes(int maxStreams);

    /// <summary>It takes no new ones on the connection that there is.</summary>
    void ServerGoes();

    /// <summary>It has closed or reset the connection.</summary>
    void ConnectionLost();
}
