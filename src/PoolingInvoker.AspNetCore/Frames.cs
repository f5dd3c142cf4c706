using System.Text.Json;
using System.Text.Json.Serialization;

namespace PoolingInvoker;

/// <summary>What the page is sent: all that it shows, or what is new since the frame before.</summary>
// Whole: whether it takes the place of all that was sent before.
// At: when the numbers were taken, in milliseconds since 1970.
// Every: how many milliseconds later the next frame is due.
internal sealed record Frame(bool Whole, long At, int Every, IReadOnlyList<PoolFrame> Pools)
{
    /// <summary>As an event of a stream of them.</summary>
    public byte[] ToServerSentEvent() => [.. "data: "u8, .. JsonSerializer.SerializeToUtf8Bytes(this, FrameContext.Default.Frame), .. "\n\n"u8];
}

// Now: what the pool holds and has done; null if it has not been made.
internal sealed record PoolFrame(string Name, PoolNow? Now, IReadOnlyList<Lane> Lanes, IReadOnlyList<Point> Points, IReadOnlyList<Happening> Events);

internal sealed record PoolNow(int Channels, int Most, int Idle, int Draining, int InFlight, int Waiting, long Created, long Replaced, long GivenUp, long Retries, long Leaks);

/// <summary>A channel.</summary>
// Capacity: how many calls it takes; null if there is no limit.
// Age: in milliseconds.
internal sealed record Lane(int Id, PooledChannelState State, string? Connection, string Endpoint, int Calls, int? Capacity, long Age, string? Error);

/// <summary>A moment of the charts.</summary>
// Rate: leases a second since the moment before, retries left out; null if there was none.
// P50: the time in which half of the calls since then were over, in milliseconds; null if that is not measured, or there were none.
internal sealed record Point(long At, double? Rate, double? P50, double? P99, int InFlight, int Waiting, double? Retries);

/// <summary>An event of a pool.</summary>
// Number: they are counted from 1 as they come.
internal sealed record Happening(long Number, long At, ChannelPoolEventKind Kind, int Channel, string Endpoint, string Text, string? Error);

[JsonSourceGenerationOptions(JsonSerializerDefaults.Web, UseStringEnumConverter = true, DefaultIgnoreCondition = JsonIgnoreCondition.WhenWritingNull)]
[JsonSerializable(typeof(Frame))]
internal sealed partial class FrameContext : JsonSerializerContext;
