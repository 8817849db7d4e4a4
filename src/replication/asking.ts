/**
 * Asking a peer, before an operation is appended, whether it could execute it
 * now. Only `adopt` depends on what a node alone has.
 *
 * Owns: questions under way on one connection, and one question to several.
 * Must not know: frames, who asks, what is done with the answers.
 *
 * An answer is no promise: what the peer has may change before the operation
 * gets there, and then it stops applying as if nobody had asked.
 */

import type { ReplicatedGroup } from '../group/replica.js';
import type { Reactor } from '../io/reactor.js';
import type { Message } from './message.js';
import { cleanSentence } from './message.js';

/** What is asked, without the number that tells its answer from others. */
export type Question = Omit<Message<'ask'>, 'number'>;

/** `lack`: what the peer lacks, the end of a sentence that begins "on node X"; undefined: nothing, or the connection ended first. */
type Answered = (lack: string | undefined) => void;

/** What this node lacks. */
export function answerOf(group: ReplicatedGroup, { number, adopt }: Message<'ask'>): Message<'answer'> {
  const lack = group.adoptLack(adopt);
  return { number, lack: lack === undefined ? null : cleanSentence(lack) };
}

/** The questions of one connection. */
export class Questions {
  private readonly open = new Map<number, Answered>();
  private last = 0;
  private over = false;

  constructor(private readonly send: (message: Message<'ask'>) => void) {}

  /** Returns what takes it back: `answered` is not called then. */
  ask(question: Question, answered: Answered): () => void {
    if (this.over) {
      answered(undefined);
      return () => undefined;
    }
    const number = (this.last = (this.last + 1) >>> 0);
    this.open.set(number, answered);
    this.send({ number, ...question });
    return () => void this.open.delete(number);
  }

  /** One that was taken back is answered all the same, and nobody hears it. */
  answered({ number, lack }: Message<'answer'>): void {
    const answered = this.open.get(number);
    this.open.delete(number);
    answered?.(lack === null ? undefined : cleanSentence(lack));
  }

  /** The connection has ended. */
  end(): void {
    this.over = true;
    const open = [...this.open.values()];
    this.open.clear();
    for (const answered of open) answered(undefined);
  }
}

/** A peer that can be asked now. */
export interface Askable {
  readonly peer: string;
  readonly questions: Questions;
}

/** A peer that cannot: what it lacks, or undefined when it has not answered in time. */
export interface Objection {
  readonly peer: string;
  readonly lack: string | undefined;
}

/**
 * `done` is called once with all objections, perhaps before this returns, and after `limitUs` at the latest. A peer
 * whose connection ends has none: it is away, as those that could not be asked. Returns what takes the question back.
 */
export function askAll(reactor: Reactor, peers: readonly Askable[], question: Question, limitUs: number, done: (objections: Objection[]) => void): () => void {
  const silent = new Set(peers.map(({ peer }) => peer));
  const objections: Objection[] = [];
  const takeBacks: (() => void)[] = [];
  const takeBack = (): void => {
    for (const one of takeBacks) one();
  };
  const timer = reactor.after(limitUs, () => {
    takeBack();
    done([...objections, ...[...silent].map((peer) => ({ peer, lack: undefined }))]);
  });
  takeBacks.push(() => reactor.cancel(timer));
  let asking = true;
  const finish = (): void => {
    if (asking || silent.size > 0) return;
    takeBack();
    done(objections);
  };
  for (const { peer, questions } of peers) {
    takeBacks.push(questions.ask(question, (lack) => {
      silent.delete(peer);
      if (lack !== undefined) objections.push({ peer, lack });
      finish();
    }));
  }
  // A connection may end by being written to.
  asking = false;
  finish();
  return takeBack;
}
