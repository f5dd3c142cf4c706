using Microsoft.CodeAnalysis;
using Microsoft.CodeAnalysis.CSharp;
using Microsoft.CodeAnalysis.CSharp.Syntax;

namespace PoolingInvoker.DocsTests;

/// <summary>
/// A piece of C# in a page, as a program: its using directives, what the text around it takes for granted, its statements, its types.
/// </summary>
internal static class Example
{
    // What an example may use without declaring it.
    private static readonly Dictionary<string, string> Surroundings = new(StringComparer.Ordinal)
    {
        ["app"] = "WebApplication app = null!;",
        ["builder"] = "WebApplicationBuilder builder = null!;",
        ["cancellationToken"] = "CancellationToken cancellationToken = default;",
        ["client"] = "User.UserClient client = null!;",
        ["existing"] = "Grpc.Core.CallInvoker existing = null!;",
        ["invoker"] = "PoolingCallInvoker invoker = null!;",
        ["IsOurs"] = "static bool IsOurs(object? certificate) => certificate is not null;",
        ["loggerFactory"] = "ILoggerFactory loggerFactory = null!;",
        ["options"] = "PoolingCallInvokerOptions options = null!;",
        ["pool"] = "ChannelPool pool = null!;",
        ["provider"] = "IServiceProvider provider = null!;",
        ["registry"] = "Polly.Registry.ResiliencePipelineRegistry<string> registry = null!;",
        ["request"] = "GetNameRequest request = null!;",
        ["resolver"] = "Microsoft.Extensions.ServiceDiscovery.ServiceEndpointResolver resolver = null!;",
        ["services"] = "IServiceCollection services = null!;",
        ["sessionId"] = "string sessionId = null!;",
    };

    private static readonly string[] ImplicitUsings =
    [
        "System", "System.Collections.Generic", "System.IO", "System.Linq", "System.Net.Http", "System.Threading", "System.Threading.Tasks",
        "Microsoft.AspNetCore.Builder", "Microsoft.AspNetCore.Http", "Microsoft.Extensions.Configuration", "Microsoft.Extensions.DependencyInjection",
        "Microsoft.Extensions.Hosting", "Microsoft.Extensions.Logging", "PoolingInvoker", "PoolingInvoker.Protos",
    ];

    private static readonly MetadataReference[] References =
        [.. ((string)AppContext.GetData("TRUSTED_PLATFORM_ASSEMBLIES")!).Split(Path.PathSeparator).Select(static path => MetadataReference.CreateFromFile(path))];

    public static IReadOnlyList<string> Errors(string code)
    {
        var errors = Compile(code, []);
        var missing = errors.Where(static error => error.Id is "CS0103" or "CS0841").Select(NameOf).Distinct().Where(Surroundings.ContainsKey).ToList();
        return [.. (missing.Count > 0 ? Compile(code, missing) : errors).Select(static error => error.ToString())];
    }

    private static string NameOf(Diagnostic error) => error.Location.SourceTree!.GetText().ToString(error.Location.SourceSpan);

    private static List<Diagnostic> Compile(string code, IReadOnlyList<string> surroundings)
    {
        var example = CSharpSyntaxTree.ParseText(code).GetCompilationUnitRoot();
        var usings = string.Concat(ImplicitUsings.Select(static name => $"global using {name};\n"));
        var types = example.Members.Where(static member => member is not GlobalStatementSyntax).ToList();
        var statements = example.Members.Where(static member => member is GlobalStatementSyntax).ToList();
        var program = $"""
            {string.Concat(example.Usings.Select(static name => name.ToFullString()))}
            await Task.CompletedTask;
            {string.Join('\n', surroundings.Select(static name => Surroundings[name]))}
            {string.Concat(statements.Select(static member => member.ToFullString()))}
            {string.Concat(types.Select(static member => member.ToFullString()))}
            """;
        var options = new CSharpCompilationOptions(OutputKind.ConsoleApplication, nullableContextOptions: NullableContextOptions.Enable);
        var compilation = CSharpCompilation.Create("Example", [CSharpSyntaxTree.ParseText(usings), CSharpSyntaxTree.ParseText(program)], References, options);
        return [.. example.GetDiagnostics().Concat(compilation.GetDiagnostics()).Where(static found => found.Severity == DiagnosticSeverity.Error)];
    }
}
