// The null responder: answers every READ from one static buffer and every
// other request with "done", as fast as one thread can. What a client gets
// from it is that client's own ceiling.
#pragma once
#include <map>
#include <memory>
#include <vector>

#include "loadgen-net.h"

class NullServer {
 public:
  NullServer(const Address& address, uint64_t exportBytes) : exportBytes_(exportBytes), data_(kMaxRead) {
    listener_ = address.socket();
    int one = 1;
    setsockopt(listener_, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener_, address.sa(), address.length) != 0 || listen(listener_, 16) != 0) die("listen: %s", strerror(errno));
    epoll_ = epoll_create1(EPOLL_CLOEXEC);
    watch(EPOLL_CTL_ADD, listener_, EPOLLIN);
  }

  [[noreturn]] void run() {
    epoll_event events[64];
    for (;;) {
      int n = epoll_wait(epoll_, events, 64, -1);
      for (int i = 0; i < n; i++) {
        int fd = events[i].data.fd;
        if (fd == listener_) accept();
        else if (!serve(*connections_.at(fd))) close(fd);
      }
    }
  }

 private:
  static constexpr size_t kMaxRead = 32u << 20, kReceive = 1u << 20, kBatch = 512;
  struct Connection {
    explicit Connection(int fd_) : fd(fd_), in(kReceive), replies(kBatch * nbd::kReplyBytes), out(2 * kBatch) {}
    int fd;
    std::vector<uint8_t> in;
    size_t have = 0;  // bytes in `in` that are not parsed
    size_t skip = 0;  // bytes of write payload still to be thrown away
    bool owed = false;  // the reply to that write
    uint8_t owedCookie[8] = {};
    std::vector<uint8_t> replies;
    SendQueue out;
  };

  void watch(int op, int fd, uint32_t events) {
    epoll_event e{};
    e.events = events;
    e.data.fd = fd;
    epoll_ctl(epoll_, op, fd, &e);
  }
  void close(int fd) {
    connections_.erase(fd);
    ::close(fd);
  }
  // The handshake blocks: only the bench connects here.
  void accept() {
    int fd = accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
    if (fd < 0) return;
    if (!handshake(fd)) {
      ::close(fd);
      return;
    }
    connections_[fd] = std::make_unique<Connection>(fd);
    watch(EPOLL_CTL_ADD, fd, EPOLLIN);
  }
  uint16_t flags() const {
    return nbd::kHasFlags | nbd::kSendFlush | nbd::kSendFua | nbd::kSendTrim | nbd::kSendZeroes | nbd::kMultiConn;
  }
  bool optionReply(int fd, uint32_t option, uint32_t kind, const uint8_t* data, uint32_t n) {
    uint8_t head[20];
    put64(head, nbd::kOptionReplyMagic);
    put32(head + 8, option);
    put32(head + 12, kind);
    put32(head + 16, n);
    return sendExactly(fd, head, sizeof head) && sendExactly(fd, data, n);
  }
  bool handshake(int fd) {
    uint8_t hello[18], client[4], head[16], body[65536];
    put64(hello, nbd::kMagic);
    put64(hello + 8, nbd::kOptionMagic);
    put16(hello + 16, nbd::kFixedNewstyle | nbd::kNoZeroes);
    if (!sendExactly(fd, hello, sizeof hello) || !receiveExactly(fd, client, 4)) return false;
    for (;;) {
      if (!receiveExactly(fd, head, 16)) return false;
      uint32_t option = get32(head + 8), n = get32(head + 12);
      if (get64(head) != nbd::kOptionMagic || n > sizeof body || !receiveExactly(fd, body, n)) return false;
      uint8_t info[12];
      put16(info, nbd::kInfoExport);
      put64(info + 2, exportBytes_);
      put16(info + 10, flags());
      if (option == nbd::kOptGo || option == nbd::kOptInfo) {
        if (!optionReply(fd, option, nbd::kRepInfo, info, sizeof info) || !optionReply(fd, option, nbd::kRepAck, nullptr, 0)) return false;
        if (option == nbd::kOptGo) return true;
      } else if (option == nbd::kOptExportName) {
        uint8_t zeroes[124] = {};
        return sendExactly(fd, info + 2, 10) && ((get32(client) & nbd::kNoZeroes) != 0 || sendExactly(fd, zeroes, sizeof zeroes));
      } else if (option == nbd::kOptAbort) {
        return false;
      } else if (!optionReply(fd, option, nbd::kRepErrUnsup, nullptr, 0)) {
        return false;
      }
    }
  }

  // One receive, one send. False: the connection is over.
  bool serve(Connection& c) {
    if (!c.out.empty()) {
      if (!c.out.flush(c.fd)) return true;
      watch(EPOLL_CTL_MOD, c.fd, EPOLLIN);
    } else {
      ssize_t k = recv(c.fd, c.in.data() + c.have, c.in.size() - c.have, MSG_DONTWAIT);
      if (k < 0 && (errno == EAGAIN || errno == EINTR)) return true;
      if (k <= 0) return false;
      c.have += size_t(k);
    }
    return answer(c);
  }
  static void reply(Connection& c, size_t& count, const uint8_t* cookie) {
    uint8_t* p = c.replies.data() + count++ * nbd::kReplyBytes;
    put32(p, nbd::kSimpleReplyMagic);
    put32(p + 4, 0);
    memcpy(p + 8, cookie, 8);
    c.out.add(p, nbd::kReplyBytes);
  }
  bool answer(Connection& c) {
    size_t at = 0, count = 0;
    for (;;) {
      size_t dropped = c.skip < c.have - at ? c.skip : c.have - at;
      at += dropped;
      c.skip -= dropped;
      if (c.skip == 0 && c.owed) {  // a WRITE is answered when all of it is here
        reply(c, count, c.owedCookie);
        c.owed = false;
      }
      if (c.skip > 0 || c.have - at < nbd::kRequestBytes || count == kBatch) {
        bool more = count == kBatch;
        memmove(c.in.data(), c.in.data() + at, c.have - at);
        c.have -= at;
        at = 0;
        if (!c.out.flush(c.fd)) {
          watch(EPOLL_CTL_MOD, c.fd, EPOLLOUT);
          return true;
        }
        if (c.out.broken) return false;
        if (!more) return true;
        count = 0;
        continue;
      }
      const uint8_t* q = c.in.data() + at;
      uint16_t kind = get16(q + 6);
      uint32_t length = get32(q + 24);
      if (get32(q) != nbd::kRequestMagic || kind == nbd::kDisc || length > kMaxRead) return false;
      if (kind == nbd::kWrite) {
        c.skip = length;
        c.owed = true;
        memcpy(c.owedCookie, q + 8, 8);
      } else {
        reply(c, count, q + 8);
        if (kind == nbd::kRead) c.out.add(data_.data(), length);
      }
      at += nbd::kRequestBytes;
    }
  }

  uint64_t exportBytes_;
  std::vector<uint8_t> data_;
  int listener_ = -1, epoll_ = -1;
  std::map<int, std::unique_ptr<Connection>> connections_;
};
