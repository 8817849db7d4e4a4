/**
 * Freezing a mounted file system: the kernel writes back all that it holds of
 * it, brings the file system on the device into a state that needs no repair,
 * and lets writers wait until it is thawed (ioctl_fsfreeze in fs/ioctl.c,
 * freeze_super in fs/super.c).
 *
 * Owns: the calls and their errno. Must not know: who freezes what and for how
 * long; who freezes must see to it that somebody thaws (cli/freeze/watchdog.ts).
 *
 * The calls block for as long as the kernel does. All return 0 or −errno.
 */
import { loadNative } from './native.js';

/**
 * _IOWR('X', 119 and 120, int) of linux/fs.h, with the encoding of asm-generic/ioctl.h: x86, Arm, RISC-V, s390.
 * (MIPS, PowerPC and SPARC encode directions in another way; Lockstep is not built for them.)
 */
const FIFREEZE = 0xc0045877;
const FITHAW = 0xc0045878;

/** −EBUSY: frozen already. −EOPNOTSUPP: this kind of file system cannot be frozen. −EPERM: needs CAP_SYS_ADMIN. `fd` is any file or directory on it. */
export function freezeFileSystem(fd: number): number {
  return loadNative().ioctl(fd, FIFREEZE, 0);
}

/** −EINVAL: it is not frozen. */
export function thawFileSystem(fd: number): number {
  return loadNative().ioctl(fd, FITHAW, 0);
}

/** Writes back what the kernel holds of the file system, so that a freeze after it is short. Writers go on meanwhile. */
export function syncFileSystem(fd: number): number {
  return loadNative().syncfs(fd);
}
