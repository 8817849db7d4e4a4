// One pipelining NBD connection: keeps `depth` requests on the way, takes all
// replies that one receive brings, and sends all requests that they allow with
// one system call.
#pragma once
#include <vector>

#include "loadgen-histogram.h"
#include "loadgen-net.h"

enum class Op { kRead, kWrite, kMixed, kTrim, kZeroes };

struct Load {
  Op op = Op::kRead;
  bool sequential = false, fua = false;
  unsigned readShare = 50;      // of kMixed, per cent
  unsigned flushEvery = 0;      // a FLUSH after so many writes; 0 never
  unsigned depth = 1;
  uint32_t blockBytes = 4096;
  uint64_t offset = 0, rangeBytes = 0;
  uint64_t requestLimit = 0;    // 0: until time is over
  uint64_t seed = 1;
};

// splitmix64
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
  }
  uint64_t below(uint64_t n) { return uint64_t((unsigned __int128)next() * n >> 64); }

 private:
  uint64_t state_;
};

struct LogEntry {
  uint64_t startNs;
  uint32_t latencyNs;  // saturated
  uint16_t kind;
};

// What all connections add to.
struct Tally {
  Histogram latency;          // of data requests
  uint64_t requests = 0, bytes = 0, flushes = 0, errors = 0;
  uint32_t firstError = 0;
  std::vector<LogEntry>* log = nullptr;
  size_t logLimit = 0;
  void clear() {
    latency.clear();
    requests = bytes = flushes = errors = 0;
    if (log != nullptr) log->clear();
  }
};

class Client {
 public:
  Client(const Address& address, const std::string& name, const Load& load, unsigned number, unsigned of, Tally& tally)
      : load_(load), tally_(tally), random_(load.seed * 1000003 + number), slots_(load.depth), headers_(load.depth * nbd::kRequestBytes),
        out_(2 * load.depth), in_(load.blockBytes >= (256u << 10) ? (1u << 20) : (512u << 10)) {
    fd = address.socket();
    if (connect(fd, address.sa(), address.length) != 0) die("connect: %s", strerror(errno));
    negotiate(name);
    uint64_t range = load.rangeBytes != 0 ? load.rangeBytes : size_ - load.offset;
    if (load.offset + range > size_) die("the range ends at %llu, the export at %llu", (unsigned long long)(load.offset + range), (unsigned long long)size_);
    blocks_ = range / load.blockBytes;
    if (blocks_ == 0) die("the range is smaller than one block");
    next_ = blocks_ / of * number;  // sequential connections start apart
    if (load.op != Op::kRead && (flags_ & nbd::kReadOnly) != 0) die("the export is read-only");
    if (load.fua && (flags_ & nbd::kSendFua) == 0) die("the server does not take FUA");
    if (load.flushEvery != 0 && (flags_ & nbd::kSendFlush) == 0) die("the server does not take FLUSH");
    if (load.op == Op::kTrim && (flags_ & nbd::kSendTrim) == 0) die("the server does not take TRIM");
    payload_.resize(load.blockBytes + kPayloadShift);
    for (size_t i = 0; i + 8 <= payload_.size(); i += 8) put64(&payload_[i], random_.next());
    for (unsigned i = 0; i < load.depth; i++) free_.push_back(i);
  }
  ~Client() { ::close(fd); }

  int fd = -1;
  uint64_t submitted = 0;
  bool idle() const { return free_.size() == slots_.size() && out_.empty(); }
  bool sending() const { return !out_.empty(); }

  // Sends what is left, then fills the free slots (unless `stop`) and sends those; true when all was taken.
  bool submit(bool stop, uint64_t now) {
    bool sent = out_.flush(fd);  // headers of a part-sent batch are in use until then
    if (sent && !stop) {
      while (!free_.empty() && (load_.requestLimit == 0 || submitted < load_.requestLimit)) prepare(now);
      sent = out_.flush(fd);
    }
    if (out_.broken) die("send: %s", strerror(errno));
    return sent;
  }

  // Takes what has arrived (waits for it when `wait`); false when there was nothing.
  bool receive(bool wait) {
    ssize_t k = recv(fd, in_.data() + have_, in_.size() - have_, wait ? 0 : MSG_DONTWAIT);
    if (k < 0 && (errno == EAGAIN || errno == EINTR)) return false;
    if (k <= 0) die("the server closed the connection with %zu requests unanswered", slots_.size() - free_.size());
    have_ += size_t(k);
    uint64_t now = nowNs();
    size_t at = 0;
    for (;;) {
      if (pending_ != kNone) {  // payload of a READ is thrown away
        size_t n = dataLeft_ < have_ - at ? dataLeft_ : have_ - at;
        at += n;
        dataLeft_ -= n;
        if (dataLeft_ > 0) break;
        finish(pending_, now);
        pending_ = kNone;
      }
      if (have_ - at < nbd::kReplyBytes) break;
      const uint8_t* p = in_.data() + at;
      uint32_t error = get32(p + 4);
      uint64_t slot = get64(p + 8);
      if (get32(p) != nbd::kSimpleReplyMagic || slot >= slots_.size() || !slots_[slot].busy) die("the server sent a reply that was not asked for");
      at += nbd::kReplyBytes;
      if (error != 0) {
        if (tally_.errors++ == 0) tally_.firstError = error;
      } else if (slots_[slot].kind == nbd::kRead) {
        pending_ = uint32_t(slot);
        dataLeft_ = load_.blockBytes;
        continue;
      }
      finish(uint32_t(slot), now);
    }
    memmove(in_.data(), in_.data() + at, have_ - at);
    have_ -= at;
    return true;
  }

  void disconnect() {
    uint8_t q[nbd::kRequestBytes] = {};
    put32(q, nbd::kRequestMagic);
    put16(q + 6, nbd::kDisc);
    if (!sendExactly(fd, q, sizeof q)) die("the server closed the connection before DISC");
  }

 private:
  static constexpr uint32_t kNone = ~0u, kPayloadShift = 65536;
  struct Slot {
    uint64_t startNs = 0;
    uint16_t kind = 0;
    bool busy = false;
  };

  void negotiate(const std::string& name) {
    uint8_t hello[18], head[20];
    if (!receiveExactly(fd, hello, 18) || get64(hello) != nbd::kMagic || get64(hello + 8) != nbd::kOptionMagic || (get16(hello + 16) & nbd::kFixedNewstyle) == 0) {
      die("not a fixed newstyle NBD server");
    }
    std::vector<uint8_t> go(4 + 16 + 4 + name.size() + 2);
    put32(&go[0], get16(hello + 16) & (nbd::kFixedNewstyle | nbd::kNoZeroes));
    put64(&go[4], nbd::kOptionMagic);
    put32(&go[12], nbd::kOptGo);
    put32(&go[16], uint32_t(4 + name.size() + 2));
    put32(&go[20], uint32_t(name.size()));
    memcpy(&go[24], name.data(), name.size());
    if (!sendExactly(fd, go.data(), go.size())) die("the server broke off the handshake");
    for (;;) {
      if (!receiveExactly(fd, head, 20) || get64(head) != nbd::kOptionReplyMagic) die("the server broke off the handshake");
      uint32_t kind = get32(head + 12), n = get32(head + 16);
      std::vector<uint8_t> body(n + 1);
      if (n > 65536 || !receiveExactly(fd, body.data(), n)) die("the server broke off the handshake");
      if (kind == nbd::kRepAck) return;
      if ((kind & 0x80000000u) != 0) die("the server refused export \"%s\": %#x %s", name.c_str(), kind, body.data());
      if (kind == nbd::kRepInfo && n >= 12 && get16(&body[0]) == nbd::kInfoExport) {
        size_ = get64(&body[2]);
        flags_ = get16(&body[10]);
      }
    }
  }

  uint16_t kindOfNext() {
    switch (load_.op) {
      case Op::kRead: return nbd::kRead;
      case Op::kWrite: return nbd::kWrite;
      case Op::kTrim: return nbd::kTrim;
      case Op::kZeroes: return nbd::kZeroes;
      case Op::kMixed: return random_.below(100) < load_.readShare ? nbd::kRead : nbd::kWrite;
    }
    die("unknown operation");
  }

  void prepare(uint64_t now) {
    uint32_t index = free_.back();
    free_.pop_back();
    uint8_t* q = &headers_[index * nbd::kRequestBytes];
    put32(q, nbd::kRequestMagic);
    put64(q + 8, index);
    Slot& slot = slots_[index];
    slot.busy = true;
    slot.startNs = now;
    if (load_.flushEvery != 0 && unflushed_ >= load_.flushEvery) {
      unflushed_ = 0;
      slot.kind = nbd::kFlush;
      put16(q + 4, 0);
      put64(q + 16, 0);
      put32(q + 24, 0);
    } else {
      submitted++;
      slot.kind = kindOfNext();
      uint64_t block = load_.sequential ? next_++ % blocks_ : random_.below(blocks_);
      put16(q + 4, load_.fua && slot.kind != nbd::kRead ? nbd::kFlagFua : 0);
      put64(q + 16, load_.offset + block * load_.blockBytes);
      put32(q + 24, load_.blockBytes);
      if (slot.kind != nbd::kRead) unflushed_++;
    }
    put16(q + 6, slot.kind);
    out_.add(q, nbd::kRequestBytes);
    // a start somewhere in the random bytes, so that blocks differ
    if (slot.kind == nbd::kWrite) out_.add(&payload_[random_.next() % kPayloadShift], load_.blockBytes);
  }

  void finish(uint32_t index, uint64_t now) {
    Slot& slot = slots_[index];
    uint64_t took = now - slot.startNs;
    if (slot.kind == nbd::kFlush) {
      tally_.flushes++;
    } else {
      tally_.requests++;
      tally_.bytes += load_.blockBytes;
      tally_.latency.add(took);
    }
    if (tally_.log != nullptr && tally_.log->size() < tally_.logLimit) {
      tally_.log->push_back({slot.startNs, uint32_t(took < 0xffffffffu ? took : 0xffffffffu), slot.kind});
    }
    slot.busy = false;
    free_.push_back(index);
  }

  const Load& load_;
  Tally& tally_;
  Random random_;
  std::vector<Slot> slots_;
  std::vector<uint32_t> free_;
  std::vector<uint8_t> headers_, payload_;
  SendQueue out_;
  std::vector<uint8_t> in_;
  size_t have_ = 0;
  uint32_t pending_ = kNone;  // READ whose data is arriving
  size_t dataLeft_ = 0;
  uint64_t size_ = 0, blocks_ = 0, next_ = 0, unflushed_ = 0;
  uint16_t flags_ = 0;
};
