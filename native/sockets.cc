// Stream sockets, TCP and Unix: all non-blocking and close-on-exec.
//
// Must not know: the protocols that run over them.
#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstring>

#include "context.h"
#include "syscalls.h"

namespace lockstep {
namespace {

union Address {
  sockaddr any;
  sockaddr_in v4;
  sockaddr_in6 v6;
  sockaddr_un local;
  sockaddr_storage storage;
};

int newSocket(int family) { return socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0); }

// Small replies must not wait for an acknowledgement. Fails harmlessly on a Unix socket.
void setNoDelay(int fd) {
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

int closeAndGive(int fd, int error) {
  closeFile(fd);
  return -error;
}

// Resolves host and port; 0 or -errno. A literal address never asks a name server; a name does, and blocks.
int resolve(const std::string& host, int port, bool passive, Address* address, socklen_t* length) {
  addrinfo hints = {};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV | (passive ? AI_PASSIVE : 0);
  char service[16];
  snprintf(service, sizeof service, "%d", port);
  addrinfo* list = nullptr;
  const int code = getaddrinfo(host.empty() ? nullptr : host.c_str(), service, &hints, &list);
  if (code == EAI_SYSTEM) return -errno;
  if (code == EAI_MEMORY) return -ENOMEM;
  if (code != 0 || list == nullptr) return passive ? -EADDRNOTAVAIL : -EHOSTUNREACH;
  memcpy(&address->storage, list->ai_addr, list->ai_addrlen);
  *length = list->ai_addrlen;
  freeaddrinfo(list);
  return 0;
}

int localAddress(const std::string& path, Address* address, socklen_t* length) {
  if (path.empty()) return -EINVAL;
  if (path.size() >= sizeof address->local.sun_path) return -ENAMETOOLONG;
  memset(&address->local, 0, sizeof address->local);
  address->local.sun_family = AF_UNIX;
  memcpy(address->local.sun_path, path.c_str(), path.size() + 1);
  *length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + path.size() + 1);
  return 0;
}

int listenTcp(const std::string& host, int port, int backlog) {
  Address address;
  socklen_t length = 0;
  const int resolved = resolve(host, port, true, &address, &length);
  if (resolved < 0) return resolved;
  const int fd = newSocket(address.any.sa_family);
  if (fd < 0) return -errno;
  const int on = 1, off = 0;
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (address.any.sa_family == AF_INET6) setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
  if (bind(fd, &address.any, length) != 0 || listen(fd, backlog) != 0) return closeAndGive(fd, errno);
  return fd;
}

// True when `path` is a socket file that nobody listens on: what a killed process leaves behind.
bool isStaleSocket(const std::string& path, const Address& address, socklen_t length) {
  struct stat facts;
  if (lstat(path.c_str(), &facts) != 0 || !S_ISSOCK(facts.st_mode)) return false;
  const int probe = newSocket(AF_UNIX);
  if (probe < 0) return false;
  const bool refused = connect(probe, &address.any, length) != 0 && errno == ECONNREFUSED;
  closeFile(probe);
  return refused;
}

int listenUnix(const std::string& path, int backlog) {
  Address address;
  socklen_t length = 0;
  const int valid = localAddress(path, &address, &length);
  if (valid < 0) return valid;
  const int fd = newSocket(AF_UNIX);
  if (fd < 0) return -errno;
  int bound = bind(fd, &address.any, length);
  if (bound != 0 && errno == EADDRINUSE) {
    if (!isStaleSocket(path, address, length)) return closeAndGive(fd, EADDRINUSE);
    unlink(path.c_str());
    bound = bind(fd, &address.any, length);
  }
  if (bound != 0 || listen(fd, backlog) != 0) return closeAndGive(fd, errno);
  return fd;
}

int connectTo(const Address& address, socklen_t length) {
  const int fd = newSocket(address.any.sa_family);
  if (fd < 0) return -errno;
  if (address.any.sa_family != AF_UNIX) setNoDelay(fd);
  // EINTR: the connection goes on being made in the background, like EINPROGRESS.
  if (connect(fd, &address.any, length) != 0 && errno != EINPROGRESS && errno != EINTR) return closeAndGive(fd, errno);
  return fd;
}

// ---- calls ----------------------------------------------------------------------------------

napi_value listenTcpCall(napi_env env, napi_callback_info info) {  // host, port, backlog
  Call<3> call(env, info);
  const std::string host = call.text(0);
  const int port = static_cast<int>(call.whole(1, 65535));
  const int backlog = call.integer(2);
  if (call.failed()) return nullptr;
  return give(env, listenTcp(host, port, backlog));
}

napi_value listenUnixCall(napi_env env, napi_callback_info info) {  // path, backlog
  Call<2> call(env, info);
  const std::string path = call.text(0);
  const int backlog = call.integer(1);
  if (call.failed()) return nullptr;
  return give(env, listenUnix(path, backlog));
}

napi_value connectTcpCall(napi_env env, napi_callback_info info) {  // host, port
  Call<2> call(env, info);
  const std::string host = call.text(0);
  const int port = static_cast<int>(call.whole(1, 65535));
  if (call.failed()) return nullptr;
  Address address;
  socklen_t length = 0;
  const int resolved = resolve(host, port, false, &address, &length);
  return give(env, resolved < 0 ? resolved : connectTo(address, length));
}

napi_value connectUnixCall(napi_env env, napi_callback_info info) {  // path
  Call<1> call(env, info);
  const std::string path = call.text(0);
  if (call.failed()) return nullptr;
  Address address;
  socklen_t length = 0;
  const int valid = localAddress(path, &address, &length);
  return give(env, valid < 0 ? valid : connectTo(address, length));
}

napi_value boundPortCall(napi_env env, napi_callback_info info) {  // fd
  Call<1> call(env, info);
  const int fd = call.integer(0);
  if (call.failed()) return nullptr;
  Address address;
  socklen_t length = sizeof address;
  if (getsockname(fd, &address.any, &length) != 0) return give(env, -errno);
  if (address.any.sa_family == AF_INET) return give(env, ntohs(address.v4.sin_port));
  if (address.any.sa_family == AF_INET6) return give(env, ntohs(address.v6.sin6_port));
  return give(env, -EOPNOTSUPP);
}

napi_value acceptCall(napi_env env, napi_callback_info info) {  // fd
  Call<1> call(env, info);
  const int fd = call.integer(0);
  if (call.failed()) return nullptr;
  for (;;) {
    Address peer;
    socklen_t length = sizeof peer;
    const int connection = accept4(fd, &peer.any, &length, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (connection >= 0) {
      if (peer.any.sa_family != AF_UNIX) setNoDelay(connection);
      return give(env, connection);
    }
    // The peer gave up while it waited in the backlog: that is nobody's error.
    if (errno != EINTR && errno != ECONNABORTED) return give(env, -errno);
  }
}

napi_value socketErrorCall(napi_env env, napi_callback_info info) {  // fd
  Call<1> call(env, info);
  const int fd = call.integer(0);
  if (call.failed()) return nullptr;
  int error = 0;
  socklen_t length = sizeof error;
  if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) != 0) return give(env, -errno);
  return give(env, -error);
}

napi_value peerNameCall(napi_env env, napi_callback_info info) {  // fd
  Call<1> call(env, info);
  const int fd = call.integer(0);
  if (call.failed()) return nullptr;
  Address peer;
  socklen_t length = sizeof peer;
  if (getpeername(fd, &peer.any, &length) != 0) return giveText(env, "unknown peer");
  char host[INET6_ADDRSTRLEN] = "";
  char out[128] = "unknown peer";
  if (peer.any.sa_family == AF_INET) {
    inet_ntop(AF_INET, &peer.v4.sin_addr, host, sizeof host);
    snprintf(out, sizeof out, "%s:%d", host, ntohs(peer.v4.sin_port));
  } else if (peer.any.sa_family == AF_INET6) {
    inet_ntop(AF_INET6, &peer.v6.sin6_addr, host, sizeof host);
    snprintf(out, sizeof out, "[%s]:%d", host, ntohs(peer.v6.sin6_port));
  } else if (peer.any.sa_family == AF_UNIX) {
    ucred who = {};
    length = sizeof who;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &length) == 0) {
      snprintf(out, sizeof out, "unix:pid=%d,uid=%u", who.pid, who.uid);
    }
  }
  return giveText(env, out);
}

napi_value setBuffersCall(napi_env env, napi_callback_info info) {  // fd, sendBytes, receiveBytes
  Call<3> call(env, info);
  const int fd = call.integer(0);
  const int sendBytes = static_cast<int>(call.whole(1, INT_MAX));
  const int receiveBytes = static_cast<int>(call.whole(2, INT_MAX));
  if (call.failed()) return nullptr;
  if (sendBytes > 0 && setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &sendBytes, sizeof sendBytes) != 0) {
    return give(env, -errno);
  }
  if (receiveBytes > 0 && setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receiveBytes, sizeof receiveBytes) != 0) {
    return give(env, -errno);
  }
  return give(env, 0);
}

napi_value recvCall(napi_env env, napi_callback_info info) {  // fd, buffer, length
  Call<3> call(env, info);
  const int fd = call.integer(0);
  size_t length = 0;
  uint8_t* into = call.range(1, &length);
  if (call.failed()) return nullptr;
  ssize_t n;
  do {
    n = recv(fd, into, length, 0);
  } while (n < 0 && errno == EINTR);
  return give(env, n < 0 ? -errno : n);
}

napi_value sendCall(napi_env env, napi_callback_info info) {  // fd, buffer, length
  Call<3> call(env, info);
  const int fd = call.integer(0);
  size_t length = 0;
  const uint8_t* from = call.range(1, &length);
  if (call.failed()) return nullptr;
  ssize_t n;
  do {
    n = send(fd, from, length, MSG_NOSIGNAL);
  } while (n < 0 && errno == EINTR);
  return give(env, n < 0 ? -errno : n);
}

napi_value sendvCall(napi_env env, napi_callback_info info) {  // fd, count
  Call<2> call(env, info);
  const int fd = call.integer(0);
  const size_t count = static_cast<size_t>(call.whole(1, UINT32_MAX));
  if (call.failed() || !loadVectors(call, count)) return nullptr;
  msghdr message = {};
  message.msg_iov = call.context().vectors.get();
  message.msg_iovlen = count < IOV_MAX ? count : IOV_MAX;  // a partial send is allowed anyway
  ssize_t n;
  do {
    n = sendmsg(fd, &message, MSG_NOSIGNAL);
  } while (n < 0 && errno == EINTR);
  return give(env, n < 0 ? -errno : n);
}

napi_value shutdownCall(napi_env env, napi_callback_info info) {  // fd
  Call<1> call(env, info);
  const int fd = call.integer(0);
  if (call.failed()) return nullptr;
  return give(env, shutdown(fd, SHUT_RDWR) != 0 ? -errno : 0);
}

const Method METHODS[] = {
    {"listenTcp", listenTcpCall},     {"listenUnix", listenUnixCall}, {"connectTcp", connectTcpCall},
    {"connectUnix", connectUnixCall}, {"boundPort", boundPortCall},   {"accept", acceptCall},
    {"socketError", socketErrorCall}, {"peerName", peerNameCall},     {"setBuffers", setBuffersCall},
    {"recv", recvCall},               {"send", sendCall},             {"sendv", sendvCall},
    {"shutdown", shutdownCall},
};

}  // namespace

Methods socketMethods() { return {METHODS, sizeof METHODS / sizeof METHODS[0]}; }

}  // namespace lockstep
