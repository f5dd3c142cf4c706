#!/usr/bin/env bash
# Packs the packages, looks into them, and installs them from a folder into fresh apps, as their READMEs say: a console app and a web app, on
# net8.0 and net10.0. The programs are those of the READMEs, word by word but for the port. They call a real server.
set -euo pipefail
cd "$(dirname "$0")"
root=$(cd ../.. && pwd)
work=$(mktemp -d)
build=$root/artifacts/packages
version=0.1.0-consumer.$$ # so that no cache has it
core=PoolingInvoker
injection=PoolingInvoker.Extensions.DependencyInjection
page=PoolingInvoker.AspNetCore
pids=()

finish() {
  for pid in "${pids[@]}"; do kill "$pid" 2> /dev/null || true; done
  rm -rf "$work" "${NUGET_PACKAGES:-$HOME/.nuget/packages}/"{poolinginvoker,poolinginvoker.extensions.dependencyinjection,poolinginvoker.aspnetcore}/"$version"
}
trap finish EXIT

fail() { echo "failed: $*"; exit 1; }
quietly() { "$@" > "$work/log" 2>&1 || { tail -n 30 "$work/log"; fail "$*"; }; }

# wait_for FILE PATTERN: until a line of the file has it, and gives that line.
wait_for() {
  for _ in $(seq 600); do
    grep -m 1 "$2" "$1" 2> /dev/null && return 0
    sleep 0.1
  done
  cat "$1"
  fail "no line with '$2'"
}

echo "== pack"
for where in one two; do
  rm -rf "$build" # twice from nothing
  for package in $core $injection $page; do
    quietly dotnet pack "$root/src/$package" --output "$work/$where" --artifacts-path "$build" -p:Version="$version" -warnaserror
  done
done

echo "== what is in them"
mkdir "$work/in" "$work/again"
for package in $core $injection $page; do
  unzip -q "$work/one/$package.$version.nupkg" -d "$work/in/$package"
  unzip -q "$work/one/$package.$version.snupkg" -d "$work/in/$package.symbols"
  unzip -q "$work/two/$package.$version.nupkg" -d "$work/again/$package"
  for file in README.md icon.png lib/net8.0/$package.{dll,xml} lib/net10.0/$package.{dll,xml}; do
    [ -s "$work/in/$package/$file" ] || fail "$package has no $file"
  done
  for framework in net8.0 net10.0; do
    [ -s "$work/in/$package.symbols/lib/$framework/$package.pdb" ] || fail "$package has no symbols for $framework"
    cmp "$work/in/$package/lib/$framework/$package.dll" "$work/again/$package/lib/$framework/$package.dll" || fail "$package: two builds differ"
  done
  nuspec=$work/in/$package/$package.nuspec
  for line in '<license type="expression">MIT</license>' '<icon>icon.png</icon>' '<readme>README.md</readme>' '<repository type="git"' '<description>'; do
    grep -q "$line" "$nuspec" || fail "$package: $line is missing"
  done
  ! grep -rlaF -e "$root" -e "$work" -e "$HOME/" "$work/in/$package" "$work/in/$package.symbols" || fail "$package has a path of this machine"
  # Links in a README that is shown elsewhere lead nowhere, unless they are whole.
  ! grep -nE '\]\((\.|docs|src|#?[a-z-]+\.md)' "$work/in/$package/README.md" || fail "$package: a link of the README is relative"
done
grep -q '<dependency id="Grpc.Core.Api"' "$work/in/$core/$core.nuspec" || fail "$core does not name Grpc.Core.Api"
grep -q "<dependency id=\"$core\" version=\"$version\"" "$work/in/$injection/$injection.nuspec" || fail "$injection does not name $core"
grep -q "<dependency id=\"$injection\" version=\"$version\"" "$work/in/$page/$page.nuspec" || fail "$page does not name $injection"
[ -s "$work/in/$page/licenses/uPlot/LICENSE" ] || fail "$page has no licence of uPlot"

echo "== a server"
quietly dotnet build PoolingInvoker.PackageTests.csproj --artifacts-path "$work/server"
mkfifo "$work/input"
dotnet "$work"/server/bin/PoolingInvoker.PackageTests/debug/PoolingInvoker.PackageTests.dll < "$work/input" > "$work/server.log" 2>&1 &
pids+=($!)
exec 3> "$work/input"
port=$(wait_for "$work/server.log" '^[0-9][0-9]*$')

# fenced LANGUAGE NUMBER FILE: a block of a README, with the port of the server.
fenced() {
  awk -v start="\`\`\`$1" -v number="$2" '$0 == start { n++; on = n == number; next } /^```$/ { on = 0 } on' "$3" | sed "s/localhost:5000/localhost:$port/"
}

# app TEMPLATE FRAMEWORK PACKAGE: an app that is fresh, in the directory that is told, with the package by the command of its README.
app() {
  local directory=$work/$1-$2
  quietly dotnet new "$1" --output "$directory" --name "App"
  cd "$directory"
  sed -i "s|<TargetFramework>.*<|<TargetFramework>$2<|" App.csproj # the SDK has templates for its own framework alone
  cat > nuget.config << END
<configuration>
  <packageSources><add key="folder" value="$work/one" /></packageSources>
</configuration>
END
  cp "$root/protos/user.proto" .
  local command
  command=$(fenced '' 1 "$root/src/$3/README.md") # dotnet add package …
  quietly $command --version "$version"
  quietly dotnet add package Grpc.Tools
  quietly dotnet add package Google.Protobuf
  sed -i 's|</Project>|<ItemGroup><Protobuf Include="user.proto" GrpcServices="Client" /></ItemGroup></Project>|' App.csproj
}

# As a program that brings its runtime along: that of net8.0 need not be installed.
publish() { quietly dotnet publish --configuration Release --use-current-runtime --self-contained --output out -warnaserror; }

for framework in net8.0 net10.0; do
  echo "== a console app on $framework"
  app console $framework $core
  fenced csharp 1 "$root/src/$core/README.md" > Program.cs
  fenced csharp 2 "$root/src/$core/README.md" >> Program.cs
  echo 'Console.WriteLine((await new User.UserClient(tuned).GetNameAsync(new GetNameRequest { Id = 8 })).Name + " on " + Environment.Version);' >> Program.cs
  publish
  timeout 60 ./out/App > output || { cat output; fail "the console app on $framework"; }
  grep -qx 'Ada 7' output && grep -q "^Ada 8 on ${framework:3:2}" output || { cat output; fail "the console app on $framework said something else"; }

  echo "== a web app on $framework"
  app web $framework $injection
  fenced csharp 1 "$root/src/$injection/README.md" > Program.cs
  fenced csharp 2 "$root/src/$injection/README.md" > block
  sed -i '/^app.Run/e cat block' Program.cs
  fenced json 1 "$root/src/$injection/README.md" > appsettings.json
  command=$(fenced '' 1 "$root/src/$page/README.md")
  quietly $command --version "$version"
  fenced csharp 1 "$root/src/$page/README.md" > block
  sed -i '/^app.Run/e cat block' Program.cs
  publish
  ASPNETCORE_URLS=http://127.0.0.1:0 ./out/App > output 2>&1 &
  pids+=($!)
  address=$(wait_for output 'Now listening on' | sed 's/.*Now listening on: //')
  curl -sS --max-time 30 "$address/users/7" > reply
  grep -qx 'Ada 7' reply || { cat reply output; fail "the web app on $framework said something else"; }
  curl -sS --max-time 30 "$address/health" > reply
  grep -qx 'Healthy' reply || { cat reply output; fail "the web app on $framework is not healthy"; }
  curl -sSL --max-time 30 "$address/pools" > reply
  grep -q '<h1>Channel pools</h1>' reply || { cat reply output; fail "the web app on $framework has no page"; }
  mkdir mistaken
  sed 's/"MaxPoolSize": 20/"MaxPoolSize": 0/' appsettings.json > mistaken/appsettings.json
  if ASPNETCORE_URLS=http://127.0.0.1:0 timeout 60 ./out/App --contentRoot "$PWD/mistaken" > mistake 2>&1; then fail "a web app with a mistake in its configuration started"; fi
  grep -q 'GrpcPools:users:Pool:MinPoolSize (2) is larger than MaxPoolSize (0)\|GrpcPools:users:Pool:MaxPoolSize is 0' mistake || { cat mistake; fail "the mistake is not named"; }
done
echo "The packages $core, $injection and $page are as they should be."
