namespace PoolingInvoker.DependencyInjectionTests;

/// <summary>Says that a request has come through it, to the test and to the server.</summary>
internal sealed class TracingHandler(Trace trace, string name) : DelegatingHandler
{
    protected override Task<HttpResponseMessage> SendAsync(HttpRequestMessage request, CancellationToken cancellationToken)
    {
        trace.Add(name);
        request.Headers.Add("x-handler", name);
        return base.SendAsync(request, cancellationToken);
    }
}
