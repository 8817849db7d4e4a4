#!/bin/sh
# Prints the directory that holds node_api.h of the node that will load the addon.
# Asks node itself first, then what the operator configured, then the usual places.
set -u
try() {
  if [ -f "$1/node_api.h" ]; then
    printf '%s\n' "$1"
    exit 0
  fi
}

node=$(node -p process.execPath 2>/dev/null) || {
  echo 'native: node was not found in PATH' >&2
  exit 1
}
version=$(node -p process.versions.node)

try "$(dirname "$(dirname "$node")")/include/node"
nodedir=${npm_config_nodedir:-$(npm config get nodedir 2>/dev/null)}
case "$nodedir" in
  '' | undefined | null) ;;
  *) try "$nodedir/include/node" ;;
esac
try /usr/include/node
try /usr/include/nodejs/src
try "${XDG_CACHE_HOME:-$HOME/.cache}/node-gyp/$version/include/node"

cat >&2 <<END
native: node_api.h of node $version was not found. Do one of:
  Debian, Ubuntu:  apt-get install libnode-dev
  Fedora:          dnf install nodejs-devel
  any:             npx node-gyp install
  or point to an unpacked node distribution:  npm config set nodedir /path/to/node
END
exit 1
