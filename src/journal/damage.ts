/**
 * The journal on the disk contradicts itself, or is not all there. An error of
 * its own: a group may do without its journal when everything is elsewhere, and
 * not without its maps.
 */

import { CorruptionError } from '../base/errors.js';

export class JournalDamage extends CorruptionError {}
