#!/usr/bin/env bash
# Builds everything, checks the style, and runs all tests. Needs the .NET SDK that global.json names, and
# etcd, nginx, HAProxy, iproute2, node with npm, Python's grpcio and grpc++ with its compilers, which it installs where apt-get can.
# The last line says how many tests passed and failed; the exit code is 0 only if none failed or was left out.
set -uo pipefail
cd "$(dirname "$0")" || exit 1
results=artifacts/test-results
rm -rf "$results"

step() { printf '\n== %s\n' "$*"; "$@" || { printf '\nfailed: %s\n0 passed, 1 failed\n' "$*"; exit 1; }; }

# Some tests start servers of others, in processes that they end.
install_packages() {
  local missing=$1 log
  shift
  command -v apt-get > /dev/null || { echo "There is no $missing here, and no apt-get to install it with. Please install it."; return 1; }
  # The package would start it as a service.
  case $missing in etcd | nginx | haproxy) [ ! -d /run/systemd/system ] || systemctl --quiet mask "$missing.service" ;; esac
  if ! log=$(apt-get update 2>&1 && DEBIAN_FRONTEND=noninteractive \
    apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=120 "$@" 2>&1); then
    printf '%s\n' "$log" | tail -n 20
    echo "There is no $missing here, and apt-get could not install $* (is this user root?)."
    return 1
  fi
}
has_cpp() { command -v g++ && command -v protoc && command -v grpc_cpp_plugin && pkg-config --exists grpc++ protobuf; } > /dev/null 2>&1
PATH=$PATH:/usr/sbin # Debian has nginx, HAProxy and ip there
command -v etcd > /dev/null || step install_packages etcd etcd-server
command -v nginx > /dev/null || step install_packages nginx nginx-light
command -v haproxy > /dev/null || step install_packages haproxy haproxy
command -v ip > /dev/null || step install_packages ip iproute2
command -v node > /dev/null || step install_packages node nodejs
command -v npm > /dev/null || step install_packages npm npm
/usr/bin/python3 -c 'import grpc, google.protobuf' 2> /dev/null || step install_packages grpcio python3-grpcio python3-protobuf
has_cpp || step install_packages grpc++ g++ pkg-config protobuf-compiler protobuf-compiler-grpc libgrpc++-dev libprotobuf-dev
step tests/PoolingInvoker.RotationTests/Servers/build.sh

step dotnet build PoolingInvoker.sln --configuration Debug
step dotnet build src/PoolingInvoker --configuration Release
step dotnet format PoolingInvoker.sln --verify-no-changes --no-restore

status=0
for project in PoolingInvoker.Tests PoolingInvoker.Interleavings PoolingInvoker.ContractTests PoolingInvoker.FunctionalTests PoolingInvoker.FaultTests \
  PoolingInvoker.DropInTests PoolingInvoker.RotationTests; do
  printf '\n== %s\n' "$project"
  dotnet test "tests/$project" --no-build --configuration Debug --logger "trx;LogFileName=$project.trx" --results-directory "$results" \
    --collect "XPlat Code Coverage" --settings coverage.runsettings --blame-hang-timeout 5m --blame-hang-dump-type none || status=1
done

# The contract on the older runtime that the library supports: the program brings it along.
step dotnet publish tests/PoolingInvoker.ContractTests -p:TestTargetFramework=net8.0 --use-current-runtime --self-contained --artifacts-path artifacts/net8.0
artifacts/net8.0/publish/PoolingInvoker.ContractTests/release/PoolingInvoker.ContractTests -trx "$results/PoolingInvoker.ContractTests.net8.0.trx" || status=1

printf '\n== coverage of Calls/ and Pool/\n'
dotnet tool restore > /dev/null && dotnet reportgenerator "-reports:$results/*/coverage.cobertura.xml" "-targetdir:$results/coverage" \
  "-reporttypes:Cobertura;TextSummary" "-filefilters:+*/Calls/*;+*/Pool/*" -verbosity:Error || status=1
grep -E "^ +(Line|Branch) coverage|^ +PoolingInvoker\." "$results/coverage/Summary.txt"
printf 'Not covered:\n'
awk -F '"' '
  /<class / { file = $4; sub(/.*\/src\/PoolingInvoker\//, "", file) }
  /<line / && $4 == 0 && !(file ":" $2 in seen) { seen[file ":" $2]; lines[file] = lines[file] " " $2 }
  END { for (file in lines) print "  " file ":" lines[file] }' "$results/coverage/Cobertura.xml" | sort

# Each results file has a line <Counters total="3" executed="3" passed="3" failed="0" …>.
count() { sed -n "s/.*<Counters .*\b$1=\"\([0-9]*\)\".*/\1/p" "$results"/*.trx | awk '{ sum += $1 } END { print sum + 0 }'; }
total=$(count total) passed=$(count passed) failed=$(count failed)
skipped=$((total - passed - failed))
printf '\n'
if [ "$skipped" -gt 0 ]; then
  printf '%s passed, %s failed, %s skipped\n' "$passed" "$failed" "$skipped"
  status=1
else
  printf '%s passed, %s failed\n' "$passed" "$failed"
fi

[ "$passed" -gt 0 ] && [ "$failed" -eq 0 ] || status=1
exit "$status"
