using System.Collections.Concurrent;
using Grpc.Net.Client;

namespace PoolingInvoker.Interleavings;

/// <summary>One caller: what it does to the pool, and what the model says will come of that.</summary>
internal sealed class Call(int number, TimeSpan patience)
{
    private static readonly AsyncLocal<Call?> Running = new();

    // Who makes a channel for itself does so on its thread, and in nobody's context.
    [ThreadStatic]
    private static Call? _onThisThread;

    private readonly BlockingCollection<GrpcChannel> _made = [];
    private readonly SemaphoreSlim _gate = new(0);
    private volatile bool _isAtGate;
    private volatile bool _hasReturned;
    private volatile bool _hasClock;
    private bool _works;

    /// <summary>Gets whose code runs, on whatever thread.</summary>
    public static Call? Current => Running.Value ?? _onThisThread;

    public int Number => number;

    public CancellationTokenSource Cancellation { get; } = new();

    public Task<ChannelLease?> Result { get; private set; } = Task.FromResult<ChannelLease?>(null);

    /// <summary>Gets or sets a value indicating whether it gives something back, and takes nothing.</summary>
    public bool IsGivingBack { get; set; }

    /// <summary>Gets or sets a value indicating whether it uses <see cref="ChannelPool.Get"/>.</summary>
    public bool IsExplicit { get; set; }

    /// <summary>Gets or sets what <see cref="ChannelPool.Get"/> gave.</summary>
    public GrpcChannel? Explicit { get; set; }

    /// <summary>Gets the channel that it got.</summary>
    public GrpcChannel? Got
    {
        get
        {
            AwaitEnd();
            return Result.IsCompletedSuccessfully ? Explicit ?? Result.Result?.Channel : null;
        }
    }

    /// <summary>Gets or sets the channel on which it has a lease, says the model.</summary>
    public PoolModel.Channel? Channel { get; set; }

    /// <summary>Gets or sets how it fails, says the model.</summary>
    public Type? Error { get; set; }

    /// <summary>Gets or sets a value indicating whether it gets nothing and is not told why, says the model.</summary>
    public bool IsRefused { get; set; }

    /// <summary>Gets whether it has ended, says the model.</summary>
    public bool IsOver => Channel is not null || Error is not null || IsRefused;

    /// <summary>Runs up to its end, up to where it waits in line, or up to a creation that takes its time.</summary>
    public void Run(Func<Task<ChannelLease?>> work, bool mayBlock)
    {
        Running.Value = this;
        if (mayBlock)
        {
            Result = Task.Run(() =>
            {
                try
                {
                    return Work();
                }
                finally
                {
                    _hasReturned = true;
                }
            });
            Wait(() => _hasReturned || _isAtGate || _hasClock, "neither ends nor makes a channel, nor waits");
        }
        else
        {
            Result = Work();
        }

        Task<ChannelLease?> Work()
        {
            _onThisThread = this;
            try
            {
                return work();
            }
            finally
            {
                _onThisThread = null;
            }
        }
    }

    /// <summary>The policy makes a channel for this caller: waits to be told how that ends.</summary>
    public bool PassGate()
    {
        _isAtGate = true; // until it is opened
        return _gate.Wait(patience) && _works;
    }

    public void OpenGate(bool works)
    {
        _works = works;
        _isAtGate = false;
        _gate.Release();
    }

    public void AwaitGate() => Wait(() => _isAtGate, "does not make a channel");

    /// <summary>It waits, and for that has a timer started.</summary>
    public void StartsClock() => _hasClock = true;

    public void AwaitClock() => Wait(() => _hasClock, "does not wait");

    public void AwaitEnd() => Wait(() => Result.IsCompleted, "does not end");

    public void Makes(GrpcChannel channel) => _made.Add(channel);

    public GrpcChannel TakeMade() =>
        _made.TryTake(out var channel, patience) ? channel : throw new LawBrokenException($"Caller {number} does not make a channel.");

    private void Wait(Func<bool> condition, string what)
    {
        if (!SpinWait.SpinUntil(condition, patience))
        {
            throw new LawBrokenException($"Caller {number} {what}.");
        }
    }
}
