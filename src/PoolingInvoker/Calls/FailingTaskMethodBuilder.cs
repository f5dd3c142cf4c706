using System.Diagnostics;
using System.Runtime.CompilerServices;

namespace PoolingInvoker;

/// <summary>
/// Builds the task of an async method that ends with the failure of another task. The method awaits <see cref="FailureOf{T}"/>, which fails its
/// task and never goes on: a throw would be one more than on a bare channel, and costs some 10 µs.
/// </summary>
internal struct FailingTaskMethodBuilder<T>
{
    private AsyncTaskMethodBuilder<T> _builder;

    public Task<T> Task => _builder.Task;

    public static FailingTaskMethodBuilder<T> Create() => default;

    public void Start<TStateMachine>(ref TStateMachine stateMachine)
        where TStateMachine : IAsyncStateMachine => _builder.Start(ref stateMachine);

    public readonly void SetStateMachine(IAsyncStateMachine stateMachine) => _builder.SetStateMachine(stateMachine);

    public void SetResult(T result) => _builder.SetResult(result);

    public void SetException(Exception exception) => _builder.SetException(exception);

    public void AwaitOnCompleted<TAwaiter, TStateMachine>(ref TAwaiter awaiter, ref TStateMachine stateMachine)
        where TAwaiter : INotifyCompletion
        where TStateMachine : IAsyncStateMachine => _builder.AwaitOnCompleted(ref awaiter, ref stateMachine);

    public void AwaitUnsafeOnCompleted<TAwaiter, TStateMachine>(ref TAwaiter awaiter, ref TStateMachine stateMachine)
        where TAwaiter : ICriticalNotifyCompletion
        where TStateMachine : IAsyncStateMachine
    {
        if (typeof(TAwaiter) == typeof(FailureOf<T>))
        {
            _builder.SetException(Unsafe.As<TAwaiter, FailureOf<T>>(ref awaiter).Exception!);
        }
        else
        {
            _builder.AwaitUnsafeOnCompleted(ref awaiter, ref stateMachine);
        }
    }
}

/// <summary>
/// Awaited in a method of <see cref="FailingTaskMethodBuilder{T}"/>, outside of any try: what follows it does not run. Without an exception the
/// method goes on with the default value.
/// </summary>
internal readonly struct FailureOf<T>(Exception? exception) : ICriticalNotifyCompletion
{
    public Exception? Exception => exception;
    public bool IsCompleted => exception is null;

    public FailureOf<T> GetAwaiter() => this;

    public T GetResult() => default!;

    public void OnCompleted(Action continuation) => throw new UnreachableException();

    public void UnsafeOnCompleted(Action continuation) => throw new UnreachableException();
}
