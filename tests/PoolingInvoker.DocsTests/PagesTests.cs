using System.Text.Json;
using YamlDotNet.RepresentationModel;

namespace PoolingInvoker.DocsTests;

/// <summary>What the pages show can be used as it stands there, and what they point to is there.</summary>
public sealed class PagesTests
{
    public static TheoryData<string, int, string> CSharp => Page.AllBlocks("csharp");

    [Theory]
    [MemberData(nameof(CSharp))]
    public void EachExampleCompiles(string page, int line, string code)
    {
        var errors = Example.Errors(code);
        Assert.True(errors.Count == 0, $"{page}:{line}\n{string.Join('\n', errors)}");
    }

    [Fact]
    public void AnExampleThatIsWrongDoesNot()
    {
        Assert.NotEmpty(Example.Errors("options.Pool.MaxPoolsize = 3;"));
        Assert.NotEmpty(Example.Errors("var pool = ChannelPool.ForAddress(invoker)"));
        Assert.Empty(Example.Errors("options.Pool.MaxPoolSize = 3;"));
    }

    [Fact]
    public void EachJsonIsJson()
    {
        foreach (var (page, line, code) in Page.AllBlocks("json").Select(static row => row.Data))
        {
            using var document = JsonDocument.Parse(code, new JsonDocumentOptions { CommentHandling = JsonCommentHandling.Skip });
            Assert.True(document.RootElement.ValueKind == JsonValueKind.Object, $"{page}:{line}");
        }
    }

    [Fact]
    public void EachYamlIsYaml()
    {
        foreach (var (page, line, code) in Page.AllBlocks("yaml").Select(static row => row.Data))
        {
            var stream = new YamlStream();
            using var reader = new StringReader(code);
            stream.Load(reader);
            Assert.True(stream.Documents.Count > 0, $"{page}:{line}");
        }
    }

    [Fact]
    public void EachLinkLeadsSomewhere()
    {
        var dead = new List<string>();
        foreach (var page in Page.All)
        {
            foreach (var (line, target) in page.Links.Where(static link => !link.Target.Contains("://", StringComparison.Ordinal)))
            {
                var (path, anchor) = target.Split('#') is [var first, var second] ? (first, second) : (target, null);
                var to = path.Length == 0 ? page.Path : Path.GetFullPath(Path.Combine(Path.GetDirectoryName(page.Path)!, path));
                if (!File.Exists(to) && !Directory.Exists(to))
                {
                    dead.Add($"{page.Name}:{line}: there is no {target}");
                }
                else if (anchor is not null && Page.All.FirstOrDefault(other => other.Path == to) is { } other && !other.Anchors.Contains(anchor))
                {
                    dead.Add($"{page.Name}:{line}: {other.Name} has no heading #{anchor}");
                }
            }
        }

        Assert.Empty(dead);
    }

    [Fact]
    public void EachErrorIsInTheTroubleshooting()
    {
        var known = Page.All.Single(static page => page.Name == Path.Combine("docs", "troubleshooting.md")).Text;
        var missing = ErrorTexts.All.SelectMany(static text => text.Split('\n')).Where(text => !known.Contains(text, StringComparison.Ordinal)).ToList();
        Assert.True(missing.Count == 0, $"docs/troubleshooting.md does not have:\n{string.Join('\n', missing)}");
    }

    [Fact]
    public void EachOptionIsInItsTable()
    {
        var page = Page.All.Single(static page => page.Name == Path.Combine("docs", "options.md")).Text;
        var missing = new[] { typeof(ChannelPoolOptions), typeof(PoolingCallInvokerOptions), typeof(ChannelRetryStrategyOptions) }
            .SelectMany(static type => type.GetProperties())
            .Select(static property => property.Name)
            .Where(name => !page.Contains($"`{name}`", StringComparison.Ordinal));
        Assert.Empty(missing);
    }
}
