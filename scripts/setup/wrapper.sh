#!/bin/sh
# lockstep and lockstepd: starts the compiled program of the same name.
# Finds its own place through symbolic links, so a link in a bin directory works.
self=$(readlink -f "$0")
dist=${self%/bin/*}
case ${0##*/} in
  lockstepd*) exec "${LOCKSTEP_NODE:-node}" "$dist/src/main.js" "$@" ;;
  *) exec "${LOCKSTEP_NODE:-node}" "$dist/src/cli/main.js" "$@" ;;
esac
