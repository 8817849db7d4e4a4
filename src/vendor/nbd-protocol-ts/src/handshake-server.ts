/**
 * The server's side of the handshake, without I/O: bytes in, bytes out, and an
 * outcome. What each option does in each state stands in handshake-table.ts. A
 * peer can neither make it throw nor make it hold more than the limits of
 * constants.ts; whatever it sends is answered by an error reply or by an outcome
 * 'closed' that says why.
 *
 *     start ── greeting out, 4 bytes of client flags in ──▶ plain | simple
 *     plain, simple, structured ── options (table) ──▶ transmission | closed
 */
import {
  CLIENT_FLAGS_BYTES, EXPORT_NAME_ZEROES_BYTES, MAX_OPTION_BYTES, MAX_OPTIONS, MAX_PENDING_OUTPUT_BYTES, MAX_SKIPPED_OPTION_BYTES,
  MAX_STRING_BYTES, NBD_FLAG_C_FIXED_NEWSTYLE, NBD_FLAG_C_NO_ZEROES, NBD_FLAG_FIXED_NEWSTYLE, NBD_FLAG_NO_ZEROES, NBD_INFO_BLOCK_SIZE,
  NBD_INFO_DESCRIPTION, NBD_INFO_EXPORT, NBD_INFO_NAME, NBD_MAGIC_HI, NBD_MAGIC_LO, NBD_OPTS_MAGIC_HI, NBD_OPTS_MAGIC_LO, NBD_REP_ACK,
  NBD_REP_ERR_BLOCK_SIZE_REQD, NBD_REP_ERR_INVALID, NBD_REP_ERR_SHUTDOWN, NBD_REP_ERR_TOO_BIG, NBD_REP_ERR_UNKNOWN, NBD_REP_ERR_UNSUP,
  NBD_REP_INFO, NBD_REP_MAGIC_HI, NBD_REP_MAGIC_LO, NBD_REP_META_CONTEXT, NBD_REP_SERVER, OPTION_HEADER_BYTES,
} from './constants.js';
import { ByteWriter, Collector, decodeString, encodeClipped, encodeText, quoted, viewOf } from './bytes.js';
import { advertisedFlags } from './exports.js';
import type { ExportDirectory, ExportInfo, ExportRefusal, MetaContext } from './exports.js';
import { optionName, SERVER_TABLE } from './handshake-table.js';
import type { Action, HagglingState } from './handshake-table.js';
import { parseContextRequest, parseInfoRequest } from './option-data.js';

/** Why a server handshake ended without transmission. */
export type ServerCloseCode =
  /** The client sent ABORT: the regular end of a client that only asked questions. */
  | 'abort'
  /** The client set a flag that was not offered. */
  | 'clientFlags'
  /** What should be an option does not begin with its magic. */
  | 'optionMagic'
  /** An option announces more data than the server would skip. */
  | 'optionTooLong'
  /** More options than MAX_OPTIONS. */
  | 'optionFlood'
  /** A client that understands no option replies sent something other than EXPORT_NAME. */
  | 'plainNewstyle'
  /** EXPORT_NAME with a name that is not a string of the protocol. */
  | 'exportName'
  /** EXPORT_NAME for an export that is not there or not given out. */
  | 'exportRefused'
  /** EXPORT_NAME for an export whose minimum block size such a client cannot know. */
  | 'blockSize'
  /** EXPORT_NAME while the server is being shut down. */
  | 'shutdown';

export interface ServerTransmission {
  readonly kind: 'transmission';
  readonly export: ExportInfo;
  /** The name as the client gave it; `export.name` is the canonical one. */
  readonly requestedName: string;
  /** NBD_FLAG_... as sent to the client. */
  readonly transmissionFlags: number;
  readonly structuredReplies: boolean;
  /** The contexts the client selected for this export; empty: BLOCK_STATUS is EINVAL. */
  readonly contexts: readonly MetaContext[];
  /** The client asked for block sizes with GO, hence must keep to them. */
  readonly blockSizeAgreed: boolean;
  readonly fixedNewstyle: boolean;
  readonly noZeroes: boolean;
}

export type ServerOutcome =
  /** Send `takeOutput`, receive, `push`. */
  | { readonly kind: 'more' }
  /** Send `takeOutput`; the next byte received belongs to the transmission phase. */
  | ServerTransmission
  /** Send `takeOutput` and close the connection. `reason` is a sentence for the log. */
  | { readonly kind: 'closed'; readonly code: ServerCloseCode; readonly reason: string };

/** The smallest block that a client which was told no block sizes is expected to use ("Block size constraints"). */
const ASSUMED_MINIMUM_BLOCK = 512;

type Reading =
  | 'clientFlags'
  | 'optionHeader'
  /** Data of an option that will be parsed. */
  | 'optionData'
  /** Data of an option that is answered without looking at it. */
  | 'skip';

export class ServerHandshake {
  private state: HagglingState = 'plain';
  private reading: Reading = 'clientFlags';
  private result: ServerOutcome = { kind: 'more' };
  private noZeroes = false;
  private fixedNewstyle = false;
  private stopping = false;
  private optionCount = 0;
  private option = 0;
  private action: Action = 'refuseUnsupported';
  private optionLength = 0;
  private skipLeft = 0;
  /** Of the last SET_META_CONTEXT that succeeded: the name it was for, as the client wrote it. */
  private contextsFor = '';
  private contexts: MetaContext[] = [];
  private readonly input = new Collector();
  private readonly output = new ByteWriter();

  constructor(private readonly directory: ExportDirectory) {
    this.output.u32(NBD_MAGIC_HI).u32(NBD_MAGIC_LO).u32(NBD_OPTS_MAGIC_HI).u32(NBD_OPTS_MAGIC_LO);
    this.output.u16(NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    this.input.expect(CLIENT_FLAGS_BYTES);
  }

  get outcome(): ServerOutcome {
    return this.result;
  }

  /** Bytes to send, the greeting first; empty when there are none. The caller owns them. */
  takeOutput(): Uint8Array {
    return this.output.take();
  }

  /** From now on every option but ABORT is refused with ERR_SHUTDOWN. */
  shutdown(): void {
    this.stopping = true;
  }

  /**
   * Takes received bytes (borrowed) and returns how many of them it consumed. It consumes all while the outcome is
   * 'more', except when too much output is waiting: then take the output and push the rest once it is sent. After
   * 'transmission' the rest are requests.
   */
  push(bytes: Uint8Array, from = 0, to = bytes.length): number {
    let at = from;
    while (at < to && this.result.kind === 'more' && this.output.length < MAX_PENDING_OUTPUT_BYTES) {
      if (this.reading === 'skip') {
        const count = Math.min(this.skipLeft, to - at);
        at += count;
        this.skipLeft -= count;
        if (this.skipLeft === 0) this.perform(undefined);
        continue;
      }
      at += this.input.feed(bytes, at, to);
      if (!this.input.complete) break;
      switch (this.reading) {
        case 'clientFlags':
          this.clientFlags(viewOf(this.input.data()).getUint32(0));
          break;
        case 'optionHeader':
          this.optionHeader(viewOf(this.input.data()));
          break;
        case 'optionData':
          this.perform(this.input.data());
          break;
        default:
          this.reading satisfies never;
      }
    }
    return at - from;
  }

  private clientFlags(flags: number): void {
    if ((flags & ~(NBD_FLAG_C_FIXED_NEWSTYLE | NBD_FLAG_C_NO_ZEROES)) !== 0) {
      this.close('clientFlags', `the client set flags that were not offered (0x${flags.toString(16)})`);
      return;
    }
    this.fixedNewstyle = (flags & NBD_FLAG_C_FIXED_NEWSTYLE) !== 0;
    this.noZeroes = (flags & NBD_FLAG_C_NO_ZEROES) !== 0;
    this.state = this.fixedNewstyle ? 'simple' : 'plain';
    this.nextOption();
  }

  private nextOption(): void {
    this.reading = 'optionHeader';
    this.input.expect(OPTION_HEADER_BYTES);
  }

  private optionHeader(header: DataView): void {
    if (header.getUint32(0) !== NBD_OPTS_MAGIC_HI || header.getUint32(4) !== NBD_OPTS_MAGIC_LO) {
      this.close('optionMagic', 'the client sent something that is not an option (wrong magic)');
      return;
    }
    this.option = header.getUint32(8);
    this.optionLength = header.getUint32(12);
    this.action = SERVER_TABLE[this.stopping ? 'shutdown' : this.state][optionName(this.option)];
    if (++this.optionCount > MAX_OPTIONS) {
      this.close('optionFlood', `the client sent more than ${MAX_OPTIONS} options`);
    } else if (this.action === 'closePlain') {
      this.close('plainNewstyle', `the client did not negotiate fixed newstyle but sent option ${this.option}`);
    } else if (this.action === 'closeShutdown') {
      this.close('shutdown', 'the server is being shut down');
    } else if (this.optionLength > MAX_SKIPPED_OPTION_BYTES) {
      this.close('optionTooLong', `option ${this.option} announces ${this.optionLength} bytes of data`);
    } else if (this.action === 'exportName' && this.optionLength > MAX_STRING_BYTES) {
      this.close('exportName', `the client asked for an export name of ${this.optionLength} bytes, more than ${MAX_STRING_BYTES}`);
    } else if (this.optionLength === 0) {
      this.perform(new Uint8Array(0));
    } else if (parsesData(this.action) && this.optionLength <= MAX_OPTION_BYTES) {
      this.reading = 'optionData';
      this.input.expect(this.optionLength);
    } else {
      this.reading = 'skip';
      this.skipLeft = this.optionLength;
    }
  }

  /** Carries the option out. `data` is undefined when it was skipped. */
  private perform(data: Uint8Array | undefined): void {
    switch (this.action) {
      case 'exportName':
        // Its length was checked with the header: the data is here.
        this.exportName(data!);
        break;
      case 'abort':
        this.ack();
        this.close('abort', 'the client ended the negotiation');
        break;
      case 'list':
        this.list();
        break;
      case 'info':
      case 'go':
        this.describe(data, this.action === 'go');
        break;
      case 'structuredReply':
        if (this.refuseData()) break;
        this.state = 'structured';
        this.ack();
        break;
      case 'listMetaContext':
        this.listMetaContext(data);
        break;
      case 'setMetaContext':
        this.setMetaContext(data);
        break;
      case 'refuseOrder':
        this.refuse(NBD_REP_ERR_INVALID, 'negotiate structured replies first');
        break;
      case 'refuseUnsupported':
        this.refuse(NBD_REP_ERR_UNSUP, `option ${this.option} is not supported by this server`);
        break;
      case 'refuseShutdown':
        this.refuse(NBD_REP_ERR_SHUTDOWN, 'the server is being shut down');
        break;
      case 'closePlain':
      case 'closeShutdown':
        // Both ended with the header.
        break;
      default:
        this.action satisfies never;
    }
    if (this.result.kind === 'more') this.nextOption();
  }

  private exportName(data: Uint8Array): void {
    const name = decodeString(data);
    if (name === undefined) {
      this.close('exportName', 'the client asked for an export name that is not UTF-8 without NUL');
      return;
    }
    const found = this.directory.find(name);
    if (found === undefined) {
      this.close('exportRefused', `there is no export ${quoted(name)}`);
    } else if (isRefusal(found)) {
      this.close('exportRefused', found.message);
    } else if (found.minimumBlock > ASSUMED_MINIMUM_BLOCK) {
      this.close('blockSize', `the export ${quoted(name)} needs a client that asks for block sizes (minimum ${found.minimumBlock})`);
    } else {
      this.output.u64(found.sizeBytes).u16(advertisedFlags(found.transmissionFlags, this.state === 'structured'));
      if (!this.noZeroes) this.output.zeroes(EXPORT_NAME_ZEROES_BYTES);
      this.enterTransmission(name, found, false);
    }
  }

  private list(): void {
    if (this.refuseData()) return;
    for (const { name, description } of this.directory.list()) {
      const nameBytes = encodeText(name);
      const text = encodeClipped(description);
      this.reply(NBD_REP_SERVER, 4 + nameBytes.length + text.length);
      this.output.u32(nameBytes.length).raw(nameBytes).raw(text);
    }
    this.ack();
  }

  /** INFO and GO: the same replies, and after GO transmission begins. */
  private describe(data: Uint8Array | undefined, go: boolean): void {
    if (data === undefined) return this.refuseTooBig();
    const request = parseInfoRequest(data);
    if ('error' in request) return this.refuse(request.error, request.message);
    const found = this.find(request.name);
    if (found === undefined) return;
    const asked = request.infos.has(NBD_INFO_BLOCK_SIZE);
    const sizesNeeded = !asked && found.minimumBlock > ASSUMED_MINIMUM_BLOCK;
    if (asked || sizesNeeded) {
      this.reply(NBD_REP_INFO, 14);
      this.output.u16(NBD_INFO_BLOCK_SIZE).u32(found.minimumBlock).u32(found.preferredBlock).u32(found.maximumBlock);
    }
    if (sizesNeeded) {
      return this.refuse(NBD_REP_ERR_BLOCK_SIZE_REQD, `ask for block sizes: this export has a minimum of ${found.minimumBlock}`);
    }
    this.reply(NBD_REP_INFO, 12);
    this.output.u16(NBD_INFO_EXPORT).u64(found.sizeBytes).u16(advertisedFlags(found.transmissionFlags, this.state === 'structured'));
    if (request.infos.has(NBD_INFO_NAME)) this.infoText(NBD_INFO_NAME, encodeText(found.name));
    if (request.infos.has(NBD_INFO_DESCRIPTION)) this.infoText(NBD_INFO_DESCRIPTION, encodeClipped(found.description));
    this.ack();
    if (go) this.enterTransmission(request.name, found, asked);
  }

  private infoText(info: number, text: Uint8Array): void {
    this.reply(NBD_REP_INFO, 2 + text.length);
    this.output.u16(info).raw(text);
  }

  private listMetaContext(data: Uint8Array | undefined): void {
    if (data === undefined) return this.refuseTooBig();
    const request = parseContextRequest(data);
    if ('error' in request) return this.refuse(request.error, request.message);
    const found = this.find(request.name);
    if (found === undefined) return;
    const queries = new Set(request.queries);
    for (const name of found.metaContexts) {
      const wildcard = name.slice(0, name.indexOf(':') + 1);
      // The id is reserved in this reply.
      if (queries.size === 0 || queries.has(name) || queries.has(wildcard)) this.contextReply(0, name);
    }
    this.ack();
  }

  /** Replaces what was selected before, also when it fails. A bare namespace selects nothing. */
  private setMetaContext(data: Uint8Array | undefined): void {
    this.contexts = [];
    if (data === undefined) return this.refuseTooBig();
    const request = parseContextRequest(data);
    if ('error' in request) return this.refuse(request.error, request.message);
    const found = this.find(request.name);
    if (found === undefined) return;
    const queries = new Set(request.queries);
    found.metaContexts.forEach((name, index) => {
      if (!queries.has(name)) return;
      this.contexts.push({ id: index + 1, name });
      this.contextReply(index + 1, name);
    });
    this.contextsFor = request.name;
    this.ack();
  }

  private contextReply(id: number, name: string): void {
    const bytes = encodeText(name);
    this.reply(NBD_REP_META_CONTEXT, 4 + bytes.length);
    this.output.u32(id).raw(bytes);
  }

  private enterTransmission(name: string, found: ExportInfo, blockSizeAgreed: boolean): void {
    const structuredReplies = this.state === 'structured';
    this.result = {
      kind: 'transmission',
      export: found,
      requestedName: name,
      transmissionFlags: advertisedFlags(found.transmissionFlags, structuredReplies),
      structuredReplies,
      // Selected for another export, or no longer offered because the export changed in between: not selected.
      contexts: this.contextsFor === name ? this.contexts.filter((context) => found.metaContexts[context.id - 1] === context.name) : [],
      blockSizeAgreed,
      fixedNewstyle: this.fixedNewstyle,
      noZeroes: this.noZeroes,
    };
  }

  /** The export, or undefined after the error was sent. */
  private find(name: string): ExportInfo | undefined {
    const found = this.directory.find(name);
    if (found === undefined) {
      this.refuse(NBD_REP_ERR_UNKNOWN, `there is no export ${quoted(name)}`);
      return undefined;
    }
    if (isRefusal(found)) {
      this.refuse(found.refused, found.message);
      return undefined;
    }
    return found;
  }

  /** For options that have no data. */
  private refuseData(): boolean {
    if (this.optionLength === 0) return false;
    this.refuse(NBD_REP_ERR_INVALID, `option ${this.option} has no data, but ${this.optionLength} bytes were sent`);
    return true;
  }

  private refuseTooBig(): void {
    this.refuse(NBD_REP_ERR_TOO_BIG, `option ${this.option} has ${this.optionLength} bytes of data, more than ${MAX_OPTION_BYTES}`);
  }

  private refuse(error: number, message: string): void {
    const text = encodeClipped(message);
    this.reply(error, text.length);
    this.output.raw(text);
  }

  private ack(): void {
    this.reply(NBD_REP_ACK, 0);
  }

  private reply(type: number, length: number): void {
    this.output.u32(NBD_REP_MAGIC_HI).u32(NBD_REP_MAGIC_LO).u32(this.option).u32(type).u32(length);
  }

  private close(code: ServerCloseCode, reason: string): void {
    this.result = { kind: 'closed', code, reason };
  }
}

function isRefusal(found: ExportInfo | ExportRefusal): found is ExportRefusal {
  return 'refused' in found;
}

function parsesData(action: Action): boolean {
  switch (action) {
    case 'exportName':
    case 'info':
    case 'go':
    case 'listMetaContext':
    case 'setMetaContext':
      return true;
    default:
      return false;
  }
}
