using System.Text;
using System.Text.RegularExpressions;
using Grpc.Core;

namespace PoolingInvoker.ContractTests;

/// <summary>What a member gives, on a bare channel and over pools.</summary>
internal sealed record SurfaceRow(MethodType Kind, Moment Moment, string Member, SurfaceEnd End, IReadOnlyDictionary<string, string> Told)
{
    public const string Bare = "a bare channel";
}

/// <summary>docs/contract.md.</summary>
internal static partial class SurfaceTable
{
    private const string Introduction = """
        # What the members of a call object give

        `SurfaceTests` in `tests/PoolingInvoker.ContractTests` writes this file: each member of each call object, called before and after each way of
        ending, twice, the second time from another thread. It is called on a bare channel and over three pools: one, one that may send the call
        again, and one that is full, so that the call waits for a lease (and its writes with it). All give the same; the test fails when one differs,
        or when what it finds is not what is here.

        * "X; then Y": the first call gives X, the second one Y. Where there is no "then", both give the same.
        * "after a message": the stream has given its first message before. All else ends before there are headers.
        * `status ← exception`: the `DebugException` of the status. "of the transport" is an `HttpRequestException` or an `IOException`, and "…" what the
          transport says of it.
        * `ObjectDisposedException 'the call'`: its `ObjectName` is the name of an internal type, with its type arguments. On a bare channel that is
          `Grpc.Net.Client.Internal.GrpcCall<TRequest, TResponse>`. Over a pool it is the same, but for streams of requests with
          `PoolingInvoker.ReplayableRequest` for `TRequest`, and `PoolingInvoker.StreamingCall<TRequest, TResponse>` of a call that had no channel.
        * "a failure of the write, or the status of the call": which one is a race, also on a bare channel.

        """;

    /// <summary>Writes the file, and gives what is not as it should be.</summary>
    public static async Task<IReadOnlyList<string>> CheckAsync(IReadOnlyList<SurfaceRow> rows)
    {
        var wrong = new List<string>();
        rows = [.. rows.Select(static row => row with { Told = row.Told.ToDictionary(static told => told.Key, told => Race(row, told.Value)) })
            .OrderBy(static row => row.Member, StringComparer.Ordinal).ThenBy(static row => row.Kind).ThenBy(static row => IndexOf(row.End))];
        wrong.AddRange(from row in rows
                       from told in row.Told
                       where told.Value != row.Told[SurfaceRow.Bare]
                       select $"{row.Member}, {row.Kind}, {TitleOf(row.Moment)}, {TitleOf(row)}: over {told.Key} {told.Value}, and on a bare channel {row.Told[SurfaceRow.Bare]}");
        var text = new StringBuilder(Introduction);
        foreach (var moment in Enum.GetValues<Moment>())
        {
            text.Append($"\n## Called {TitleOf(moment)}\n\n| member | gives | the call is ended by | kinds |\n| --- | --- | --- | --- |\n");
            var members = from row in rows
                          where row.Moment == moment
                          group row by row.Member into member
                          from given in member.GroupBy(static row => row.Told[SurfaceRow.Bare])
                          from ends in given.GroupBy(static row => row.Kind).GroupBy(kind => EndsOf(kind, member))
                          select $"| {member.Key} | {given.Key} | {ends.Key} | {string.Join(", ", ends.Select(static kind => kind.Key))} |\n";
            text.AppendJoin("", members);
        }

        if (wrong.Count == 0 && await File.ReadAllTextAsync(FilePath()) != text.ToString())
        {
            await File.WriteAllTextAsync(FilePath(), text.ToString());
            wrong.Add("docs/contract.md has been rewritten: look at the difference and commit it.");
        }

        return wrong;
    }

    // What a write under way fails with, when the server or the channel ends the call, is a race on a bare channel too.
    private static string Race(SurfaceRow row, string told) =>
        row is { Member: SurfaceCall.LargeWrite, Moment: Moment.Before, End.By: Cause.Server or Cause.ChannelDisposed }
            ? FailedWrite().Replace(told, "a failure of the write, or the status of the call", 1)
            : told;

    [GeneratedRegex(@"^(RpcException (Cancelled '(gRPC call disposed\.)?'|OK|FailedPrecondition|Unavailable)|(Http)?IOException)[^;]*")]
    private static partial Regex FailedWrite();

    private static int IndexOf(SurfaceEnd end) => SurfaceEnd.All.TakeWhile(one => one != end).Count();

    private static string EndsOf(IGrouping<MethodType, SurfaceRow> given, IEnumerable<SurfaceRow> member) => given.Count() == member.Count(row => row.Kind == given.Key)
        ? "whatever ends it"
        : string.Join("; ", given.Select(static row => TitleOf(row)));

    private static string TitleOf(SurfaceRow row) => row.End.HasMessageOf(row.Kind) ? $"{row.End.Title}, after a message" : row.End.Title;

    private static string TitleOf(Moment moment) => moment switch
    {
        Moment.Before => "before the end",
        Moment.Ended => "right after the caller has ended the call",
        _ => "when the end has been seen",
    };

    private static string FilePath()
    {
        var folder = new DirectoryInfo(AppContext.BaseDirectory);
        while (!File.Exists(Path.Combine(folder.FullName, "PoolingInvoker.sln")))
        {
            folder = folder.Parent ?? throw new InvalidOperationException($"There is no PoolingInvoker.sln above {AppContext.BaseDirectory}.");
        }

        return Path.Combine(folder.FullName, "docs", "contract.md");
    }
}
