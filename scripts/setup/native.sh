#!/bin/bash
# Builds the N-API addon by the means that native/ brings along, quietly.
set -eu
cd "$(dirname "$0")/../.."
if [ -e native/Makefile ]; then exec make -s -C native; fi
if [ -e native/build.sh ]; then exec bash native/build.sh; fi
echo 'native.sh: native/ has neither a Makefile nor build.sh' >&2
exit 1
