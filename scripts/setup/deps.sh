#!/bin/bash
# deps.sh npm|test|demo|kernel|bench
#
# Installs what a target of the Makefile needs and the machine lacks: Debian
# packages as root, npm packages for anybody. Prints nothing when nothing is
# missing. Not root: prints the one command to run, and fails.
set -eu
cd "$(dirname "$0")/../.."

# what npm builds from source: node-gyp needs a Python
packages_npm='python3 make g++'
packages_test='python3 libnbd-bin python3-libnbd qemu-utils fio'
packages_kernel='procps user-mode-linux iproute2 kmod nbd-client nbdkit libnbd-bin fio e2fsprogs xfsprogs btrfs-progs'
packages_demo='user-mode-linux iproute2 kmod e2fsprogs libnbd-bin'
packages_bench='nbdkit nbd-server qemu-utils libnbd-bin fio'

# Which of the named packages are not installed.
missing() {
  local p
  for p in "$@"; do
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || echo "$p"
  done
}

debian() {
  local lacking
  command -v dpkg-query >/dev/null || { echo "deps: not a Debian system; needed: $*" >&2; return 0; }
  lacking=$(missing "$@" | tr '\n' ' ')
  [ -n "${lacking// /}" ] || return 0
  if [ "$(id -u)" != 0 ]; then
    printf 'deps: some Debian packages are missing. Run this and try again:\n  sudo apt-get install -y --no-install-recommends %s\n' "$lacking" >&2
    exit 1
  fi
  echo "installing Debian packages: $lacking"
  export DEBIAN_FRONTEND=noninteractive
  quietly apt-get update
  # shellcheck disable=SC2086
  quietly apt-get install -y --no-install-recommends $lacking
}

# Runs a command; its output is shown only when it fails.
quietly() {
  local log
  log=$(mktemp)
  if ! "$@" >"$log" 2>&1 </dev/null; then
    cat "$log" >&2
    rm -f "$log"
    echo "deps: failed: $*" >&2
    exit 1
  fi
  rm -f "$log"
}

npm_packages() {
  local major stamp=node_modules/.lockstep-package-lock.json
  command -v node >/dev/null && command -v npm >/dev/null ||
    { echo 'deps: Node.js 20 or newer and npm are needed (https://nodejs.org)' >&2; exit 1; }
  major=$(node -p 'process.versions.node.split(".")[0]')
  [ "$major" -ge 20 ] || { echo "deps: Node.js 20 or newer is needed, this is $(node -v)" >&2; exit 1; }
  if [ -e node_modules/.package-lock.json ]; then
    cmp -s package-lock.json "$stamp" && return 0
    # installed by hand and not older than the lock file: take it as it is
    if [ ! -e "$stamp" ] && [ ! package-lock.json -nt node_modules/.package-lock.json ]; then
      cp package-lock.json "$stamp"
      return 0
    fi
  fi
  # shellcheck disable=SC2086
  debian $packages_npm
  # node-gyp would download the headers; use the ones beside this node where they exist
  local prefix
  prefix=$(node -p 'require("path").dirname(require("path").dirname(process.execPath))')
  if [ -e "$prefix/include/node/node_api.h" ]; then export npm_config_nodedir=$prefix; fi
  echo 'installing npm packages'
  quietly npm ci --no-fund --no-audit
  cp package-lock.json "$stamp"
}

case ${1-} in
  npm) npm_packages ;;
  # shellcheck disable=SC2086
  test) debian $packages_test ;;
  # shellcheck disable=SC2086
  demo) if [ "$(id -u)" = 0 ] && [ -e /dev/nbd0 ] && [ -e /sys/block/nbd0 ]; then debian kmod e2fsprogs libnbd-bin; else debian $packages_demo; fi ;;
  # shellcheck disable=SC2086
  kernel) debian $packages_kernel ;;
  # shellcheck disable=SC2086
  bench) debian $packages_bench ;;
  *) echo 'usage: deps.sh npm|test|demo|kernel|bench' >&2; exit 2 ;;
esac
