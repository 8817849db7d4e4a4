/**
 * The demo's story. Runs inside of test/kernel/guest, or directly where the
 * kernel has NBD: `steps.js DIRECTORY`. The directory is the caller's.
 */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { CLI, preparePair, waitCaughtUp, type Pair, type TestNode } from '../../test/harness/node.js';
import { freePort, waitFor } from '../../test/harness/process.js';
import { deviceSha256, differingBytes } from './devices.js';
import { announce, check, command, fact, failed, finish, mebibytes } from './progress.js';
import { hostHasNbd, openGuest, openHost, type Shell } from './shell.js';
import { chooseTree } from './tree.js';

const MIN_CHANGED_BYTES = 256 * 2 ** 20;
/** A little more than has to change. */
const OVERWRITE_BYTES = 260 * 2 ** 20;
const WIRE_LIMIT_BYTES = 4096;
const CHECKSUMS = 'find . -type f -print0 | sort -z | xargs -0 sha256sum | sha256sum | cut -d" " -f1';

/** NBD servers as the shell's kernel reaches them. */
interface Addresses {
  readonly primary: string;
  readonly secondary: string;
}

interface Stage {
  readonly pair: Pair;
  readonly shell: Shell;
  readonly addresses: Addresses;
}

async function attach(stage: Stage, device: string, name: string, node: TestNode): Promise<void> {
  const server = node === stage.pair.primary ? stage.addresses.primary : stage.addresses.secondary;
  command(`lockstep attach ${name} ${device} --server ${server}`);
  await stage.shell.succeed(`${process.execPath} ${CLI} attach ${name} ${device} --server ${server}`);
  await waitFor(`${device} is attached`, async () => Number(await stage.shell.succeed(`cat /sys/block/${device.slice(5)}/size`)) > 0);
}

async function detach(stage: Stage, device: string): Promise<void> {
  await stage.shell.succeed(`${process.execPath} ${CLI} detach ${device}`);
  await waitFor(`${device} is detached`, async () => Number(await stage.shell.succeed(`cat /sys/block/${device.slice(5)}/size`)) === 0);
}

/** Attaches, mounts at `mountRoot`/NAME, does `work` there, unmounts, detaches. */
async function whileMounted<T>(
  stage: Stage, what: { device: string; name: string; node: TestNode; options?: string; at: string }, work: (path: string) => Promise<T>,
): Promise<T> {
  const path = join(stage.shell.mountRoot, what.at);
  await attach(stage, what.device, what.name, what.node);
  await stage.shell.succeed(`mkdir -p ${path} && mount ${what.options === undefined ? '' : `-o ${what.options} `}${what.device} ${path}`);
  try {
    return await work(path);
  } finally {
    await stage.shell.succeed(`umount ${path}`);
    await detach(stage, what.device);
  }
}

/** Overwrites the largest files in place, then deletes the smallest hundred. */
function damageCommand(path: string): string {
  return `set -e -o pipefail; cd ${path}; find . -type f -size +0 -printf '%s %p\\n' | sort -rn >/tmp/by-size; ` +
    `awk -v want=${OVERWRITE_BYTES} 'sum < want { sum += $1; print }' /tmp/by-size | cut -d" " -f2- | tr '\\n' '\\0' | xargs -0 shred -n 1; ` +
    `tail -n 100 /tmp/by-size | cut -d" " -f2- | tr '\\n' '\\0' | xargs -0 rm -f; rm /tmp/by-size; sync -f .`;
}

function wireBytes(links: readonly { readonly wireBytes: number }[]): number {
  return links.reduce((sum, link) => sum + link.wireBytes, 0);
}

async function restoreAndCount(pair: Pair): Promise<number> {
  await waitCaughtUp(pair);
  const before = wireBytes((await pair.primary.group('g')).links);
  command('lockstep restore g/vol @before --wait=applied');
  const begun = performance.now();
  const reply = await pair.primary.command<{ lsn: number; dataThreadUs: number }>('restore', 'g/vol', '@before', '--wait=applied');
  const milliseconds = performance.now() - begun;
  const after = wireBytes((await pair.primary.group('g')).links);
  fact(`done on both nodes at LSN ${reply.lsn} after ${milliseconds.toFixed(0)} ms (with the start of the CLI), ${reply.dataThreadUs.toFixed(0)} us of them on the data thread`);
  return after - before;
}

async function compareNodes(pair: Pair, devices: readonly string[]): Promise<void> {
  await waitCaughtUp(pair);
  const [before, there] = [(await pair.primary.group('g')).lsn.appended, (await pair.secondary.group('g')).lsn.applied];
  check('both nodes are at the same LSN', before === there, `${before} and ${there}`);
  for (const device of devices) {
    const [here, other] = await Promise.all([deviceSha256(pair.primary.uri(device)), deviceSha256(pair.secondary.uri(device))]);
    check(`sha256 of ${device} is the same on both nodes`, here === other, here === other ? here.slice(0, 32) : `${here} and ${other}`);
  }
  const after = [(await pair.primary.group('g')).lsn.appended, (await pair.secondary.group('g')).lsn.applied];
  check('and neither has moved meanwhile', after[0] === before && after[1] === there);
}

async function story(stage: Stage): Promise<void> {
  const { pair, shell } = stage;
  const [device, second] = shell.devices;
  const tree = await chooseTree(OVERWRITE_BYTES + 8 * 2 ** 20);
  const sizeMebibytes = Math.max(1024, Math.ceil(tree.bytes * 1.4 / 2 ** 20 / 256) * 256);

  announce('A volume on the primary, and a real filesystem on it');
  command(`lockstep create g/vol ${sizeMebibytes}M`);
  await pair.primary.command('create', 'g/vol', `${sizeMebibytes}M`);
  await attach(stage, device, 'g/vol', pair.primary);
  command(`mkfs.ext4 ${device} && mount ${device}`);
  const path = join(shell.mountRoot, 'volume');
  await shell.succeed(`mkfs.ext4 -q -F ${device} && mkdir -p ${path} && mount ${device} ${path}`);

  announce(`Copies ${tree.directories.join(', ')} into it (${mebibytes(tree.bytes)})`);
  await shell.succeed(`mkdir ${path}/tree && cp -r ${tree.directories.join(' ')} ${path}/tree/ && sync -f ${path}`);
  const original = (await shell.succeed(`cd ${path} && ${CHECKSUMS}`)).trim();
  const files = (await shell.succeed(`cd ${path} && find . -type f | wc -l`)).trim();
  fact(`${files} files, checksum of them all ${original.slice(0, 32)}`);
  await shell.succeed(`umount ${path}`);
  await detach(stage, device);

  announce('A snapshot: one record in the journal, on both nodes at the same position');
  command('lockstep snapshot g/vol@before --wait=applied');
  const snapshot = await pair.primary.command<{ lsn: number }>('snapshot', 'g/vol@before', '--wait=applied');
  fact(`LSN ${snapshot.lsn}`);

  announce(`Damage: overwrites at least ${mebibytes(OVERWRITE_BYTES)} of the files and deletes a hundred more`);
  const damaged = await whileMounted(stage, { device, name: 'g/vol', node: pair.primary, at: 'volume' }, async (mounted) => {
    await shell.succeed(damageCommand(mounted));
    return (await shell.succeed(`cd ${mounted} && ${CHECKSUMS}`)).trim();
  });
  check('the files are damaged', damaged !== original, damaged.slice(0, 32));
  const changed = await differingBytes(pair.primary.uri('g/vol'), pair.primary.uri('g/vol@before'));
  check(`volume and snapshot differ in at least ${mebibytes(MIN_CHANGED_BYTES)}`, changed >= MIN_CHANGED_BYTES, mebibytes(changed));

  announce('Restore');
  const onTheWire = await restoreAndCount(pair);
  check(`the link carried less than ${WIRE_LIMIT_BYTES} bytes for it`, onTheWire < WIRE_LIMIT_BYTES, `${onTheWire} bytes on the wire, ${changed} bytes changed`);

  announce('The secondary: its snapshot and its volume, mounted read-only');
  for (const name of ['g/vol@before', 'g/vol']) {
    const found = await whileMounted(stage, { device: second, name, node: pair.secondary, options: 'ro,noload', at: 'secondary' }, async (mounted) =>
      (await shell.succeed(`cd ${mounted} && ${CHECKSUMS}`)).trim());
    check(`the files of ${name} on the secondary are the original ones`, found === original, found.slice(0, 32));
  }

  announce('Every device, byte by byte, on both nodes');
  await compareNodes(pair, ['g/vol', 'g/vol@before']);
}

async function main(directory: string): Promise<void> {
  const mountRoot = join(directory, 'mnt');
  mkdirSync(mountRoot);
  announce('Two nodes on one machine: alpha, the primary, and beta, the secondary');
  const shell = process.env.GUEST_AGENT_PORT !== undefined ? await openGuest() : hostHasNbd() ? openHost(mountRoot) : undefined;
  if (shell === undefined) throw new Error('no NBD driver here; run by `make demo`');
  const ports = [await freePort(), await freePort()];
  const addresses: Addresses = { primary: `tcp:${shell.addresses[0]}:${ports[0]}`, secondary: `tcp:${shell.addresses[1]}:${ports[1]}` };
  const pair = await preparePair(directory, { journalSize: '512M', segmentSize: '32M', nbdAddresses: [addresses.primary, addresses.secondary] });
  try {
    await pair.secondary.start();
    await pair.primary.start();
    fact(`processes ${pair.primary.pid} and ${pair.secondary.pid}; the filesystem's kernel is ${shell.place}`);
    await story({ pair, shell, addresses });
  } catch (error) {
    for (const node of [pair.primary, pair.secondary]) fact(`the last words of ${node.name}:\n${node.log.split('\n').slice(-12).join('\n')}`);
    throw error;
  } finally {
    await shell.close();
    await pair.primary.stop();
    await pair.secondary.stop();
  }
  finish();
}

// the children go when the process exits, so a signal must become an exit
for (const [signal, code] of [['SIGINT', 130], ['SIGTERM', 143], ['SIGHUP', 129]] as const) process.once(signal, () => process.exit(code));

try {
  await main(process.argv[2]);
  process.exitCode = failed() ? 1 : 0;
} catch (error) {
  console.error(error instanceof Error ? `demo: ${error.message}` : error);
  process.exitCode = 1;
}
process.exit();
