#pragma warning disable CA1032, CA1064 // It is thrown and caught here alone.
namespace PoolingInvoker.Interleavings;

/// <summary>Chance has led to where the model cannot follow.</summary>
internal sealed class LostTrackException : Exception;
