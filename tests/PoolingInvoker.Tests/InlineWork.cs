namespace PoolingInvoker.Tests;

/// <summary>
/// The work of a pool, on the thread that sets it off, so that a test in virtual time sees the outcome when it is back: one work after
/// the other, as they are set off.
/// </summary>
internal static class InlineWork
{
    [ThreadStatic]
    private static Queue<Action>? _next;

    public static void Queue(Action work)
    {
        if (_next is not null)
        {
            _next.Enqueue(work);
            return;
        }

        _next = new Queue<Action>([work]);
        try
        {
            while (_next.TryDequeue(out var next))
            {
                next();
            }
        }
        finally
        {
            _next = null;
        }
    }
}
