// The service of protos/user.proto over plaintext HTTP/2, which breaks the calls that it is told to break.
//
//   node faults.mjs --name one [--chaos 0.2 --seed 1]
//
// A call says by its headers what happens to it:
//   x-call-id       what it is called in the journal, the same for all its attempts
//   x-fault         the fault, one of those below
//   x-fault-times   which attempts: the first N of the call id (default 1), "always", or "every-N"
//   x-fault-at      where: "headers" (nothing of the requests was looked at), "request" (default: the whole request is there, or the
//                   first message of a stream of them), "response" (the first message of a stream of responses was sent)
//   x-fault-hold    wait there for the command "strike"
//   x-fault-server  which server it is for, if not for all
// With --chaos that part of the calls without x-fault gets a fault drawn from the seed.
//
// Commands come on the standard input, a line each: "strike <call id>", "sync <token>". It ends when that does.
// The journal goes to the standard output, a line each: "listening <port>", "stream <call id>", "attempt <call id>", "held <call id>",
// "executed <call id>", "struck <fault>", "sync <token>". It is written before the client can know: a pipe takes it at once. A stream is an
// attempt when there is something to do about it: a request, or that no more come, or a fault. One of which there are headers alone is
// none: when the client takes it back at once they may reach the server, or may not.
import http2 from 'node:http2';
import readline from 'node:readline';
import { parseArgs } from 'node:util';

const { values: options } = parseArgs({
  options: {
    name: { type: 'string', default: 'faults' },
    chaos: { type: 'string', default: '0' },
    seed: { type: 'string', default: '1' },
  },
});

const journal = (what, id) => process.stdout.write(`${what} ${id}\n`);
const over = Symbol('the call is over');
const ignore = () => {};

// Wire format: of a request the first field is read, which is all that matters here.

const text = (field, value) => {
  const bytes = Buffer.from(value);
  return Buffer.concat([Buffer.from([(field << 3) | 2, bytes.length]), bytes]); // lengths under 128
};

const varint = (value) => {
  const bytes = [];
  for (; value > 127; value >>>= 7) {
    bytes.push((value & 127) | 128);
  }

  return Buffer.from([...bytes, value]);
};

const number = (field, value) => (value === 0 ? Buffer.alloc(0) : Buffer.concat([Buffer.from([field << 3]), varint(value)]));

const firstNumber = (message) => {
  let value = 0;
  for (let at = 1, shift = 0; message[0] === 8 && at < message.length; at++, shift += 7) {
    value |= (message[at] & 127) << shift;
    if (message[at] < 128) {
      break;
    }
  }

  return value;
};

const origin = (field) => {
  const name = text(1, options.name);
  return Buffer.concat([Buffer.from([(field << 3) | 2, name.length]), name]);
};

const named = (id) => Buffer.concat([number(1, id), text(2, `user-${id}`), origin(3)]);

const frame = (message) => {
  const prefix = Buffer.alloc(5);
  prefix.writeUInt32BE(message.length, 1);
  return Buffer.concat([prefix, message]);
};

// More than a client takes, which is 64 KB unless it says otherwise.
const large = 'x'.repeat(100_000);

// What happens to a call. What returns true leaves the call to go on; the others are its end.

const reset = (code) => (call) => call.stream.close(code);

const halfThenReset = (code) => (call) => {
  call.respond();
  call.stream.write(Buffer.from([0, 0, 0, 0, 20, 8, 7]), () => call.stream.close(code)); // two bytes of twenty
};

const unavailable = (trailers = {}) => (call) => call.finish({ 'grpc-status': '14', 'grpc-message': 'out of order', ...trailers });

const notGrpc = (status, headers = {}) => (call) => {
  call.stream.respond({ ':status': status, 'content-type': 'text/html', ...headers });
  call.stream.end('<html>');
};

const redirect = (status) => (call) => {
  call.stream.respond({ ':status': status, 'location': call.path }, { endStream: true });
};

const goaway = (session, last) => {
  session.goaway(0, last);
  lasts.set(session, Math.min(last, lasts.get(session) ?? last)); // what was excluded once remains so
};

const faults = {
  'rst-2': reset(2),
  'rst-7': reset(7),
  'rst-8': reset(8),
  'rst-11': reset(11),
  'hang': ignore,
  'tcp-close': (call) => sockets.get(call.session)?.destroy(),
  'tcp-reset': (call) => sockets.get(call.session)?.resetAndDestroy(),
  'goaway-without': (call) => {
    // Of a call that came later and was executed it would be a lie. Node takes 0 for "the last one there was".
    const last = call.stream.id - 2;
    if (last < 1 || executed.get(call.session) > last) {
      call.stream.close(7);
      return;
    }

    goaway(call.session, last);
    call.session.close();
  },
  'goaway-with': (call) => {
    goaway(call.session, newest.get(call.session));
    return true;
  },
  'goaway-close': (call) => {
    goaway(call.session, newest.get(call.session));
    call.session.ping(() => sockets.get(call.session)?.destroy()); // when the client has read that
  },
  'half-rst-2': halfThenReset(2),
  'half-rst-8': halfThenReset(8),
  'no-trailers': (call) => {
    if (call.hasOneResponse) {
      call.send(Buffer.alloc(0)); // a whole message, of whatever type
    }

    call.finish({});
  },
  'status-14': unavailable(),
  'pushback-20': unavailable({ 'grpc-retry-pushback-ms': '20' }),
  'pushback-negative': unavailable({ 'grpc-retry-pushback-ms': '-1' }),
  'pushback-unreadable': unavailable({ 'grpc-retry-pushback-ms': 'soon' }),
  'drop': unavailable({ 'grpc-internal-drop-request': 'True' }),
  'http-502': notGrpc(502),
  'http-503': notGrpc(503),
  'unparsable': (call) => {
    call.send(Buffer.alloc(8, 0xff));
    call.finish();
  },
  'large-message': unavailable({ 'grpc-message': large }),
  'large-headers': (call) => call.stream.respond({ ':status': 200, 'content-type': 'application/grpc', 'x-large': large }),
  'large-trailers': (call) => call.finish({ 'grpc-status': '0', 'x-large': large }),
  'http-307': redirect(307),
  'http-308': redirect(308),
  'http-401': notGrpc(401),
  'http-401-basic': notGrpc(401, { 'www-authenticate': 'Basic realm="users"' }),
  'settings': (call) => new Promise((resolve) => call.session.settings({ maxConcurrentStreams: 1 }, () => resolve(true))),
  'hold': ignore, // what is to happen comes from outside
};

// By these the server says that it has not looked at the request.
const unprocessed = new Set(['rst-7', 'goaway-without', 'http-307', 'http-308', 'http-401', 'http-401-basic']);

// What --chaos draws from, by weight. Left out is what by right ends a call, or leaves it to its deadline.
const weights = {
  'rst-2': 10, 'rst-7': 10, 'rst-8': 10, 'rst-11': 10, 'half-rst-2': 10, 'half-rst-8': 10, 'no-trailers': 10, 'status-14': 10,
  'pushback-20': 2, 'http-502': 10, 'http-503': 10, 'tcp-close': 1, 'tcp-reset': 1, 'goaway-without': 1, 'goaway-with': 1, 'goaway-close': 1,
};
const urn = Object.entries(weights).flatMap(([fault, weight]) => Array(weight).fill(fault));

// mulberry32
let state = Number(options.seed) >>> 0;
const random = () => {
  state = (state + 0x6d2b79f5) >>> 0;
  let t = state;
  t = Math.imul(t ^ (t >>> 15), t | 1);
  t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
  return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
};

const chaos = Number(options.chaos);
const attempts = new Map(); // by call id
const held = new Map(); // what goes on when a call id is struck
const struck = new Set();

// By session: the socket, as the one that a session shows does not let itself be reset; the newest stream; the newest one that was
// executed; and the last one that a GOAWAY includes.
const sockets = new WeakMap();
const newest = new WeakMap();
const executed = new WeakMap();
const lasts = new WeakMap();

class Call {
  #messages = [];
  #unread = Buffer.alloc(0);
  #ended = false;
  #isAttempt = false;
  #wake = ignore;

  constructor(stream, headers) {
    this.stream = stream;
    this.session = stream.session;
    this.path = headers[':path'];
    this.method = this.path.split('/').at(-1);
    this.hasOneResponse = this.method !== 'ListNames' && this.method !== 'Chat';
    this.id = headers['x-call-id'];
    this.at = headers['x-fault-at'] ?? 'request';
    this.holds = headers['x-fault-hold'] !== undefined;
    this.fault = this.#choose(headers);
    stream.on('error', ignore);
    stream.on('data', (chunk) => this.#read(chunk));
    stream.on('end', () => this.#end());
    stream.on('close', () => this.#end());
  }

  #choose(headers) {
    let attempt = 1;
    if (this.id !== undefined) {
      attempt = (attempts.get(this.id) ?? 0) + 1;
      attempts.set(this.id, attempt);
      journal('stream', this.id);
    }

    const fault = headers['x-fault'];
    if (fault === undefined) {
      return random() < chaos ? urn[Math.floor(random() * urn.length)] : undefined;
    }

    const times = headers['x-fault-times'] ?? '1';
    const strikes = times === 'always' || (times.startsWith('every-') ? attempt % Number(times.slice(6)) === 0 : attempt <= Number(times));
    return strikes && (headers['x-fault-server'] ?? options.name) === options.name ? fault : undefined;
  }

  #read(chunk) {
    this.#unread = this.#unread.length === 0 ? chunk : Buffer.concat([this.#unread, chunk]);
    while (this.#unread.length >= 5 && this.#unread.length >= 5 + this.#unread.readUInt32BE(1)) {
      const length = 5 + this.#unread.readUInt32BE(1);
      this.#messages.push(this.#unread.subarray(5, length));
      this.#unread = this.#unread.subarray(length);
    }

    this.#wake();
  }

  #end() {
    this.#ended = true;
    this.#wake();
  }

  get isGone() {
    return this.stream.closed || this.stream.destroyed;
  }

  /** The next request, or undefined when there are no more. */
  async next() {
    while (this.#messages.length === 0 && !this.#ended) {
      await new Promise((resolve) => { this.#wake = resolve; });
    }

    if (this.isGone) {
      throw over;
    }

    this.#attempt();
    return this.#messages.shift();
  }

  #attempt() {
    if (this.id !== undefined && !this.#isAttempt) {
      this.#isAttempt = true;
      journal('attempt', this.id);
    }
  }

  /** The one request, when it is whole. */
  async request() {
    const request = await this.next();
    await this.next();
    await this.received();
    return request;
  }

  /** Enough of the request is there to execute it, which is done here, and written down. */
  async received() {
    if (this.stream.id > lasts.get(this.session)) {
      throw over; // the client has been told that nobody looks at it
    }

    if (!(this.at === 'request' && unprocessed.has(this.fault))) {
      executed.set(this.session, Math.max(this.stream.id, executed.get(this.session) ?? 0));
      if (this.id !== undefined) {
        journal('executed', this.id);
      }
    }

    await this.reach('request');
  }

  async reach(point) {
    if (this.fault === undefined || this.at !== point) {
      return;
    }

    this.#attempt();
    if (this.holds && !struck.has(this.id)) {
      journal('held', this.id);
      await new Promise((resolve) => held.set(this.id, resolve));
    }

    if (this.isGone) {
      throw over;
    }

    journal('struck', this.fault);
    if (!(await faults[this.fault](this))) {
      throw over;
    }
  }

  respond() {
    if (!this.stream.headersSent) {
      this.stream.respond({ ':status': 200, 'content-type': 'application/grpc' }, { waitForTrailers: true });
      this.stream.on('wantTrailers', () => this.stream.sendTrailers(this.trailers ?? {}));
    }
  }

  send(message) {
    if (!this.isGone) {
      this.respond();
      this.stream.write(frame(message));
    }
  }

  /** The end: alone in the headers if nothing was sent yet and it is a failure (Trailers-Only), else in the trailers. */
  finish(trailers = { 'grpc-status': '0' }) {
    if (this.isGone) {
      return;
    }

    if (!this.stream.headersSent && 'grpc-status' in trailers && trailers['grpc-status'] !== '0') {
      this.stream.respond({ ':status': 200, 'content-type': 'application/grpc', ...trailers }, { endStream: true });
      return;
    }

    this.trailers = trailers;
    this.respond();
    this.stream.end();
  }
}

const methods = {
  async GetName(call) {
    call.send(named(firstNumber(await call.request())));
  },

  async Rename(call) {
    await call.request();
    call.send(origin(1));
  },

  async ListNames(call) {
    const count = firstNumber(await call.request());
    for (let id = 0; id < count; id++) {
      call.send(named(id));
      if (id === 0) {
        await call.reach('response');
      }
    }
  },

  async ImportNames(call) {
    let imported = 0;
    await call.reach('headers');
    while ((await call.next()) !== undefined) {
      if (imported++ === 0) {
        await call.received();
      }
    }

    call.send(Buffer.concat([number(1, imported), origin(2)]));
  },

  async Chat(call) {
    let answered = 0;
    await call.reach('headers');
    for (let message = await call.next(); message !== undefined; message = await call.next()) {
      if (answered === 0) {
        await call.received();
      }

      call.send(message);
      if (answered++ === 0) {
        await call.reach('response');
      }
    }
  },
};

const server = http2.createServer({ maxSendHeaderBlockLength: 1 << 20 });
server.on('sessionError', ignore);
server.on('session', (session) => session.on('error', ignore));
server.on('connection', (socket) => socket.on('error', ignore));

// The session of a socket comes before the socket's own event is heard here.
let latest;
server.on('session', (session) => { latest = session; });
server.on('connection', (socket) => sockets.set(latest, socket));

server.on('stream', async (stream, headers) => {
  newest.set(stream.session, stream.id);
  if (!(headers[':path'].split('/').at(-1) in methods)) {
    stream.respond({ ':status': 200, 'content-type': 'application/grpc', 'grpc-status': '12' }, { endStream: true });
    return;
  }

  const call = new Call(stream, headers);
  try {
    await methods[call.method](call);
    call.finish();
  } catch (error) {
    if (error !== over) {
      throw error;
    }
  }
});

readline.createInterface({ input: process.stdin })
  .on('line', (line) => {
    const [command, argument] = line.split(' ');
    if (command === 'sync') {
      journal('sync', argument);
    } else {
      struck.add(argument);
      held.get(argument)?.();
      held.delete(argument);
    }
  })
  .on('close', () => process.exit());

server.listen(0, '127.0.0.1', () => journal('listening', server.address().port));
