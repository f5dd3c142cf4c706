using System.ComponentModel.DataAnnotations;
using System.Text.RegularExpressions;
using Grpc.Net.Client;
using Microsoft.Extensions.DependencyInjection;
using Microsoft.Extensions.ObjectPool;
using Microsoft.Extensions.Options;

namespace PoolingInvoker;

/// <summary>Whether a pool can be made with the options of a client: one is made that has no channels.</summary>
internal sealed partial class PoolOptionsValidation(string client, IServiceProvider provider) : IValidateOptions<PoolingCallInvokerOptions>
{
    public ValidateOptionsResult Validate(string? name, PoolingCallInvokerOptions options)
    {
        if (name != client)
        {
            return ValidateOptionsResult.Skip;
        }

        try
        {
            var given = OptionsCopy.Of(options);
            given.Pool = OptionsCopy.Of(options.Pool);
            (given.Pool.ConfigureHandler, given.Pool.ConfigureChannel) = (null, null);
            options.MethodConfigs.ToList().ForEach(given.MethodConfigs.Add);
            options.ServiceDescriptors.ToList().ForEach(given.ServiceDescriptors.Add);
            using var pool = new ChannelPool(new NoChannels(), given.Pool);
            using var invoker = new PoolingCallInvoker(pool, given);
            return ValidateOptionsResult.Success;
        }
        catch (Exception exception) when (exception is ArgumentException or ValidationException)
        {
            var message = exception is ArgumentException { ParamName: { } parameter } ? exception.Message.Replace($" (Parameter '{parameter}')", null, StringComparison.Ordinal) : exception.Message;
            return ValidateOptionsResult.Fail(WithKey(message) ?? CannotBeMade(client, message));
        }
    }

    /// <summary>What has no key of a section is told with the name of its client, once.</summary>
    public static string CannotBeMade(string client, string message) =>
        $"The channel pool of the gRPC client '{client}' cannot be made: " is var beginning && message.StartsWith(beginning, StringComparison.Ordinal) ? message : beginning + message;

    // A message names options. The first that a section has is told by its key; what follows the name of a method config is its own.
    private string? WithKey(string message)
    {
        foreach (var name in Names().EnumerateMatches(message))
        {
            var option = message.Substring(name.Index, name.Length);
            var key = KeyOf(option.Replace('.', ':')) ?? KeyOf($"Pool:{option}");
            if (key is not null)
            {
                return name.Index == 0 ? $"{key}{message[name.Length..]}" : $"{key}: {message}";
            }

            if (option == nameof(PoolingCallInvokerOptions.MethodConfigs))
            {
                break;
            }
        }

        return null;
    }

    private string? KeyOf(string option) =>
        provider.GetServices<PoolSection>().LastOrDefault(section => section.Name == client && section.Has(option)) is { } section ? SettingsValues.KeyOf(section.Path, option) : null;

    [GeneratedRegex(@"(Retry\.)?\b[A-Z]\w+")]
    private static partial Regex Names();

    // Nobody asks for one.
    private sealed class NoChannels : IPooledObjectPolicy<GrpcChannel>
    {
        public GrpcChannel Create() => throw new NotSupportedException();
        public bool Return(GrpcChannel obj) => false;
    }
}
