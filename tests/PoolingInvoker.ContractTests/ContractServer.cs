using System.Buffers.Binary;
using System.Collections.Concurrent;
using System.Net;
using System.Text;
using Microsoft.AspNetCore.Builder;
using Microsoft.AspNetCore.Connections.Features;
using Microsoft.AspNetCore.Hosting;
using Microsoft.AspNetCore.Hosting.Server;
using Microsoft.AspNetCore.Hosting.Server.Features;
using Microsoft.AspNetCore.Http;
using Microsoft.AspNetCore.Http.Features;
using Microsoft.AspNetCore.Server.Kestrel.Core;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Logging;

namespace PoolingInvoker.ContractTests;

/// <summary>
/// A server that ends calls in every way there is: each request says in its header <c>ending</c> what is to become of it. It speaks
/// gRPC by hand, over real sockets, so that it can also break it.
/// </summary>
public sealed class ContractServer : IAsyncLifetime
{
    private readonly ConcurrentDictionary<string, TaskCompletionSource> _reached = new();
    private readonly ConcurrentDictionary<string, TaskCompletionSource> _read = new();
    private readonly ConcurrentDictionary<string, TaskCompletionSource> _released = new();
    private WebApplication _application = null!;

    public Uri Address { get; private set; } = null!;

    /// <summary>Completes when the request with this id stands where its ending makes it wait.</summary>
    public Task Reached(string id) => Point(_reached, id).Task;

    /// <summary>The client has read the first message: what comes after it may come.</summary>
    public void HasRead(string id) => Point(_read, id).TrySetResult();

    /// <summary>What holds the request with this id ends, on each attempt.</summary>
    public void Release(string id) => Point(_released, id).TrySetResult();

    public async ValueTask InitializeAsync()
    {
        var builder = WebApplication.CreateSlimBuilder();
        builder.Logging.ClearProviders();
        builder.WebHost.ConfigureKestrel(static kestrel => kestrel.Listen(IPAddress.Loopback, 0, static listen => listen.Protocols = HttpProtocols.Http2));
        _application = builder.Build();
        _application.Run(HandleAsync);
        await _application.StartAsync();
        Address = new Uri(_application.Services.GetRequiredService<IServer>().Features.Get<IServerAddressesFeature>()!.Addresses.Single());
    }

    public async ValueTask DisposeAsync()
    {
        using var now = new CancellationTokenSource();
        await now.CancelAsync();
        await _application.StopAsync(now.Token);
        await _application.DisposeAsync();
    }

    private static TaskCompletionSource Point(ConcurrentDictionary<string, TaskCompletionSource> points, string id) =>
        points.GetOrAdd(id, static _ => new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously));

    private async Task HandleAsync(HttpContext context)
    {
        var ending = context.Request.Headers["ending"].ToString();
        var id = context.Request.Headers["id"].ToString();
        var point = Point(_reached, id);
        var response = context.Response;
        response.ContentType = "application/grpc";
        response.Headers["said"] = "first";

        if (ending is not (Ending.HangBeforeReading or Ending.ErrorBeforeReading or Ending.Held or Ending.HeldAfterMessage))
        {
            // All that the client sends is taken first: its writes succeed, whatever comes then.
            await context.Request.Body.CopyToAsync(Stream.Null, context.RequestAborted);
        }

        switch (ending)
        {
            case Ending.Response:
                await WriteAsync(response, "one");
                End(response, 0);
                break;
            case Ending.Tenant:
                await WriteAsync(response, context.Request.Headers["tenant"].ToString());
                End(response, 0);
                break;
            case Ending.TenantRefusedOnce when !context.Request.Headers.ContainsKey("grpc-previous-rpc-attempts"):
                response.Headers["grpc-status"] = "14";
                break;
            case Ending.TenantRefusedOnce:
                goto case Ending.Tenant;
            case Ending.ThreeResponses:
                await WriteAsync(response, "one");
                await WriteAsync(response, "two");
                await WriteAsync(response, "three");
                End(response, 0);
                break;
            case Ending.NoResponse:
                await response.StartAsync();
                End(response, 0);
                break;
            case Ending.TrailersOnlyOk:
                response.Headers["grpc-status"] = "0";
                break;
            case Ending.TrailersOnlyError or Ending.ErrorBeforeReading:
                response.Headers["grpc-status"] = "9";
                response.Headers["grpc-message"] = "not%20now";
                response.Headers["why"] = "because";
                break;
            case Ending.ErrorAfterHeaders:
                await response.StartAsync();
                await response.Body.FlushAsync();
                End(response, 9);
                break;
            case Ending.ErrorAfterMessage:
                await WriteAsync(response, "one");
                End(response, 9);
                break;
            case Ending.NoStatus:
                await WriteAsync(response, "one");
                break;
            case Ending.Http503:
                response.StatusCode = 503;
                response.ContentType = "text/plain";
                break;
            case Ending.ResetBeforeHeaders:
                context.Features.GetRequiredFeature<IHttpResetFeature>().Reset(2);
                break;
            case Ending.ResetAfterMessage:
                await WriteAsync(response, "one");
                await ReadAsync(context, id);
                context.Features.GetRequiredFeature<IHttpResetFeature>().Reset(8);
                break;
            case Ending.AbortBeforeHeaders:
                context.Abort();
                break;
            case Ending.AbortAfterHeaders:
                await response.StartAsync();
                await response.Body.FlushAsync();
                context.Abort();
                break;
            case Ending.AbortInMessage:
                await response.Body.WriteAsync(Frame("one").AsMemory(0, 6));
                await response.Body.FlushAsync();
                context.Abort();
                break;
            case Ending.AbortAfterMessage:
                await WriteAsync(response, "one");
                await ReadAsync(context, id);
                context.Abort();
                break;
            case Ending.HangAfterHeaders:
                await response.StartAsync();
                await response.Body.FlushAsync();
                await HangAsync(context, point);
                break;
            case Ending.HangAfterMessage:
                await WriteAsync(response, "one");
                await HangAsync(context, point);
                break;
            case Ending.Held:
            case Ending.HeldAfterMessage:
                await HoldAsync(context, id, isBegun: ending == Ending.HeldAfterMessage);
                break;
            default: // Ending.HangBeforeHeaders, HangBeforeReading
                await HangAsync(context, point);
                break;
        }
    }

    // Nothing is read. What ends the call when it is released is in its header "then".
    private async Task HoldAsync(HttpContext context, string id, bool isBegun)
    {
        var response = context.Response;
        if (isBegun)
        {
            await WriteAsync(response, "one");
        }

        Point(_reached, id).TrySetResult();
        await Point(_released, id).Task.WaitAsync(context.RequestAborted).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
        switch (context.Request.Headers["then"].ToString())
        {
            case Ending.Response:
                await (isBegun ? Task.CompletedTask : WriteAsync(response, "one"));
                End(response, 0);
                break;
            case Ending.ErrorAfterHeaders:
                await response.StartAsync();
                await response.Body.FlushAsync();
                End(response, 9);
                break;
            case Ending.TrailersOnlyError:
                response.Headers["grpc-status"] = "9";
                response.Headers["grpc-message"] = "not%20now";
                response.Headers["why"] = "because";
                break;
            case Ending.ConnectionLost:
                context.Features.GetRequiredFeature<IConnectionLifetimeFeature>().Abort();
                break;
            default:
                break; // the client has ended it
        }
    }

    // A client that gets one response reads it together with its end.
    private Task ReadAsync(HttpContext context, string id) =>
        context.Request.Path.Value is "/contract/ServerStreaming" or "/contract/Duplex" ? Point(_read, id).Task : Task.CompletedTask;

    private static async Task HangAsync(HttpContext context, TaskCompletionSource point)
    {
        point.TrySetResult();
        await Task.Delay(Timeout.Infinite, context.RequestAborted).ConfigureAwait(ConfigureAwaitOptions.SuppressThrowing);
    }

    private static void End(HttpResponse response, int status)
    {
        response.AppendTrailer("grpc-status", $"{status}");
        response.AppendTrailer("grpc-message", "that%20is%20all");
        response.AppendTrailer("said", "last");
    }

    private static async Task WriteAsync(HttpResponse response, string message)
    {
        await response.Body.WriteAsync(Frame(message));
        await response.Body.FlushAsync();
    }

    private static byte[] Frame(string message)
    {
        var frame = new byte[5 + message.Length];
        BinaryPrimitives.WriteInt32BigEndian(frame.AsSpan(1), message.Length);
        Encoding.UTF8.GetBytes(message, frame.AsSpan(5));
        return frame;
    }
}

/// <summary>How the server ends a call.</summary>
public static class Ending
{
    public const string Response = "response";
    public const string Tenant = "the tenant of the request";
    public const string TenantRefusedOnce = "refused, and then the tenant of the request";
    public const string ThreeResponses = "three responses";
    public const string NoResponse = "no response";
    public const string TrailersOnlyOk = "trailers-only, OK";
    public const string TrailersOnlyError = "trailers-only, error";
    public const string ErrorAfterHeaders = "error after headers";
    public const string ErrorAfterMessage = "error after a message";
    public const string NoStatus = "no status";
    public const string Http503 = "HTTP 503";
    public const string ResetBeforeHeaders = "reset before headers";
    public const string ResetAfterMessage = "reset after a message";
    public const string AbortBeforeHeaders = "abort before headers";
    public const string AbortAfterHeaders = "abort after headers";
    public const string AbortInMessage = "abort in a message";
    public const string AbortAfterMessage = "abort after a message";
    public const string HangBeforeReading = "hang before reading";
    public const string ErrorBeforeReading = "trailers-only, error, nothing read";
    public const string HangBeforeHeaders = "hang before headers";
    public const string HangAfterHeaders = "hang after headers";
    public const string HangAfterMessage = "hang after a message";
    public const string Held = "held until it is released";
    public const string ConnectionLost = "connection lost";
    public const string HeldAfterMessage = "held after a message until it is released";

    public static TheoryData<string> OfTheServer =>
    [
        Response, ThreeResponses, NoResponse, TrailersOnlyOk, TrailersOnlyError, ErrorAfterHeaders, ErrorAfterMessage, NoStatus, Http503,
        ResetBeforeHeaders, ResetAfterMessage, AbortBeforeHeaders, AbortAfterHeaders, AbortInMessage, AbortAfterMessage,
    ];
}
