// See syscalls.h.
#include "syscalls.h"

#include <cerrno>
#include <climits>
#include <cstring>
#include <fcntl.h>
#include <sys/ioctl.h>
#include <linux/fs.h>
#include <linux/fiemap.h>
#include <unistd.h>

namespace lockstep {

namespace {
constexpr size_t ZERO_BYTES = 64 * 1024;
alignas(4096) const uint8_t ZEROS[ZERO_BYTES] = {};
}  // namespace

int64_t readExact(int fd, uint8_t* into, size_t length, int64_t pos) {
  size_t done = 0;
  while (done < length) {
    const ssize_t n = pread(fd, into + done, length - done, pos + static_cast<int64_t>(done));
    if (n > 0) {
      done += static_cast<size_t>(n);
    } else if (n == 0) {
      memset(into + done, 0, length - done);
      return static_cast<int64_t>(length);
    } else if (errno != EINTR) {
      return -errno;
    }
  }
  return static_cast<int64_t>(length);
}

int64_t readCached(int fd, uint8_t* into, size_t length, int64_t pos) {
  size_t done = 0;
  // A short result is either the end of the file or the first page that is not cached; only
  // another call tells which: the end gives 0, the page gives EAGAIN.
  while (done < length) {
    iovec vector = {into + done, length - done};
    const ssize_t n = preadv2(fd, &vector, 1, pos + static_cast<int64_t>(done), RWF_NOWAIT);
    if (n > 0) {
      done += static_cast<size_t>(n);
    } else if (n == 0) {
      memset(into + done, 0, length - done);
      return static_cast<int64_t>(length);
    } else if (errno == EOPNOTSUPP || errno == ENOSYS) {
      const int64_t rest = readExact(fd, into + done, length - done, pos + static_cast<int64_t>(done));
      return rest < 0 ? rest : static_cast<int64_t>(length);
    } else if (errno != EINTR) {
      return -errno;
    }
  }
  return static_cast<int64_t>(length);
}

int64_t writeExact(int fd, const uint8_t* from, size_t length, int64_t pos) {
  size_t done = 0;
  while (done < length) {
    const ssize_t n = pwrite(fd, from + done, length - done, pos + static_cast<int64_t>(done));
    if (n > 0) {
      done += static_cast<size_t>(n);
    } else if (n == 0) {
      return -EIO;  // no progress and no reason given: never loop on it
    } else if (errno != EINTR) {
      return -errno;
    }
  }
  return static_cast<int64_t>(length);
}

int64_t writeVectors(int fd, iovec* vectors, size_t count, int64_t pos) {
  int64_t done = 0;
  size_t at = 0;
  while (at < count) {
    if (vectors[at].iov_len == 0) {
      at++;
      continue;
    }
    const size_t group = count - at < IOV_MAX ? count - at : IOV_MAX;
    const ssize_t n = pwritev(fd, vectors + at, static_cast<int>(group), pos + done);
    if (n < 0) {
      if (errno == EINTR) continue;
      return -errno;
    }
    if (n == 0) return -EIO;
    done += n;
    size_t rest = static_cast<size_t>(n);
    while (at < count && rest >= vectors[at].iov_len) rest -= vectors[at++].iov_len;
    if (rest > 0) {
      vectors[at].iov_base = static_cast<uint8_t*>(vectors[at].iov_base) + rest;
      vectors[at].iov_len -= rest;
    }
  }
  return done;
}

int64_t writeZeros(int fd, int64_t length, int64_t pos) {
  int64_t done = 0;
  while (done < length) {
    const int64_t rest = length - done;
    const size_t chunk = rest < static_cast<int64_t>(ZERO_BYTES) ? static_cast<size_t>(rest) : ZERO_BYTES;
    const int64_t n = writeExact(fd, ZEROS, chunk, pos + done);
    if (n < 0) return n;
    done += n;
  }
  return done;
}

int64_t punchHole(int fd, int64_t length, int64_t pos) {
  if (length == 0) return 0;  // the kernel would answer EINVAL
  while (fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, pos, length) != 0) {
    if (errno != EINTR) return -errno;
  }
  return 0;
}

namespace {

// Whether every byte of (pos, length) has blocks. FIEMAP looks at this range only; SEEK_HOLE would walk all extents up
// to the next hole, wherever that is. Where the file system has no FIEMAP: yes, nothing can be gained there.
bool allocated(int fd, uint64_t length, uint64_t pos) {
  constexpr uint32_t EXTENTS = 16;
  alignas(fiemap) char memory[sizeof(fiemap) + EXTENTS * sizeof(fiemap_extent)];
  const uint64_t end = pos + length;
  while (pos < end) {
    fiemap* map = reinterpret_cast<fiemap*>(memory);
    memset(map, 0, sizeof(fiemap));
    map->fm_start = pos;
    map->fm_length = end - pos;
    map->fm_extent_count = EXTENTS;
    // Any other error is for fallocate to report.
    if (ioctl(fd, FS_IOC_FIEMAP, map) != 0) return errno == EOPNOTSUPP || errno == ENOTTY || errno == ENOSYS;
    if (map->fm_mapped_extents == 0) return false;
    for (uint32_t i = 0; i < map->fm_mapped_extents; i++) {
      const fiemap_extent& extent = map->fm_extents[i];
      if (extent.fe_logical > pos) return false;
      pos = extent.fe_logical + extent.fe_length;
    }
  }
  return true;
}

}  // namespace

int64_t reserveBlocks(int fd, int64_t length, int64_t pos) {
  if (length == 0) return 0;
  // Looking first is cheap; fallocate on what is allocated already would start a transaction each time.
  if (allocated(fd, static_cast<uint64_t>(length), static_cast<uint64_t>(pos))) return 0;
  while (fallocate(fd, FALLOC_FL_KEEP_SIZE, pos, length) != 0) {
    if (errno == EOPNOTSUPP || errno == ENOSYS) return 0;
    if (errno != EINTR) return -errno;
  }
  return 0;
}

int64_t syncData(int fd) {
  while (fdatasync(fd) != 0) {
    if (errno != EINTR) return -errno;
  }
  return 0;
}

int64_t syncAll(int fd) {
  while (fsync(fd) != 0) {
    if (errno != EINTR) return -errno;
  }
  return 0;
}

int64_t removeFile(const char* path, size_t length) {
  if (length == 0 || path[length - 1] != '\0') return -EINVAL;
  if (unlink(path) != 0 && errno != ENOENT) return -errno;
  return 0;
}

int64_t closeFile(int fd) {
  if (close(fd) != 0 && errno != EINTR) return -errno;
  return 0;
}

}  // namespace lockstep
