namespace PoolingInvoker;

/// <summary>
/// The tokens of gRFC A6: a failure takes one, a success gives a part of one back, and while no more than half are left nothing is sent
/// again. So what is sent again is bounded by what succeeds, however many callers there are.
/// </summary>
internal sealed class RetryBudget(int maxTokens, double tokenRatio)
{
    private const long Unit = 1000; // thousandths of a token, as A6 counts

    private readonly object _lock = new();
    private readonly long _max = maxTokens * Unit;
    private readonly long _ratio = (long)Math.Min(tokenRatio * Unit, maxTokens * Unit);
    private long _tokens = maxTokens * Unit;

    public double Left => (double)Interlocked.Read(ref _tokens) / _max; // from 0 to 1
    public bool AllowsRetry => Interlocked.Read(ref _tokens) > _max / 2;
    public void Failed() => Add(-Unit);

    public void Succeeded()
    {
        // A call that finds the budget full, as nearly all do, writes nothing that others read.
        if (Interlocked.Read(ref _tokens) < _max)
        {
            Add(_ratio);
        }
    }

    private void Add(long change)
    {
        lock (_lock)
        {
            _tokens = Math.Clamp(_tokens + change, 0, _max);
        }
    }
}
