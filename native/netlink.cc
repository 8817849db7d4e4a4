// Netlink sockets, and the few calls on bare descriptors that belong to no arena.
//
// Blocking with a time limit: used by the command line, never on the data path.
// Must not know: the families and messages (src/io/netlink.ts does).
#include <fcntl.h>
#include <linux/netlink.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <cerrno>

#include "context.h"

namespace lockstep {
namespace {

napi_value netlinkOpenCall(napi_env env, napi_callback_info info) {  // protocol, timeoutMs
  Call<2> call(env, info);
  const int protocol = call.integer(0);
  const int timeoutMs = static_cast<int>(call.whole(1, 3600e3));
  if (call.failed()) return nullptr;
  const int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol);
  if (fd < 0) return give(env, -errno);
  sockaddr_nl address = {};
  address.nl_family = AF_NETLINK;
  const timeval limit = {timeoutMs / 1000, (timeoutMs % 1000) * 1000};
  if (bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0 ||
      setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) != 0) {
    const int error = errno;
    close(fd);
    return give(env, -error);
  }
  return give(env, fd);
}

napi_value netlinkSendCall(napi_env env, napi_callback_info info) {  // fd, bytes
  Call<2> call(env, info);
  const int fd = call.integer(0);
  size_t length = 0;
  const void* bytes = call.elements(1, napi_uint8_array, &length);
  if (call.failed()) return nullptr;
  sockaddr_nl kernel = {};
  kernel.nl_family = AF_NETLINK;
  ssize_t n;
  do {
    n = sendto(fd, bytes, length, 0, reinterpret_cast<sockaddr*>(&kernel), sizeof kernel);
  } while (n < 0 && errno == EINTR);
  return give(env, n < 0 ? -errno : n);
}

// The next datagram of the kernel itself; other processes may not speak here. -EMSGSIZE when it does not fit.
napi_value netlinkReceiveCall(napi_env env, napi_callback_info info) {  // fd, into
  Call<2> call(env, info);
  const int fd = call.integer(0);
  size_t length = 0;
  void* into = call.elements(1, napi_uint8_array, &length);
  if (call.failed()) return nullptr;
  for (;;) {
    sockaddr_nl from = {};
    socklen_t size = sizeof from;
    const ssize_t n = recvfrom(fd, into, length, MSG_TRUNC, reinterpret_cast<sockaddr*>(&from), &size);
    if (n < 0) {
      if (errno == EINTR) continue;
      return give(env, -errno);
    }
    if (from.nl_pid != 0) continue;
    return give(env, static_cast<size_t>(n) > length ? -EMSGSIZE : n);
  }
}

napi_value netlinkJoinCall(napi_env env, napi_callback_info info) {  // fd, group
  Call<2> call(env, info);
  const int fd = call.integer(0);
  const int group = call.integer(1);
  if (call.failed()) return nullptr;
  return give(env, setsockopt(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof group) != 0 ? -errno : 0);
}

napi_value closeFdCall(napi_env env, napi_callback_info info) {  // fd
  Call<1> call(env, info);
  const int fd = call.integer(0);
  if (call.failed()) return nullptr;
  return give(env, close(fd) != 0 && errno != EINTR ? -errno : 0);
}

// A socket that goes to the kernel's nbd client should block: its threads expect that.
napi_value setBlockingCall(napi_env env, napi_callback_info info) {  // fd, blocking (0 or 1)
  Call<2> call(env, info);
  const int fd = call.integer(0);
  const int blocking = call.integer(1);
  if (call.failed()) return nullptr;
  const int flags = fcntl(fd, F_GETFL);
  if (flags < 0) return give(env, -errno);
  const int wanted = blocking != 0 ? flags & ~O_NONBLOCK : flags | O_NONBLOCK;
  return give(env, fcntl(fd, F_SETFL, wanted) != 0 ? -errno : 0);
}

// Adds one to the eventfd of another thread's Io: ends its wait.
napi_value wakeCall(napi_env env, napi_callback_info info) {  // fd
  Call<1> call(env, info);
  const int fd = call.integer(0);
  if (call.failed()) return nullptr;
  const uint64_t one = 1;
  ssize_t n;
  do {
    n = write(fd, &one, sizeof one);
  } while (n < 0 && errno == EINTR);
  // EAGAIN: the counter is full, so the other side has been woken often enough.
  return give(env, n < 0 && errno != EAGAIN ? -errno : 0);
}

// ioctl whose argument is a number or nothing. Blocks for as long as the kernel does.
napi_value ioctlCall(napi_env env, napi_callback_info info) {  // fd, request, argument
  Call<3> call(env, info);
  const int fd = call.integer(0);
  const double request = call.whole(1, UINT32_MAX);
  const double argument = call.whole(2, UINT32_MAX);
  if (call.failed()) return nullptr;
  const int result = ioctl(fd, static_cast<unsigned long>(request), static_cast<unsigned long>(argument));
  return give(env, result < 0 ? -errno : result);
}

// Writes back the whole file system that the descriptor lies on.
napi_value syncfsCall(napi_env env, napi_callback_info info) {  // fd
  Call<1> call(env, info);
  const int fd = call.integer(0);
  if (call.failed()) return nullptr;
  return give(env, syncfs(fd) != 0 ? -errno : 0);
}

const Method METHODS[] = {
    {"netlinkOpen", netlinkOpenCall}, {"netlinkSend", netlinkSendCall}, {"netlinkReceive", netlinkReceiveCall},
    {"netlinkJoin", netlinkJoinCall}, {"closeFd", closeFdCall},         {"setBlocking", setBlockingCall},
    {"wake", wakeCall},               {"ioctl", ioctlCall},             {"syncfs", syncfsCall},
};

}  // namespace

Methods netlinkMethods() { return {METHODS, sizeof METHODS / sizeof METHODS[0]}; }

}  // namespace lockstep
