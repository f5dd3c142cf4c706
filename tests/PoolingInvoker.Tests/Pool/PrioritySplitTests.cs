namespace PoolingInvoker.Tests.Pool;

/// <summary>Which part of the calls each priority gets.</summary>
public sealed class PrioritySplitTests
{
    [Theory]
    [InlineData(1.4, new[] { 1.0, 1 }, new[] { 1.0, 0 })]
    [InlineData(1.4, new[] { 0.72, 1 }, new[] { 1.0, 0 })] // 72 % of the endpoints carry all calls
    [InlineData(1.4, new[] { 0.5, 1 }, new[] { 0.7, 0.3 })]
    [InlineData(1.4, new[] { 0.0, 1 }, new[] { 0.0, 1 })]
    [InlineData(1.4, new[] { 0.0, 0 }, new[] { 1.0, 0 })] // none is better than another
    [InlineData(1.4, new[] { 0.0, 0.5, 0 }, new[] { 0.0, 1, 0 })]
    [InlineData(1.4, new[] { 0.5, 0.1, 1 }, new[] { 0.7, 0.14, 0.16 })]
    [InlineData(1.4, new[] { 0.25, 0.25 }, new[] { 0.5, 0.5 })] // all together are worth 70 % of the calls
    [InlineData(1.4, new[] { 0.2, 0.1, 0 }, new[] { 0.666667, 0.333333, 0 })]
    [InlineData(1.0, new[] { 0.75, 1 }, new[] { 0.75, 0.25 })]
    [InlineData(2.0, new[] { 0.5, 1 }, new[] { 1.0, 0 })]
    [InlineData(1.4, new[] { 0.3 }, new[] { 1.0 })]
    public void ByHowManyEndpointsAreWell(double factor, double[] well, double[] expected)
    {
        var parts = PrioritySplit.Of(well, factor);
        Assert.Equal(expected.Length, parts.Length);
        Assert.All(expected.Zip(parts), static pair => Assert.Equal(pair.First, pair.Second, precision: 5));
        Assert.Equal(1, parts.Sum(), precision: 9);
    }

    [Theory]
    [InlineData(0, 10, 0)]
    [InlineData(9.9, 10, 0)]
    [InlineData(10, 10, 0)]
    [InlineData(12.5, 10, 0.25)]
    [InlineData(20, 10, 1)]
    [InlineData(1_000, 10, 1)]
    [InlineData(0, 0, 1)]
    public void AnEndpointThatIsBack_CountsAfterTheDelay_MoreAndMore(double since, double delay, double expected) =>
        Assert.Equal(expected, PrioritySplit.Recovered(TimeSpan.FromSeconds(since), TimeSpan.FromSeconds(delay)), precision: 9);
}
