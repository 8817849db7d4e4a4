/**
 * Names that people give: nodes, groups, volumes, snapshots, and how they are
 * put together. Owns the one spelling rule; must not know what exists.
 *
 *   device name     volume | volume@snapshot            within a group
 *                   volume~name                         a local snapshot: on one node only
 *   set name        @snapshot                           within a group: what one group snapshot made
 *   export name     group/device                        NBD, command line
 */

/** What a single name looks like. It has no '/', no '@', and does not start with a punctuation mark. */
export const NAME_PATTERN = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/;
/** The rule of NAME_PATTERN in a person's words. */
export const NAME_RULE = '1 to 64 letters, digits, ".", "_" or "-", beginning with a letter or digit';

export interface DeviceName {
  readonly volume: string;
  readonly snapshot: string | undefined;
  /** Of a local snapshot. */
  readonly local: string | undefined;
}

export interface ExportName {
  readonly group: string;
  /** A device's name; undefined when only a group was named. */
  readonly device: string | undefined;
}

/** Whether it keeps NAME_RULE. */
export function isName(words: string): boolean {
  return NAME_PATTERN.test(words);
}

/** Splits `volume`, `volume@snapshot` or `volume~local`; undefined when a part breaks the rule. */
export function parseDeviceName(words: string): DeviceName | undefined {
  const at = words.search(/[@~]/);
  const volume = at < 0 ? words : words.slice(0, at);
  const name = at < 0 ? undefined : words.slice(at + 1);
  if (!isName(volume) || (name !== undefined && !isName(name))) return undefined;
  return { volume, snapshot: words[at] === '@' ? name : undefined, local: words[at] === '~' ? name : undefined };
}

/** Whether a device's name is that of a local snapshot. */
export function isLocalName(words: string): boolean {
  return parseDeviceName(words)?.local !== undefined;
}

/** The name in `@NAME`, which means a group snapshot; undefined for anything else. */
export function parseSetName(words: string): string | undefined {
  return words.startsWith('@') && isName(words.slice(1)) ? words.slice(1) : undefined;
}

/** Splits `group` or `group/device`; undefined when a part breaks the rule. */
export function parseExportName(words: string): ExportName | undefined {
  const slash = words.indexOf('/');
  const group = slash < 0 ? words : words.slice(0, slash);
  const device = slash < 0 ? undefined : words.slice(slash + 1);
  if (!isName(group) || (device !== undefined && parseDeviceName(device) === undefined)) return undefined;
  return { group, device };
}
