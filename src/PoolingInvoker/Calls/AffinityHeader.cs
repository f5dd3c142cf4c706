using System.Globalization;

namespace PoolingInvoker;

/// <summary>What carries the key of a single call through the interceptors of a client to the pool. No server gets it.</summary>
internal static class AffinityHeader
{
    public const string Name = "pooling-invoker-affinity";

    public static Metadata AddTo(Metadata? headers, ulong key)
    {
        var added = GivenOptions.Copy(headers);
        added.Add(Name, key.ToString("x16", CultureInfo.InvariantCulture));
        return added;
    }

    public static ulong? KeyIn(Metadata headers)
    {
        for (var i = 0; i < headers.Count; i++)
        {
            if (headers[i].Key == Name && ulong.TryParse(headers[i].Value, NumberStyles.HexNumber, CultureInfo.InvariantCulture, out var key))
            {
                return key;
            }
        }

        return null;
    }
}
