using BenchmarkDotNet.Attributes;

namespace PoolingInvoker.Benchmarks;

/// <summary>What it costs to follow the frames of one answer to a unary call, and of a megabyte of DATA, as they are read.</summary>
[MemoryDiagnoser]
[ThreadingDiagnoser]
public class FrameBenchmarks
{
    private readonly byte[] _answer = [.. Frame(1, 60), .. Frame(0, 25), .. Frame(1, 20)]; // HEADERS, DATA, HEADERS
    private readonly byte[] _bulk = [.. Enumerable.Range(0, 64).SelectMany(static _ => Frame(0, 16_384))];
    private readonly FrameScanner _scanner = new();

    [Benchmark]
    public int Answer() => Scan(_answer);

    [Benchmark]
    public int Megabyte()
    {
        var kept = 0;
        for (var at = 0; at < _bulk.Length; at += 65_536)
        {
            kept += Scan(_bulk.AsSpan(at, Math.Min(65_536, _bulk.Length - at)));
        }

        return kept;
    }

    private int Scan(Span<byte> bytes) => _scanner.Scan(bytes, out _);

    private static byte[] Frame(byte type, int length) => [(byte)(length >> 16), (byte)(length >> 8), (byte)length, type, 0, 0, 0, 0, 1, .. new byte[length]];
}
