#pragma warning disable CA1032, CA1064 // It is thrown and caught here alone, always with a message.
namespace PoolingInvoker.Interleavings;

/// <summary>A law did not hold.</summary>
internal sealed class LawBrokenException(string message) : Exception(message);
