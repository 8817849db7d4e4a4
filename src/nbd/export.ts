/**
 * A device as an NBD export.
 *
 * Owns: what the handshake says of a device (flags, block sizes, description,
 * metadata contexts), and the facts that requests are validated against. Must
 * not know: sockets, slots, how a device is stored.
 *
 * A client that wants to know which content it talks to (DESIGN §8) has three
 * truthful ways: `lockstep:device-id/VALUE` and `lockstep:continuity-id/VALUE`
 * among the metadata contexts that LIST_META_CONTEXT names; selecting exactly
 * the context it saw before, which succeeds only while the value is the same;
 * and the text of NBD_INFO_DESCRIPTION.
 */

import {
  MAX_REQUEST_PAYLOAD, NBD_CONTEXT_BASE_ALLOCATION, NBD_EIO, NBD_ENOMEM, NBD_ENOSPC, NBD_EPERM, NBD_FLAG_CAN_MULTI_CONN, NBD_FLAG_HAS_FLAGS,
  NBD_FLAG_READ_ONLY, NBD_FLAG_SEND_CACHE, NBD_FLAG_SEND_DF, NBD_FLAG_SEND_FAST_ZERO, NBD_FLAG_SEND_FLUSH, NBD_FLAG_SEND_FUA,
  NBD_FLAG_SEND_TRIM, NBD_FLAG_SEND_WRITE_ZEROES, NBD_REP_ERR_POLICY, exportInfoProblem,
} from '../vendor/nbd-protocol-ts/index.js';
import type { ExportDirectory, ExportFacts, ExportInfo, ExportRefusal } from '../vendor/nbd-protocol-ts/index.js';
import { assert } from '../base/assert.js';
import { Errno } from '../base/errors.js';
import type { BlockService, DeviceView } from '../group/requests/service.js';

/** Any byte range is served; the group completes partial blocks (DESIGN §3). */
const MINIMUM_BLOCK = 1;
const PREFERRED_BLOCK = 4096;
const MAXIMUM_BLOCK = MAX_REQUEST_PAYLOAD;

/**
 * CAN_MULTI_CONN is true: a FLUSH on one connection covers what was acknowledged on any. FAST_ZERO is true: zeroing
 * is an entry of the map, never slower than writing.
 */
const WRITABLE_FLAGS =
  NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_TRIM | NBD_FLAG_SEND_WRITE_ZEROES |
  NBD_FLAG_SEND_DF | NBD_FLAG_CAN_MULTI_CONN | NBD_FLAG_SEND_CACHE | NBD_FLAG_SEND_FAST_ZERO;

const DEVICE_CONTEXT_PREFIX = 'lockstep:device-id/';
const CONTINUITY_CONTEXT_PREFIX = 'lockstep:continuity-id/';

function transmissionFlagsOf(view: DeviceView): number {
  return view.writable ? WRITABLE_FLAGS : WRITABLE_FLAGS | NBD_FLAG_READ_ONLY;
}

/** What the handshake gives out; remembers which device it was. */
export interface DeviceExport extends ExportInfo {
  readonly device: DeviceView;
}

function describe(view: DeviceView): string {
  const identity = `device ${view.deviceIdentity}, continuity ${view.continuityIdentity}`;
  return view.description === '' ? identity : `${view.description} (${identity})`;
}

function exportOf(view: DeviceView): DeviceExport {
  const info: DeviceExport = {
    device: view,
    name: view.exportName,
    description: describe(view),
    sizeBytes: view.sizeBytes,
    transmissionFlags: transmissionFlagsOf(view),
    minimumBlock: MINIMUM_BLOCK,
    preferredBlock: PREFERRED_BLOCK,
    maximumBlock: MAXIMUM_BLOCK,
    metaContexts: [
      NBD_CONTEXT_BASE_ALLOCATION,
      DEVICE_CONTEXT_PREFIX + view.deviceIdentity,
      CONTINUITY_CONTEXT_PREFIX + view.continuityIdentity,
    ],
  };
  const problem = exportInfoProblem(info);
  assert(problem === undefined, `${view.exportName} cannot be exported: ${problem}`);
  return info;
}

/** The exports of a service, for the handshake. There is no default export. */
export class ServiceDirectory implements ExportDirectory {
  constructor(private readonly service: BlockService) {}

  list(): { name: string; description: string }[] {
    return this.service.list().map((view) => ({ name: view.exportName, description: describe(view) }));
  }

  find(name: string): DeviceExport | ExportRefusal | undefined {
    const found = this.service.find(name);
    if (found === undefined) return undefined;
    return 'exportName' in found ? exportOf(found) : { refused: NBD_REP_ERR_POLICY, message: found.unavailable };
  }
}

/** The present facts of a device, in plain fields that validation reads; `refresh` before each request. */
export class DeviceFacts implements ExportFacts {
  sizeBytes = 0;
  transmissionFlags = 0;
  readonly minimumBlock = MINIMUM_BLOCK;
  readonly maximumBlock = MAXIMUM_BLOCK;

  refresh(view: DeviceView): void {
    this.sizeBytes = view.sizeBytes;
    this.transmissionFlags = view.writable ? WRITABLE_FLAGS : WRITABLE_FLAGS | NBD_FLAG_READ_ONLY;
  }
}

/** The specification knows eight error values; every other Linux errno is told as the nearest of them. */
export function wireErrno(errno: number): number {
  switch (errno) {
    case 0:
    case Errno.EPERM:
    case Errno.EIO:
    case Errno.ENOMEM:
    case Errno.EINVAL:
    case Errno.ENOSPC:
    case Errno.EOVERFLOW:
    case Errno.ENOTSUP:
    case Errno.ESHUTDOWN:
      return errno;
    case Errno.EROFS:
    case Errno.EACCES:
      return NBD_EPERM;
    case Errno.EFBIG:
    case 122: // EDQUOT
      return NBD_ENOSPC;
    case Errno.EAGAIN:
      return NBD_ENOMEM;
    default:
      return NBD_EIO;
  }
}
