/** How commands are declared: their work, and what makes it an action of commander. */

import type { Context } from './context.js';

/** A command's work: its options, then its arguments. */
// eslint-disable-next-line @typescript-eslint/no-explicit-any -- commander hands over what the declaration says, untyped
export type Work = (context: Context, options: any, ...args: any[]) => Promise<void>;

/** Turns a command's work into commander's action. */
export type Register = (work: Work) => (...args: unknown[]) => Promise<void>;
