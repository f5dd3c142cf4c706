using System.Buffers.Binary;

namespace PoolingInvoker.Tests;

/// <summary>What has been sent of one request.</summary>
internal sealed class SentRequest
{
    private readonly List<byte> _bytes = [];
    private int _begun;

    /// <summary>The messages that are through, as they were sent.</summary>
    public IReadOnlyList<byte[]> Messages => [.. Frames().Select(static frame => frame.Message)];

    /// <summary>Which of the messages are compressed.</summary>
    public IReadOnlyList<bool> Compressed => [.. Frames().Select(static frame => frame.IsCompressed)];

    /// <summary>How many writes have begun, those that wait included.</summary>
    public int Begun => Volatile.Read(ref _begun);

    /// <summary>Whether the request was sent to its end.</summary>
    public bool IsComplete { get; private set; }

    public int Begin() => Interlocked.Increment(ref _begun) - 1;

    public void Add(ReadOnlySpan<byte> bytes)
    {
        lock (_bytes)
        {
            _bytes.AddRange(bytes);
        }
    }

    public void Complete() => IsComplete = true;

    private List<(bool IsCompressed, byte[] Message)> Frames()
    {
        byte[] bytes;
        lock (_bytes)
        {
            bytes = [.. _bytes];
        }

        var frames = new List<(bool, byte[])>();
        for (var at = 0; at < bytes.Length;)
        {
            var length = BinaryPrimitives.ReadInt32BigEndian(bytes.AsSpan(at + 1));
            frames.Add((bytes[at] == 1, bytes[(at + 5)..(at + 5 + length)]));
            at += 5 + length;
        }

        return frames;
    }
}
