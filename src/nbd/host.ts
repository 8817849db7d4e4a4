/**
 * What a transmission and the connection that it runs on know of each other.
 */

/** Why a connection takes no further requests, as bits. */
export const Stall = {
  /** The socket takes no more replies; until it is writable. */
  blocked: 1,
  /** It has as much under way as it may; until some of it is answered and sent. */
  full: 2,
  /** No slot or no memory is left; it waits in the server's line. */
  starved: 4,
} as const;

/** Whoever owns the connection. The calls may come from within any method of a Transmission. */
export interface TransmissionHost {
  readonly fd: number;
  /** Index of the connection in the server, for the `connection` column. */
  readonly index: number;
  /** Something can be sent or resumed at the end of the tick. */
  touched(): void;
  /** Stands in line for slots and memory until the server calls `fed`. */
  starved(): void;
  /** The connection cannot go on; `reason` is a sentence. Disposes of this Transmission. */
  fail(reason: string): void;
  /** After `dispose`: the service has answered everything. */
  settled(): void;
  /** The socket reported −`result`. Disposes of this Transmission. */
  lost(result: number): void;
}
