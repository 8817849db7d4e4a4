/**
 * The server's handshake as a table: what each option does in each state. Pure
 * data; handshake-server.ts carries the actions out.
 */
import {
  NBD_OPT_ABORT, NBD_OPT_EXPORT_NAME, NBD_OPT_EXTENDED_HEADERS, NBD_OPT_GO, NBD_OPT_INFO, NBD_OPT_LIST, NBD_OPT_LIST_META_CONTEXT,
  NBD_OPT_SET_META_CONTEXT, NBD_OPT_STARTTLS, NBD_OPT_STRUCTURED_REPLY,
} from './constants.js';

/** The states in which options are read. */
export type HagglingState =
  /** The client did not set NBD_FLAG_C_FIXED_NEWSTYLE: it understands EXPORT_NAME and no option replies. */
  | 'plain'
  /** Fixed newstyle; replies will be simple. */
  | 'simple'
  /** Fixed newstyle; structured replies were negotiated. */
  | 'structured'
  /** The server is being shut down: no client gets any further. */
  | 'shutdown';

export type OptionName =
  | 'EXPORT_NAME' | 'ABORT' | 'LIST' | 'STARTTLS' | 'INFO' | 'GO' | 'STRUCTURED_REPLY' | 'LIST_META_CONTEXT' | 'SET_META_CONTEXT'
  | 'EXTENDED_HEADERS'
  /** Any other number. */
  | 'unknown';

export type Action =
  /** Enter transmission, or close: this option has no error reply. */
  | 'exportName'
  /** Acknowledge and close. */
  | 'abort'
  | 'list'
  /** Describe an export. */
  | 'info'
  /** Describe an export and enter transmission. */
  | 'go'
  /** On to state 'structured'. */
  | 'structuredReply'
  | 'listMetaContext'
  | 'setMetaContext'
  /** ERR_INVALID: structured replies must be negotiated first. */
  | 'refuseOrder'
  /** ERR_UNSUP: this server does not know the option. */
  | 'refuseUnsupported'
  /** ERR_SHUTDOWN. */
  | 'refuseShutdown'
  /** Close: the client could not understand a reply. */
  | 'closePlain'
  /** Close: the server is being shut down and this option has no error reply. */
  | 'closeShutdown';

/*
 * STARTTLS and EXTENDED_HEADERS have their columns so that adding them is a change
 * of this table and one new action each. LIST_META_CONTEXT without structured
 * replies is allowed (the specification leaves that to the server), SET is not.
 */
export const SERVER_TABLE: { readonly [S in HagglingState]: { readonly [O in OptionName]: Action } } = {
  plain: {
    EXPORT_NAME: 'exportName', ABORT: 'abort', LIST: 'closePlain', STARTTLS: 'closePlain', INFO: 'closePlain', GO: 'closePlain',
    STRUCTURED_REPLY: 'closePlain', LIST_META_CONTEXT: 'closePlain', SET_META_CONTEXT: 'closePlain', EXTENDED_HEADERS: 'closePlain',
    unknown: 'closePlain',
  },
  simple: {
    EXPORT_NAME: 'exportName', ABORT: 'abort', LIST: 'list', STARTTLS: 'refuseUnsupported', INFO: 'info', GO: 'go',
    STRUCTURED_REPLY: 'structuredReply', LIST_META_CONTEXT: 'listMetaContext', SET_META_CONTEXT: 'refuseOrder',
    EXTENDED_HEADERS: 'refuseUnsupported', unknown: 'refuseUnsupported',
  },
  structured: {
    EXPORT_NAME: 'exportName', ABORT: 'abort', LIST: 'list', STARTTLS: 'refuseUnsupported', INFO: 'info', GO: 'go',
    STRUCTURED_REPLY: 'structuredReply', LIST_META_CONTEXT: 'listMetaContext', SET_META_CONTEXT: 'setMetaContext',
    EXTENDED_HEADERS: 'refuseUnsupported', unknown: 'refuseUnsupported',
  },
  shutdown: {
    EXPORT_NAME: 'closeShutdown', ABORT: 'abort', LIST: 'refuseShutdown', STARTTLS: 'refuseShutdown', INFO: 'refuseShutdown',
    GO: 'refuseShutdown', STRUCTURED_REPLY: 'refuseShutdown', LIST_META_CONTEXT: 'refuseShutdown', SET_META_CONTEXT: 'refuseShutdown',
    EXTENDED_HEADERS: 'refuseShutdown', unknown: 'refuseShutdown',
  },
};

export function optionName(option: number): OptionName {
  switch (option) {
    case NBD_OPT_EXPORT_NAME: return 'EXPORT_NAME';
    case NBD_OPT_ABORT: return 'ABORT';
    case NBD_OPT_LIST: return 'LIST';
    case NBD_OPT_STARTTLS: return 'STARTTLS';
    case NBD_OPT_INFO: return 'INFO';
    case NBD_OPT_GO: return 'GO';
    case NBD_OPT_STRUCTURED_REPLY: return 'STRUCTURED_REPLY';
    case NBD_OPT_LIST_META_CONTEXT: return 'LIST_META_CONTEXT';
    case NBD_OPT_SET_META_CONTEXT: return 'SET_META_CONTEXT';
    case NBD_OPT_EXTENDED_HEADERS: return 'EXTENDED_HEADERS';
    default: return 'unknown';
  }
}
