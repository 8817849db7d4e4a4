/**
 * The journal carried by software outside of Lockstep: the data thread's half
 * of `journal export`, `import`, `ack`, `release`, `position` and `drain`. Owns
 * the mapping from requests to these; must not know HTTP.
 */

import { unreachable } from '../base/assert.js';
import { formatPosition } from '../base/position.js';
import type { CarryRequest } from '../control/carry.js';
import type { Group } from '../group/group.js';
import { epochPosition } from '../group/tree/epochs.js';
import type { Reactor } from '../io/reactor.js';
import type { Answer } from './answer.js';
import { endingOnce } from './answer.js';
import { ExportStreams } from './carry-export.js';
import { committedOf, Imports } from './carry-import.js';
import { acknowledge, release } from './cursors.js';
import { drain } from './drain.js';
import type { Links } from './links.js';

export class Carry {
  readonly imports: Imports;
  private readonly exports: ExportStreams;

  constructor(private readonly reactor: Reactor, node: string, private readonly find: (name: string) => Group, private readonly links: Links) {
    this.imports = new Imports(reactor, links);
    this.exports = new ExportStreams(reactor, node);
  }

  /** Throws OperatorError; other errors go to `answer`. */
  handle(request: CarryRequest, answer: Answer): void {
    switch (request.op) {
      case 'exportOpen':
        this.exports.open(this.find(request.group), request, answer);
        return;
      case 'exportPage':
        this.exports.page(this.find(request.group), request, answer);
        return;
      case 'importOpen':
        this.imports.open(this.find(request.group), answer);
        return;
      case 'importPush':
        this.imports.push(request.session, request.bytes, answer);
        return;
      case 'importState':
        this.imports.state(request, answer);
        return;
      case 'importEnd':
        this.imports.finish(request.session, answer);
        return;
      case 'position':
        position(this.find(request.group), answer);
        return;
      case 'cursorAck':
        acknowledge(this.reactor, this.find(request.group), request.cursor, request.position, answer);
        return;
      case 'cursorRelease':
        release(this.find(request.group), request.cursor, answer);
        return;
      case 'drain':
        drain(this.reactor, this.find(request.group), this.links, request.waitSeconds * 1e6, answer);
        return;
      default:
        unreachable(request);
    }
  }
}

/**
 * What this node has executed, once it is durable; LSN 0 for a node that has nothing. A volatile secondary that does
 * not know what its primary has makes no more durable: of that one what is.
 */
function position(group: Group, answer: Answer): void {
  const committed = group.stableLsn < group.appliedLsn ? committedOf(group) : undefined;
  const here = epochPosition(group.epochs, committed ?? group.appliedPosition);
  const reply = { group: group.name, position: formatPosition(here), lsn: here.lsn };
  if (!group.hasContent) {
    answer.done(reply);
    return;
  }
  const once = endingOnce(answer);
  once.alsoEnd(group.operations.whenDurable(here.lsn, (error) => (error === undefined ? once.done(reply) : once.failed(error))));
}
