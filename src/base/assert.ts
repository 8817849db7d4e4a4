/**
 * Assertions about our own code. They stay on in production: a broken
 * assumption stops the process before it can damage data. Input from disks,
 * peers and people is checked with the errors of errors.ts instead.
 */

class AssertionError extends Error {
  override readonly name = 'AssertionError';
}

/** Throws AssertionError: a bug of ours, for which nobody is prepared. */
export function assert(condition: boolean, message: string): asserts condition {
  if (!condition) throw new AssertionError(message);
}

/** Ends a `switch` over a union: the compiler proves that no case is missing. */
export function unreachable(value: never): never {
  throw new AssertionError(`unreachable: ${String(value)}`);
}
