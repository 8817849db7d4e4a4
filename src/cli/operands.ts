/**
 * What commands on devices take as arguments and options: devices, sets,
 * ranges, and how long to wait. Throws OperatorError `usage`.
 */

import type { Command } from 'commander';
import { OperatorError } from '../base/errors.js';
import { isName, parseDeviceName, parseSetName } from '../base/names.js';
import { parseSize } from '../base/units.js';
import type { Waits } from '../control/client.js';
import { deviceArgument, wholeNumber } from './context.js';

export interface WaitOptions {
  readonly wait: string;
  readonly waitTimeout: string;
  readonly halt?: boolean;
}

export interface ForceOption {
  readonly force?: boolean;
}

export function waitOptions(command: Command): Command {
  return command
    .option('--wait <what>', 'answer when the marker is "durable" here, or "applied" on every secondary', 'durable')
    .option('--wait-timeout <seconds>', 'how long to wait for "applied"; the operation stays done. With --halt: how long writers may be held', '60')
    .option('--halt', 'hold the writers, let every secondary come to the same point, and go on only when all have executed it');
}

export function waits(options: WaitOptions): Waits {
  if (options.wait !== 'durable' && options.wait !== 'applied') throw new OperatorError('usage', `--wait must be "durable" or "applied", not ${JSON.stringify(options.wait)}`);
  const asked: Waits = { wait: options.wait, waitSeconds: wholeNumber(options.waitTimeout, '--wait-timeout', 1, 86_400) };
  return options.halt === true ? { ...asked, wait: 'applied', halt: true } : asked;
}

/** `GROUP/DEVICE`, or `GROUP/@SET`: what one group snapshot made. */
export function deviceOrSetArgument(words: string): { group: string; device: string; set: string | undefined } {
  const slash = words.indexOf('/');
  const set = slash < 0 ? undefined : parseSetName(words.slice(slash + 1));
  if (set !== undefined && isName(words.slice(0, slash))) return { group: words.slice(0, slash), device: `@${set}`, set };
  return { ...deviceArgument(words), set: undefined };
}

/** A second device in the group of the first: `GROUP/DEVICE`, `DEVICE`, or `@SNAPSHOT` of the same volume. */
export function siblingArgument(first: { group: string; device: string }, words: string): string {
  const volume = parseDeviceName(first.device)?.volume ?? '';
  const other = deviceArgument(/^[@~]/.test(words) ? `${first.group}/${volume}${words}` : words.includes('/') ? words : `${first.group}/${words}`);
  if (other.group !== first.group) throw new OperatorError('usage', `both devices must be in one group: ${first.group}/${first.device} is in ${first.group}, ${words} in ${other.group}`);
  return other.device;
}

export function sizeArgument(words: string): number {
  const size = parseSize(words);
  if (size === undefined) throw new OperatorError('usage', `${JSON.stringify(words)} is not a size; write for example 10G or 512M`);
  return size;
}

export function rangeOption(command: Command): Command {
  return command.option('--range <offset:length>', 'only this part, such as 1G:256M, in multiples of 4096 bytes; may be given several times', (words: string, before: string[]) => [...before, words], []);
}

/** Pairs (offset, length) in bytes, ascending whatever order they came in. */
export function rangesOf(words: readonly string[]): [number, number][] {
  return words.map((one): [number, number] => {
    const parts = one.split(':');
    const [offset, length] = parts.map((part) => (part === '0' ? 0 : parseSize(part)));
    if (parts.length !== 2 || offset === undefined || length === undefined) throw new OperatorError('usage', `--range ${JSON.stringify(one)} is not OFFSET:LENGTH; write for example 1G:256M`);
    return [offset, length];
  }).sort((a, b) => a[0] - b[0]);
}
