#!/usr/bin/env bash
# Makes what the servers of other languages need: the packages of grpc-js, the generated code for Python, the C++ server.
# What is newer than its sources is left as it is.
set -euo pipefail
cd "$(dirname "$0")"
root=$(cd ../../.. && pwd)
built=$root/artifacts/rotation-servers
proto=$root/protos/user.proto
mkdir -p "$built"

if [ ! grpc-js/node_modules/.package-lock.json -nt grpc-js/package-lock.json ]; then
  npm ci --prefix grpc-js --ignore-scripts --no-audit --no-fund
  touch grpc-js/node_modules/.package-lock.json
fi

if [ ! "$built/user_pb2_grpc.py" -nt "$proto" ]; then
  protoc -I "$root/protos" --python_out "$built" --grpc_out "$built" --plugin "protoc-gen-grpc=$(command -v grpc_python_plugin)" "$proto"
fi

if [ ! "$built/user-server" -nt "$proto" ] || [ ! "$built/user-server" -nt cpp/server.cc ]; then
  protoc -I "$root/protos" --cpp_out "$built" --grpc_out "$built" --plugin "protoc-gen-grpc=$(command -v grpc_cpp_plugin)" "$proto"
  flags=$(pkg-config --cflags --libs grpc++ protobuf)
  # shellcheck disable=SC2086 # they are several
  g++ -std=c++17 -O1 -I "$built" cpp/server.cc "$built"/user.pb.cc "$built"/user.grpc.pb.cc -o "$built/user-server" $flags
fi
