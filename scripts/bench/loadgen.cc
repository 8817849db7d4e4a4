// loadgen: a pipelining NBD client for figures, on one thread, and (--null) the
// responder that shows how fast this client itself can be. Prints one line of
// JSON. `loadgen --help` lists the options.
#include <getopt.h>
#include <sys/resource.h>

#include <memory>

#include "loadgen-client.h"
#include "loadgen-null.h"

static const char kHelp[] =
    "usage: loadgen --address unix:PATH|tcp:HOST:PORT [options]\n"
    "  --export NAME         export to open (default the server's default)\n"
    "  --op OP               read, write, mixed, trim or zero (default read)\n"
    "  --read-share PERCENT  of mixed (default 50)\n"
    "  --sequential          instead of random offsets\n"
    "  --fua                 every write with FUA\n"
    "  --flush-every K       a FLUSH after every K writes\n"
    "  --connections N       (default 1)\n"
    "  --depth D             requests on the way per connection (default 1)\n"
    "  --block BYTES         (default 4096; K, M, G allowed)\n"
    "  --offset BYTES        where the range begins (default 0)\n"
    "  --range BYTES         (default the rest of the export)\n"
    "  --seconds S           (default 5)\n"
    "  --warmup S            run so long before counting (default 0)\n"
    "  --count N             end after N requests per connection\n"
    "  --seed N              (default 1)\n"
    "  --latency-log FILE    a line per request: start in us since the first, latency in us, command\n"
    "  --allow-errors        errors from the server do not make the exit code 1\n"
    "  --null BYTES          do not load: be a responder for an export of BYTES\n";

static uint64_t parseBytes(const char* text) {
  char* end;
  double v = strtod(text, &end);
  int shift = *end == 'K' ? 10 : *end == 'M' ? 20 : *end == 'G' ? 30 : *end == 'T' ? 40 : 0;
  if (end == text || end[shift != 0] != 0 || v < 0) die("not a number of bytes: %s", text);
  return uint64_t(v * double(uint64_t(1) << shift));
}
static double parseNumber(const char* text) {
  char* end;
  double v = strtod(text, &end);
  if (end == text || *end != 0 || v < 0) die("not a number: %s", text);
  return v;
}

struct Run {
  Load load;
  Address address;
  std::string name;
  unsigned connections = 1;
  double seconds = 5, warmup = 0;
  const char* logFile = nullptr;
  bool allowErrors = false;
};

// One connection: receives block while nothing is left to send, which costs no epoll call.
static void turnSingle(Client& c) {
  if (!c.sending()) {
    c.receive(true);
    return;
  }
  pollfd p{c.fd, POLLIN | POLLOUT, 0};
  poll(&p, 1, -1);
  if ((p.revents & ~POLLOUT) != 0) c.receive(false);
}

class Loop {
 public:
  Loop(Run& run, Tally& tally) : run_(run) {
    epoll_ = epoll_create1(EPOLL_CLOEXEC);
    for (unsigned i = 0; i < run.connections; i++) {
      clients_.push_back(std::make_unique<Client>(run.address, run.name, run.load, i, run.connections, tally));
      watch(EPOLL_CTL_ADD, i, EPOLLIN);
    }
    waiting_.resize(run.connections);
  }

  // Keeps the load up until `deadline` (ns); with `drain` also waits for the last answers.
  void keepUp(uint64_t deadline, bool drain) {
    uint64_t now = nowNs();
    for (;;) {
      bool stop = drain && now >= deadline, idle = true;
      for (unsigned i = 0; i < clients_.size(); i++) {
        submit(i, stop, now);
        idle = idle && clients_[i]->idle();
      }
      // all idle after submitting: time is over, or every connection has reached its count
      if (idle || (!drain && now >= deadline)) return;
      if (clients_.size() == 1) turnSingle(*clients_[0]);
      else turnMany(stop, now);
      now = nowNs();
    }
  }
  void disconnect() {
    for (auto& c : clients_) c->disconnect();
  }

 private:
  void watch(int op, unsigned i, uint32_t events) {
    epoll_event e{};
    e.events = events;
    e.data.u32 = i;
    epoll_ctl(epoll_, op, clients_[i]->fd, &e);
  }
  void submit(unsigned i, bool stop, uint64_t now) {
    bool all = clients_[i]->submit(stop, now);
    if (clients_.size() > 1 && all == bool(waiting_[i])) {
      waiting_[i] = !all;
      watch(EPOLL_CTL_MOD, i, all ? EPOLLIN : EPOLLIN | EPOLLOUT);
    }
  }
  void turnMany(bool, uint64_t) {
    epoll_event events[64];
    int n = epoll_wait(epoll_, events, 64, -1);
    for (int i = 0; i < n; i++) {
      if ((events[i].events & ~EPOLLOUT) != 0) clients_[events[i].data.u32]->receive(false);
    }
  }

  Run& run_;
  int epoll_;
  std::vector<std::unique_ptr<Client>> clients_;
  std::vector<char> waiting_;
};

static double cpuSeconds() {
  rusage u;
  getrusage(RUSAGE_SELF, &u);
  return double(u.ru_utime.tv_sec + u.ru_stime.tv_sec) + double(u.ru_utime.tv_usec + u.ru_stime.tv_usec) / 1e6;
}

static void writeLog(const char* file, const std::vector<LogEntry>& log, uint64_t start) {
  FILE* f = fopen(file, "w");
  if (f == nullptr) die("%s: %s", file, strerror(errno));
  for (const LogEntry& e : log) fprintf(f, "%.1f %.1f %u\n", double(int64_t(e.startNs - start)) / 1000, e.latencyNs / 1000.0, e.kind);
  if (fclose(f) != 0) die("%s: %s", file, strerror(errno));
}

static int load(Run& run) {
  std::vector<LogEntry> log;
  auto tally = std::make_unique<Tally>();
  if (run.logFile != nullptr) {
    tally->log = &log;
    tally->logLimit = 20u << 20;
    log.reserve(1u << 20);
  }
  Loop loop(run, *tally);
  if (run.warmup > 0) {
    loop.keepUp(nowNs() + uint64_t(run.warmup * 1e9), false);
    tally->clear();
  }
  double cpu = cpuSeconds();
  uint64_t start = nowNs();
  loop.keepUp(run.load.requestLimit != 0 ? UINT64_MAX : start + uint64_t(run.seconds * 1e9), true);
  double seconds = double(nowNs() - start) / 1e9;
  cpu = cpuSeconds() - cpu;
  loop.disconnect();
  if (run.logFile != nullptr) writeLog(run.logFile, log, start);
  const Tally& t = *tally;
  printf(
      "{\"requests\":%llu,\"seconds\":%.4f,\"requestsPerSecond\":%.1f,\"megabytesPerSecond\":%.2f,\"flushes\":%llu,"
      "\"latencyUs\":{\"p50\":%.1f,\"p99\":%.1f,\"p999\":%.1f,\"max\":%.1f},\"clientCpuUsPerRequest\":%.3f,\"errors\":%llu,\"firstError\":%u}\n",
      (unsigned long long)t.requests, seconds, double(t.requests) / seconds, double(t.bytes) / seconds / 1e6, (unsigned long long)t.flushes,
      t.latency.percentileUs(0.5), t.latency.percentileUs(0.99), t.latency.percentileUs(0.999), t.latency.maxUs(),
      t.requests != 0 ? cpu * 1e6 / double(t.requests) : 0.0, (unsigned long long)t.errors, t.firstError);
  if (t.errors != 0 && !run.allowErrors) fprintf(stderr, "loadgen: the server answered %llu requests with errors, the first with %u\n", (unsigned long long)t.errors, t.firstError);
  return t.errors != 0 && !run.allowErrors ? 1 : 0;
}

static Op parseOp(const std::string& text) {
  if (text == "read") return Op::kRead;
  if (text == "write") return Op::kWrite;
  if (text == "mixed") return Op::kMixed;
  if (text == "trim") return Op::kTrim;
  if (text == "zero") return Op::kZeroes;
  die("--op must be read, write, mixed, trim or zero, not %s", text.c_str());
}

int main(int argc, char** argv) {
  static const option options[] = {
      {"address", 1, nullptr, 'a'}, {"export", 1, nullptr, 'e'},   {"op", 1, nullptr, 'o'},      {"read-share", 1, nullptr, 'm'},
      {"sequential", 0, nullptr, 's'}, {"fua", 0, nullptr, 'f'},   {"flush-every", 1, nullptr, 'k'}, {"connections", 1, nullptr, 'n'},
      {"depth", 1, nullptr, 'd'},   {"block", 1, nullptr, 'b'},    {"offset", 1, nullptr, 'O'},  {"range", 1, nullptr, 'r'},
      {"seconds", 1, nullptr, 't'}, {"warmup", 1, nullptr, 'w'},   {"count", 1, nullptr, 'c'},   {"seed", 1, nullptr, 'S'},
      {"latency-log", 1, nullptr, 'l'}, {"allow-errors", 0, nullptr, 'E'}, {"null", 1, nullptr, 'N'}, {"help", 0, nullptr, 'h'},
      {nullptr, 0, nullptr, 0}};
  Run run;
  uint64_t nullBytes = 0;
  std::string address;
  for (int c; (c = getopt_long(argc, argv, "", options, nullptr)) != -1;) {
    switch (c) {
      case 'a': address = optarg; break;
      case 'e': run.name = optarg; break;
      case 'o': run.load.op = parseOp(optarg); break;
      case 'm': run.load.readShare = unsigned(parseNumber(optarg)); break;
      case 's': run.load.sequential = true; break;
      case 'f': run.load.fua = true; break;
      case 'k': run.load.flushEvery = unsigned(parseNumber(optarg)); break;
      case 'n': run.connections = unsigned(parseNumber(optarg)); break;
      case 'd': run.load.depth = unsigned(parseNumber(optarg)); break;
      case 'b': run.load.blockBytes = uint32_t(parseBytes(optarg)); break;
      case 'O': run.load.offset = parseBytes(optarg); break;
      case 'r': run.load.rangeBytes = parseBytes(optarg); break;
      case 't': run.seconds = parseNumber(optarg); break;
      case 'w': run.warmup = parseNumber(optarg); break;
      case 'c': run.load.requestLimit = uint64_t(parseNumber(optarg)); break;
      case 'S': run.load.seed = uint64_t(parseNumber(optarg)); break;
      case 'l': run.logFile = optarg; break;
      case 'E': run.allowErrors = true; break;
      case 'N': nullBytes = parseBytes(optarg); break;
      case 'h': fputs(kHelp, stdout); return 0;
      default: fputs(kHelp, stderr); return 2;
    }
  }
  if (address.empty() || optind != argc) {
    fputs(kHelp, stderr);
    return 2;
  }
  run.address = Address::parse(address);
  if (nullBytes != 0) NullServer(run.address, nullBytes).run();
  if (run.load.depth < 1 || run.load.depth > 4096 || run.connections < 1 || run.connections > 256) die("--depth is 1 to 4096, --connections 1 to 256");
  if (run.load.blockBytes < 1 || run.load.blockBytes > (32u << 20)) die("--block is 1 to 32M");
  return load(run);
}
