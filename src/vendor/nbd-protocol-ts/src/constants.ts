/**
 * Every number of the NBD protocol that this library uses, under the name the
 * specification gives it (NetworkBlockDevice/nbd, doc/proto.md), and the limits
 * that this library adds.
 *
 * 64-bit magics are given as two 32-bit halves (HI, LO): nothing here uses bigint.
 */

// ---- Magics ("Newstyle negotiation", "Fixed newstyle negotiation", "Request message", ...)

/** 'NBDMAGIC', the first 8 bytes that a server sends. */
export const NBD_MAGIC_HI = 0x4e42444d;
export const NBD_MAGIC_LO = 0x41474943;
/** 'IHAVEOPT', the next 8 bytes of a newstyle server, and the start of every option. */
export const NBD_OPTS_MAGIC_HI = 0x49484156;
export const NBD_OPTS_MAGIC_LO = 0x454f5054;
/** What an oldstyle server sends in place of IHAVEOPT. This library refuses such servers. */
export const NBD_OLDSTYLE_MAGIC_HI = 0x00004202;
export const NBD_OLDSTYLE_MAGIC_LO = 0x81861253;
/** Start of every reply to an option. */
export const NBD_REP_MAGIC_HI = 0x0003e889;
export const NBD_REP_MAGIC_LO = 0x045565a9;

export const NBD_REQUEST_MAGIC = 0x25609513;
export const NBD_SIMPLE_REPLY_MAGIC = 0x67446698;
export const NBD_STRUCTURED_REPLY_MAGIC = 0x668e33ef;
/** Defined by the extended headers extension, which this library does not speak yet. */
export const NBD_EXTENDED_REQUEST_MAGIC = 0x21e41c71;
export const NBD_EXTENDED_REPLY_MAGIC = 0x6e8a278c;

// ---- Handshake flags (server, 16 bits) and client flags (32 bits)

export const NBD_FLAG_FIXED_NEWSTYLE = 1 << 0;
export const NBD_FLAG_NO_ZEROES = 1 << 1;
export const NBD_FLAG_C_FIXED_NEWSTYLE = 1 << 0;
export const NBD_FLAG_C_NO_ZEROES = 1 << 1;

// ---- Transmission flags (16 bits, one set per export)

export const NBD_FLAG_HAS_FLAGS = 1 << 0;
export const NBD_FLAG_READ_ONLY = 1 << 1;
export const NBD_FLAG_SEND_FLUSH = 1 << 2;
export const NBD_FLAG_SEND_FUA = 1 << 3;
export const NBD_FLAG_ROTATIONAL = 1 << 4;
export const NBD_FLAG_SEND_TRIM = 1 << 5;
export const NBD_FLAG_SEND_WRITE_ZEROES = 1 << 6;
export const NBD_FLAG_SEND_DF = 1 << 7;
export const NBD_FLAG_CAN_MULTI_CONN = 1 << 8;
export const NBD_FLAG_SEND_RESIZE = 1 << 9;
export const NBD_FLAG_SEND_CACHE = 1 << 10;
export const NBD_FLAG_SEND_FAST_ZERO = 1 << 11;

// ---- Options (client to server) and option replies (server to client)

export const NBD_OPT_EXPORT_NAME = 1;
export const NBD_OPT_ABORT = 2;
export const NBD_OPT_LIST = 3;
/** Withdrawn; never implemented. */
export const NBD_OPT_PEEK_EXPORT = 4;
export const NBD_OPT_STARTTLS = 5;
export const NBD_OPT_INFO = 6;
export const NBD_OPT_GO = 7;
export const NBD_OPT_STRUCTURED_REPLY = 8;
export const NBD_OPT_LIST_META_CONTEXT = 9;
export const NBD_OPT_SET_META_CONTEXT = 10;
export const NBD_OPT_EXTENDED_HEADERS = 11;

export const NBD_REP_ACK = 1;
export const NBD_REP_SERVER = 2;
export const NBD_REP_INFO = 3;
export const NBD_REP_META_CONTEXT = 4;
export const NBD_REP_ERR_UNSUP = 0x80000001;
export const NBD_REP_ERR_POLICY = 0x80000002;
export const NBD_REP_ERR_INVALID = 0x80000003;
export const NBD_REP_ERR_PLATFORM = 0x80000004;
export const NBD_REP_ERR_TLS_REQD = 0x80000005;
export const NBD_REP_ERR_UNKNOWN = 0x80000006;
export const NBD_REP_ERR_SHUTDOWN = 0x80000007;
export const NBD_REP_ERR_BLOCK_SIZE_REQD = 0x80000008;
export const NBD_REP_ERR_TOO_BIG = 0x80000009;
export const NBD_REP_ERR_EXT_HEADER_REQD = 0x8000000a;

export const NBD_INFO_EXPORT = 0;
export const NBD_INFO_NAME = 1;
export const NBD_INFO_DESCRIPTION = 2;
export const NBD_INFO_BLOCK_SIZE = 3;

// ---- Commands and command flags (16 bits)

export const NBD_CMD_READ = 0;
export const NBD_CMD_WRITE = 1;
export const NBD_CMD_DISC = 2;
export const NBD_CMD_FLUSH = 3;
export const NBD_CMD_TRIM = 4;
export const NBD_CMD_CACHE = 5;
export const NBD_CMD_WRITE_ZEROES = 6;
export const NBD_CMD_BLOCK_STATUS = 7;
/** Experimental extension; answered as an unknown command. */
export const NBD_CMD_RESIZE = 8;

export const NBD_CMD_FLAG_FUA = 1 << 0;
export const NBD_CMD_FLAG_NO_HOLE = 1 << 1;
export const NBD_CMD_FLAG_DF = 1 << 2;
export const NBD_CMD_FLAG_REQ_ONE = 1 << 3;
export const NBD_CMD_FLAG_FAST_ZERO = 1 << 4;
/** Only with extended headers; answered as an unknown flag. */
export const NBD_CMD_FLAG_PAYLOAD_LEN = 1 << 5;

// ---- Structured replies

export const NBD_REPLY_FLAG_DONE = 1 << 0;

export const NBD_REPLY_TYPE_NONE = 0;
export const NBD_REPLY_TYPE_OFFSET_DATA = 1;
export const NBD_REPLY_TYPE_OFFSET_HOLE = 2;
export const NBD_REPLY_TYPE_BLOCK_STATUS = 5;
/** Set in the type of every error chunk, also of those that are not known. */
export const NBD_REPLY_TYPE_ERROR_BIT = 1 << 15;
export const NBD_REPLY_TYPE_ERROR = NBD_REPLY_TYPE_ERROR_BIT + 1;
export const NBD_REPLY_TYPE_ERROR_OFFSET = NBD_REPLY_TYPE_ERROR_BIT + 2;

/** The one metadata context that the specification itself defines, and its status bits. */
export const NBD_CONTEXT_BASE_ALLOCATION = 'base:allocation';
export const NBD_STATE_HOLE = 1 << 0;
export const NBD_STATE_ZERO = 1 << 1;

// ---- Error values of replies. Zero is success.

export const NBD_EPERM = 1;
export const NBD_EIO = 5;
export const NBD_ENOMEM = 12;
export const NBD_EINVAL = 22;
export const NBD_ENOSPC = 28;
export const NBD_EOVERFLOW = 75;
export const NBD_ENOTSUP = 95;
export const NBD_ESHUTDOWN = 108;

// ---- Sizes of fixed parts, in bytes

/** NBDMAGIC, IHAVEOPT, handshake flags. */
export const GREETING_BYTES = 18;
export const CLIENT_FLAGS_BYTES = 4;
/** IHAVEOPT, option, length of its data. */
export const OPTION_HEADER_BYTES = 16;
/** Reply magic, option, reply type, length of its data. */
export const OPTION_REPLY_HEADER_BYTES = 20;
/** Size and flags that answer EXPORT_NAME, without the zeroes. */
export const EXPORT_NAME_REPLY_BYTES = 10;
/** The zeroes after them, unless both sides agreed to leave them out. */
export const EXPORT_NAME_ZEROES_BYTES = 124;
export const REQUEST_BYTES = 28;
export const SIMPLE_REPLY_BYTES = 16;
export const STRUCTURED_HEADER_BYTES = 20;

// ---- Limits. The first is the specification's; the others are this library's.

/** No string of the protocol may be longer ("Conventions"), in bytes. */
export const MAX_STRING_BYTES = 4096;
/** Longest option data that is kept and parsed. Longer data is skipped and answered with NBD_REP_ERR_TOO_BIG. */
export const MAX_OPTION_BYTES = 64 * 1024;
/** Longest option data that is skipped. A client that announces more is disconnected. */
export const MAX_SKIPPED_OPTION_BYTES = 1024 * 1024;
/** Options in one handshake. A client that sends more is disconnected. Clients that describe a list ask twice for each export. */
export const MAX_OPTIONS = 16384;
/** A server handshake that has at least this much output waiting reads no further option. */
export const MAX_PENDING_OUTPUT_BYTES = 256 * 1024;
/** Longest payload of a READ or WRITE that is served: below it a server should never disconnect ("Block size constraints"). */
export const MAX_REQUEST_PAYLOAD = 32 * 1024 * 1024;
/** Longest WRITE payload that is received and thrown away to answer with an error. Above it, close the connection. */
export const MAX_DRAINED_PAYLOAD = 64 * 1024 * 1024;
