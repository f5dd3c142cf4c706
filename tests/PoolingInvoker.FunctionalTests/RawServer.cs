using System.Buffers.Binary;
using System.Collections.Concurrent;
using System.Net;
using System.Net.Sockets;

namespace PoolingInvoker.FunctionalTests;

/// <summary>
/// A server of a few HTTP/2 frames: it announces what the test says, when the test says so, counts the streams on each connection, and
/// answers each call with an empty message.
/// </summary>
internal sealed class RawServer : IAsyncDisposable
{
    private readonly TcpListener _listener = new(IPAddress.Loopback, 0);
    private readonly ConcurrentQueue<Connection> _connections = new();
    private readonly int? _maxStreams;
    private readonly Task _accepting;

    /// <param name="maxStreams">How many streams it says that it takes; null to say nothing.</param>
    public RawServer(int? maxStreams)
    {
        _maxStreams = maxStreams;
        _listener.Start();
        Address = new Uri($"http://127.0.0.1:{((IPEndPoint)_listener.LocalEndpoint).Port}");
        _accepting = AcceptAsync();
    }

    public Uri Address { get; }

    /// <summary>The connections on which there has been a call.</summary>
    public IReadOnlyList<Connection> Connections => [.. _connections.Where(static connection => connection.Calls > 0)];

    /// <summary>Gets or sets whether calls wait until the test has them answered.</summary>
    public bool Holds { get; set; }

    /// <summary>Gets or sets what it waits for before it says anything on a connection.</summary>
    public Task Speaks { get; set; } = Task.CompletedTask;

    /// <summary>How many connections there have been.</summary>
    public int Accepted => _connections.Count;

    public async ValueTask DisposeAsync()
    {
        _listener.Dispose();
        await _accepting;
        foreach (var connection in _connections)
        {
            connection.Dispose();
        }
    }

    private async Task AcceptAsync()
    {
        try
        {
            while (true)
            {
                var connection = new Connection(this, await _listener.AcceptSocketAsync());
                _connections.Enqueue(connection);
                _ = connection.RunAsync(_maxStreams);
            }
        }
        catch (Exception exception) when (exception is SocketException or InvalidOperationException)
        {
            // The server has been stopped.
        }
    }

    public sealed class Connection(RawServer server, Socket socket) : IDisposable
    {
        private const int Preface = 24;
        private const int Header = 9;

        // :status 200, content-type: application/grpc
        private static readonly byte[] HeadersOfAReply = [0x88, 0x0F, 0x10, 0x10, .. "application/grpc"u8];

        // grpc-status: 0
        private static readonly byte[] TrailersOfAReply = [0x00, 0x0B, .. "grpc-status"u8, 0x01, .. "0"u8];

        private readonly NetworkStream _stream = new(socket, ownsSocket: true);
        private readonly SemaphoreSlim _writing = new(1, 1);
        private readonly Lock _lock = new();
        private readonly HashSet<int> _open = [];
        private readonly HashSet<int> _complete = [];
        private int _last;

        /// <summary>How many calls have come.</summary>
        public int Calls { get; private set; }

        /// <summary>How many SETTINGS the client has acknowledged.</summary>
        public int Acknowledged { get; private set; }

        /// <summary>The most streams at a time, since the test last looked.</summary>
        public int Peak { get; private set; }

        /// <summary>The calls that are there, and have not been answered.</summary>
        public int Open
        {
            get
            {
                lock (_lock)
                {
                    return _complete.Count;
                }
            }
        }

        public int TakePeak()
        {
            lock (_lock)
            {
                var peak = Peak;
                Peak = _open.Count;
                return peak;
            }
        }

        public Task AnnounceAsync(int? maxStreams)
        {
            var setting = new byte[maxStreams is null ? 0 : 6];
            if (maxStreams is { } max)
            {
                setting[1] = 3; // SETTINGS_MAX_CONCURRENT_STREAMS
                BinaryPrimitives.WriteInt32BigEndian(setting.AsSpan(2), max);
            }

            return WriteAsync(Frame(type: 4, flags: 0, stream: 0, setting));
        }

        /// <summary>Says that no new calls are taken; those that are there are answered.</summary>
        public Task GoAwayAsync()
        {
            var payload = new byte[8];
            BinaryPrimitives.WriteInt32BigEndian(payload, _last);
            return WriteAsync(Frame(type: 7, flags: 0, stream: 0, payload));
        }

        /// <summary>Answers the calls that have come, or so many of them.</summary>
        public async Task AnswerAsync(int count = int.MaxValue)
        {
            List<int> streams;
            lock (_lock)
            {
                streams = [.. _complete.Order().Take(count)];
                _complete.ExceptWith(streams);
                _open.ExceptWith(streams);
            }

            foreach (var stream in streams)
            {
                await WriteAsync([
                    .. Frame(type: 1, flags: 4, stream, HeadersOfAReply),
                    .. Frame(type: 0, flags: 0, stream, new byte[5]),
                    .. Frame(type: 1, flags: 5, stream, TrailersOfAReply),
                ]);
            }
        }

        public async Task RunAsync(int? maxStreams)
        {
            try
            {
                var header = new byte[Header];
                await _stream.ReadExactlyAsync(new byte[Preface]);
                await server.Speaks;
                await AnnounceAsync(maxStreams);
                while (true)
                {
                    await _stream.ReadExactlyAsync(header);
                    var payload = new byte[(header[0] << 16) | (header[1] << 8) | header[2]];
                    await _stream.ReadExactlyAsync(payload);
                    await ReadAsync(type: header[3], flags: header[4], BinaryPrimitives.ReadInt32BigEndian(header.AsSpan(5)), payload);
                }
            }
            catch (Exception exception) when (exception is IOException or ObjectDisposedException)
            {
                // The connection has been closed.
            }
        }

        public void Dispose() => _stream.Dispose();

        private async Task ReadAsync(byte type, byte flags, int stream, byte[] payload)
        {
            switch (type)
            {
                case 0 or 1: // DATA, HEADERS
                    lock (_lock)
                    {
                        if (type == 1 && _open.Add(stream))
                        {
                            _last = stream;
                            Calls++;
                            Peak = Math.Max(Peak, _open.Count);
                        }

                        if ((flags & 1) != 0)
                        {
                            _complete.Add(stream);
                        }
                    }

                    if (!server.Holds)
                    {
                        await AnswerAsync();
                    }

                    break;
                case 3: // RST_STREAM
                    lock (_lock)
                    {
                        _open.Remove(stream);
                        _complete.Remove(stream);
                    }

                    break;
                case 4 when flags == 0: // SETTINGS
                    await WriteAsync(Frame(type: 4, flags: 1, stream: 0, []));
                    break;
                case 4:
                    Acknowledged++;
                    break;
                case 6 when flags == 0: // PING
                    await WriteAsync(Frame(type: 6, flags: 1, stream: 0, payload));
                    break;
                default:
                    break;
            }
        }

        private async Task WriteAsync(byte[] bytes)
        {
            await _writing.WaitAsync();
            try
            {
                await _stream.WriteAsync(bytes);
            }
            finally
            {
                _writing.Release();
            }
        }

        private static byte[] Frame(byte type, byte flags, int stream, byte[] payload)
        {
            var frame = new byte[Header + payload.Length];
            frame[1] = (byte)(payload.Length >> 8);
            frame[2] = (byte)payload.Length;
            frame[3] = type;
            frame[4] = flags;
            BinaryPrimitives.WriteInt32BigEndian(frame.AsSpan(5), stream);
            payload.CopyTo(frame, Header);
            return frame;
        }
    }
}
