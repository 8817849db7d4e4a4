/** What a start says that finds a volatile journal lost. */

export const REFUSED = /its volatile journal is lost: the machine was started anew since, and the group was not stopped cleanly before\. Its data are unknown/;

/** The LSN that a refusal names. */
export function acceptableLsn(problem: string | undefined): number {
  const match = /--accept-inconsistent g@(\d+)/.exec(problem ?? '');
  if (match === null) throw new Error(`no LSN in: ${problem}`);
  return Number(match[1]);
}
