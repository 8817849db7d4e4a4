/**
 * What requests of the admin API are put together from: names, sizes, places,
 * how long to wait. Part of the one source of its types (DESIGN §9, §10).
 *
 * All sizes, offsets and LSNs are bytes; times of day are milliseconds since
 * 1970; names end in their unit.
 */

import { z } from 'zod';
import { NAME_PATTERN, NAME_RULE, parseDeviceName, parseSetName } from '../../base/names.js';
import { BLOCK_BYTES, MAX_DEVICE_BYTES, MAX_RANGES, formatSize, parseSize } from '../../base/units.js';

export const Name = z.string(`must be ${NAME_RULE}`).regex(NAME_PATTERN, `must be ${NAME_RULE}`);

/** A device within a group. */
export const Device = z
  .string('must be VOLUME, VOLUME@SNAPSHOT or VOLUME~LOCAL')
  .refine((words) => parseDeviceName(words) !== undefined, `must be VOLUME, VOLUME@SNAPSHOT or VOLUME~LOCAL, each ${NAME_RULE}`);

/** A device within a group, or a group snapshot. */
export const DeviceOrSet = z
  .string('must be VOLUME, VOLUME@SNAPSHOT or @SET')
  .refine((words) => parseDeviceName(words) !== undefined || parseSetName(words) !== undefined, `must be VOLUME, VOLUME@SNAPSHOT or @SET, each ${NAME_RULE}`);

const rangeNumber = (what: string) => {
  const rule = `must be ${what} in bytes, a multiple of ${BLOCK_BYTES} from 0 to ${MAX_DEVICE_BYTES}`;
  return z.number(rule).int(rule).nonnegative(rule).max(MAX_DEVICE_BYTES, rule).multipleOf(BLOCK_BYTES, rule);
};
/** What is looked at of a request; how many of them an operation takes is judged with the rest of it. */
const RANGES_READ = 1024;
/** Parts of a device, ascending and apart; none = all of it. */
export const Ranges = z.array(z.tuple([rangeNumber('an offset'), rangeNumber('a length')], 'must be [offset, length] in bytes'), 'must be a list of [offset, length] in bytes').max(RANGES_READ, `must be at most ${MAX_RANGES} at a time (do it in parts)`).default([]);

const lsnRule = `must be an LSN, a whole number from 0 to ${Number.MAX_SAFE_INTEGER}`;
export const LsnNumber = z.number(lsnRule).int(lsnRule).nonnegative(lsnRule).max(Number.MAX_SAFE_INTEGER, lsnRule);

/** An LSN in a query, hence words; nothing is no LSN. */
export const LsnWord = z.string(lsnRule).regex(/^\d{1,16}$/, lsnRule).transform(Number).refine(Number.isSafeInteger, lsnRule);

/** On or off. */
export const Flag = z.boolean('must be true or false');

/** The same in a query. */
export const FlagWord = z.stringbool('must be "true" or "false"');

const MAX_WAIT_SECONDS = 86_400;
const secondsRule = `must be seconds, more than 0 and at most ${MAX_WAIT_SECONDS}`;
const seconds = z.number(secondsRule).positive(secondsRule).max(MAX_WAIT_SECONDS, secondsRule);

/** Longest time that something is waited for. */
export const WaitSeconds = seconds.default(60);

/** The same in a query. */
export const WaitSecondsWord = z.string(secondsRule).regex(/^\d+(\.\d+)?$/, secondsRule).transform(Number).pipe(seconds).default(60);

const sizeRule = `must be a size such as "10G" or 10737418240, a multiple of ${BLOCK_BYTES}, from ${BLOCK_BYTES} to ${formatSize(MAX_DEVICE_BYTES)}`;

/** Size of a device: bytes, or words such as "10G". Becomes bytes. */
export const DeviceSize = z
  .union([z.number(), z.string()], sizeRule)
  .transform((value, context) => {
    const bytes = typeof value === 'number' ? value : parseSize(value);
    if (bytes !== undefined && Number.isSafeInteger(bytes) && bytes % BLOCK_BYTES === 0 && bytes >= BLOCK_BYTES && bytes <= MAX_DEVICE_BYTES) return bytes;
    context.addIssue({ code: 'custom', message: sizeRule });
    return z.NEVER;
  });

/**
 * How far an operation must have come before it is answered: its marker
 * `durable` in this node's journal, or `applied` by every secondary too.
 */
export const Wait = z.enum(['durable', 'applied'], 'must be "durable" or "applied"');
export type Wait = z.infer<typeof Wait>;
