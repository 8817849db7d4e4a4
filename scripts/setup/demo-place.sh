#!/bin/bash
# demo-place.sh
#
# Whether `make demo` can run here: in this machine's own kernel (root, and the
# NBD driver is loaded), or in a guest, whose network is a tap device. Says in
# one sentence why not, before anything is installed or built. Prints nothing
# and ends with 0 when it can.
set -eu
if [ "$(id -u)" = 0 ] && [ -e /dev/nbd0 ] && [ -e /sys/block/nbd0 ]; then exit 0; fi
[ ! -w /dev/net/tun ] || exit 0
if [ "$(id -u)" = 0 ]; then
  echo 'demo: needs /dev/net/tun or /dev/nbd0, and this machine has neither; load a driver: modprobe tun, or modprobe nbd' >&2
else
  echo 'demo: needs /dev/net/tun, which is missing or may not be written by you; run it as root: sudo make demo' >&2
fi
exit 1
