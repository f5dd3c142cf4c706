namespace PoolingInvoker.FaultTests;

/// <summary>How a fault comes about.</summary>
internal enum FaultKind
{
    /// <summary>By the script of the server.</summary>
    Scripted,

    /// <summary>Nobody listens.</summary>
    Refused,

    /// <summary>The process of the server is killed.</summary>
    Killed,

    /// <summary>The process of the server is stopped, and its connections stay.</summary>
    Stopped,
}

/// <summary>A row of the table.</summary>
internal sealed record Fault(string Title, string Script, FaultKind Kind = FaultKind.Scripted)
{
    private const int Never = 20;
    private const string EndsTheCall = "the server has the call and may be at work on it: its deadline alone ends it";
    private const string SameAgain = "another attempt would end the same";
    private const string Breaks = "the client breaks the connection over the answer: another attempt would break another one";
    private const string SaysNo = "the server says that the call is not to be sent again";

    public static IReadOnlyList<Fault> All { get; } =
    [
        new("connection refused; the port is open for the 2nd attempt", "", FaultKind.Refused) { Points = [Point.Request, Point.BeforeWrite], NeverLeft = true },
        new("connection refused, always", "", FaultKind.Refused) { Points = [Point.Request, Point.BeforeWrite], Times = "always" },
        new("the server is killed (SIGKILL)", "hold", FaultKind.Killed),
        new("the server hangs (SIGSTOP), its connections stay", "hold", FaultKind.Stopped) { IsNoticed = false, PoolDeadline = 8, BareDeadline = 2 },
        new("TCP reset", "tcp-reset"),
        new("connection closed (FIN), without a word", "tcp-close"),
        new("GOAWAY 0 that includes the call, then connection closed", "goaway-close"),
        new("GOAWAY that includes the call, which is then answered", "goaway-with") { IsNoticed = false },
        new("GOAWAY that excludes the call", "goaway-without") { Points = [Point.Request, Point.BeforeWrite, Point.AfterWrite], NeverLeft = true, PoolDeadline = 2, BareDeadline = 2 },
        new("SETTINGS: one stream on the connection, then the call is answered", "settings") { IsNoticed = false },
        new("RST_STREAM 7 (REFUSED_STREAM)", "rst-7") { Points = [Point.Request, Point.BeforeWrite, Point.AfterWrite], NeverLeft = true, PoolDeadline = 2, BareDeadline = 2 },
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
        new("HTTP status 307, to the same server", "http-307") { Points = [Point.Request, Point.BeforeWrite, Point.AfterWrite], PoolDeadline = 2, BareDeadline = 2 },
        new("a response that cannot be parsed", "unparsable") { WhyGetNameFails = SameAgain, IsFinal = true },
        new("a status message larger than the client takes", "large-message") { WhyGetNameFails = Breaks, IsFinal = true },
        new("headers larger than the client takes", "large-headers") { Points = [Point.Request, Point.BeforeWrite, Point.AfterWrite], WhyGetNameFails = Breaks, IsFinal = true },
        new("trailers larger than the client takes", "large-trailers") { WhyGetNameFails = Breaks, IsFinal = true },
    ];

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
