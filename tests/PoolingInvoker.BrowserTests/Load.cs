using PoolingInvoker.Protos;

namespace PoolingInvoker.BrowserTests;

/// <summary>Callers that call again when they have their answer, until it is disposed.</summary>
internal sealed class Load : IAsyncDisposable
{
    private readonly CancellationTokenSource _over = new();
    private readonly Task _calling;

    private Load(User.UserClient client, int callers) => _calling = Task.WhenAll(Enumerable.Range(1, callers).Select(id => CallAsync(client, id)));

    public static Load Start(User.UserClient client, int callers) => new(client, callers);

    public async ValueTask DisposeAsync()
    {
        await _over.CancelAsync();
        await _calling;
        _over.Dispose();
    }

    private async Task CallAsync(User.UserClient client, int id)
    {
        await Task.Yield();
        while (!_over.IsCancellationRequested)
        {
            var call = client.GetNameAsync(new GetNameRequest { Id = id, DelayMs = 20 + (id % 5 * 10) });
            await ((Task)call.ResponseAsync).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
        }
    }
}
