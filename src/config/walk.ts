/**
 * Looks into the configuration schema: what zod calls wrappers, objects,
 * arrays and metadata. Owns all knowledge of zod's inner shape.
 */

import { z } from 'zod';

export interface LeafMeta {
  readonly must?: string;
  readonly description?: string;
}

export interface Unwrapped {
  readonly schema: z.ZodType;
  readonly optional: boolean;
  /** The default as the file would write it; undefined when there is none. */
  readonly fallback: unknown;
}

/** Strips optional, default and prefault. */
export function unwrap(schema: z.ZodType): Unwrapped {
  let inner = schema;
  let optional = false;
  let fallback: unknown;
  for (;;) {
    if (inner instanceof z.ZodOptional) {
      optional = true;
      inner = inner.unwrap() as z.ZodType;
    } else if (inner instanceof z.ZodDefault || inner instanceof z.ZodPrefault) {
      optional = true;
      fallback = inner.def.defaultValue;
      inner = inner.unwrap() as z.ZodType;
    } else {
      return { schema: inner, optional, fallback };
    }
  }
}

export function objectShape(schema: z.ZodType | undefined): Record<string, z.ZodType> | undefined {
  const inner = schema === undefined ? undefined : unwrap(schema).schema;
  return inner instanceof z.ZodObject ? (inner.shape) : undefined;
}

export function arrayElement(schema: z.ZodType): z.ZodType | undefined {
  const inner = unwrap(schema).schema;
  return inner instanceof z.ZodArray ? (inner.element as z.ZodType) : undefined;
}

/** What `key` leads to in an object or array; undefined when nothing. */
export function innerSchema(schema: z.ZodType, key: PropertyKey): z.ZodType | undefined {
  if (typeof key === 'number') return arrayElement(schema);
  const shape = objectShape(schema);
  return shape !== undefined && typeof key === 'string' && Object.hasOwn(shape, key) ? shape[key] : undefined;
}

export function metaOf(schema: z.ZodType): LeafMeta | undefined {
  return unwrap(schema).schema.meta() as LeafMeta | undefined;
}
