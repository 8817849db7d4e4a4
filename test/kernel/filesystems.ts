/** How to make and check the filesystems of the kernel tests. */

export type Filesystem = 'ext4' | 'xfs' | 'btrfs';

export function mkfsCommand(filesystem: Filesystem, device: string): string {
  switch (filesystem) {
    case 'ext4': return `mkfs.ext4 -q -F ${device}`;
    case 'xfs': return `mkfs.xfs -q -f ${device}`;
    case 'btrfs': return `mkfs.btrfs -q -f ${device}`;
  }
}

/** Reads only; exit status 0 means that nothing is wrong. */
export function fsckCommand(filesystem: Filesystem, device: string): string {
  switch (filesystem) {
    case 'ext4': return `e2fsck -fn ${device}`;
    case 'xfs': return `xfs_repair -n ${device}`;
    case 'btrfs': return `btrfs check --readonly ${device}`;
  }
}
