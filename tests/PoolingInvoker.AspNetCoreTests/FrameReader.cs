using System.Text.Json;
using PoolingInvoker.Testing;

namespace PoolingInvoker.AspNetCoreTests;

/// <summary>The frames of a stream, as they come.</summary>
internal sealed class FrameReader : IDisposable
{
    private readonly HttpResponseMessage _response;
    private readonly StreamReader _lines;

    private FrameReader(HttpResponseMessage response, Stream stream) => (_response, _lines) = (response, new StreamReader(stream));

    public HttpResponseMessage Response => _response;

    public static async Task<FrameReader> OpenAsync(HttpClient http, string url)
    {
        var response = await http.GetAsync(url, HttpCompletionOption.ResponseHeadersRead).Soon();
        response.EnsureSuccessStatusCode();
        return new FrameReader(response, await response.Content.ReadAsStreamAsync());
    }

    /// <summary>The next frame; null at the end of the stream.</summary>
    public async Task<JsonElement?> NextAsync()
    {
        while (await _lines.ReadLineAsync().WaitAsync(Waiting.Long) is { } line)
        {
            if (line.StartsWith("data: ", StringComparison.Ordinal))
            {
                return JsonSerializer.Deserialize<JsonElement>(line["data: ".Length..]);
            }
        }

        return null;
    }

    /// <summary>Reads on to a frame whose pool of this name is so.</summary>
    public Task<JsonElement> PoolAsync(string name, Func<JsonElement, bool> isSo) => ReadToAsync(name, isSo).Soon();

    public void Dispose()
    {
        _lines.Dispose();
        _response.Dispose();
    }

    private async Task<JsonElement> ReadToAsync(string name, Func<JsonElement, bool> isSo)
    {
        while (await NextAsync() is { } frame)
        {
            var pool = frame.GetProperty("pools").EnumerateArray().Single(pool => pool.GetProperty("name").GetString() == name);
            if (isSo(pool))
            {
                return pool;
            }
        }

        throw new InvalidOperationException("The stream has ended.");
    }
}
