using Markdig;
using Markdig.Extensions.AutoIdentifiers;
using Markdig.Renderers.Html;
using Markdig.Syntax;
using Markdig.Syntax.Inlines;

namespace PoolingInvoker.DocsTests;

/// <summary>A page of the documentation.</summary>
internal sealed class Page
{
    private static readonly MarkdownPipeline Format = new MarkdownPipelineBuilder().UsePipeTables().UseAutoIdentifiers(AutoIdentifierOptions.GitHub).Build();
    private readonly MarkdownDocument _document;

    private Page(string path)
    {
        Path = path;
        Text = File.ReadAllText(path);
        _document = Markdown.Parse(Text, Format);
    }

    public static string Root { get; } = FindRoot();
    public static IReadOnlyList<Page> All { get; } = [.. new[] { "README.md", "CHANGELOG.md" }.Select(static name => System.IO.Path.Combine(Root, name))
        .Concat(Directory.EnumerateFiles(System.IO.Path.Combine(Root, "docs"), "*.md", SearchOption.AllDirectories).Order(StringComparer.Ordinal))
        .Select(static path => new Page(path))];

    public string Path { get; }
    public string Name => System.IO.Path.GetRelativePath(Root, Path);
    public string Text { get; }

    public IEnumerable<string> Anchors => _document.Descendants<HeadingBlock>().Select(static heading => heading.TryGetAttributes()?.Id ?? string.Empty);
    public IEnumerable<(int Line, string Target)> Links => _document.Descendants<LinkInline>().Select(static link => (link.Line + 1, link.Url ?? string.Empty));

    /// <summary>The fenced blocks of a language.</summary>
    public IEnumerable<(int Line, string Code)> Blocks(string language) => _document.Descendants<FencedCodeBlock>()
        .Where(block => block.Info == language)
        .Select(static block => (block.Line + 1, string.Join('\n', block.Lines.Lines.Take(block.Lines.Count).Select(static line => line.ToString()))));

    public static TheoryData<string, int, string> AllBlocks(string language)
    {
        var data = new TheoryData<string, int, string>();
        foreach (var page in All)
        {
            foreach (var (line, code) in page.Blocks(language))
            {
                data.Add(page.Name, line, code);
            }
        }

        return data;
    }

    private static string FindRoot()
    {
        var folder = AppContext.BaseDirectory;
        while (!File.Exists(System.IO.Path.Combine(folder, "PoolingInvoker.sln")))
        {
            folder = System.IO.Path.GetDirectoryName(folder) ?? throw new InvalidOperationException($"No folder above {AppContext.BaseDirectory} has the solution.");
        }

        return folder;
    }
}
