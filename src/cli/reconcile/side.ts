/**
 * What source and sink have in common: the greeting, work under way with its
 * limits, and the one way to end, well or badly.
 *
 * Owns: the state of one run. Must not know: what is compared, or who carries the
 * stream.
 */

import { OperatorError, PeerError } from '../../base/errors.js';
import { BLOCK_BYTES, REGION_BYTES } from '../../base/units.js';
import { VERSION } from '../../base/version.js';
import type { Channel } from './channel.js';
import type { RegionDevice } from './device.js';
import { Failed, Hello, HelloVersion, MAX_WORDS, PROTOCOL_VERSION, Type, broken, decodeJson, encodeJson } from './messages.js';
import { Silence } from './patience.js';
import type { Patience } from './patience.js';
import { FAN_OUT } from './tree.js';

interface Waiter {
  readonly ready: () => boolean;
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
}

/** Tells the other side that nothing comes of it, before there was a run. */
export async function refuse(channel: Channel, error: Error): Promise<void> {
  await channel.send(Type.FAILED, encodeJson({ operator: error instanceof OperatorError, message: error.message.slice(0, MAX_WORDS) }));
  await channel.finish();
}

export abstract class Side<Report> {
  private readonly waiters = new Set<Waiter>();
  private state: 'greeting' | 'running' | 'over' = 'greeting';
  private failure: Error | undefined;
  /** The other side's name of its device, once it has said hello. */
  protected peerDevice = '';
  private readonly silence = new Silence(() => this.state === 'greeting' || this.answerDue());

  constructor(private readonly role: 'source' | 'sink', protected readonly device: RegionDevice, protected readonly channel: Channel, private readonly patience: Patience) {}

  /** Whether the other side has to say something before this one can go on. */
  protected abstract answerDue(): boolean;
  /** One message that is neither HELLO nor FAILED. Throws what ends the run. */
  protected abstract message(type: number, payload: Buffer): void;
  /** The whole run, after the greeting. */
  protected abstract work(): Promise<Report>;

  /**
   * Runs to the end. Rejects with OperatorError (the two devices do not fit), PeerError (the other side is not what it
   * should be, or gave up), or the device's error; the other side is told. Neither device is closed.
   */
  async run(): Promise<Report> {
    this.silence.count(this.patience.greetingMs, () => this.fail(this.noGreeting()));
    this.channel.start({
      heard: () => this.silence.heard(),
      message: (type, payload) => this.received(type, payload),
      ended: (error) => this.fail(error ?? new PeerError('reconcile/ended', `the other side ended before the work was done${this.state === 'greeting' ? '; it said nothing' : ''}`)),
    });
    void this.channel.send(Type.HELLO, encodeJson({
      protocol: PROTOCOL_VERSION, program: VERSION, role: this.role, device: this.device.name, sizeBytes: this.device.sizeBytes,
      regionBytes: REGION_BYTES, fanOut: FAN_OUT, blockBytes: BLOCK_BYTES,
    }));
    try {
      await this.until(() => this.state === 'running');
      const report = await this.work();
      this.state = 'over';
      return report;
    } catch (error) {
      this.fail(error as Error);
      throw this.failure ?? (error as Error);
    } finally {
      this.silence.end();
      await this.channel.finish();
    }
  }

  /** Gives up, and tells the other side why, unless it is `theirs`. The first reason counts. */
  fail(error: Error, theirs = false): void {
    if (this.state === 'over') return;
    this.state = 'over';
    this.failure = error;
    if (!theirs) void this.channel.send(Type.FAILED, encodeJson({ operator: error instanceof OperatorError, message: error.message.slice(0, MAX_WORDS) }));
    for (const waiter of this.waiters) waiter.reject(error);
    this.waiters.clear();
  }

  /** Resolves when `ready` is true, which is asked now and after each `changed`; it may take what it found. Rejects when the run fails. */
  protected until(ready: () => boolean): Promise<void> {
    if (this.failure !== undefined) return Promise.reject(this.failure);
    if (ready()) return Promise.resolve();
    return new Promise((resolve, reject) => this.waiters.add({ ready, resolve, reject }));
  }

  protected changed(): void {
    for (const waiter of this.waiters) {
      if (!waiter.ready()) continue;
      this.waiters.delete(waiter);
      waiter.resolve();
    }
  }

  /** Work on the side; when it rejects, the run fails. */
  protected spawn(work: Promise<void>): void {
    work.catch((error: unknown) => this.fail(error as Error));
  }

  private received(type: number, payload: Buffer): void {
    if (this.state === 'over') return;
    if (type === Type.FAILED) {
      const { operator, message } = decodeJson(Failed, payload, 'last word');
      const words = `the other side gave up: ${message}`;
      this.fail(operator ? new OperatorError('reconcile/other-side', words) : new PeerError('reconcile/other-side', words), true);
    } else if (this.state === 'greeting') {
      if (type !== Type.HELLO) throw broken('it does not greet');
      this.greet(payload);
      this.state = 'running';
      this.silence.count(this.patience.silenceMs, () => this.fail(this.noAnswer()));
      this.changed();
    } else {
      this.message(type, payload);
    }
  }

  private noGreeting(): PeerError {
    const { began } = this.channel;
    const said = began === '' ? 'has said nothing' : `has not greeted, and said only ${JSON.stringify(began)},`;
    const cause = this.role === 'source'
      ? 'The command must run "lockstep reconcile --serve GROUP/DEVICE" there: try it by hand, and see to it that it asks for no password; if it only takes long, raise --greeting-timeout'
      : '--serve is started by "lockstep reconcile GROUP/DEVICE --with COMMAND", which speaks first; see what became of it, and run it again';
    return new PeerError('reconcile/silent', `the other side ${said} for ${this.patience.greetingMs / 1000} s. ${cause}`);
  }

  private noAnswer(): PeerError {
    return new PeerError('reconcile/silent', `the other side has said nothing for ${this.patience.silenceMs / 1000} s although an answer is due: it is stopped, its disk hangs, or the connection to it is dead. See to it, then run the command again, which goes on from what is equal by then; if its disk is only slow, raise --timeout`);
  }

  private greet(payload: Buffer): void {
    const version = decodeJson(HelloVersion, payload, 'greeting');
    if (version.protocol !== PROTOCOL_VERSION) {
      throw new OperatorError('reconcile/version', `the other side is lockstep ${version.program} and speaks version ${version.protocol} of the protocol, this is ${VERSION} with version ${PROTOCOL_VERSION}: use the same version on both sides`);
    }
    const hello = decodeJson(Hello, payload, 'greeting');
    if (hello.role === this.role) {
      throw new OperatorError('usage', this.role === 'source'
        ? 'the command started another sender; it must run "lockstep reconcile --serve GROUP/DEVICE"'
        : 'both sides serve; one of them must be "lockstep reconcile GROUP/DEVICE --with COMMAND"');
    }
    if (hello.regionBytes !== REGION_BYTES || hello.fanOut !== FAN_OUT || hello.blockBytes !== BLOCK_BYTES) throw broken('it cuts devices another way');
    if (hello.sizeBytes !== this.device.sizeBytes) {
      throw new OperatorError('reconcile/size', `${this.device.name} has ${this.device.sizeBytes} bytes here and ${hello.device} has ${hello.sizeBytes} bytes on the other side; only devices of one size can be made equal`);
    }
    this.peerDevice = hello.device;
  }
}
