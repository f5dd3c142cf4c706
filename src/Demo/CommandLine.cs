using System.Diagnostics.CodeAnalysis;
using System.Globalization;
using System.Net;

namespace PoolingInvoker.Demo;

/// <summary>What the program is asked to do.</summary>
internal abstract record CommandLine
{
    public const string Usage = """
        Usage:
          Demo [--servers URL[,URL...]]         a web front over pooled calls, until Ctrl+C
          Demo tour [--servers URL[,URL...]]    a bare channel and the pool side by side, while a server is killed
          Demo serve NAME PORT [JOURNAL]        one server, until it is killed; port 0 is a free one, and ADDRESS:PORT
                                                has it listen elsewhere than on the loopback
          Demo --help                           this text

        --servers takes servers that run already, as in http://127.0.0.1:5001,http://127.0.0.1:5002, in place of three embedded ones.
        """;

    public static bool TryParse(string[] args, [NotNullWhen(true)] out CommandLine? command, [NotNullWhen(false)] out string? mistake)
    {
        (command, mistake) = args switch
        {
            _ when args.Any(static arg => arg is "--help" or "-h" or "-?") => (new Help(), null),
            ["serve", .. var rest] => ParseServe(rest),
            ["tour", .. var rest] => ParseServers(rest, static servers => new Tour(servers)),
            _ => ParseServers(args, static servers => new Web(servers)),
        };
        return command is not null;
    }

    private static (CommandLine? Command, string? Mistake) ParseServe(string[] args) => args switch
    {
        [var name, var port, .. { Length: < 2 } journal] => ushort.TryParse(port, NumberStyles.None, CultureInfo.InvariantCulture, out var number)
            ? (new Serve(name, new IPEndPoint(IPAddress.Loopback, number), journal.FirstOrDefault()), null)
            : port.Contains(':', StringComparison.Ordinal) && IPEndPoint.TryParse(port, out var endPoint)
            ? (new Serve(name, endPoint, journal.FirstOrDefault()), null)
            : (null, $"The port '{port}' is not a number from 0 to 65535."),
        _ => (null, $"'serve' takes a name, a port and perhaps the file of a journal. It was given {(args.Length == 0 ? "nothing" : $"'{string.Join(' ', args)}'")}."),
    };

    private static (CommandLine? Command, string? Mistake) ParseServers(string[] args, Func<IReadOnlyList<Uri>, CommandLine> make)
    {
        var servers = new List<Uri>();
        switch (args)
        {
            case []:
                return (make(servers), null);
            case ["--servers"]:
                return (null, "'--servers' was given without a URL.");
            case ["--servers", var list]:
                foreach (var text in list.Split(',', StringSplitOptions.TrimEntries))
                {
                    if (!TryParseServer(text, out var server))
                    {
                        return (null, $"'{text}' in '--servers {list}' is not the address of a server: http, a host and a port, as in http://127.0.0.1:5001.");
                    }

                    servers.Add(server);
                }

                return (make(servers), null);
            case ["--servers", _, ..]:
                return (null, $"Nothing may follow '--servers {args[1]}', but '{args[2]}' does. Servers are separated by commas, without spaces.");
            default:
                return (null, $"The argument '{args[0]}' is not known here.");
        }
    }

    // Plaintext only: a balancer that passes on bytes cannot stand for the name in the certificate of another.
    private static bool TryParseServer(string text, [NotNullWhen(true)] out Uri? server) =>
        Uri.TryCreate(text, UriKind.Absolute, out server)
        && server is { Scheme: "http", Host.Length: > 0, Port: > 0, UserInfo: "", PathAndQuery: "/", Fragment: "" };

    public sealed record Help : CommandLine;

    public sealed record Serve(string Name, IPEndPoint EndPoint, string? Journal) : CommandLine;

    public sealed record Web(IReadOnlyList<Uri> Servers) : CommandLine;

    public sealed record Tour(IReadOnlyList<Uri> Servers) : CommandLine;
}
