/**
 * The client's side of the handshake, without I/O: bytes in, bytes out, and an
 * outcome. Speaks fixed newstyle, and plain newstyle with EXPORT_NAME as far as
 * that can say anything. A server can neither make it throw nor make it hold more
 * than the limits below.
 *
 *     greeting ──▶ structuredReply ──▶ setMetaContext ──▶ go ──▶ transmission
 *         │              (each only if asked for)          ├──▶ exportName ──▶ transmission    (server without GO)
 *         │                                                └──▶ info ──▶ described
 *         └──▶ list ──▶ listed,   structuredReply ──▶ listMetaContext ──▶ contexts
 */
import {
  EXPORT_NAME_REPLY_BYTES, EXPORT_NAME_ZEROES_BYTES, GREETING_BYTES, MAX_OPTION_BYTES, MAX_STRING_BYTES, NBD_FLAG_C_FIXED_NEWSTYLE,
  NBD_FLAG_FIXED_NEWSTYLE, NBD_FLAG_NO_ZEROES, NBD_INFO_BLOCK_SIZE, NBD_INFO_DESCRIPTION, NBD_INFO_EXPORT, NBD_INFO_NAME, NBD_MAGIC_HI,
  NBD_MAGIC_LO, NBD_OLDSTYLE_MAGIC_HI, NBD_OLDSTYLE_MAGIC_LO, NBD_OPT_ABORT, NBD_OPT_EXPORT_NAME, NBD_OPT_GO, NBD_OPT_INFO, NBD_OPT_LIST,
  NBD_OPT_LIST_META_CONTEXT, NBD_OPT_SET_META_CONTEXT, NBD_OPT_STRUCTURED_REPLY, NBD_OPTS_MAGIC_HI, NBD_OPTS_MAGIC_LO, NBD_REP_ACK,
  NBD_REP_ERR_SHUTDOWN, NBD_REP_ERR_UNSUP, NBD_REP_INFO, NBD_REP_MAGIC_HI, NBD_REP_MAGIC_LO, NBD_REP_META_CONTEXT, NBD_REP_SERVER, MAX_REQUEST_PAYLOAD,
  OPTION_REPLY_HEADER_BYTES,
} from './constants.js';
import { ByteWriter, Collector, Cursor, decodeString, encodeText, quoted, viewOf } from './bytes.js';
import { powerOfTwo } from './exports.js';
import type { MetaContext } from './exports.js';
import { encodeContextRequest, encodeInfoRequest } from './option-data.js';

/** What the handshake is for. */
export type ClientGoal =
  /** Enter transmission on the export `name`. Structured replies are asked for unless `structuredReplies` is false. */
  | { readonly kind: 'go'; readonly name: string; readonly structuredReplies?: boolean; readonly contexts?: readonly string[] }
  /** Learn the same as with 'go', and end the connection. */
  | { readonly kind: 'info'; readonly name: string; readonly structuredReplies?: boolean; readonly contexts?: readonly string[] }
  /** Learn the exports' names, and end the connection. */
  | { readonly kind: 'list' }
  /** Learn which contexts of the export match the queries (none: all), and end the connection. */
  | { readonly kind: 'listContexts'; readonly name: string; readonly queries?: readonly string[] };

/** An export as the server described it. Also serves as the facts of `validateRequest`. */
export interface NegotiatedExport {
  /** The name asked for. */
  readonly name: string;
  /** As the server sent them; undefined when it did not. */
  readonly canonicalName: string | undefined;
  readonly description: string | undefined;
  readonly sizeBytes: number;
  readonly transmissionFlags: number;
  /** False: the server sent no block sizes, and the three below are what a careful client assumes. */
  readonly blockSizesAdvertised: boolean;
  readonly minimumBlock: number;
  readonly preferredBlock: number;
  readonly maximumBlock: number;
  readonly structuredReplies: boolean;
  /** Selected, with the ids that BLOCK_STATUS replies use on this connection. */
  readonly contexts: readonly MetaContext[];
}

export type ClientFailureCode =
  /** The server broke the protocol. */
  | 'protocol'
  /** An oldstyle server, or one without fixed newstyle, cannot do what is asked. */
  | 'notSupported'
  /** The server answered the decisive option with an error; `replyType` says which. */
  | 'refused';

export type ClientOutcome =
  /** Send `takeOutput`, receive, `push`. */
  | { readonly kind: 'more' }
  /** Send `takeOutput`; requests may follow, and the next byte received belongs to the transmission phase. */
  | { readonly kind: 'transmission'; readonly export: NegotiatedExport }
  /** In this and the following: send `takeOutput` (an ABORT) and close the connection. */
  | { readonly kind: 'described'; readonly export: NegotiatedExport }
  | { readonly kind: 'listed'; readonly exports: readonly { readonly name: string; readonly description: string }[] }
  | { readonly kind: 'contexts'; readonly names: readonly string[] }
  /** `reason` is a sentence; `replyType` an NBD_REP_ERR_... or 0. */
  | { readonly kind: 'failed'; readonly code: ClientFailureCode; readonly replyType: number; readonly reason: string };

/** All option replies of a handshake together, in bytes: what a server can make the client hold. */
export const MAX_OPTION_REPLIES_BYTES = 16 * 1024 * 1024;

/** What a client assumes that was told no block sizes ("Block size constraints"). */
const ASSUMED_MINIMUM_BLOCK = 512;
const ASSUMED_PREFERRED_BLOCK = 4096;

type Step = 'greeting' | 'structuredReply' | 'setMetaContext' | 'listMetaContext' | 'list' | 'info' | 'go' | 'exportName' | 'done';

export class ClientHandshake {
  private step: Step = 'greeting';
  private reading: 'fixed' | 'replyHeader' | 'replyData' = 'fixed';
  private result: ClientOutcome = { kind: 'more' };
  private option = 0;
  private replyType = 0;
  private repliesBytes = 0;
  private zeroesFollow = true;
  private structuredReplies = false;
  private sizeBytes = -1;
  private transmissionFlags = 0;
  private canonicalName: string | undefined;
  private description: string | undefined;
  private blockSizes: { minimum: number; preferred: number; maximum: number } | undefined;
  private readonly contexts: MetaContext[] = [];
  private readonly listed: { name: string; description: string }[] = [];
  private readonly input = new Collector();
  private readonly output = new ByteWriter();

  /** Throws a RangeError when the caller's own names break the specification's limits. */
  constructor(private readonly goal: ClientGoal) {
    const strings = goal.kind === 'list' ? [] : [goal.name, ...(goal.kind === 'listContexts' ? goal.queries : goal.contexts) ?? []];
    let total = 0;
    for (const text of strings) {
      const length = encodeText(text).length;
      total += length + 8;
      if (length > MAX_STRING_BYTES || text.includes('\0')) throw new RangeError(`${quoted(text)} is not a string of at most 4096 bytes without NUL`);
    }
    if (total > MAX_OPTION_BYTES) throw new RangeError('too many metadata contexts are asked for');
    this.input.expect(GREETING_BYTES);
  }

  get outcome(): ClientOutcome {
    return this.result;
  }

  /** Bytes to send; empty when there are none. The caller owns them. */
  takeOutput(): Uint8Array {
    return this.output.take();
  }

  /** Takes received bytes (borrowed) and returns how many it consumed: all, while the outcome is 'more'. */
  push(bytes: Uint8Array, from = 0, to = bytes.length): number {
    let at = from;
    while (at < to && this.result.kind === 'more') {
      at += this.input.feed(bytes, at, to);
      if (!this.input.complete) break;
      switch (this.reading) {
        case 'fixed':
          if (this.step === 'greeting') this.greeting(viewOf(this.input.data()));
          else this.exportNameReply(viewOf(this.input.data()));
          break;
        case 'replyHeader':
          this.replyHeader(viewOf(this.input.data()));
          break;
        case 'replyData':
          this.reply(this.input.data());
          break;
        default:
          this.reading satisfies never;
      }
    }
    return at - from;
  }

  private greeting(view: DataView): void {
    if (view.getUint32(0) !== NBD_MAGIC_HI || view.getUint32(4) !== NBD_MAGIC_LO) return this.protocol('this is not an NBD server');
    if (view.getUint32(8) === NBD_OLDSTYLE_MAGIC_HI && view.getUint32(12) === NBD_OLDSTYLE_MAGIC_LO) {
      return this.fail('notSupported', 'the server speaks only the oldstyle protocol');
    }
    if (view.getUint32(8) !== NBD_OPTS_MAGIC_HI || view.getUint32(12) !== NBD_OPTS_MAGIC_LO) return this.protocol('the greeting has an unknown magic');
    // The client flags have the same bits; unknown handshake flags are to be ignored.
    const flags = view.getUint16(16) & (NBD_FLAG_FIXED_NEWSTYLE | NBD_FLAG_NO_ZEROES);
    this.zeroesFollow = (flags & NBD_FLAG_NO_ZEROES) === 0;
    const fixed = (flags & NBD_FLAG_FIXED_NEWSTYLE) !== 0;
    if (!fixed && this.goal.kind !== 'go') return this.fail('notSupported', 'the server does not speak fixed newstyle and cannot be asked');
    this.output.u32(flags & (fixed ? ~0 : ~NBD_FLAG_C_FIXED_NEWSTYLE));
    switch (this.goal.kind) {
      case 'list':
        return this.send('list', NBD_OPT_LIST, new Uint8Array(0));
      case 'go':
        if (!fixed) return this.sendExportName(this.goal.name);
        return this.goal.structuredReplies === false ? this.sendInfo() : this.sendStructuredReply();
      case 'info':
        return this.goal.structuredReplies === false ? this.sendInfo() : this.sendStructuredReply();
      case 'listContexts':
        return this.sendStructuredReply();
    }
  }

  private sendStructuredReply(): void {
    this.send('structuredReply', NBD_OPT_STRUCTURED_REPLY, new Uint8Array(0));
  }

  private afterStructuredReply(accepted: boolean): void {
    this.structuredReplies = accepted;
    if (this.goal.kind === 'list') return;
    if (this.goal.kind === 'listContexts') {
      if (!accepted) return this.fail('notSupported', 'the server has no structured replies, hence no metadata contexts');
      return this.send('listMetaContext', NBD_OPT_LIST_META_CONTEXT, encodeContextRequest(this.goal.name, this.goal.queries ?? []));
    }
    const wanted = this.goal.contexts ?? [];
    if (!accepted || wanted.length === 0) return this.sendInfo();
    this.send('setMetaContext', NBD_OPT_SET_META_CONTEXT, encodeContextRequest(this.goal.name, wanted));
  }

  private sendInfo(): void {
    if (this.goal.kind !== 'go' && this.goal.kind !== 'info') return;
    const data = encodeInfoRequest(this.goal.name, [NBD_INFO_NAME, NBD_INFO_DESCRIPTION, NBD_INFO_BLOCK_SIZE]);
    this.send(this.goal.kind, this.goal.kind === 'go' ? NBD_OPT_GO : NBD_OPT_INFO, data);
  }

  private sendExportName(name: string): void {
    this.send('exportName', NBD_OPT_EXPORT_NAME, encodeText(name));
    // Not an option reply, and the server simply closes if it refuses.
    this.reading = 'fixed';
    this.input.expect(EXPORT_NAME_REPLY_BYTES + (this.zeroesFollow ? EXPORT_NAME_ZEROES_BYTES : 0));
  }

  private send(step: Step, option: number, data: Uint8Array): void {
    this.step = step;
    this.option = option;
    this.output.u32(NBD_OPTS_MAGIC_HI).u32(NBD_OPTS_MAGIC_LO).u32(option).u32(data.length).raw(data);
    this.nextReply();
  }

  private nextReply(): void {
    this.reading = 'replyHeader';
    this.input.expect(OPTION_REPLY_HEADER_BYTES);
  }

  private exportNameReply(view: DataView): void {
    const cursor = new Cursor(new Uint8Array(view.buffer, view.byteOffset, view.byteLength));
    this.sizeBytes = cursor.u64();
    this.transmissionFlags = cursor.u16();
    this.enter('transmission');
  }

  private replyHeader(view: DataView): void {
    if (view.getUint32(0) !== NBD_REP_MAGIC_HI || view.getUint32(4) !== NBD_REP_MAGIC_LO) return this.protocol('an option reply has a wrong magic');
    const option = view.getUint32(8);
    if (option !== this.option) return this.protocol(`the server answered option ${option}, which was not sent`);
    this.replyType = view.getUint32(12);
    const length = view.getUint32(16);
    this.repliesBytes += OPTION_REPLY_HEADER_BYTES + length;
    if (length > MAX_OPTION_BYTES) return this.protocol(`an option reply announces ${length} bytes`);
    if (this.repliesBytes > MAX_OPTION_REPLIES_BYTES) return this.protocol('the option replies do not end');
    if (length === 0) return this.reply(new Uint8Array(0));
    this.reading = 'replyData';
    this.input.expect(length);
  }

  private reply(data: Uint8Array): void {
    if (this.replyType >= 0x80000000) return this.errorReply(data);
    if (this.replyType === NBD_REP_ACK) {
      if (data.length > 0) return this.protocol('an acknowledgement has data');
      return this.acknowledged();
    }
    let problem: string | undefined;
    switch (this.step) {
      case 'list':
        if (this.replyType !== NBD_REP_SERVER) return this.unexpected();
        problem = this.listEntry(new Cursor(data));
        break;
      case 'info':
      case 'go':
        if (this.replyType !== NBD_REP_INFO) return this.unexpected();
        problem = this.info(new Cursor(data), data.length);
        break;
      case 'setMetaContext':
      case 'listMetaContext':
        if (this.replyType !== NBD_REP_META_CONTEXT) return this.unexpected();
        problem = this.context(new Cursor(data));
        break;
      default:
        return this.unexpected();
    }
    if (problem !== undefined) return this.protocol(problem);
    this.nextReply();
  }

  private acknowledged(): void {
    switch (this.step) {
      case 'structuredReply':
        return this.afterStructuredReply(true);
      case 'setMetaContext':
        return this.sendInfo();
      case 'listMetaContext':
        return this.finish({ kind: 'contexts', names: this.contexts.map((context) => context.name) });
      case 'list':
        return this.finish({ kind: 'listed', exports: this.listed });
      case 'info':
        return this.enter('described');
      case 'go':
        return this.enter('transmission');
      default:
        return this.unexpected();
    }
  }

  private errorReply(data: Uint8Array): void {
    // After ERR_SHUTDOWN the client must end the negotiation; to the other errors of these two options there is an alternative.
    const optional = this.replyType !== NBD_REP_ERR_SHUTDOWN;
    if (this.step === 'structuredReply' && optional) return this.afterStructuredReply(false);
    if (this.step === 'setMetaContext' && optional) {
      // Contexts sent before an error do not count; the export works without them.
      this.contexts.length = 0;
      return this.sendInfo();
    }
    if (this.step === 'go' && this.replyType === NBD_REP_ERR_UNSUP && this.goal.kind === 'go') {
      return this.sendExportName(this.goal.name);
    }
    const text = decodeString(data) ?? '';
    this.fail('refused', `the server refuses (${replyErrorText(this.replyType)})${text === '' ? '' : `: ${text}`}`, this.replyType);
  }

  /** The three below take one reply in, or say why it is malformed. */
  private listEntry(cursor: Cursor): string | undefined {
    const name = decodeString(cursor.raw(cursor.u32()));
    const description = decodeString(cursor.raw(cursor.remaining)) ?? '';
    if (!cursor.ok || name === undefined) return 'an entry of the export list is malformed';
    this.listed.push({ name, description });
    return undefined;
  }

  private context(cursor: Cursor): string | undefined {
    const id = cursor.u32();
    const name = decodeString(cursor.raw(cursor.remaining));
    if (!cursor.ok || name === undefined) return 'a metadata context reply is malformed';
    this.contexts.push({ id, name });
    return undefined;
  }

  private info(cursor: Cursor, length: number): string | undefined {
    switch (cursor.u16()) {
      case NBD_INFO_EXPORT:
        if (length !== 12) return 'an export description is malformed';
        this.sizeBytes = cursor.u64();
        this.transmissionFlags = cursor.u16();
        return undefined;
      case NBD_INFO_NAME:
        this.canonicalName = decodeString(cursor.raw(cursor.remaining));
        return undefined;
      case NBD_INFO_DESCRIPTION:
        this.description = decodeString(cursor.raw(cursor.remaining));
        return undefined;
      case NBD_INFO_BLOCK_SIZE: {
        if (length !== 14) return 'the block sizes are malformed';
        const sizes = { minimum: cursor.u32(), preferred: cursor.u32(), maximum: cursor.u32() };
        if (!powerOfTwo(sizes.minimum) || sizes.minimum > 65536 || sizes.maximum < sizes.minimum) {
          return `the server advertises impossible block sizes (minimum ${sizes.minimum}, maximum ${sizes.maximum})`;
        }
        this.blockSizes = sizes;
        return undefined;
      }
      default:
        // Unknown types are to be ignored; a reply too short for its type is not a reply.
        return cursor.ok ? undefined : 'an information reply is malformed';
    }
  }

  private enter(kind: 'transmission' | 'described'): void {
    if (this.goal.kind !== 'go' && this.goal.kind !== 'info') return this.unexpected();
    if (this.sizeBytes < 0) return this.protocol('the server accepted without describing the export');
    if (this.sizeBytes === Infinity) return this.fail('notSupported', 'the export is larger than 2^53 - 1 bytes');
    const described: NegotiatedExport = {
      name: this.goal.name,
      canonicalName: this.canonicalName,
      description: this.description,
      sizeBytes: this.sizeBytes,
      transmissionFlags: this.transmissionFlags,
      blockSizesAdvertised: this.blockSizes !== undefined,
      minimumBlock: this.blockSizes?.minimum ?? ASSUMED_MINIMUM_BLOCK,
      preferredBlock: this.blockSizes?.preferred ?? ASSUMED_PREFERRED_BLOCK,
      maximumBlock: this.blockSizes?.maximum ?? MAX_REQUEST_PAYLOAD,
      structuredReplies: this.structuredReplies,
      contexts: this.contexts,
    };
    if (kind === 'described') return this.finish({ kind, export: described });
    this.step = 'done';
    this.result = { kind, export: described };
  }

  /** Ends the negotiation in the orderly way: ABORT, whose acknowledgement nobody has to wait for. */
  private finish(outcome: ClientOutcome): void {
    this.output.u32(NBD_OPTS_MAGIC_HI).u32(NBD_OPTS_MAGIC_LO).u32(NBD_OPT_ABORT).u32(0);
    this.step = 'done';
    this.result = outcome;
  }

  private unexpected(): void {
    this.protocol(`the server answered option ${this.option} with a reply of type ${this.replyType}`);
  }

  /** The server broke the protocol: no orderly end. */
  private protocol(reason: string): void {
    this.step = 'done';
    this.result = { kind: 'failed', code: 'protocol', replyType: 0, reason };
  }

  private fail(code: ClientFailureCode, reason: string, replyType = 0): void {
    const outcome: ClientOutcome = { kind: 'failed', code, replyType, reason };
    // Before an option was sent, and after EXPORT_NAME, there is nothing to abort.
    if (this.step === 'greeting' || this.step === 'exportName') this.result = outcome;
    else this.finish(outcome);
    this.step = 'done';
  }
}

const REPLY_ERRORS = [
  '', 'unsupported', 'forbidden by policy', 'invalid', 'not on this platform', 'TLS required', 'unknown export', 'shutting down',
  'block sizes must be asked for', 'too big', 'extended headers required',
];

/** An NBD_REP_ERR_... in words. */
export function replyErrorText(replyType: number): string {
  return REPLY_ERRORS[replyType - 0x80000000] || `error ${replyType - 0x80000000}`;
}
