namespace PoolingInvoker.Tests.Pool;

/// <summary>How many channels are for a load.</summary>
public sealed class ChannelTargetTests
{
    [Theory]
    [InlineData(0, 0)]
    [InlineData(1, 1)]
    [InlineData(12, 1)]
    [InlineData(12.5, 2)]
    [InlineData(64, 6)]
    [InlineData(96, 8)]
    [InlineData(97, 8)]
    [InlineData(512, 8)]
    [InlineData(768, 8)]
    [InlineData(769, 9)]
    [InlineData(1024, 11)]
    public void TheFirstEight_AreForTwelveEach_MoreForEightTimesAsManyOnAll(double load, int channels) =>
        Assert.Equal(channels, new ChannelTarget(12).ChannelsFor(load, capacity: 100));

    [Theory]
    [InlineData(12, 4, 10, 3)] // no more on each than the server takes
    [InlineData(12, 4, 100, 25)]
    [InlineData(12, 20, 136, 8)]
    [InlineData(12, 20, 161, 9)]
    [InlineData(int.MaxValue, 100, 1_000, 10)]
    [InlineData(int.MaxValue, 100, 64, 1)]
    public void NoneIsForMoreThanTheServerTakes(int target, int capacity, double load, int channels) =>
        Assert.Equal(channels, new ChannelTarget(target).ChannelsFor(load, capacity));

    [Fact]
    public void WhatSoManyAreFor_AndHowManyAreForIt_AgreeForAnyNumber()
    {
        var target = new ChannelTarget(12);
        for (var channels = 1; channels <= 100; channels++)
        {
            Assert.Equal(channels, target.ChannelsFor(target.LoadOf(channels), capacity: 100));
            Assert.Equal(channels + 1, target.ChannelsFor(target.LoadOf(channels) + 0.1, capacity: 100));
            Assert.Equal(target.LoadOf(channels), channels * target.LoadOfEach(channels));
        }
    }
}
