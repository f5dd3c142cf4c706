using ProtoBuf;
using ProtoBuf.Grpc;
using ProtoBuf.Grpc.Configuration;

namespace PoolingInvoker.DropInTests.CodeFirst;

/// <summary>A service without a .proto: the interface is the contract, of the client and of the server.</summary>
[Service("dropin.v1.Greeter")]
public interface IGreeter
{
    ValueTask<Greeting> GreetAsync(Greeting greeting, CallContext context = default);

    /// <summary>Blocks the caller.</summary>
    Greeting GreetAtOnce(Greeting greeting, CallContext context = default);

    IAsyncEnumerable<Greeting> GreetEachAsync(Greeting greeting, CallContext context = default);

    ValueTask<Greeting> GreetTogetherAsync(IAsyncEnumerable<Greeting> greetings, CallContext context = default);

    IAsyncEnumerable<Greeting> ConverseAsync(IAsyncEnumerable<Greeting> greetings, CallContext context = default);
}

[ProtoContract]
public sealed class Greeting
{
    public Greeting()
    {
    }

    public Greeting(string text) => Text = text;

    [ProtoMember(1)]
    public string Text { get; set; } = "";
}
