using System.Collections.Concurrent;

namespace PoolingInvoker.Demo.Web;

/// <summary>What the web front answers: the user, and which server knew it.</summary>
internal sealed record UserReply(int Id, string Name, string Server, string Connection);

/// <summary>The last replies of the web front, the newest first.</summary>
internal sealed class LastReplies
{
    private const int Kept = 12;

    private readonly ConcurrentQueue<UserReply> _replies = new();

    public IReadOnlyList<UserReply> NewestFirst => [.. _replies.Reverse().Take(Kept)];

    public UserReply Add(UserReply reply)
    {
        _replies.Enqueue(reply);
        while (_replies.Count > Kept)
        {
            _replies.TryDequeue(out _);
        }

        return reply;
    }
}
