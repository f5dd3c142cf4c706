using PoolingInvoker.Testing;

namespace PoolingInvoker.FunctionalTests;

/// <summary>An nginx before a gRPC server.</summary>
public sealed class NginxProcess : ProxyProcess
{
    private NginxProcess(int port)
        : base("nginx", port)
    {
    }

    /// <param name="backend">The server that calls are passed to.</param>
    /// <param name="directives">Directives for the side of the clients, as in <c>keepalive_requests 20;</c>.</param>
    public static Task<NginxProcess> StartAsync(Uri backend, string directives) =>
        StartAsync(static port => new NginxProcess(port), nginx => nginx.TryStartAsync(backend, directives));

    private async Task<bool> TryStartAsync(Uri backend, string directives)
    {
        var configuration = Path.Combine(Folder.FullName, "nginx.conf");
        await File.WriteAllTextAsync(configuration, $$"""
            daemon off;
            master_process off;
            pid nginx.pid;
            error_log stderr notice;
            events { worker_connections 4096; }
            http {
              access_log off;
              client_body_temp_path body;
              proxy_temp_path proxy;
              fastcgi_temp_path fastcgi;
              uwsgi_temp_path uwsgi;
              scgi_temp_path scgi;
              upstream users { server {{backend.Authority}}; keepalive 64; }
              server {
                listen {{Address.Authority}} http2;
                {{directives}}
                location / { grpc_pass grpc://users; }
              }
            }
            """);
        var listens = new TaskCompletionSource(TaskCreationOptions.RunContinuationsAsynchronously);
        var reading = Start(
            "nginx-light",
            ["-p", Folder.FullName, "-c", configuration, "-e", "stderr"],
            line =>
            {
                if (line.Contains("event method", StringComparison.Ordinal))
                {
                    listens.TrySetResult(); // it chooses that when its sockets are open
                }
            });
        await Task.WhenAny(listens.Task, reading).Soon();
        return listens.Task.IsCompleted;
    }
}
