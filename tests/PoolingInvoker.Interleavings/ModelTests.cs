using PoolingInvoker.Testing;

namespace PoolingInvoker.Interleavings;

/// <summary>The pool as it is beside a model of it. <c>CsCheck_Seed</c> runs a sequence that failed again.</summary>
public sealed class ModelTests(ITestOutputHelper output)
{
    [Fact]
    public void ThePoolIsWhatTheModelSays()
    {
        var (sequences, operations, failure) = ModelCheck.Check(Budget.ModelSeconds, sequences: -1, Waiting.Long);
        output.WriteLine($"{sequences} sequences, {operations} operations in {Budget.ModelSeconds} s.");
        Assert.True(failure is null, failure);
    }

    [Fact]
    public void WhatCallersDoInParallelTheyCouldDoOneAfterTheOther()
    {
        var (pools, failure) = ParallelCheck.Check(Math.Max(1, Budget.ModelSeconds / 2));
        output.WriteLine($"{pools} pools.");
        Assert.True(failure is null, failure);
    }
}
