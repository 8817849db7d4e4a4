#!/bin/bash
# own-filesystem.sh SIZE COMMAND...: runs COMMAND with LOCKSTEP_TMPDIR on an ext4
# of its own, in a sparse file of SIZE. As root. The mount is in a mount namespace
# of its own and the file has no name any more, so nothing is left behind, however
# COMMAND ends.
#
# For a file system that is mounted with `discard` and has no journal: there each
# extent of a file that is deleted costs a discard of its own, so that deleting
# what random writes over a terabyte left takes longer than writing it.
set -euo pipefail
if [ "${1:-}" != --inside ]; then
  [ $# -ge 2 ] || { echo "usage: $0 SIZE COMMAND..." >&2; exit 2; }
  place=$(mktemp -d "${LOCKSTEP_TMPDIR:-${TMPDIR:-/tmp}}/lockstep-fs-XXXXXX")
  trap 'rm -f "$place/image"; rmdir "$place/root" "$place"' EXIT
  mkdir "$place/root"
  unshare --mount --propagation private "$0" --inside "$place" "$@"
  exit $?
fi
place=$2 size=$3
shift 3
truncate -s "$size" "$place/image"
mkfs.ext4 -q -F -m 0 -E nodiscard "$place/image"
mount -o loop,nodiscard "$place/image" "$place/root"
rm "$place/image"
LOCKSTEP_TMPDIR=$place/root exec "$@"
