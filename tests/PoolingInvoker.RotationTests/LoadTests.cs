namespace PoolingInvoker.RotationTests;

/// <summary>Tests that load the machine run one after the other.</summary>
[CollectionDefinition(nameof(LoadTests), DisableParallelization = true)]
public sealed class LoadTests;
