/** What the tests of io/ share: an Io with its arena and reactor, closed with the test. */
import type { Test } from 'tap';
import { Arena } from '../../src/io/arena.js';
import type { ReactorOptions } from '../../src/io/reactor.js';
import { Reactor } from '../../src/io/reactor.js';
import { RealIo } from '../../src/io/real.js';
import { makeTempDirectory, removeTempDirectory } from '../harness/temp.js';

export interface Fixture {
  readonly io: RealIo;
  readonly arena: Arena;
  readonly reactor: Reactor;
  readonly directory: string;
  /** Steps the reactor until the condition holds. The test's own time limit ends a wait in vain. */
  until(condition: () => boolean): void;
}

export function fixture(test: Pick<Test, 'teardown'>, options: ReactorOptions = {}, arenaBytes = 8 * 1024 * 1024): Fixture {
  const io = RealIo.create({ arenaBytes });
  const arena = new Arena(io);
  const reactor = new Reactor(io, arena, options);
  const directory = makeTempDirectory('io');
  test.teardown(() => {
    io.dispose();
    removeTempDirectory(directory);
  });
  return {
    io, arena, reactor, directory,
    until(condition) {
      const deadline = io.nowUs() + 20e6;
      while (!condition()) {
        if (io.nowUs() > deadline) throw new Error('waited 20 s in vain');
        reactor.step(100_000);
      }
    },
  };
}

/** A small seeded generator (mulberry32): values in [0, 1). */
export function randomFrom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let x = state;
    x = Math.imul(x ^ (x >>> 15), x | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return ((x ^ (x >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** The seed of this run: TEST_SEED, or a new one. Print it. */
export function seedOfRun(): number {
  return process.env.TEST_SEED === undefined ? Math.floor(Math.random() * 2 ** 32) : Number(process.env.TEST_SEED);
}
