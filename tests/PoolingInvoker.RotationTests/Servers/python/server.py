"""The service of protos/user.proto on Python's grpcio. Each connection is closed in good order when it is 300 ms old.

    python3 server.py <name> <journal> <folder of the generated user_pb2.py>

It prints its port, and ends with its standard input. The journal gets a line for each Rename that is run: its request id.
"""

import os
import sys
import time
from concurrent import futures

import grpc

NAME, JOURNAL, GENERATED = sys.argv[1:]
sys.path.append(GENERATED)
import user_pb2 as messages  # noqa: E402
import user_pb2_grpc as services  # noqa: E402


class User(services.UserServicer):
    def __init__(self):
        self._journal = os.open(JOURNAL, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def GetName(self, request, context):
        time.sleep(request.delay_ms / 1000)
        return messages.GetNameReply(id=request.id, name=f"user-{request.id}", origin=origin_of(context))

    def Rename(self, request, context):
        os.write(self._journal, f"{request.request_id}\n".encode())  # it is there before the client can know
        time.sleep(request.delay_ms / 1000)
        return messages.RenameReply(origin=origin_of(context))

    def ListNames(self, request, context):
        for id in range(request.count):
            time.sleep(request.delay_ms / 1000)
            yield messages.NameReply(id=id, name=f"user-{id}", origin=origin_of(context))


def origin_of(context):
    return messages.Origin(server=NAME, connection=context.peer())


server = grpc.server(
    futures.ThreadPoolExecutor(max_workers=128),  # a call takes a thread
    options=[("grpc.max_connection_age_ms", 300), ("grpc.max_connection_age_grace_ms", 60_000)],
)
services.add_UserServicer_to_server(User(), server)
port = server.add_insecure_port("127.0.0.1:0")
server.start()
print(port, flush=True)
sys.stdin.read()
os._exit(0)
