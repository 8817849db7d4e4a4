/**
 * Reads the configuration file and the secrets that it names.
 *
 * Owns: file access of the configuration. Must not know: what is built from
 * it. Every problem is an OperatorError; several problems are told at once.
 */

import { readFileSync, statSync } from 'node:fs';
import { OperatorError } from '../base/errors.js';
import { checkConfig } from './explain.js';
import { checkJournalDirectory } from './journal-directory.js';
import type { Config, ConfigFile } from './schema.js';

/** Shortest secret in bytes (256 bits). */
const MIN_SECRET_BYTES = 32;
const MAX_SECRET_BYTES = 64 * 1024;
const MAX_CONFIG_BYTES = 4 * 1024 * 1024;

export interface Loaded {
  readonly config: Config;
  /** Sentences for the log: what works but should not be so. */
  readonly warnings: readonly string[];
}

/** Throws OperatorError with codes `config/unreadable`, `config/syntax`, `config/invalid`, `config/secret`, `config/journal`. */
export function loadConfig(path: string): Loaded {
  const file = parseConfigText(readLimited(path, MAX_CONFIG_BYTES, 'config/unreadable', 'the configuration'), path);
  const problems: string[] = [];
  const warnings: string[] = [];
  const groups = file.groups.map((group, g) => ({
    ...group,
    peers: group.peers.map((peer, p) => ({
      ...peer,
      secret: loadSecret(peer.secretFile, `groups[${g}].peers[${p}].secretFile`, problems, warnings),
    })),
  }));
  for (const { name, role, peers } of file.groups) {
    if (role === 'secondary' && peers.length === 0) warnings.push(`group ${name} has no peers: as a secondary it follows nobody by itself, and has to be fed with: lockstep journal import ${name}`);
  }
  if (problems.length > 0) throw new OperatorError('config/secret', listed(path, problems));
  file.groups.forEach((group, g) => checkJournalDirectory(group, file, `groups[${g}]`, problems, warnings));
  if (problems.length > 0) throw new OperatorError('config/journal', listed(path, problems));
  return { config: { ...file, groups }, warnings: [...new Set(warnings)] };
}

/** Checks text without touching any other file; `path` is for the messages. */
export function parseConfigText(text: string, path: string): ConfigFile {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new OperatorError('config/syntax', `${path} is not JSON: ${syntaxProblem(text, error)}`);
  }
  const checked = checkConfig(value);
  if ('problems' in checked) throw new OperatorError('config/invalid', listed(path, checked.problems));
  return checked.config;
}

function listed(path: string, problems: readonly string[]): string {
  if (problems.length === 1) return `${path}: ${problems[0]}`;
  return `${path} has ${problems.length} problems:\n${problems.map((problem) => `  - ${problem}`).join('\n')}`;
}

/** JSON.parse names a character position; people count lines. */
function syntaxProblem(text: string, error: unknown): string {
  const message = error instanceof Error ? error.message : String(error);
  const position = /at position (\d+)/.exec(message);
  if (position === null) return message;
  const before = text.slice(0, Number(position[1]));
  const line = before.split('\n').length;
  const column = before.length - before.lastIndexOf('\n');
  return `${message.slice(0, position.index).trim()} at line ${line}, column ${column}`;
}

function loadSecret(path: string, key: string, problems: string[], warnings: string[]): Uint8Array {
  try {
    const secret = readFileBytes(path, MAX_SECRET_BYTES);
    if (secret.length < MIN_SECRET_BYTES) {
      problems.push(`${key}: ${path} has ${secret.length} bytes; a secret needs at least ${MIN_SECRET_BYTES} (make one with: head -c 32 /dev/urandom > ${path})`);
    }
    const mode = statSync(path).mode & 0o777;
    if ((mode & 0o077) !== 0) warnings.push(`${path} is a secret but others may read it (mode ${mode.toString(8).padStart(4, '0')}); run: chmod 600 ${path}`);
    return secret;
  } catch (error) {
    problems.push(`${key}: cannot read ${path}: ${fileProblem(error)}`);
    return new Uint8Array();
  }
}

function readLimited(path: string, limit: number, code: string, what: string): string {
  try {
    return Buffer.from(readFileBytes(path, limit)).toString('utf8');
  } catch (error) {
    throw new OperatorError(code, `cannot read ${what} ${path}: ${fileProblem(error)}`);
  }
}

function readFileBytes(path: string, limit: number): Uint8Array {
  const stat = statSync(path);
  if (!stat.isFile()) throw new OperatorError('config/unreadable', 'it is not a regular file');
  if (stat.size > limit) throw new OperatorError('config/unreadable', `it has ${stat.size} bytes, more than the limit of ${limit}`);
  // A plain Uint8Array with its own memory: it is copied to the worker, and Buffers share pools.
  return Uint8Array.from(readFileSync(path));
}

/** A sentence's end for a failed file access. */
function fileProblem(error: unknown): string {
  const code = (error as { code?: unknown }).code;
  switch (code) {
    case 'ENOENT': return 'there is no such file';
    case 'EACCES': case 'EPERM': return 'permission denied';
    case 'ENOTDIR': return 'a part of the path is not a directory';
    case 'ELOOP': return 'too many symbolic links';
    default: return error instanceof Error ? error.message : String(error);
  }
}
