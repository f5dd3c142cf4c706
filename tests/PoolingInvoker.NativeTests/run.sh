#!/usr/bin/env bash
# Publishes the program as native code and runs it. A warning of the trimmer or of the compiler is an error. Needs clang and the headers of
# zlib, which it installs where apt-get can.
set -euo pipefail
cd "$(dirname "$0")"

if ! command -v clang > /dev/null || [ ! -e /usr/include/zlib.h ]; then
  command -v apt-get > /dev/null || { echo "There is no clang here, or no zlib.h, and no apt-get to install them with. Please install them."; exit 1; }
  apt-get update > /dev/null
  DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=120 clang zlib1g-dev > /dev/null
fi

artifacts=../../artifacts/native
dotnet publish PoolingInvoker.NativeTests.csproj --configuration Release --use-current-runtime -p:PublishAot=true --artifacts-path "$artifacts"
timeout 120 "$artifacts/publish/PoolingInvoker.NativeTests/release/PoolingInvoker.NativeTests"
