using System.Collections.Concurrent;
using System.Net;
using System.Security.Cryptography.X509Certificates;
using Grpc.Core;
using Microsoft.AspNetCore.Builder;
using Microsoft.AspNetCore.Hosting;
using Microsoft.AspNetCore.Hosting.Server;
using Microsoft.AspNetCore.Hosting.Server.Features;
using Microsoft.AspNetCore.Server.Kestrel.Core;
using Microsoft.Extensions.DependencyInjection;
using PoolingInvoker.Protos;

namespace PoolingInvoker.DependencyInjectionTests;

/// <summary>A real server on a free loopback port that keeps what came with each call.</summary>
internal sealed class UserServer : IAsyncDisposable
{
    private readonly WebApplication _application;
    private int _connections;
    private int _failures;
    private int _cancelled;

    private UserServer(WebApplication application) => _application = application;

    public Uri Address { get; private set; } = null!;
    public ConcurrentQueue<Seen> Calls { get; } = new();
    public int Connections => Volatile.Read(ref _connections);
    public int Cancelled => Volatile.Read(ref _cancelled); // calls that waited for the gate
    public IServiceProvider Services => _application.Services;

    /// <summary>How many calls are refused.</summary>
    public int Failures { get => Volatile.Read(ref _failures); set => Volatile.Write(ref _failures, value); }

    /// <summary>Ends calls that wait for it.</summary>
    public TaskCompletionSource Gate { get; } = new(TaskCreationOptions.RunContinuationsAsynchronously);

    public Seen LastCall => Calls.Last();

    /// <param name="certificate">The certificate, for TLS.</param>
    /// <param name="services">What its calls need.</param>
    /// <param name="streams">How many streams a connection takes.</param>
    /// <param name="port">The port, of a server that comes back; 0 is a free one.</param>
    public static async Task<UserServer> StartAsync(X509Certificate2? certificate = null, Action<IServiceCollection>? services = null, int streams = 100, int port = 0)
    {
        var builder = WebApplication.CreateEmptyBuilder(new WebApplicationOptions());
        UserServer? self = null;
        builder.WebHost.UseKestrelCore().UseKestrelHttpsConfiguration().ConfigureKestrel(kestrel =>
        {
            kestrel.Limits.Http2.MaxStreamsPerConnection = streams;
            kestrel.Listen(IPAddress.Loopback, port, listen =>
            {
                listen.Protocols = HttpProtocols.Http2;
                listen.Use(next => connection =>
                {
                    Interlocked.Increment(ref self!._connections);
                    return next(connection);
                });
                if (certificate is not null)
                {
                    listen.UseHttps(certificate);
                }
            });
        });
        builder.Services.AddGrpc();
        builder.Services.AddSingleton(_ => self!);
        services?.Invoke(builder.Services);
        var application = builder.Build();
        application.MapGrpcService<Service>();
        self = new UserServer(application);
        await application.StartAsync();
        var listening = new Uri(application.Services.GetRequiredService<IServer>().Features.Get<IServerAddressesFeature>()!.Addresses.Single());
        self.Address = new Uri($"{listening.Scheme}://localhost:{listening.Port}");
        return self;
    }

    public async ValueTask DisposeAsync()
    {
        Gate.TrySetResult();
        using var now = new CancellationTokenSource();
        await now.CancelAsync();
        await _application.StopAsync(now.Token);
        await _application.DisposeAsync();
    }

    /// <summary>What came with a call.</summary>
    internal sealed record Seen(string Method, string Authority, DateTime Deadline, ILookup<string, string> Headers)
    {
        public string? this[string header] => Headers.Contains(header) ? string.Join(", ", Headers[header]) : null;
    }

    private sealed class Service(UserServer server, IServiceProvider services) : User.UserBase
    {
        public override async Task<GetNameReply> GetName(GetNameRequest request, ServerCallContext context)
        {
            Note(context);
            if (Interlocked.Decrement(ref server._failures) >= 0)
            {
                throw new RpcException(new Status(StatusCode.Unavailable, "not now"));
            }

            if (services.GetService<Func<ServerCallContext, IServiceProvider, Task>>() is { } work)
            {
                await work(context, services);
            }

            return new GetNameReply { Id = request.Id, Name = "Ada" };
        }

        public override Task<GetProfileReply> GetProfile(GetProfileRequest request, ServerCallContext context)
        {
            Note(context);
            return Task.FromResult(new GetProfileReply { Picture = Google.Protobuf.ByteString.CopyFrom(new byte[request.PictureBytes]) });
        }

        public override async Task<RenameReply> Rename(RenameRequest request, ServerCallContext context)
        {
            Note(context);
            try
            {
                await server.Gate.Task.WaitAsync(context.CancellationToken);
                return new RenameReply();
            }
            catch (OperationCanceledException)
            {
                Interlocked.Increment(ref server._cancelled);
                throw;
            }
        }

        public override async Task ListNames(ListNamesRequest request, IServerStreamWriter<NameReply> responseStream, ServerCallContext context)
        {
            Note(context);
            for (var i = 0; i < request.Count; i++)
            {
                await responseStream.WriteAsync(new NameReply { Id = i });
            }
        }

        public override async Task<ImportNamesReply> ImportNames(IAsyncStreamReader<ImportNameRequest> requestStream, ServerCallContext context)
        {
            Note(context);
            var imported = 0;
            while (await requestStream.MoveNext())
            {
                imported++;
            }

            return new ImportNamesReply { Imported = imported };
        }

        // It says nothing, not even its headers, before it is asked something, and until its gate opens where it is asked to wait.
        public override async Task Chat(IAsyncStreamReader<ChatMessage> requestStream, IServerStreamWriter<ChatMessage> responseStream, ServerCallContext context)
        {
            Note(context);
            while (await requestStream.MoveNext())
            {
                if (requestStream.Current.Text == "wait")
                {
                    await server.Gate.Task.WaitAsync(context.CancellationToken);
                }

                await responseStream.WriteAsync(requestStream.Current);
            }
        }

        private void Note(ServerCallContext context) => server.Calls.Enqueue(new Seen(
            context.Method, context.Host, context.Deadline, context.RequestHeaders.ToLookup(static entry => entry.Key, static entry => entry.IsBinary ? "" : entry.Value)));
    }
}
