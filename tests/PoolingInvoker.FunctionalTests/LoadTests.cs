namespace PoolingInvoker.FunctionalTests;

/// <summary>Tests that load the machine and measure it run one after the other, and after those that run side by side.</summary>
[CollectionDefinition(nameof(LoadTests), DisableParallelization = true)]
public sealed class LoadTests;
