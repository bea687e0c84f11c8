# Three packages as tarballs, a project that has them locked, and modules of an older
# install, which `npm ci` takes away first.
cat >"$HOME/.npmrc" <<'CONFIG'
offline=true
audit=false
fund=false
update-notifier=false
logs-max=0
cache=/mnt/cache
CONFIG
pack() {
  mkdir -p "packages/$1/lib"
  cat >"packages/$1/package.json"
  for n in $(seq 30); do echo "exports.n = $n" >"packages/$1/lib/$n.js"; done
  printf '#!/usr/bin/env node\nconsole.log("%s says", process.argv.slice(2).join(" "))\n' "$1" \
    >"packages/$1/command.js"
  echo "require('fs').writeFileSync('made-by-install', '$1\\n')" >"packages/$1/install.js"
  npm pack --silent --pack-destination . "./packages/$1"
}
pack leaf <<'JSON'
{ "name": "leaf", "version": "1.0.0", "main": "lib/1.js" }
JSON
pack tool <<'JSON'
{ "name": "tool", "version": "1.0.0", "bin": { "tool": "command.js" },
  "scripts": { "install": "node install.js" }, "dependencies": { "leaf": "1.0.0" } }
JSON
pack tool <<'JSON'
{ "name": "tool", "version": "2.0.0", "bin": { "tool": "command.js", "other": "command.js" } }
JSON
mkdir app
cat >app/package.json <<'JSON'
{ "name": "app", "version": "1.0.0", "private": true,
  "dependencies": { "tool": "file:../tool-1.0.0.tgz", "leaf": "file:../leaf-1.0.0.tgz" } }
JSON
cd app
npm install
find node_modules -name 'made-by-*'
mkdir -p node_modules/stale/deep
echo old >node_modules/stale/deep/old.js
echo edited >node_modules/leaf/lib/1.js
