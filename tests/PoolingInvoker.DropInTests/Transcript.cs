using System.Text;
using Grpc.Core;

namespace PoolingInvoker.DropInTests;

/// <summary>What an application sees of its calls, written down. It can be written from several threads.</summary>
public sealed class Transcript
{
    private readonly List<string> _lines = [];

    public IReadOnlyList<string> Lines
    {
        get
        {
            lock (_lines)
            {
                return [.. _lines];
            }
        }
    }

    public void Add(string line)
    {
        lock (_lines)
        {
            _lines.Add(line);
        }
    }

    /// <summary>Writes down what the step gives, or how it fails.</summary>
    public async Task StepAsync(string name, Func<Task<string>> step)
    {
        string result;
        try
        {
            result = await step();
        }
        catch (Exception exception)
        {
            result = Describe(exception);
        }

        Add($"{name}: {result}");
    }

    /// <inheritdoc cref="StepAsync"/>
    public void Step(string name, Func<string> step)
    {
        string result;
        try
        {
            result = step();
        }
        catch (Exception exception)
        {
            result = Describe(exception);
        }

        Add($"{name}: {result}");
    }

    /// <summary>The entries that an application has set: the names and values of the others are the server's.</summary>
    public static string Describe(Metadata metadata) =>
        string.Join(", ", metadata.Where(static entry => entry.Key is not ("date" or "server")).Select(static entry => $"{entry.Key}={entry.Value}"));

    public static string Describe(Status status) => $"{status.StatusCode} '{status.Detail}'{Causes(status.DebugException)}";

    public static string Describe(Exception exception) => exception switch
    {
        RpcException rpc => $"{Describe(rpc.Status)} [{Describe(rpc.Trailers)}]",
        _ => $"{exception.GetType().Name} '{exception.Message}'{Causes(exception.InnerException)}",
    };

    private static string Causes(Exception? exception)
    {
        var causes = new StringBuilder();
        for (; exception is not null; exception = exception.InnerException)
        {
            causes.Append(" <- ").Append(exception.GetType().Name);
        }

        return causes.ToString();
    }
}
