// Files: the hot calls on arena ranges and the cold ones on paths.
//
// Must not know: what the files hold. Helper threads use syscalls.h directly.
#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>

#include "context.h"
#include "syscalls.h"

namespace lockstep {
namespace {

// ---- hot ------------------------------------------------------------------------------------

napi_value pwritevCall(napi_env env, napi_callback_info info) {  // fd, count, pos
  Call<3> call(env, info);
  const int fd = call.integer(0);
  const size_t count = static_cast<size_t>(call.whole(1, UINT32_MAX));
  const int64_t pos = call.position(2);
  if (call.failed() || !loadVectors(call, count)) return nullptr;
  return give(env, writeVectors(fd, call.context().vectors.get(), count, pos));
}

napi_value pwriteCall(napi_env env, napi_callback_info info) {  // fd, buffer, length, pos
  Call<4> call(env, info);
  const int fd = call.integer(0);
  size_t length = 0;
  const uint8_t* from = call.range(1, &length);
  const int64_t pos = call.position(3);
  if (call.failed()) return nullptr;
  return give(env, writeExact(fd, from, length, pos));
}

napi_value preadCall(napi_env env, napi_callback_info info) {  // fd, buffer, length, pos
  Call<4> call(env, info);
  const int fd = call.integer(0);
  size_t length = 0;
  uint8_t* into = call.range(1, &length);
  const int64_t pos = call.position(3);
  if (call.failed()) return nullptr;
  return give(env, readExact(fd, into, length, pos));
}

napi_value preadNowaitCall(napi_env env, napi_callback_info info) {  // fd, buffer, length, pos
  Call<4> call(env, info);
  const int fd = call.integer(0);
  size_t length = 0;
  uint8_t* into = call.range(1, &length);
  const int64_t pos = call.position(3);
  if (call.failed()) return nullptr;
  return give(env, readCached(fd, into, length, pos));
}

napi_value fdatasyncCall(napi_env env, napi_callback_info info) {  // fd
  Call<1> call(env, info);
  const int fd = call.integer(0);
  if (call.failed()) return nullptr;
  return give(env, syncData(fd));
}

// ---- cold -----------------------------------------------------------------------------------

napi_value openCall(napi_env env, napi_callback_info info) {  // path, flags, mode
  Call<3> call(env, info);
  const std::string path = call.text(0);
  const int flags = call.integer(1);
  const int mode = call.integer(2);
  if (call.failed()) return nullptr;
  int fd;
  do {
    fd = open(path.c_str(), flags | O_CLOEXEC, mode);
  } while (fd < 0 && errno == EINTR);
  return give(env, fd < 0 ? -errno : fd);
}

napi_value closeCall(napi_env env, napi_callback_info info) {  // fd
  Call<1> call(env, info);
  const int fd = call.integer(0);
  if (call.failed()) return nullptr;
  return give(env, closeFile(fd));
}

napi_value syncDirectoryCall(napi_env env, napi_callback_info info) {  // path
  Call<1> call(env, info);
  const std::string path = call.text(0);
  if (call.failed()) return nullptr;
  const int fd = open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return give(env, -errno);
  const int64_t result = syncAll(fd);
  closeFile(fd);
  return give(env, result);
}

napi_value mkdirCall(napi_env env, napi_callback_info info) {  // path, mode
  Call<2> call(env, info);
  const std::string path = call.text(0);
  const int mode = call.integer(1);
  if (call.failed()) return nullptr;
  return give(env, mkdir(path.c_str(), static_cast<mode_t>(mode)) != 0 ? -errno : 0);
}

// An array of names, or -errno.
napi_value listCall(napi_env env, napi_callback_info info) {  // path
  Call<1> call(env, info);
  const std::string path = call.text(0);
  if (call.failed()) return nullptr;
  DIR* dir = opendir(path.c_str());
  if (dir == nullptr) return give(env, -errno);
  napi_value names = nullptr;
  napi_create_array(env, &names);
  uint32_t count = 0;
  for (;;) {
    errno = 0;
    const dirent* entry = readdir(dir);
    if (entry == nullptr) {
      const int error = errno;
      closedir(dir);
      return error != 0 ? give(env, -error) : names;
    }
    const std::string name = entry->d_name;
    if (name != "." && name != "..") napi_set_element(env, names, count++, giveText(env, name));
  }
}

napi_value renameCall(napi_env env, napi_callback_info info) {  // from, to
  Call<2> call(env, info);
  const std::string from = call.text(0);
  const std::string to = call.text(1);
  if (call.failed()) return nullptr;
  return give(env, rename(from.c_str(), to.c_str()) != 0 ? -errno : 0);
}

napi_value unlinkCall(napi_env env, napi_callback_info info) {  // path
  Call<1> call(env, info);
  const std::string path = call.text(0);
  if (call.failed()) return nullptr;
  return give(env, unlink(path.c_str()) != 0 ? -errno : 0);
}

napi_value truncateCall(napi_env env, napi_callback_info info) {  // fd, size
  Call<2> call(env, info);
  const int fd = call.integer(0);
  const int64_t size = call.position(1);
  if (call.failed()) return nullptr;
  while (ftruncate(fd, size) != 0) {
    if (errno != EINTR) return give(env, -errno);
  }
  return give(env, 0);
}

// results: size, allocated bytes, 1 for a directory.
napi_value statCall(napi_env env, napi_callback_info info) {  // fd
  Call<1> call(env, info);
  const int fd = call.integer(0);
  if (call.failed()) return nullptr;
  struct stat facts;
  if (fstat(fd, &facts) != 0) return give(env, -errno);
  double* out = call.context().results;
  out[0] = static_cast<double>(facts.st_size);
  out[1] = static_cast<double>(facts.st_blocks) * 512;
  out[2] = S_ISDIR(facts.st_mode) ? 1 : 0;
  return give(env, 0);
}

// results: start, end of the next allocated range; returns 0 when there is none, 1 when there is.
napi_value nextDataCall(napi_env env, napi_callback_info info) {  // fd, pos
  Call<2> call(env, info);
  const int fd = call.integer(0);
  const int64_t pos = call.position(1);
  if (call.failed()) return nullptr;
  const off_t start = lseek(fd, pos, SEEK_DATA);
  if (start < 0) return give(env, errno == ENXIO ? 0 : -errno);
  const off_t end = lseek(fd, start, SEEK_HOLE);
  if (end < 0) return give(env, -errno);
  double* out = call.context().results;
  out[0] = static_cast<double>(start);
  out[1] = static_cast<double>(end);
  return give(env, 1);
}

napi_value adviseRandomCall(napi_env env, napi_callback_info info) {  // fd
  Call<1> call(env, info);
  const int fd = call.integer(0);
  if (call.failed()) return nullptr;
  return give(env, -posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM));
}

napi_value adviseDontNeedCall(napi_env env, napi_callback_info info) {  // fd, pos, length
  Call<3> call(env, info);
  const int fd = call.integer(0);
  const int64_t pos = call.position(1);
  const int64_t length = call.position(2);
  if (call.failed()) return nullptr;
  return give(env, -posix_fadvise(fd, pos, length, POSIX_FADV_DONTNEED));
}

// results: total bytes, bytes that a process without privileges may still write.
napi_value spaceCall(napi_env env, napi_callback_info info) {  // path
  Call<1> call(env, info);
  const std::string path = call.text(0);
  if (call.failed()) return nullptr;
  struct statvfs facts;
  while (statvfs(path.c_str(), &facts) != 0) {
    if (errno != EINTR) return give(env, -errno);
  }
  double* out = call.context().results;
  out[0] = static_cast<double>(facts.f_blocks) * static_cast<double>(facts.f_frsize);
  out[1] = static_cast<double>(facts.f_bavail) * static_cast<double>(facts.f_frsize);
  return give(env, 0);
}

const Method METHODS[] = {
    {"pwritev", pwritevCall},
    {"pwrite", pwriteCall},
    {"pread", preadCall},
    {"preadNowait", preadNowaitCall},
    {"fdatasync", fdatasyncCall},
    {"open", openCall},
    {"close", closeCall},
    {"syncDirectory", syncDirectoryCall},
    {"mkdir", mkdirCall},
    {"list", listCall},
    {"rename", renameCall},
    {"unlink", unlinkCall},
    {"truncate", truncateCall},
    {"stat", statCall},
    {"nextData", nextDataCall},
    {"adviseRandom", adviseRandomCall},
    {"adviseDontNeed", adviseDontNeedCall},
    {"space", spaceCall},
};

}  // namespace

Methods fileMethods() { return {METHODS, sizeof METHODS / sizeof METHODS[0]}; }

}  // namespace lockstep
