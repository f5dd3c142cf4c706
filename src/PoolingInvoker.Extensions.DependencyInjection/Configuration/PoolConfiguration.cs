using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.Logging;
using Microsoft.Extensions.Options;
using Microsoft.Extensions.Primitives;

namespace PoolingInvoker;

/// <summary>
/// Where a client's pool has its options from, and follows them: whatever tells that <see cref="PoolingCallInvokerOptions"/> of its name have
/// changed. The monitor of options is not asked: it throws where options are not valid, on the thread that changes them.
/// </summary>
internal sealed class PoolConfiguration(string client, IServiceProvider provider) : IDisposable
{
    private readonly object _updating = new();
    private readonly IReadOnlyList<IOptionsChangeTokenSource<PoolingCallInvokerOptions>> _sources =
        [.. provider.GetServices<IOptionsChangeTokenSource<PoolingCallInvokerOptions>>().Where(source => (source.Name ?? Options.DefaultName) == client)];
    private readonly List<IDisposable> _watches = [];
    private IReadOnlyList<IChangeToken> _tokens = []; // of what has been read

    public PoolingCallInvokerOptions Read()
    {
        _tokens = [.. _sources.Select(static source => source.GetChangeToken())];
        return Create();
    }

    public void Follow(PoolingCallInvoker invoker, ClientChannels channels)
    {
        foreach (var section in provider.GetServices<PoolSection>().Where(section => section.Name == client && !section.Exists))
        {
            Log()?.NoSection(client, section.Path);
        }

        _watches.AddRange(_sources.Select(source => ChangeToken.OnChange(source.GetChangeToken, () => Update(invoker, channels))));
        if (_tokens.Any(static token => token.HasChanged)) // before it was watched
        {
            Update(invoker, channels);
        }
    }

    public void Dispose() => _watches.ForEach(static watch => watch.Dispose());

    private void Update(PoolingCallInvoker invoker, ClientChannels channels)
    {
        lock (_updating) // so that the last one who reads is the last one who writes
        {
            try
            {
                var options = Create();
                options.Pool = channels.Over(options.Pool);
                invoker.UpdateOptions(options);
            }
            catch (ObjectDisposedException) // The app ends.
            {
            }
            catch (Exception exception) when (exception is not OutOfMemoryException) // Whatever is wrong with it, the app goes on with what it has.
            {
                Log()?.ConfigurationRefused(client, exception);
            }
        }
    }

    private PoolingCallInvokerOptions Create() => provider.GetRequiredService<IOptionsFactory<PoolingCallInvokerOptions>>().Create(client);

    private ClientLog? Log() => provider.GetService<ILoggerFactory>() is { } loggers ? new ClientLog(loggers) : null;
}
