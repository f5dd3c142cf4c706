using PoolingInvoker.Demo.Servers;

namespace PoolingInvoker.Demo.Web;

/// <summary>The buttons and sliders of the page, over HTTP.</summary>
internal static class Controls
{
    public static void Map(IEndpointRouteBuilder endpoints)
    {
        var demo = endpoints.MapGroup("/demo");
        demo.MapGet("/state", static (Experiment experiment) => experiment.State);
        demo.MapPost("/load", static (int callers, int streams, Experiment experiment) => experiment.Load(callers, streams));
        demo.MapPost("/options/{name}", static (string name, int value, Experiment experiment) =>
            experiment.Set(name.Replace('.', ':'), value) ? Results.NoContent() : Results.NotFound());
        demo.MapPost("/network/{to}", static (string to, ServerFleet servers) => Do(to, ("cut", servers.Cut), ("mend", servers.Mend)));
        demo.MapPost("/servers", static (ServerFleet servers) => OursAsync(servers, null, async () => await servers.AddAsync()));
        demo.MapPost("/servers/{name}/kill", static (string name, ServerFleet servers) => OursAsync(servers, name, () => servers.KillAsync(name)));
        demo.MapPost("/servers/{name}/restart", static (string name, ServerFleet servers) => OursAsync(servers, name, () => servers.RestartAsync(name)));
        demo.MapPost("/servers/{name}/{to}", static (string name, string to, ServerFleet servers) => !servers.Names.Contains(name)
            ? Results.NotFound()
            : Do(to, ("hang", () => servers.Hang(name)), ("go-on", () => servers.GoOn(name))));
    }

    private static async Task<IResult> OursAsync(ServerFleet servers, string? name, Func<Task> act)
    {
        if (name is not null && !servers.Names.Contains(name))
        {
            return Results.NotFound();
        }

        if (!servers.CanKill)
        {
            return Results.Problem("The servers were given with --servers, and are not ours.", statusCode: StatusCodes.Status409Conflict);
        }

        await act();
        return Results.NoContent();
    }

    private static IResult Do(string what, params ReadOnlySpan<(string Name, Action Act)> known)
    {
        foreach (var (name, act) in known)
        {
            if (name == what)
            {
                act();
                return Results.NoContent();
            }
        }

        return Results.NotFound();
    }
}
