using System.Runtime.CompilerServices;
using System.Text.RegularExpressions;

namespace PoolingInvoker.Tests;

/// <summary>Dependencies point down only, file by file, as the sources say it.</summary>
public sealed partial class ArchitectureTests
{
    private static readonly string Library = Path.Combine(Path.GetDirectoryName(ThisFile())!, "..", "..", "src", "PoolingInvoker");

    // Of the root, the options and what is told of the pool are data that everybody may know.
    private static readonly string[] Data = ["ChannelAddress", "ChannelPoolOptions", "ChannelPoolStatistics", "ChannelPoolEvent", "ChannelPoolEventKind", "ChannelPoolEventReason", "ChannelPoolExhaustedException", "PooledChannelState", "PooledChannelSnapshot", "ConnectionFact", "PoolingCallInvokerOptions", "ChannelRetryStrategyOptions", "ChannelHedgingStrategyOptions", "PooledMethodConfig"];

    [Theory]
    [InlineData("Diagnostics", "Calls", "Pool", "Endpoints", "Connections", "Resilience", "")]
    [InlineData("Connections", "Calls", "Pool", "Endpoints", "Resilience", "")]
    [InlineData("Endpoints", "Calls", "Resilience", "")]
    [InlineData("Pool", "Calls", "Resilience", "")]
    [InlineData("Resilience", "Calls", "Pool", "Endpoints", "")]
    [InlineData("Calls", "")]
    public void AFolderKnowsNothingOfTheFoldersAbove(string folder, params string[] above)
    {
        var forbidden = above.SelectMany(TypesIn).Except(Data).ToHashSet();
        Assert.NotEmpty(forbidden);
        var found = SourcesIn(folder).SelectMany(file => Names().Matches(Code(file))
            .Select(static match => match.Value)
            .Where(forbidden.Contains)
            .Select(name => $"{Path.GetFileName(file)} knows {name}"));
        Assert.Empty(found.Distinct());
    }

    [Fact]
    public void ThePoolKnowsNeitherPollyNorTheStatusOfCalls()
    {
        foreach (var file in new[] { "Pool", "Endpoints", "Connections" }.SelectMany(SourcesIn))
        {
            Assert.DoesNotMatch(@"\b(Polly|RpcException|(?<!response\.)StatusCode(?!: >=))\b", Code(file));
        }
    }

    private static IEnumerable<string> TypesIn(string folder) => SourcesIn(folder)
        .SelectMany(static file => Declarations().Matches(Code(file)))
        .Select(static match => match.Groups[1].Value);

    private static string[] SourcesIn(string folder) => Directory.GetFiles(Path.Combine(Library, folder), "*.cs");

    // Comments and texts may speak of everything.
    private static string Code(string file) => Comments().Replace(File.ReadAllText(file), "");

    private static string ThisFile([CallerFilePath] string file = "") => file;

    [GeneratedRegex(@"//.*|""[^""\n]*""")]
    private static partial Regex Comments();

    [GeneratedRegex(@"\b\w+\b")]
    private static partial Regex Names();

    [GeneratedRegex(@"^(?:public|internal)\b[^(\n]*?\b(?:class|struct|interface|enum|record struct)\s+(\w+)", RegexOptions.Multiline)]
    private static partial Regex Declarations();
}
