/**
 * The data of those options that have structure: INFO and GO, and the two
 * META_CONTEXT options. Encoders for the client, parsers for the server. Knows
 * nothing of states or exports.
 *
 *     INFO, GO             4 name length, name, 2 count, count times: 2 info type
 *     LIST/SET_META_...    4 name length, name, 4 count, count times: 4 length, query
 */
import { MAX_STRING_BYTES, NBD_REP_ERR_INVALID, NBD_REP_ERR_TOO_BIG } from './constants.js';
import { ByteWriter, Cursor, decodeString, encodeText, quoted } from './bytes.js';

/** Why option data was not accepted: an NBD_REP_ERR_... and a sentence. */
export interface OptionError {
  readonly error: number;
  readonly message: string;
}

export interface InfoRequest {
  readonly name: string;
  /** NBD_INFO_... that the client asks for; may contain types that are not known. */
  readonly infos: ReadonlySet<number>;
}

export interface ContextRequest {
  readonly name: string;
  readonly queries: readonly string[];
}

export function parseInfoRequest(data: Uint8Array): InfoRequest | OptionError {
  const cursor = new Cursor(data);
  const name = takeString(cursor, 'export name');
  if (typeof name !== 'string') return name;
  const count = cursor.u16();
  const infos = new Set<number>();
  for (let i = 0; i < count && cursor.ok; i++) infos.add(cursor.u16());
  return ended(cursor) ?? { name, infos };
}

export function parseContextRequest(data: Uint8Array): ContextRequest | OptionError {
  const cursor = new Cursor(data);
  const name = takeString(cursor, 'export name');
  if (typeof name !== 'string') return name;
  const count = cursor.u32();
  const queries: string[] = [];
  for (let i = 0; i < count && cursor.ok; i++) {
    const query = takeString(cursor, 'query');
    if (typeof query !== 'string') return query;
    if (!cursor.ok) break;
    if (!/^[^:]+:/.test(query)) return { error: NBD_REP_ERR_INVALID, message: `the query ${quoted(query)} does not begin with a namespace and a colon` };
    queries.push(query);
  }
  return ended(cursor) ?? { name, queries };
}

/** A length and a string. When the bytes are not there, `cursor.ok` turns false. */
function takeString(cursor: Cursor, what: string): string | OptionError {
  const length = cursor.u32();
  if (length > MAX_STRING_BYTES) return { error: NBD_REP_ERR_TOO_BIG, message: `the ${what} has ${length} bytes, more than ${MAX_STRING_BYTES}` };
  const text = decodeString(cursor.raw(length));
  if (text === undefined) return { error: NBD_REP_ERR_INVALID, message: `the ${what} is not UTF-8 without NUL` };
  return text;
}

function ended(cursor: Cursor): OptionError | undefined {
  if (!cursor.ok) return { error: NBD_REP_ERR_INVALID, message: 'the option data ends before its last field' };
  if (cursor.remaining > 0) return { error: NBD_REP_ERR_INVALID, message: `the option data has ${cursor.remaining} bytes after its last field` };
  return undefined;
}

export function encodeInfoRequest(name: string, infos: readonly number[]): Uint8Array {
  const text = encodeText(name);
  const out = new ByteWriter().u32(text.length).raw(text).u16(infos.length);
  for (const info of infos) out.u16(info);
  return out.take();
}

export function encodeContextRequest(name: string, queries: readonly string[]): Uint8Array {
  const text = encodeText(name);
  const out = new ByteWriter().u32(text.length).raw(text).u32(queries.length);
  for (const query of queries) {
    const bytes = encodeText(query);
    out.u32(bytes.length).raw(bytes);
  }
  return out.take();
}
