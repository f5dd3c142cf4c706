using System.Net;
using System.Security.Cryptography.X509Certificates;
using PoolingInvoker.FunctionalTests;

namespace PoolingInvoker.FaultTests;

/// <summary>How a fault comes about.</summary>
internal enum FaultKind
{
    /// <summary>By the script of the server.</summary>
    Scripted,

    /// <summary>Nobody listens.</summary>
    Refused,

    /// <summary>Each call has a listener of its own, which takes connections and is no server.</summary>
    NoServer,

    /// <summary>The process of the server is killed.</summary>
    Killed,

    /// <summary>The process of the server is stopped, and its connections stay.</summary>
    Stopped,
}

/// <summary>A row of the table.</summary>
internal sealed record Fault(string Title, string Script, FaultKind Kind = FaultKind.Scripted)
{
    /// <summary>Whom the certificate is for that a listener shows.</summary>
    public const string Host = "localhost";

    private const string Subject = $"CN={Host}";
    private const int Never = 20;
    private const string EndsTheCall = "the server has the call and may be at work on it: its deadline alone ends it";
    private const string SameAgain = "another attempt would end the same";
    private const string Breaks = "the client breaks the connection over the answer: another attempt would break another one";
    private const string SaysNo = "the server says that the call is not to be sent again";

    private Fault(string title, Func<X509Certificate2, SocketServer> listen)
        : this(title, "", FaultKind.NoServer)
    {
        Listen = listen;
        Points = [Point.Request, Point.BeforeWrite];
        Times = "always";
    }

    public static IReadOnlyList<Fault> All { get; } =
    [
        new("connection refused; the port is open for the 2nd attempt", "", FaultKind.Refused) { Points = [Point.Request, Point.BeforeWrite], NeverLeft = true },
        new("connection refused, always", "", FaultKind.Refused) { Points = [Point.Request, Point.BeforeWrite], Times = "always" },
        new("accepted, and closed", _ => SocketServer.ThatCloses()) { IsARace = true },
        new("accepted, and reset", _ => SocketServer.ThatResets()) { IsARace = true },
        new("accepted, and not a word", _ => SocketServer.ThatSaysNothing()) { IsNoticed = false, PoolDeadline = 1, BareDeadline = 1 },
        new("a certificate that the client does not trust", SocketServer.WithoutAlpn) { Scheme = Uri.UriSchemeHttps, IsFinal = true },
        new("https to a port that speaks http", _ => SocketServer.WithoutTls()) { Scheme = Uri.UriSchemeHttps, IsFinal = true },
        new("TLS without HTTP/2", SocketServer.WithoutAlpn)
        {
            Scheme = Uri.UriSchemeHttps,
            Handler = static handler =>
                handler.SslOptions.RemoteCertificateValidationCallback = static (_, certificate, _, _) => certificate?.Subject == Subject,
            IsFinal = true,
        },
        new("HTTP/1.1 only", _ => SocketServer.WithoutHttp2()) { IsFinal = true, IsARace = true },
        new("the server is killed (SIGKILL)", "hold", FaultKind.Killed),
        new("the server hangs (SIGSTOP), its connections stay", "hold", FaultKind.Stopped) { IsNoticed = false, PoolDeadline = 8, BareDeadline = 2 },
        new("TCP reset", "tcp-reset"),
        new("connection closed (FIN), without a word", "tcp-close"),
        new("GOAWAY 0 that includes the call, then connection closed", "goaway-close"),
        new("GOAWAY that includes the call, which is then answered", "goaway-with") { IsNoticed = false },
        new("GOAWAY that excludes the call", "goaway-without") { Points = [Point.Request, Point.BeforeWrite, Point.AfterWrite], NeverLeft = true, BareDeadline = 5 },
        new("SETTINGS: one stream on the connection, then the call is answered", "settings") { IsNoticed = false },
        new("RST_STREAM 7 (REFUSED_STREAM)", "rst-7") { Points = [Point.Request, Point.BeforeWrite, Point.AfterWrite], NeverLeft = true, BareDeadline = 5 },
        new("the same for every 3rd stream, six calls", "rst-7") { Points = [Point.Request], Times = "every-3", Calls = 6 },
        new("the same, always", "rst-7") { Points = [Point.Request], Times = "always" },
        new("RST_STREAM 8 (CANCEL)", "rst-8"),
        new("RST_STREAM 2 (INTERNAL_ERROR)", "rst-2"),
        new("RST_STREAM 11 (ENHANCE_YOUR_CALM)", "rst-11"),
        new("half a message, then RST_STREAM 8", "half-rst-8"),
        new("half a message, then RST_STREAM 2", "half-rst-2"),
        new("the end without a status, of a unary reply behind its message", "no-trailers"),
        new("no answer", "hang") { IsNoticed = false, PoolDeadline = 1, BareDeadline = 1, WhyGetNameFails = EndsTheCall },
        new("status 14 (Unavailable) from the server", "status-14"),
        new("the same, always", "status-14") { Points = [Point.Request], Times = "always" },
        new("status 14 with grpc-retry-pushback-ms 20", "pushback-20"),
        new("status 14 with grpc-retry-pushback-ms -1", "pushback-negative") { WhyGetNameFails = SaysNo, IsFinal = true },
        new("status 14 with grpc-retry-pushback-ms soon (unreadable)", "pushback-unreadable") { WhyGetNameFails = SaysNo, IsFinal = true },
        new("status 14 with grpc-internal-drop-request", "drop") { WhyGetNameFails = SaysNo, IsFinal = true },
        new("HTTP status 502, not gRPC", "http-502") { Points = [Point.Request, Point.BeforeWrite, Point.AfterWrite] },
        new("HTTP status 503, not gRPC", "http-503") { Points = [Point.Request, Point.BeforeWrite, Point.AfterWrite] },
        new("HTTP status 401, not gRPC", "http-401") { Points = [Point.Request, Point.BeforeWrite, Point.AfterWrite], WhyGetNameFails = SameAgain, IsFinal = true },
        new("HTTP status 401, to a client with credentials", "http-401-basic")
        {
            Points = [Point.Request, Point.BeforeWrite, Point.AfterWrite],
            Handler = static handler => handler.Credentials = new NetworkCredential("ada", "secret"),
            BareDeadline = 5,
        },
        new("HTTP status 307, to the same server", "http-307") { Points = [Point.Request, Point.BeforeWrite, Point.AfterWrite], BareDeadline = 5 },
        new("HTTP status 308, to the same server", "http-308") { Points = [Point.Request, Point.BeforeWrite, Point.AfterWrite], BareDeadline = 5 },
        new("a response that cannot be parsed", "unparsable") { WhyGetNameFails = SameAgain, IsFinal = true },
        new("a status message larger than the client takes", "large-message") { WhyGetNameFails = Breaks, IsFinal = true },
        new("headers larger than the client takes", "large-headers") { Points = [Point.Request, Point.BeforeWrite, Point.AfterWrite], WhyGetNameFails = Breaks, IsFinal = true },
        new("trailers larger than the client takes", "large-trailers") { WhyGetNameFails = Breaks, IsFinal = true },
    ];

    /// <summary>Who takes the connections, with which certificate, where there is no server.</summary>
    public Func<X509Certificate2, SocketServer>? Listen { get; }

    public string Scheme { get; init; } = Uri.UriSchemeHttp;

    /// <summary>Whether a bare channel that still writes when the server closes sees something else than one that reads already.</summary>
    public bool IsARace { get; init; }

    /// <summary>What the user sets at the handler of each channel.</summary>
    public Action<SocketsHttpHandler>? Handler { get; init; }

    /// <summary>Which attempts the fault strikes: the first N, "always", or "every-N".</summary>
    public string Times { get; init; } = "1";

    /// <summary>How many calls are made, one after the other. Of more than one none is held.</summary>
    public int Calls { get; init; } = 1;

    /// <summary>Where the fault can strike at all: there is no refusing of a stream that has been answered.</summary>
    public IReadOnlyList<Point> Points { get; init; } = Enum.GetValues<Point>();

    /// <summary>Whether the attempt that is struck ends by it.</summary>
    public bool IsNoticed { get; init; } = true;

    /// <summary>In seconds. Where no fault waits for it, it is never reached.</summary>
    public int PoolDeadline { get; init; } = Never;

    public int BareDeadline { get; init; } = Never;

    /// <summary>Why an idempotent call may fail by a fault that strikes once.</summary>
    public string? WhyGetNameFails { get; init; }

    /// <summary>Whether the server has told the client that it has not looked at the call, or there was none.</summary>
    public bool NeverLeft { get; init; }

    /// <summary>Whether the server has told the client not to send the call again.</summary>
    public bool IsFinal { get; init; }

    public bool StrikesOnce => Times == "1";

    /// <summary>Whether calls wait for their deadline.</summary>
    public bool IsSlow => BareDeadline < Never;
}
