// The service of protos/user.proto on grpc-js. Each connection is closed in good order when it is 300 ms old.
//
//   node server.js <name> <journal> <user.proto>
//
// It prints its port, and ends with its standard input. The journal gets a line for each Rename that is run: its request id.
import { openSync, writeSync } from 'node:fs';
import { setTimeout as delay } from 'node:timers/promises';
import grpc from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';

const [name, journalPath, proto] = process.argv.slice(2);
const journal = openSync(journalPath, 'a');
const { User } = grpc.loadPackageDefinition(loadSync(proto, { defaults: true })).user.v1;

const named = (call, id) => ({ id, name: `user-${id}`, origin: originOf(call) });
const originOf = (call) => ({ server: name, connection: call.getPeer() });

const getName = async (call, callback) => {
  await delay(call.request.delayMs);
  callback(null, named(call, call.request.id));
};

const rename = async (call, callback) => {
  writeSync(journal, `${call.request.requestId}\n`); // it is there before the client can know
  await delay(call.request.delayMs);
  callback(null, { origin: originOf(call) });
};

const listNames = async (call) => {
  for (let id = 0; id < call.request.count; id++) {
    await delay(call.request.delayMs);
    call.write(named(call, id));
  }

  call.end();
};

const server = new grpc.Server({ 'grpc.max_connection_age_ms': 300, 'grpc.max_connection_age_grace_ms': 60_000 });
server.addService(User.service, { getName, rename, listNames });
server.bindAsync('127.0.0.1:0', grpc.ServerCredentials.createInsecure(), (error, port) => {
  if (error) {
    throw error;
  }

  console.log(port);
});

process.stdin.on('end', () => process.exit()).resume();
