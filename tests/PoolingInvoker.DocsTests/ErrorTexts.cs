using Microsoft.CodeAnalysis;
using Microsoft.CodeAnalysis.CSharp;
using Microsoft.CodeAnalysis.CSharp.Syntax;

namespace PoolingInvoker.DocsTests;

/// <summary>What the libraries say when something is wrong, as their source has it. What a text is completed with at run time is "…" here.</summary>
internal static class ErrorTexts
{
    public static IReadOnlyList<string> All { get; } = [.. Directory.EnumerateFiles(Path.Combine(Page.Root, "src"), "*.cs", SearchOption.AllDirectories)
        .Where(static path => !path.Contains($"{Path.DirectorySeparatorChar}obj{Path.DirectorySeparatorChar}", StringComparison.Ordinal) && !path.Contains("Demo", StringComparison.Ordinal))
        .SelectMany(static path => In(CSharpSyntaxTree.ParseText(File.ReadAllText(path)).GetRoot()))
        .Distinct()
        .Order(StringComparer.Ordinal)];

    private static IEnumerable<string> In(SyntaxNode root) => root.DescendantNodes()
        .SelectMany(static node => node switch
        {
            BaseObjectCreationExpressionSyntax { ArgumentList: { } given } created when IsError(TypeOf(created)) => given.Arguments,
            InvocationExpressionSyntax { Expression: IdentifierNameSyntax { Identifier.Text: "Require" } } required => required.ArgumentList.Arguments,
            InvocationExpressionSyntax { Expression: MemberAccessExpressionSyntax { Name.Identifier.Text: "Require" } } required => required.ArgumentList.Arguments,
            _ => Enumerable.Empty<ArgumentSyntax>(),
        })
        .Select(static argument => TextOf(argument.Expression))
        .OfType<string>()
        .Where(static text => text.Replace("…", string.Empty, StringComparison.Ordinal).Count(static letter => letter == ' ') >= 2);

    private static string TypeOf(BaseObjectCreationExpressionSyntax created) => created switch
    {
        ObjectCreationExpressionSyntax { Type: var type } => type.ToString(),
        { Parent: EqualsValueClauseSyntax { Parent.Parent: VariableDeclarationSyntax { Type: var type } } } => type.ToString(),
        { Parent: ArrowExpressionClauseSyntax { Parent: MethodDeclarationSyntax { ReturnType: var type } } } => type.ToString(),
        { Parent: ArrowExpressionClauseSyntax { Parent: PropertyDeclarationSyntax { Type: var type } } } => type.ToString(),
        _ => string.Empty,
    };

    private static bool IsError(string type) => type.EndsWith("Exception", StringComparison.Ordinal) || type == "Status";

    private static string? TextOf(ExpressionSyntax expression) => expression switch
    {
        LiteralExpressionSyntax { Token.Value: string text } => text,
        InterpolatedStringExpressionSyntax { Contents: var parts } => string.Concat(parts.Select(static part =>
            part is InterpolatedStringTextSyntax { TextToken.ValueText: var text } ? text : "…")),
        BinaryExpressionSyntax { RawKind: (int)SyntaxKind.AddExpression, Left: var left, Right: var right } => (TextOf(left) ?? "…") + (TextOf(right) ?? "…"),
        InvocationExpressionSyntax { Expression: MemberAccessExpressionSyntax { Name.Identifier.Text: "Invariant" }, ArgumentList.Arguments: [var only] } => TextOf(only.Expression),
        ConditionalExpressionSyntax { WhenTrue: var first, WhenFalse: var second } when TextOf(first) is { } one && TextOf(second) is { } other => $"{one}\n{other}",
        _ => null,
    };
}
