using System.Collections.Frozen;
using System.Security.Cryptography;
using Microsoft.AspNetCore.Http;

namespace PoolingInvoker;

/// <summary>The page and what it loads, out of the assembly.</summary>
internal static class PageFiles
{
    // Nothing comes from elsewhere, and nothing runs that is not one of these files.
    private const string Policy =
        "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'";

    private static readonly FrozenDictionary<string, PageFile> Files = typeof(PageFiles).Assembly.GetManifestResourceNames()
        .Select(static name => PageFile.Read(name)).ToFrozenDictionary(static file => file.Name);

    /// <summary>The page. Its files are beside it, so that its address ends with a slash.</summary>
    public static Task PageAsync(HttpContext context)
    {
        var path = context.Request.Path.Value!;
        if (path.EndsWith('/'))
        {
            return SendAsync(context, Files["index.html"]);
        }

        // Relative, so that a proxy may have it elsewhere.
        context.Response.Redirect($"./{Uri.EscapeDataString(path[(path.LastIndexOf('/') + 1)..])}/");
        return Task.CompletedTask;
    }

    public static Task FileAsync(HttpContext context)
    {
        if (Files.TryGetValue((string)context.Request.RouteValues["file"]!, out var file))
        {
            return SendAsync(context, file);
        }

        context.Response.StatusCode = StatusCodes.Status404NotFound;
        return Task.CompletedTask;
    }

    public static void Protect(HttpResponse response)
    {
        response.Headers.ContentSecurityPolicy = Policy;
        response.Headers.XContentTypeOptions = "nosniff";
        response.Headers["Referrer-Policy"] = "no-referrer";
    }

    private static Task SendAsync(HttpContext context, PageFile file)
    {
        var response = context.Response;
        Protect(response);
        response.Headers.CacheControl = "no-cache"; // kept, and asked for each time
        response.Headers.ETag = file.Tag;
        if (context.Request.Headers.IfNoneMatch == file.Tag)
        {
            response.StatusCode = StatusCodes.Status304NotModified;
            return Task.CompletedTask;
        }

        response.ContentType = file.Type;
        response.ContentLength = file.Content.Length;
        return response.Body.WriteAsync(file.Content, context.RequestAborted).AsTask();
    }

    private sealed record PageFile(string Name, string Type, string Tag, byte[] Content)
    {
        public static PageFile Read(string name)
        {
            using var stream = typeof(PageFiles).Assembly.GetManifestResourceStream(name)!;
            var content = new byte[stream.Length];
            stream.ReadExactly(content);
            var type = Path.GetExtension(name) switch
            {
                ".html" => "text/html; charset=utf-8",
                ".css" => "text/css; charset=utf-8",
                ".js" => "text/javascript; charset=utf-8",
                _ => "text/plain; charset=utf-8",
            };
            return new PageFile(name, type, $"\"{Convert.ToHexString(SHA256.HashData(content), 0, 8)}\"", content);
        }
    }
}
