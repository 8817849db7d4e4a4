/**
 * The kernel's NBD client, through its generic netlink family "nbd"
 * (linux/nbd-netlink.h): attach, change, detach and watch /dev/nbdN.
 *
 * Owns: the conversation with the kernel and what its refusals mean for a
 * person. Must not know: the NBD protocol (the sockets handed over have
 * finished their handshake), volumes, and who attaches what.
 *
 * Blocking, with a time limit: for the command line, not for the data path.
 */
import { Errno, IoError, OperatorError } from '../base/errors.js';
import { loadNative } from './native.js';
import type { Message } from './netlink-codec.js';
import {
  assertLittleEndian, decodeAttributes, decodeMessages, encodeRequest, malformed, nestedAttribute, text, textAttribute, u32Attribute,
  u64Attribute, unsigned, valueOf,
} from './netlink-codec.js';

// linux/genetlink.h: the family that knows the families
const CONTROL_FAMILY = 16;
const CONTROL_VERSION = 2;
const GET_FAMILY = 3;
const Control = { FAMILY_ID: 1, FAMILY_NAME: 2, MAX_ATTRIBUTE: 5, GROUPS: 7, GROUP_NAME: 1, GROUP_ID: 2 } as const;

// linux/nbd-netlink.h
const NBD_VERSION = 1;
const GROUP_NAME = 'nbd_mc_group';
const Command = { CONNECT: 1, DISCONNECT: 2, RECONFIGURE: 3, LINK_DEAD: 4, STATUS: 5 } as const;
const Attr = {
  INDEX: 1, SIZE_BYTES: 2, BLOCK_SIZE_BYTES: 3, TIMEOUT: 4, SERVER_FLAGS: 5, CLIENT_FLAGS: 6, SOCKETS: 7,
  DEAD_CONN_TIMEOUT: 8, DEVICE_LIST: 9, BACKEND_IDENTIFIER: 10,
} as const;
const SOCKET_ITEM = 1;
const SOCKET_FD = 1;
const DEVICE_INDEX = 1;
const DEVICE_CONNECTED = 2;

const NETLINK_GENERIC = 16;
const ANSWER_TIMEOUT_MS = 10_000;
const DATAGRAM_BYTES = 64 * 1024;

/** Sends and receives datagrams; the kernel's in life, a script's in tests. Results are n >= 0 or −errno. */
export interface NetlinkTransport {
  send(bytes: Uint8Array): number;
  /** The next datagram; −EAGAIN when none came in time. */
  receive(into: Uint8Array): number;
  join(group: number): number;
  close(): void;
}

/** What `reconfigure` may change. Absent members stay as they are. */
export interface NbdDeviceSettings {
  readonly sizeBytes?: number;
  readonly blockBytes?: number;
  /** Age at which an unanswered request marks its connection dead and is sent again; 0 waits for ever (and never resends). */
  readonly timeoutSeconds?: number;
  /** How long requests wait for a new connection before they fail. */
  readonly deadTimeoutSeconds?: number;
  /** Bits of ClientFlag. */
  readonly clientFlags?: number;
  /** Connected sockets after the handshake; the kernel takes its own reference, the caller closes its own. */
  readonly sockets?: readonly number[];
  /**
   * Text that names what is attached. The kernel then refuses a reconfiguration with another one, and shows it as
   * /sys/block/nbdN/backend. Left out silently when the kernel is older than 5.14: see `knowsIdentifier`.
   */
  readonly identifier?: string;
}

export interface NbdConnectOptions extends NbdDeviceSettings {
  /** N of /dev/nbdN; absent: the kernel picks a free one. */
  readonly index?: number;
  readonly sockets: readonly number[];
  readonly sizeBytes: number;
  /** Transmission flags that the server sent in its handshake. */
  readonly serverFlags: number;
}

export interface NbdDeviceStatus {
  readonly index: number;
  readonly connected: boolean;
}

export type LinkDeath =
  /** A connection of this device died. */
  | { readonly kind: 'dead'; readonly index: number }
  /** Messages were lost: look at every device. */
  | { readonly kind: 'missed' }
  /** Nothing happened within the time limit. */
  | { readonly kind: 'none' };

export class NbdNetlink {
  private sequence = 0;
  private readonly buffer = new Uint8Array(DATAGRAM_BYTES);

  private constructor(
    private readonly transport: NetlinkTransport,
    private family: number,
    private group: number,
    /** Whether the kernel keeps `identifier`. */
    public knowsIdentifier: boolean,
  ) {}

  /** Throws OperatorError `nbd/no-module` when the kernel has no NBD client, IoError when it cannot be asked. */
  static open(transport: NetlinkTransport = openTransport(ANSWER_TIMEOUT_MS)): NbdNetlink {
    const link = new NbdNetlink(transport, CONTROL_FAMILY, 0, false);
    try {
      link.resolve();
      return link;
    } catch (error) {
      transport.close();
      throw error;
    }
  }

  /** Attaches; returns N of /dev/nbdN. Throws OperatorError or IoError. */
  connect(options: NbdConnectOptions): number {
    const attributes = this.settings(options);
    attributes.push(u64Attribute(Attr.SERVER_FLAGS, options.serverFlags));
    if (options.index !== undefined) attributes.unshift(u32Attribute(Attr.INDEX, options.index));
    const answer = this.ask(Command.CONNECT, attributes, 'attach', deviceName(options.index));
    return unsigned(valueOf(answer?.attributes ?? [], Attr.INDEX, 'the index of the device'));
  }

  /**
   * Changes an attached device. A socket replaces a dead connection; while none is dead the kernel answers success
   * and ignores it. Throws OperatorError or IoError.
   */
  reconfigure(index: number, settings: NbdDeviceSettings): void {
    this.ask(Command.RECONFIGURE, [u32Attribute(Attr.INDEX, index), ...this.settings(settings)], 'change', deviceName(index));
  }

  /** Detaches; a device that is not attached is left alone. Throws OperatorError or IoError. */
  disconnect(index: number): void {
    this.ask(Command.DISCONNECT, [u32Attribute(Attr.INDEX, index)], 'detach', deviceName(index));
  }

  /** All devices that the kernel has, or the one asked for (none when it does not exist). Throws IoError. */
  status(index?: number): NbdDeviceStatus[] {
    const attributes = index === undefined ? [] : [u32Attribute(Attr.INDEX, index)];
    const answer = this.ask(Command.STATUS, attributes, 'look at', deviceName(index));
    const list = decodeAttributes(valueOf(answer?.attributes ?? [], Attr.DEVICE_LIST, 'the list of devices'));
    return list.map((item) => {
      const device = decodeAttributes(item.value);
      return {
        index: unsigned(valueOf(device, DEVICE_INDEX, 'the index of a device')),
        connected: unsigned(valueOf(device, DEVICE_CONNECTED, 'the state of a device')) !== 0,
      };
    });
  }

  /**
   * Subscribes to dead connections, on a socket of its own. `waitMs` bounds each `next()`. The messages are sent in
   * the initial network namespace only.
   */
  linkDeaths(waitMs: number, transport: NetlinkTransport = openTransport(waitMs)): LinkDeaths {
    const result = transport.join(this.group);
    if (result < 0) {
      transport.close();
      throw new IoError(-result, 'subscribe to', "the kernel's nbd messages");
    }
    return new LinkDeaths(transport, this.family);
  }

  /** Idempotent. */
  close(): void {
    this.transport.close();
  }

  private resolve(): void {
    let answer: FamilyMessage | undefined;
    try {
      answer = this.exchange(GET_FAMILY, CONTROL_VERSION, [textAttribute(Control.FAMILY_NAME, 'nbd')], 'look for', "the kernel's nbd module");
    } catch (error) {
      if (error instanceof IoError && error.errno === Errno.ENOENT) {
        throw new OperatorError('nbd/no-module', "the kernel's nbd module is not loaded: run modprobe nbd");
      }
      throw error;
    }
    const attributes = answer?.attributes ?? [];
    const family = unsigned(valueOf(attributes, Control.FAMILY_ID, 'the id of the family nbd'));
    this.knowsIdentifier = unsigned(valueOf(attributes, Control.MAX_ATTRIBUTE, 'the attributes of the family nbd')) >= Attr.BACKEND_IDENTIFIER;
    for (const item of decodeAttributes(valueOf(attributes, Control.GROUPS, 'the groups of the family nbd'))) {
      const group = decodeAttributes(item.value);
      if (text(valueOf(group, Control.GROUP_NAME, 'the name of a group')) !== GROUP_NAME) continue;
      this.group = unsigned(valueOf(group, Control.GROUP_ID, 'the id of a group'));
    }
    if (this.group === 0) throw malformed(`the family nbd lacks the group ${GROUP_NAME}`);
    this.family = family;
  }

  private settings(settings: NbdDeviceSettings): Uint8Array[] {
    const out: Uint8Array[] = [];
    const number = (attr: number, value: number | undefined): void => {
      if (value !== undefined) out.push(u64Attribute(attr, value));
    };
    number(Attr.SIZE_BYTES, settings.sizeBytes);
    number(Attr.BLOCK_SIZE_BYTES, settings.blockBytes);
    number(Attr.TIMEOUT, settings.timeoutSeconds);
    number(Attr.DEAD_CONN_TIMEOUT, settings.deadTimeoutSeconds);
    number(Attr.CLIENT_FLAGS, settings.clientFlags);
    if (settings.sockets !== undefined) {
      const items = settings.sockets.map((fd) => nestedAttribute(SOCKET_ITEM, [u32Attribute(SOCKET_FD, fd)]));
      out.push(nestedAttribute(Attr.SOCKETS, items));
    }
    if (settings.identifier !== undefined && this.knowsIdentifier) {
      out.push(textAttribute(Attr.BACKEND_IDENTIFIER, settings.identifier));
    }
    return out;
  }

  /** As `exchange`, with the refusals of the nbd family put into sentences. */
  private ask(command: number, attributes: Uint8Array[], doing: string, device: string): FamilyMessage | undefined {
    try {
      return this.exchange(command, NBD_VERSION, attributes, doing, device);
    } catch (error) {
      throw error instanceof IoError ? refusal(error, doing, device) : error;
    }
  }

  /** Sends a request; returns the family's answer, if there is one besides the acknowledgement. Throws IoError. */
  private exchange(command: number, version: number, attributes: Uint8Array[], doing: string, what: string): FamilyMessage | undefined {
    const sequence = ++this.sequence;
    const sent = this.transport.send(encodeRequest(this.family, command, version, sequence, attributes));
    if (sent < 0) throw new IoError(-sent, doing, what);
    let answer: FamilyMessage | undefined;
    for (;;) {
      const length = this.transport.receive(this.buffer);
      if (length < 0) throw new IoError(length === -Errno.EAGAIN ? Errno.ETIMEDOUT : -length, doing, what);
      // Copied: an answer is looked at after the acknowledgement has overwritten the buffer.
      for (const message of decodeMessages(this.buffer.slice(0, length))) {
        if (message.sequence !== sequence) continue; // of a request that was given up
        if (message.kind === 'message') answer = message;
        else if (message.kind === 'result' && message.errno !== 0) throw new IoError(message.errno, doing, what);
        else return answer;
      }
    }
  }
}

type FamilyMessage = Extract<Message, { kind: 'message' }>;

/** Dead connections, as the kernel reports them. */
class LinkDeaths {
  private readonly buffer = new Uint8Array(DATAGRAM_BYTES);
  private readonly waiting: number[] = [];

  constructor(
    private readonly transport: NetlinkTransport,
    private readonly family: number,
  ) {}

  /** The next one; blocks at most for the time limit of the subscription. Throws IoError. */
  next(): LinkDeath {
    const known = this.waiting.shift();
    if (known !== undefined) return { kind: 'dead', index: known };
    const length = this.transport.receive(this.buffer);
    if (length === -Errno.EAGAIN) return { kind: 'none' };
    if (length === -ENOBUFS) return { kind: 'missed' };
    if (length < 0) throw new IoError(-length, 'receive', "the kernel's nbd messages");
    for (const message of decodeMessages(this.buffer.subarray(0, length))) {
      if (message.kind !== 'message' || message.family !== this.family || message.command !== Command.LINK_DEAD) continue;
      this.waiting.push(unsigned(valueOf(message.attributes, Attr.INDEX, 'the index of the device')));
    }
    const first = this.waiting.shift();
    return first === undefined ? { kind: 'none' } : { kind: 'dead', index: first };
  }

  /** Idempotent. */
  close(): void {
    this.transport.close();
  }
}

/** The socket buffer overflowed: the kernel dropped messages. */
const ENOBUFS = 105;

function deviceName(index: number | undefined): string {
  return index === undefined ? 'an nbd device' : `/dev/nbd${index}`;
}

function refusal(error: IoError, doing: string, device: string): Error {
  switch (error.errno) {
    case Errno.EPERM:
      return new OperatorError('nbd/not-root', `to ${doing} ${device} needs root (CAP_SYS_ADMIN)`);
    case Errno.EBUSY:
      return new OperatorError('nbd/busy', `${device} is in use: detach it first, or choose another one`);
    case Errno.EINVAL:
      return new OperatorError(
        'nbd/refused',
        `the kernel refuses to ${doing} ${device}: it does not exist, is not attached, or belongs to something else (dmesg says more)`,
      );
    default:
      return error;
  }
}

function openTransport(timeoutMs: number): NetlinkTransport {
  assertLittleEndian();
  const native = loadNative();
  let fd = native.netlinkOpen(NETLINK_GENERIC, timeoutMs);
  if (fd < 0) throw new IoError(-fd, 'open', 'a netlink socket');
  return {
    send: (bytes) => native.netlinkSend(fd, bytes),
    receive: (into) => native.netlinkReceive(fd, into),
    join: (group) => native.netlinkJoin(fd, group),
    close: () => {
      if (fd >= 0) native.closeFd(fd);
      fd = -1;
    },
  };
}

