/**
 * Carries a drawn operation out over the control socket of a real daemon.
 * Must not know: what should come of it.
 */
import type { ControlClient } from '../../src/control/client.js';
import type { OperationRequest, Ranges } from '../../src/control/port.js';
import type { OperationReply } from '../../src/control/schema/replies.js';

function pairs(ranges: Ranges): [number, number][] {
  return ranges.map(([offset, length]) => [offset, length]);
}

export function carryOut(control: ControlClient, request: OperationRequest): Promise<OperationReply> {
  const { group } = request;
  switch (request.op) {
    case 'create':
      return control.createVolume(group, { name: request.name, size: request.sizeBytes });
    case 'snapshot':
      return control.snapshot(group, { source: request.source, name: request.name });
    case 'restore':
      return control.restore(group, { ...(request.target === null ? {} : { target: request.target }), source: request.source, ranges: pairs(request.ranges), force: request.force });
    case 'refresh':
      return control.refresh(group, { target: request.target, force: request.force });
    case 'sync':
      return control.sync(group, { target: request.target, source: request.source, ranges: pairs(request.ranges), force: request.force });
    case 'resize':
      return control.resize(group, { device: request.device, size: request.sizeBytes, force: request.force });
    case 'remove':
      return control.remove(group, request.device, { withSnapshots: request.withSnapshots, force: request.force });
    case 'rename':
      return control.rename(group, { device: request.device, name: request.name, force: request.force });
    case 'protect':
      return control.protect(group, request.on, { device: request.device, force: request.force });
    case 'clone':
      return control.clone(group, { source: request.source, name: request.name });
    case 'adopt':
      return control.adopt(group, { local: request.local, name: request.name, force: request.force });
  }
}
