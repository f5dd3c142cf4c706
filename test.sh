#!/usr/bin/env bash
# ./test.sh        builds what these tests need without warnings, and runs all tests that need the .NET SDK of global.json alone.
# ./test.sh --all  brings what the others need (it installs Debian packages, as root), builds everything and the planted bugs, checks the
#                  style, and runs all tests, with coverage.
# A test with [Trait("Tier", "all")] is run by --all only. The last line says how many tests passed and failed; the exit code is 0 only if
# none failed. With --all a skipped test counts as failed, unless its reason begins with "absent hardware".
set -uo pipefail
cd "$(dirname "$0")" || exit 1
results=artifacts/test-results
rm -rf "$results"
case ${*-} in
  '') all=false ;;
  --all) all=true ;;
  *) sed -n '2,4s/^# //p' "$0"; exit 2 ;;
esac

step() { printf '\n== %s\n' "$*"; "$@" || { printf '\nfailed: %s\n0 passed, 1 failed\n' "$*"; exit 1; }; }

# need NAME 'HOW TO SEE THAT IT IS THERE' PACKAGE...
need() {
  local name=$1 there=$2 log
  shift 2
  if eval "$there" > /dev/null 2>&1; then return 0; fi
  printf '\n== install %s: %s\n' "$name" "$*"
  command -v apt-get > /dev/null || { echo "There is no $name here, and no apt-get to install it with. Please install it."; return 1; }
  # The package would start it as a service.
  case $name in etcd | nginx | haproxy) [ ! -d /run/systemd/system ] || systemctl --quiet mask "$name.service" ;; esac
  if ! log=$(apt-get update 2>&1 && DEBIAN_FRONTEND=noninteractive \
    apt-get install -y --no-install-recommends -o DPkg::Lock::Timeout=120 "$@" 2>&1); then
    printf '%s\n' "$log" | tail -n 20
    echo "There is no $name here, and apt-get could not install $* (is this user root?)."
    return 1
  fi
}

# What the tests of --all need beside the .NET SDK: servers and proxies of others, in processes that the tests start and end.
bring() {
  PATH=$PATH:/usr/sbin # Debian has nginx, HAProxy and ip there
  need etcd 'command -v etcd' etcd-server &&
    need nginx 'command -v nginx' nginx-light &&
    need haproxy 'command -v haproxy' haproxy &&
    need tinyproxy 'command -v tinyproxy' tinyproxy-bin &&
    need ip 'command -v ip' iproute2 &&
    need node 'command -v node' nodejs &&
    need npm 'command -v npm' npm &&
    need grpcio "/usr/bin/python3 -c 'import grpc, google.protobuf'" python3-grpcio python3-protobuf &&
    need grpc++ 'command -v g++ && command -v protoc && command -v grpc_cpp_plugin && pkg-config --exists grpc++ protobuf' \
      g++ pkg-config protobuf-compiler protobuf-compiler-grpc libgrpc++-dev libprotobuf-dev &&
    need chromium 'command -v chromium' chromium fonts-dejavu-core &&
    need unzip 'command -v unzip' unzip &&
    need curl 'command -v curl' curl &&
    need clang 'command -v clang && [ -e /usr/include/zlib.h ]' clang zlib1g-dev
}

# run_tests 'PROJECT...' OPTION...
run_tests() {
  local project failed=0
  for project in $1; do
    printf '\n== %s\n' "$project"
    dotnet test "tests/PoolingInvoker.$project" --no-build --configuration Debug --logger "trx;LogFileName=PoolingInvoker.$project.trx" \
      --results-directory "$results" --blame-hang-timeout 5m --blame-hang-dump-type none "${@:2}" || failed=1
  done
  return "$failed"
}

# side_by_side LOG 'COMMAND' 'COMMAND': both at a time, as many tests wait. What the first one prints is shown after what the second one does.
side_by_side() {
  (eval "$2") > "$1" 2>&1 &
  local first=$!
  trap 'kill $! 2> /dev/null' EXIT
  eval "$3" || status=1
  wait "$first" || status=1
  trap - EXIT
  cat "$1"
}

# The contract, clients of the client factory, and the page, on the older runtime that the libraries support: the programs bring it along.
on_net8() {
  local project failed=0
  for project in ContractTests DependencyInjectionTests AspNetCoreTests; do
    step dotnet publish "tests/PoolingInvoker.$project" -p:TestTargetFramework=net8.0 --use-current-runtime --self-contained --artifacts-path artifacts/net8.0
    "artifacts/net8.0/publish/PoolingInvoker.$project/release/PoolingInvoker.$project" -result-trx "$results/PoolingInvoker.$project.net8.0.trx" || failed=1
  done
  return "$failed"
}

coverage() {
  printf '\n== coverage of Calls/, Pool/, Endpoints/ and Connections/\n'
  dotnet tool restore > /dev/null && dotnet reportgenerator "-reports:$results/*/coverage.cobertura.xml" "-targetdir:$results/coverage" \
    "-reporttypes:Cobertura;TextSummary" "-filefilters:+*/Calls/*;+*/Pool/*;+*/Endpoints/*;+*/Connections/*" -verbosity:Error || status=1
  grep -E "^ +(Line|Branch) coverage|^ +PoolingInvoker\." "$results/coverage/Summary.txt"
  printf 'Not covered:\n'
  awk -F '"' '
    /<class / { file = $4; sub(/.*\/src\/PoolingInvoker\//, "", file) }
    /<line / && $4 == 0 && !(file ":" $2 in seen) { seen[file ":" $2]; lines[file] = lines[file] " " $2 }
    END { for (file in lines) print "  " file ":" lines[file] }' "$results/coverage/Cobertura.xml" | sort
}

status=0
if $all; then
  bring || { printf '\n0 passed, 1 failed\n'; exit 1; }
  step tests/PoolingInvoker.RotationTests/Servers/build.sh
  step dotnet build PoolingInvoker.sln --configuration Debug
  step dotnet format style PoolingInvoker.sln --verify-no-changes --no-restore --diagnostics IMPORTS # the build has checked the rest
  mkdir -p "$results"
  with_coverage=(--collect 'XPlat Code Coverage' --settings coverage.runsettings)
  side_by_side "$results/beside.log" \
    'run_tests "FunctionalTests FaultTests DropInTests DependencyInjectionTests TelemetryTests BrowserTests ContractTests" "${with_coverage[@]}"' \
    'run_tests "Tests Interleavings AspNetCoreTests DocsTests" "${with_coverage[@]}"'
  run_tests RotationTests "${with_coverage[@]}" || status=1
  side_by_side "$results/net8.log" on_net8 'step tests/PoolingInvoker.NativeTests/run.sh; step tests/PoolingInvoker.PackageTests/run.sh'
  coverage
  # A further step: one that writes a .trx file into $results is counted, and any other sets status=1 where it fails.
else
  # Less of what grows with the time it is given; Budget.cs and SoakTests say what these are.
  export INTERLEAVINGS_SCHEDULES=300 INTERLEAVINGS_RANDOM=30 INTERLEAVINGS_MODEL_SECONDS=3 INTERLEAVINGS_STRESS_SECONDS=3
  export SOAK_UNARY=4000 SOAK_STREAMS=800
  step dotnet build PoolingInvoker.Fast.slnf --configuration Debug -p:PlantBugs=false
  mkdir -p "$results"
  side_by_side "$results/beside.log" \
    'run_tests "FunctionalTests DropInTests DependencyInjectionTests FaultTests TelemetryTests" --filter "Tier!=all"' \
    'run_tests "Tests Interleavings ContractTests AspNetCoreTests DocsTests" --filter "Tier!=all"'
fi

# Each results file has a line <Counters total="3" executed="3" passed="3" failed="0" …>.
count() { sed -n "s/.*<Counters .*\b$1=\"\([0-9]*\)\".*/\1/p" "$results"/*.trx | awk '{ sum += $1 } END { print sum + 0 }'; }
# What failed, and the first words of why, once more at the end.
sed 's/<UnitTestResult /\n&/g; s/<\/*Message>/\n&\n/g; s/<\/UnitTestResult>/\n&/g' "$results"/*.trx | awk '
  /^<UnitTestResult / { failed = /^[^>]* outcome="Failed"/; name = $0; sub(/.* testName="/, "", name); sub(/".*/, "", name) }
  failed && /^<UnitTestResult / { print "\nfailed: " name }
  /^<\/Message>/ { message = failed = 0 }
  message
  failed && /^<Message>/ { message = 1 }' | head -n 60
total=$(count total) passed=$(count passed) failed=$(count failed)
skipped=$((total - passed - failed))
[ "$status" -eq 0 ] || [ "$failed" -gt 0 ] || failed=1 # what is no test, or never came to its end
absent=$(grep -ho 'absent hardware' "$results"/*.trx | wc -l)
printf '\n%s passed, %s failed' "$passed" "$failed"
[ "$skipped" -eq 0 ] || printf ', %s skipped' "$skipped"
printf '\n'

if $all && [ "$skipped" -gt "$absent" ]; then status=1; fi
[ "$passed" -gt 0 ] && [ "$failed" -eq 0 ] || status=1
exit "$status"
