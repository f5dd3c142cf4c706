using System.Net.Sockets;

namespace PoolingInvoker.FunctionalTests;

/// <summary>The frames of HTTP/2 that a server of a test writes by hand, and what it reads (RFC 9113, section 4.1).</summary>
internal static class ServerFrames
{
    public static readonly byte[] Settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    public static readonly byte[] SettingsAck = [0, 0, 0, 4, 1, 0, 0, 0, 0];

    // :status 200, content-type: application/grpc; an empty message; grpc-status: 0
    private static readonly byte[] Headers = [0x88, 0x0F, 0x10, 0x10, .. "application/grpc"u8];
    private static readonly byte[] Trailers = [0x00, 0x0B, .. "grpc-status"u8, 0x01, .. "0"u8];

    public static byte[] Reply(byte stream) => [.. Frame(1, 4, stream, Headers), .. Frame(0, 0, stream, new byte[5]), .. Frame(1, 5, stream, Trailers)];

    public static byte[] Frame(byte type, byte flags, byte stream, byte[] payload) => [0, 0, (byte)payload.Length, type, flags, 0, 0, 0, stream, .. payload];

    public static async Task<byte[]> ReadFrameAsync(NetworkStream stream)
    {
        var header = new byte[9];
        await stream.ReadExactlyAsync(header);
        var payload = new byte[(header[0] << 16) | (header[1] << 8) | header[2]];
        await stream.ReadExactlyAsync(payload);
        return [.. header, .. payload];
    }
}
