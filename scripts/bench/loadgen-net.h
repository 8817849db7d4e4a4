// What the load generator and its null responder share: NBD's numbers (the
// protocol's own names, doc/proto.md of the NBD project), sockets, exact I/O.
#pragma once
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <string>

namespace nbd {
constexpr uint64_t kMagic = 0x4e42444d41474943;        // "NBDMAGIC"
constexpr uint64_t kOptionMagic = 0x49484156454f5054;  // "IHAVEOPT"
constexpr uint64_t kOptionReplyMagic = 0x0003e889045565a9;
constexpr uint32_t kRequestMagic = 0x25609513;
constexpr uint32_t kSimpleReplyMagic = 0x67446698;
constexpr uint16_t kFixedNewstyle = 1, kNoZeroes = 2;
constexpr uint32_t kOptExportName = 1, kOptAbort = 2, kOptList = 3, kOptInfo = 6, kOptGo = 7;
constexpr uint32_t kRepAck = 1, kRepServer = 2, kRepInfo = 3, kRepErrUnsup = 0x80000001;
constexpr uint16_t kInfoExport = 0;
constexpr uint16_t kHasFlags = 1, kReadOnly = 2, kSendFlush = 4, kSendFua = 8, kSendTrim = 32, kSendZeroes = 64, kMultiConn = 256;
constexpr uint16_t kRead = 0, kWrite = 1, kDisc = 2, kFlush = 3, kTrim = 4, kZeroes = 6;
constexpr uint16_t kFlagFua = 1;
constexpr size_t kRequestBytes = 28, kReplyBytes = 16;
}  // namespace nbd

[[noreturn]] inline void die(const char* format, ...) {
  va_list args;
  va_start(args, format);
  fputs("loadgen: ", stderr);
  vfprintf(stderr, format, args);
  fputc('\n', stderr);
  va_end(args);
  exit(1);
}

inline uint64_t nowNs() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return uint64_t(t.tv_sec) * 1000000000u + uint64_t(t.tv_nsec);
}

inline void put16(uint8_t* p, uint16_t v) { v = htobe16(v); memcpy(p, &v, 2); }
inline void put32(uint8_t* p, uint32_t v) { v = htobe32(v); memcpy(p, &v, 4); }
inline void put64(uint8_t* p, uint64_t v) { v = htobe64(v); memcpy(p, &v, 8); }
inline uint16_t get16(const uint8_t* p) { uint16_t v; memcpy(&v, p, 2); return be16toh(v); }
inline uint32_t get32(const uint8_t* p) { uint32_t v; memcpy(&v, p, 4); return be32toh(v); }
inline uint64_t get64(const uint8_t* p) { uint64_t v; memcpy(&v, p, 8); return be64toh(v); }

// "unix:PATH" or "tcp:HOST:PORT".
struct Address {
  sockaddr_storage bytes{};
  socklen_t length = 0;
  bool isTcp = false;

  static Address parse(const std::string& text) {
    Address a;
    if (text.rfind("unix:", 0) == 0) {
      sockaddr_un* u = reinterpret_cast<sockaddr_un*>(&a.bytes);
      u->sun_family = AF_UNIX;
      if (text.size() - 5 >= sizeof u->sun_path) die("socket path too long: %s", text.c_str());
      strcpy(u->sun_path, text.c_str() + 5);
      a.length = sizeof *u;
      return a;
    }
    size_t colon = text.rfind(':');
    if (text.rfind("tcp:", 0) != 0 || colon <= 4) die("address must be unix:PATH or tcp:HOST:PORT, not %s", text.c_str());
    addrinfo hints{}, *found = nullptr;
    hints.ai_socktype = SOCK_STREAM;
    if (getaddrinfo(text.substr(4, colon - 4).c_str(), text.c_str() + colon + 1, &hints, &found) != 0) die("unknown host: %s", text.c_str());
    memcpy(&a.bytes, found->ai_addr, found->ai_addrlen);
    a.length = found->ai_addrlen;
    a.isTcp = true;
    freeaddrinfo(found);
    return a;
  }

  const sockaddr* sa() const { return reinterpret_cast<const sockaddr*>(&bytes); }
  int socket() const {
    int fd = ::socket(bytes.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) die("socket: %s", strerror(errno));
    int one = 1;
    if (isTcp) setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    return fd;
  }
};

// False when the other side closed or broke the connection.
inline bool sendExactly(int fd, const void* data, size_t n) {
  const char* p = static_cast<const char*>(data);
  while (n > 0) {
    ssize_t k = send(fd, p, n, MSG_NOSIGNAL);
    if (k < 0 && errno == EINTR) continue;
    if (k <= 0) return false;
    p += k;
    n -= size_t(k);
  }
  return true;
}

// As above.
inline bool receiveExactly(int fd, void* data, size_t n) {
  char* p = static_cast<char*>(data);
  while (n > 0) {
    ssize_t k = recv(fd, p, n, 0);
    if (k < 0 && errno == EINTR) continue;
    if (k <= 0) return false;
    p += k;
    n -= size_t(k);
  }
  return true;
}

// Output that one system call may not take whole: slices in order, each valid
// until it is sent. `flush` never blocks.
class SendQueue {
 public:
  explicit SendQueue(size_t slices) : iov_(new iovec[slices]), limit_(slices) {}
  ~SendQueue() { delete[] iov_; }
  SendQueue(const SendQueue&) = delete;
  SendQueue& operator=(const SendQueue&) = delete;

  bool empty() const { return first_ == end_; }
  size_t room() const { return limit_ - end_; }
  void add(const void* data, size_t n) {
    if (end_ == limit_) die("send queue overflow");
    iov_[end_++] = {const_cast<void*>(data), n};
  }
  // Sends what the socket takes; true when nothing is left.
  bool flush(int fd) {
    while (first_ < end_) {
      msghdr m{};
      m.msg_iov = iov_ + first_;
      m.msg_iovlen = end_ - first_ > 1024 ? 1024 : end_ - first_;
      ssize_t k = sendmsg(fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL);
      if (k < 0) {
        if (errno == EINTR) continue;
        if (errno == EAGAIN) return false;
        return broken = true;
      }
      for (size_t n = size_t(k); n > 0;) {
        iovec& v = iov_[first_];
        if (n < v.iov_len) {
          v.iov_base = static_cast<char*>(v.iov_base) + n;
          v.iov_len -= n;
          break;
        }
        n -= v.iov_len;
        first_++;
      }
    }
    first_ = end_ = 0;
    return true;
  }
  // The connection failed while sending.
  bool broken = false;

 private:
  iovec* iov_;
  size_t limit_, first_ = 0, end_ = 0;
};
