using Microsoft.AspNetCore.Http;
using Microsoft.AspNetCore.Http.Features;

namespace PoolingInvoker;

/// <summary>The frames as a stream of server-sent events, until who watches has gone or the host stops.</summary>
internal sealed class PoolStream(PoolSampler sampler, CancellationToken stopping)
{
    // A browser comes back after so many milliseconds.
    private static readonly byte[] Beginning = "retry: 1000\n\n"u8.ToArray();

    public async Task SendAsync(HttpContext context)
    {
        using var ended = CancellationTokenSource.CreateLinkedTokenSource(context.RequestAborted, stopping);
        var response = context.Response;
        response.ContentType = "text/event-stream";
        PageFiles.Protect(response);
        response.Headers.CacheControl = "no-store";
        response.Headers["X-Accel-Buffering"] = "no"; // nginx would keep it
        context.Features.Get<IHttpResponseBodyFeature>()?.DisableBuffering();
        using var watcher = sampler.Watch();
        try
        {
            for (var next = Beginning; next is not null; next = await watcher.NextAsync(ended.Token).ConfigureAwait(false))
            {
                await response.Body.WriteAsync(next, ended.Token).ConfigureAwait(false);
                await response.Body.FlushAsync(ended.Token).ConfigureAwait(false);
            }
        }
        catch (Exception exception) when (ended.IsCancellationRequested && exception is OperationCanceledException or IOException)
        {
            // It is over.
        }
    }
}
