using System.Net;
using Grpc.Net.Client.Balancer;

namespace PoolingInvoker;

/// <summary>
/// The services of a channel that goes to one endpoint, while to the server, to TLS and to call credentials it is one to the name. Such a
/// channel is as any other to that name, but for its load balancer, which is given the endpoint in place of the name.
/// </summary>
/// <param name="inner">The services that the options of the channel have set, which are asked for everything else.</param>
/// <param name="endpoint">The endpoint.</param>
/// <param name="name">The http or https address of the name.</param>
internal sealed class PinnedServices(IServiceProvider? inner, ChannelEndpoint endpoint, Uri name) : IServiceProvider
{
    // The key by which Grpc.Net.Client knows what is sent as :authority, and asked of TLS, in place of the endpoint. Its own resolver of DNS
    // sets it; keys are compared by their texts.
    private static readonly BalancerAttributesKey<string> HostOverride = new("HostOverride");

    public object? GetService(Type serviceType) => serviceType == typeof(IEnumerable<LoadBalancerFactory>)
        ? Factories().Select(factory => new PinnedFactory(factory, Address())).ToArray()
        : inner?.GetService(serviceType);

    // The first one of a name counts. A ServiceConfig may name another one than pick_first.
    private IEnumerable<LoadBalancerFactory> Factories() =>
        [.. inner?.GetService(typeof(IEnumerable<LoadBalancerFactory>)) as IEnumerable<LoadBalancerFactory> ?? [], new PickFirstBalancerFactory(), new RoundRobinBalancerFactory()];

    private BalancerAddress Address()
    {
        var address = endpoint.EndPoint is IPEndPoint ip
            ? new BalancerAddress(ip.Address.ToString(), ip.Port)
            : new BalancerAddress((DnsEndPoint)endpoint.EndPoint);
        var host = name.HostNameType == UriHostNameType.IPv6 ? name.Host : name.IdnHost;
        address.Attributes.Set(HostOverride, name.IsDefaultPort ? host : FormattableString.Invariant($"{host}:{name.Port}"));
        return address;
    }

    private sealed class PinnedFactory(LoadBalancerFactory inner, BalancerAddress address) : LoadBalancerFactory
    {
        public override string Name => inner.Name;

        public override LoadBalancer Create(LoadBalancerOptions options) =>
            inner.Create(new LoadBalancerOptions(new PinnedController(options.Controller, address), options.LoggerFactory, options.Configuration));
    }

    private sealed class PinnedController(IChannelControlHelper inner, BalancerAddress address) : IChannelControlHelper
    {
        public Subchannel CreateSubchannel(SubchannelOptions options) => inner.CreateSubchannel(new SubchannelOptions([address]));

        public void UpdateState(BalancerState state) => inner.UpdateState(state);

        public void RefreshResolver() => inner.RefreshResolver();
    }
}
