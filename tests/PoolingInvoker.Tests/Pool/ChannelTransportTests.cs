#pragma warning disable CA2025 // The tasks are waited for.
using System.Net;
using System.Net.Sockets;
using System.Security.Authentication;
using Grpc.Core;
using Microsoft.Extensions.Time.Testing;
using PoolingInvoker.Testing;

namespace PoolingInvoker.Tests.Pool;

/// <summary>How the connections of a channel are made, taken by its handler, and what is known of them afterwards.</summary>
public sealed class ChannelTransportTests : IDisposable
{
    private static readonly Uri Address = new("http://users.test:5000");
    private static readonly byte[] Settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    private static readonly byte[] SettingsAck = [0, 0, 0, 4, 1, 0, 0, 0, 0];
    private static readonly byte[] Response = [0, 0, 1, 1, 5, 0, 0, 0, 1, 0x88]; // HEADERS of stream 1 with :status 200, END_STREAM

    private readonly FakeTimeProvider _time = new();
    private readonly ChannelTransport _transport;
    private readonly SocketsHttpHandler _handler = new();
    private readonly Wire _wire = new();
    private int _dials;

    public ChannelTransportTests()
    {
        _transport = new ChannelTransport(_time);
        Supply(() => ValueTask.FromResult<Stream>(_wire));
    }

    public void Dispose()
    {
        _handler.Dispose();
        _transport.Dispose();
        _wire.Dispose();
    }

    [Fact]
    public async Task ItConnects_WithWhatAClientBeginsWith_UpToTheSettingsOfTheServer()
    {
        Assert.Equal(ConnectivityState.Idle, _transport.State);
        var connecting = _transport.ConnectAsync(CancellationToken.None);
        Assert.Equal(ConnectivityState.Connecting, _transport.State);
        await Waiting.Until(() => _wire.Written.Length == FrameScanner.Preface.Length + FrameScanner.EmptySettings.Length);
        Assert.Equal([.. FrameScanner.Preface, .. FrameScanner.EmptySettings], _wire.Written);
        Assert.False(connecting.IsCompleted);

        _wire.Comes(Settings);
        await connecting.Soon();
        Assert.Equal(ConnectivityState.Ready, _transport.State);
        Assert.Equal((1, 1L), (_dials, _transport.ConnectionsMade));
    }

    [Fact]
    public async Task TheHandler_TakesTheConnectionThatIsThere_AndGoesOnWithIt()
    {
        await ConnectAsync();
        var before = _wire.Written.Length;
        using var invoker = new HttpMessageInvoker(_handler, disposeHandler: false);
        var sending = SendAsync(invoker);
        await Waiting.Until(() => _wire.Written.Length > before + 60);
        var written = _wire.Written[before..];
        Assert.Equal(4, written[3]); // SETTINGS of the handler, and not the preface once more
        _wire.Comes([.. SettingsAck, .. SettingsAck, .. Response]); // that of the pool, that of the handler
        using var response = await sending.Soon();
        Assert.Equal(HttpStatusCode.OK, response.StatusCode);
        Assert.Equal(1, _dials);
    }

    [Fact]
    public async Task HoweverItComes_TheHandlerReadsEverything_ButTheAcknowledgementOfThePool_AndPingsThatWereAnswered()
    {
        var random = new Random(1);
        for (var round = 0; round < 500; round++)
        {
            var (before, after) = (FrameScannerTests.RandomFrames(random), FrameScannerTests.RandomFrames(random));
            byte[] bytes = [.. Settings, .. before, .. SettingsAck, .. after];
            await using var wire = new Wire();
            await using var connection = new ConnectionStream(wire, _transport);
            FrameScannerTests.Cut(bytes, random, longest: 1 + (round % 40)).ForEach(wire.Comes);
            await connection.Opening.OpenAsync(_time, CancellationToken.None).Soon();
            connection.Opening.Watch();
            if (round % 3 == 0)
            {
                await Waiting.Until(() => wire.IsEmpty);
            }

            Assert.True(connection.Opening.Take());
            wire.Ends();
            var read = await ConnectionStreamTests.ReadToEndAsync(connection, () => random.Next(1, 2 + (round % 30)), round % 2 == 0);
            AssertIsAllOf([.. Settings, .. before, .. after], read, wire.Written[FrameScanner.Preface.Length..]);
        }
    }

    [Fact]
    public async Task WhatThePoolHasAnswered_TheHandlerDoesNotAnswerAgain()
    {
        var ping = FrameScannerTests.Ping(1, ack: false);
        byte[] window = [0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 1, 0, 0];
        await using var wire = new Wire();
        await using var connection = new ConnectionStream(wire, _transport);
        wire.Comes([.. Settings, .. ping, .. Settings, .. window, .. Settings[..4]]);
        await connection.Opening.OpenAsync(_time, CancellationToken.None).Soon();
        connection.Opening.Watch();
        byte[] opening = [.. FrameScanner.Preface, .. FrameScanner.EmptySettings, .. SettingsAck, .. FrameScanner.AckOf(ping), .. SettingsAck];
        await Waiting.Until(() => wire.Written.Length == opening.Length);
        Assert.Equal(opening, wire.Written);

        // The handler takes it in the middle of a third SETTINGS frame, which is its own.
        Assert.True(connection.Opening.Take());
        wire.Comes([.. Settings[4..], .. ping]);
        wire.Ends();
        var read = await ConnectionStreamTests.ReadToEndAsync(connection, static () => 5, zeroByteReads: false);
        Assert.Equal([.. Settings, .. Settings, .. window, .. Settings, .. ping], read);
        await connection.WriteAsync((byte[])[.. FrameScanner.Preface, .. Settings, .. SettingsAck, .. window]);
        await connection.WriteAsync(SettingsAck);
        await connection.WriteAsync((byte[])[.. SettingsAck, .. FrameScanner.AckOf(ping)]);
        Assert.Equal([.. opening, .. Settings, .. window, .. SettingsAck, .. FrameScanner.AckOf(ping)], wire.Written);
    }

    [Fact]
    public async Task WhatEndsBeforeItsSettings_IsNoConnection()
    {
        var connecting = _transport.ConnectAsync(CancellationToken.None);
        _wire.Ends();
        Assert.Equal(HttpRequestError.InvalidResponse, (await Assert.ThrowsAsync<HttpIOException>(() => connecting.Soon())).HttpRequestError);
        Assert.Equal((ConnectivityState.TransientFailure, ConnectionFact.NotConnected), (_transport.State, _transport.FactSince(0)));
    }

    [Fact]
    public async Task WhatSpeaksNoHttp2_IsNoConnection_NorWillItBe()
    {
        var connecting = _transport.ConnectAsync(CancellationToken.None);
        _wire.Comes("HTTP/1.1 400 Bad Request\r\n"u8.ToArray());
        await Assert.ThrowsAsync<HttpProtocolException>(() => connecting.Soon());
        Assert.Equal((ConnectivityState.TransientFailure, ConnectionFact.NotCompatible), (_transport.State, _transport.FactSince(0)));
    }

    [Fact]
    public async Task AFailureStays_AndEachRequestHasItsCause_UntilItIsToConnectAfresh()
    {
        Supply(static () => throw new SocketException((int)SocketError.ConnectionRefused));
        await Assert.ThrowsAsync<SocketException>(() => _transport.ConnectAsync(CancellationToken.None).Soon());
        using var invoker = new HttpMessageInvoker(_handler, disposeHandler: false);
        for (var i = 0; i < 3; i++)
        {
            var mark = _transport.Mark;
            var failure = await Assert.ThrowsAsync<HttpRequestException>(() => SendAsync(invoker).Soon());
            Assert.Equal(HttpRequestError.ConnectionError, failure.HttpRequestError);
            Assert.Equal(SocketError.ConnectionRefused, Assert.IsType<SocketException>(failure.InnerException).SocketErrorCode);
            Assert.Equal(ConnectionFact.NotConnected, _transport.FactSince(mark));
        }

        Assert.Equal(1, _dials);
        await Assert.ThrowsAsync<SocketException>(() => _transport.ConnectAsync(CancellationToken.None).Soon());
        Assert.Equal(2, _dials);
    }

    [Fact]
    public async Task ACertificateThatIsRefused_WillBeAgain()
    {
        Supply(static () => throw new AuthenticationException("not trusted"));
        await Assert.ThrowsAsync<AuthenticationException>(() => _transport.ConnectAsync(CancellationToken.None).Soon());
        Assert.Equal(ConnectionFact.NotCompatible, _transport.FactSince(0));
    }

    [Fact]
    public async Task SeveralThatConnect_AreOneDial_AndOneThatIsCancelledLeavesItToTheOthers()
    {
        using var cancellation = new CancellationTokenSource();
        Task[] connecting = [_transport.ConnectAsync(CancellationToken.None), _transport.ConnectAsync(cancellation.Token), _transport.ConnectAsync(CancellationToken.None)];
        await cancellation.CancelAsync();
        await Assert.ThrowsAnyAsync<OperationCanceledException>(() => connecting[1].Soon());
        var again = _transport.ConnectAsync(CancellationToken.None);
        _wire.Comes(Settings);
        await Task.WhenAll(connecting[0], connecting[2], again).Soon();
        Assert.Equal(1, _dials);
    }

    [Fact]
    public async Task AnAttemptThatTakesTooLong_IsAConnectionError()
    {
        var connecting = _transport.ConnectAsync(CancellationToken.None);
        await Waiting.Until(() => _wire.Written.Length > 0);
        _time.Advance(TimeSpan.FromSeconds(20));
        var failure = await Assert.ThrowsAsync<SocketException>(() => connecting.Soon());
        Assert.Equal((SocketError.TimedOut, "No connection could be made within 20 s."), (failure.SocketErrorCode, failure.Message));
    }

    [Fact]
    public async Task TheConnectTimeoutOfTheHandler_Counts()
    {
        using var handler = new SocketsHttpHandler { ConnectTimeout = TimeSpan.FromSeconds(3), ConnectCallback = (_, _) => ValueTask.FromResult<Stream>(_wire) };
        using var transport = new ChannelTransport(_time);
        transport.Supply(handler, Address, Address);
        var connecting = transport.ConnectAsync(CancellationToken.None);
        await Waiting.Until(() => _wire.Written.Length > 0);
        _time.Advance(TimeSpan.FromSeconds(3));
        Assert.Equal("No connection could be made within 3 s.", (await Assert.ThrowsAsync<SocketException>(() => connecting.Soon())).Message);
    }

    [Fact]
    public async Task AConnectionThatEndsBeforeItIsTaken_IsIdleAgain_AndTheNextRequestDials()
    {
        await ConnectAsync();
        _time.Advance(TimeSpan.FromSeconds(1));
        _wire.Ends();
        await Waiting.Until(() => _transport.State == ConnectivityState.Idle);
        await TheNextRequestDialsAsync();
    }

    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public async Task AConnectionThatCallsWaitFor_AndThatEndsBeforeItIsTaken_FailsThem(bool endsBefore)
    {
        await ConnectAsync();
        if (endsBefore)
        {
            _wire.Ends();
            await Waiting.Until(() => _transport.State == ConnectivityState.Idle);
        }

        _transport.FailIfLost();
        _wire.Ends();
        await Waiting.Until(() => _transport.State == ConnectivityState.TransientFailure);
        using var invoker = new HttpMessageInvoker(_handler, disposeHandler: false);
        await Assert.ThrowsAsync<HttpRequestException>(() => SendAsync(invoker).Soon());
        Assert.Equal((1, ConnectionFact.NotConnected), (_dials, _transport.FactSince(0)));
    }

    [Fact]
    public async Task WhatBeginsOnAConnectionThatIsLost_IsLostWithIt_UntilAnotherIsTaken()
    {
        await using var wire = new Wire();
        await using var connection = new ConnectionStream(wire, _transport);
        wire.Comes([.. Settings, .. Response]);
        await connection.Opening.OpenAsync(_time, CancellationToken.None).Soon();
        connection.Opening.Watch();
        connection.Opening.Take();
        wire.Ends(new IOException("reset"));
        await Assert.ThrowsAsync<IOException>(() => ConnectionStreamTests.ReadToEndAsync(connection, static () => 100, zeroByteReads: false).Soon());

        // The handler has not come to it yet, and would send a request on it.
        var mark = _transport.Mark;
        Assert.Equal(ConnectionFact.Lost, _transport.FactSince(mark));
        await connection.DisposeAsync();
        await ConnectAsync();
        using var invoker = new HttpMessageInvoker(_handler, disposeHandler: false);
        await AnswerAsync(SendAsync(invoker), _wire);
        Assert.Equal(ConnectionFact.Unharmed, _transport.FactSince(_transport.Mark));
    }

    [Fact]
    public async Task AConnectionThatHasEnded_IsNotTaken_ThoughItIsNotDiscardedYet()
    {
        await using var wire = new Wire();
        await using var connection = new ConnectionStream(wire, _transport);
        wire.Comes(Settings);
        await connection.Opening.OpenAsync(_time, CancellationToken.None).Soon();
        bool? isTaken = null;
        _transport.ConnectionLost += () => isTaken = connection.Opening.Take();
        connection.Opening.Watch();
        wire.Ends();
        await Waiting.Until(() => isTaken is not null);
        Assert.False(isTaken);
        await Waiting.Until(() => wire.IsDisposed);
    }

    [Fact]
    public async Task AConnectionThatHasWaitedForTooLong_IsNotTaken()
    {
        await ConnectAsync();
        _time.Advance(_handler.PooledConnectionIdleTimeout);
        await TheNextRequestDialsAsync();
    }

    [Theory]
    [InlineData("ends", "Lost")]
    [InlineData("fails", "Lost")]
    [InlineData("fails in the middle of a frame", "Lost")]
    [InlineData("takes no more", "Lost")]
    [InlineData("takes no more, at once", "Lost")]
    [InlineData("takes no more after a ping", "Lost")]
    [InlineData("goes", "Lost")]
    [InlineData("is broken by the pool", "Lost")]
    [InlineData("is closed by the handler", "Unharmed")]
    [InlineData("nothing", "Unharmed")]
    public async Task WhatHappensToAConnection_IsAFact(string what, string fact)
    {
        var clogged = new TaskCompletionSource();
        await using var wire = new Wire { FailsAtOnce = what.EndsWith("at once", StringComparison.Ordinal) };
        await using var connection = new ConnectionStream(wire, _transport);
        wire.Comes(Settings);
        await connection.Opening.OpenAsync(_time, CancellationToken.None).Soon();
        connection.Opening.Watch();
        connection.Opening.Take();
        var mark = _transport.Mark;
        var reading = ConnectionStreamTests.ReadToEndAsync(connection, static () => 100, zeroByteReads: true);
        switch (what)
        {
            case "ends":
                wire.Ends();
                await reading.Soon();
                break;
            case "fails":
                wire.Ends(new IOException("reset"));
                await Assert.ThrowsAsync<IOException>(() => reading.Soon());
                break;
            case "fails in the middle of a frame":
                wire.Comes(SettingsAck[..3]);
                await Waiting.Until(() => wire.IsEmpty);
                wire.Ends(new IOException("reset"));
                await Assert.ThrowsAsync<IOException>(() => reading.Soon());
                break;
            case "takes no more" or "takes no more, at once":
                wire.WriteFailure = new IOException("reset");
                await Assert.ThrowsAsync<IOException>(() => connection.WriteAsync(new byte[50]).AsTask().Soon());
                break;
            case "takes no more after a ping":
                wire.HalfWay = clogged.Task;
                var pinging = connection.PingAsync(CancellationToken.None);
                var writing = connection.WriteAsync(new byte[50]).AsTask();
                wire.WriteFailure = new IOException("reset");
                clogged.SetResult();
                await pinging.Soon();
                await Assert.ThrowsAsync<IOException>(() => writing.Soon());
                break;
            case "goes":
                wire.Comes([0, 0, 8, 7, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
                await Waiting.Until(() => _transport.Mark != mark);
                break;
            case "is broken by the pool":
                _transport.Abort("it is silent");
                break;
            case "is closed by the handler":
                await connection.DisposeAsync();
                await Assert.ThrowsAsync<IOException>(() => reading.Soon());
                break;
            default:
                break;
        }

        Assert.Equal(fact, _transport.FactSince(mark).ToString());
    }

    [Fact]
    public async Task AConnectionThatEndsWhileItIsTaken_EndsARequestAsALostOne()
    {
        for (var round = 0; round < 300; round++)
        {
            await using var wire = new Wire();
            using var handler = new SocketsHttpHandler { ConnectCallback = (_, _) => ValueTask.FromResult<Stream>(wire) };
            using var transport = new ChannelTransport(_time);
            transport.Supply(handler, Address, Address);
            wire.Comes(Settings);
            await transport.ConnectAsync(CancellationToken.None).Soon();
            using var invoker = new HttpMessageInvoker(handler, disposeHandler: false);
            var mark = transport.Mark;
            var ending = Task.Run(() =>
            {
                Thread.SpinWait(round * 20);
                wire.Ends();
            });
            var failure = await Assert.ThrowsAsync<HttpRequestException>(() => SendAsync(invoker).Soon());
            await ending;
            Assert.DoesNotContain(nameof(SocketsHttpHandler.PlaintextStreamFilter), $"{failure}", StringComparison.Ordinal);
            Assert.NotEqual(ConnectionFact.Unharmed, transport.FactSince(mark));
        }
    }

    [Fact]
    public void WithKeepAlivePingsOfTheHandlers_ABrokenConnectionMayHaveBeenSilent()
    {
        using var handler = new SocketsHttpHandler { KeepAlivePingDelay = TimeSpan.FromSeconds(1), ConnectCallback = (_, _) => ValueTask.FromResult<Stream>(_wire) };
        using var transport = new ChannelTransport(_time);
        transport.Supply(handler, Address, Address);
        Assert.Equal(ConnectionFact.UnharmedOrSilent, transport.FactSince(transport.Mark));
    }

    [Fact]
    public async Task APing_WaitsForWhateverComes_AndSeveralDoSoTogether()
    {
        await ConnectAsync();
        using var cancellation = new CancellationTokenSource();
        Task[] pinging = [_transport.PingAsync(cancellation.Token), _transport.PingAsync(cancellation.Token)];
        Assert.All(pinging, static ping => Assert.False(ping.IsCompleted));
        Assert.Equal(6, _wire.Written[^14]);
        _wire.Comes(SettingsAck);
        await Task.WhenAll(pinging).Soon();

        var another = _transport.PingAsync(cancellation.Token);
        await cancellation.CancelAsync();
        await Assert.ThrowsAnyAsync<OperationCanceledException>(() => another.Soon());
    }

    [Fact]
    public async Task WhatHasComeAndIsNotRead_Shows()
    {
        using var listener = new TcpListener(IPAddress.Loopback, 0);
        listener.Start();
        using var handler = new SocketsHttpHandler();
        using var transport = new ChannelTransport(_time);
        var address = new Uri($"http://{listener.LocalEndpoint}");
        transport.Supply(handler, address, address);
        var connecting = transport.ConnectAsync(CancellationToken.None);
        using var server = await listener.AcceptSocketAsync();
        await server.SendAsync(Settings);
        await connecting.Soon();
        await Waiting.Until(() => !transport.HasUnread);

        // More than is read before a call: 200 kB of WINDOW_UPDATE.
        await server.SendAsync((byte[])[.. Enumerable.Repeat((byte[])[0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 0, 0, 1], 16_000).SelectMany(static frame => frame)]);
        await Waiting.Until(() => transport.HasUnread);
        transport.Dispose();
        Assert.False(transport.HasUnread);
    }

    [Fact]
    public async Task Disposed_ItLeavesNothingOpen()
    {
        await ConnectAsync();
        _transport.Dispose();
        Assert.True(_wire.IsDisposed);
        Assert.Equal(ConnectivityState.Shutdown, _transport.State);
        await Assert.ThrowsAsync<ObjectDisposedException>(() => _transport.ConnectAsync(CancellationToken.None));
    }

    [Fact]
    public async Task DisposedWhileItConnects_ItEndsTheAttempt()
    {
        var connecting = _transport.ConnectAsync(CancellationToken.None);
        await Waiting.Until(() => _wire.Written.Length > 0);
        _transport.Dispose();
        await Assert.ThrowsAsync<SocketException>(() => connecting.Soon());
        Assert.True(_wire.IsDisposed);
    }

    [Fact]
    public async Task DisposedWhileItsTlsBegins_ItClosesTheConnectionAtOnce()
    {
        var address = new Uri("https://users.test:5000");
        using var handler = new SocketsHttpHandler { ConnectCallback = (_, _) => ValueTask.FromResult<Stream>(_wire) };
        using var transport = new ChannelTransport(_time);
        transport.Supply(handler, address, address);
        var connecting = transport.ConnectAsync(CancellationToken.None);
        await Waiting.Until(() => _wire.Written.Length > 0);
        transport.Dispose();
        Assert.True(_wire.IsDisposed);
        await Assert.ThrowsAsync<SocketException>(() => connecting.Soon());
    }

    // Each frame was read, or is a ping that was answered, in order.
    private static void AssertIsAllOf(byte[] expected, byte[] read, byte[] written)
    {
        var frames = new Queue<byte[]>(ConnectionStreamTests.ParseFrames(read));
        var answered = new Queue<byte[]>(ConnectionStreamTests.ParseFrames(written).Where(static frame => frame[3] == 6));
        foreach (var frame in ConnectionStreamTests.ParseFrames(expected))
        {
            if (frames.TryPeek(out var next) && next.AsSpan().SequenceEqual(frame))
            {
                frames.Dequeue();
                continue;
            }

            Assert.True(FrameScanner.IsPing(frame));
            Assert.Equal(FrameScanner.AckOf(frame), answered.Dequeue());
        }

        Assert.Empty(frames);
        Assert.Empty(answered);
    }

    private async Task TheNextRequestDialsAsync()
    {
        await using var second = new Wire();
        Supply(() => ValueTask.FromResult<Stream>(second));
        using var invoker = new HttpMessageInvoker(_handler, disposeHandler: false);
        var sending = SendAsync(invoker);
        second.Comes(Settings);
        await AnswerAsync(sending, second);
        Assert.Equal(2, _dials);
    }

    private static async Task AnswerAsync(Task<HttpResponseMessage> sending, Wire wire)
    {
        await Waiting.Until(() => wire.Written.Length > 90);
        wire.Comes([.. SettingsAck, .. SettingsAck, .. Response]);
        using var response = await sending.Soon();
    }

    private static Task<HttpResponseMessage> SendAsync(HttpMessageInvoker invoker)
    {
        var request = new HttpRequestMessage(HttpMethod.Get, Address) { Version = HttpVersion.Version20, VersionPolicy = HttpVersionPolicy.RequestVersionExact };
        return invoker.SendAsync(request, CancellationToken.None);
    }

    private Func<ValueTask<Stream>> _connect = null!;

    private void Supply(Func<ValueTask<Stream>> connect)
    {
        if (_connect is null)
        {
            _handler.ConnectCallback = (_, _) =>
            {
                _dials++;
                return _connect!();
            };
            _transport.Supply(_handler, Address, Address);
        }

        _connect = connect;
    }

    private async Task ConnectAsync()
    {
        var connecting = _transport.ConnectAsync(CancellationToken.None);
        _wire.Comes(Settings);
        await connecting.Soon();
    }
}
