using System.Collections.Concurrent;
using Grpc.Core;
using PoolingInvoker.Protos;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Calls;

/// <summary>
/// A caller on the only thread of its context, which blocks on each step of a call: nothing of the library may wait for that thread.
/// </summary>
public sealed class OneThreadTests : ScriptedCalls
{
    public static TheoryData<string, string, string> Cases
    {
        get
        {
            var cases = new TheoryData<string, string, string>();
            foreach (var context in new[] { "synchronization context", "scheduler" })
            {
                foreach (var kind in new[] { "unary", "blocking unary", "client streaming", "server streaming", "duplex" })
                {
                    cases.Add(context, kind, "bare");
                    cases.Add(context, kind, "cold");
                    cases.Add(context, kind, "warm");
                    cases.Add(context, kind, "retried");
                }
            }

            return cases;
        }
    }

    [Theory]
    [MemberData(nameof(Cases))]
    public async Task ACallThatBlocksOnEachStep_Ends(string context, string kind, string over)
    {
        using var channel = Server.Create();
        var client = new User.UserClient(channel);
        if (over != "bare")
        {
            (client, var pool) = NewClient(static options =>
            {
                options.IsIdempotent = static _ => true;
                options.Retry.DelayGenerator = static _ => ValueTask.FromResult<TimeSpan?>(TimeSpan.Zero);
            });
            await (over == "cold" ? Task.CompletedTask : pool.ConnectAsync()).Soon();
        }

        if (over == "retried")
        {
            Server.ThenRefuse();
        }

        using var thread = new OneThread();
        await (context == "scheduler"
            ? Task.Factory.StartNew(() => RunTwice(client, kind), CancellationToken.None, TaskCreationOptions.None, thread)
            : thread.Post(() => RunTwice(client, kind))).Soon();
    }

    // For the second call Grpc.Net.Client has an address at once, so that its handler begins on the thread of the caller.
    private void RunTwice(User.UserClient client, string kind)
    {
        Run(client, kind);
        Run(client, kind);
    }

    private void Run(User.UserClient client, string kind)
    {
        switch (kind)
        {
            case "unary":
                Server.ThenName("anna");
                using (var call = client.GetNameAsync(new GetNameRequest()))
                {
                    call.ResponseHeadersAsync.GetAwaiter().GetResult();
                    call.ResponseAsync.GetAwaiter().GetResult();
                    call.GetStatus();
                }

                break;
            case "blocking unary":
                Server.ThenName("anna");
                client.GetName(new GetNameRequest());
                break;
            case "client streaming":
                Server.ThenReplyAfterRequests(new ImportNamesReply());
                using (var call = client.ImportNames())
                {
                    call.RequestStream.WriteAsync(new ImportNameRequest()).GetAwaiter().GetResult();
                    call.RequestStream.CompleteAsync().GetAwaiter().GetResult();
                    call.ResponseHeadersAsync.GetAwaiter().GetResult();
                    call.ResponseAsync.GetAwaiter().GetResult();
                }

                break;
            case "server streaming":
                Server.ThenReply(new NameReply(), new NameReply());
                using (var call = client.ListNames(new ListNamesRequest()))
                {
                    Read(call.ResponseStream);
                }

                break;
            default:
                // The headers are there at once: the first write behind them decides whether the call is committed.
                Server.ThenReply(new ChatMessage { Text = "a" });
                using (var call = client.Chat())
                {
                    call.RequestStream.WriteAsync(new ChatMessage()).GetAwaiter().GetResult();
                    call.RequestStream.WriteAsync(new ChatMessage()).GetAwaiter().GetResult();
                    call.RequestStream.CompleteAsync().GetAwaiter().GetResult();
                    Read(call.ResponseStream);
                }

                break;
        }

        static void Read<T>(IAsyncStreamReader<T> responses)
        {
            while (responses.MoveNext(CancellationToken.None).GetAwaiter().GetResult())
            {
            }
        }
    }

    /// <summary>One thread, as a scheduler and as a context of its own.</summary>
    private sealed class OneThread : TaskScheduler, IDisposable
    {
        private readonly BlockingCollection<Action> _work = [];

        public OneThread() => new Thread(() =>
        {
            foreach (var work in _work.GetConsumingEnumerable())
            {
                work();
            }
        })
        { IsBackground = true }.Start();

        public void Dispose() => _work.CompleteAdding();

        public Task Post(Action work)
        {
            var done = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
            _work.Add(() =>
            {
                SynchronizationContext.SetSynchronizationContext(new Context(this));
                try
                {
                    work();
                    done.SetResult();
                }
                catch (Exception exception)
                {
                    done.SetException(exception);
                }
            });
            return done.Task;
        }

        protected override void QueueTask(Task task) => _work.Add(() => TryExecuteTask(task));

        protected override bool TryExecuteTaskInline(Task task, bool taskWasPreviouslyQueued) => false;

        protected override IEnumerable<Task> GetScheduledTasks() => [];

        private sealed class Context(OneThread thread) : SynchronizationContext
        {
            public override void Post(SendOrPostCallback d, object? state) => thread._work.Add(() => d(state));
        }
    }
}
