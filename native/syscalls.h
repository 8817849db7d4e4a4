// System calls that finish what they started.
//
// Owns: EINTR, short reads and writes, the zero-fill behind the end of a file.
// Must not know: JavaScript, the arena, threads, and what the bytes mean.
//
// Every function returns n >= 0 or a negated errno. All are thread-safe.
#pragma once
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>

namespace lockstep {

// Reads exactly `length` bytes at `pos`; what lies behind the end of the file reads as zeros.
int64_t readExact(int fd, uint8_t* into, size_t length, int64_t pos);

// As readExact, but -EAGAIN when part of the range is not in the page cache.
int64_t readCached(int fd, uint8_t* into, size_t length, int64_t pos);

// Writes all of `length` bytes at `pos`.
int64_t writeExact(int fd, const uint8_t* from, size_t length, int64_t pos);

// Writes all of the vectors at `pos`, in groups of at most IOV_MAX. Changes `vectors`.
int64_t writeVectors(int fd, iovec* vectors, size_t count, int64_t pos);

// Writes zeros to (pos, length), 64 KiB at a time: larger writes would leave large folios in
// the page cache, which make later 4 KiB writes ten times slower (PERFORMANCE.md).
int64_t writeZeros(int fd, int64_t length, int64_t pos);

// Deallocates (pos, length) without changing the size of the file.
int64_t punchHole(int fd, int64_t length, int64_t pos);

// Allocates the holes of (pos, length) without changing size or content. A file system that cannot is no error.
int64_t reserveBlocks(int fd, int64_t length, int64_t pos);

int64_t syncData(int fd);
int64_t syncAll(int fd);

// Closes `fd`. It is gone afterwards, whatever the result: EINTR is success on Linux.
// `path` ends with its terminating zero, which `length` includes. A file that is gone already is no error.
int64_t removeFile(const char* path, size_t length);
int64_t closeFile(int fd);

}  // namespace lockstep
