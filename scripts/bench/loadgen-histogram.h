// Latencies in a log-linear histogram: 64 steps per power of two, so a
// percentile is exact to 1.6 %.
#pragma once
#include <stdint.h>
#include <string.h>

class Histogram {
 public:
  void add(uint64_t ns) {
    count_++;
    if (ns > max_) max_ = ns;
    buckets_[index(ns)]++;
  }
  uint64_t count() const { return count_; }
  double maxUs() const { return double(max_) / 1000; }
  // Upper edge of the bucket that holds the share `q` of all.
  double percentileUs(double q) const {
    uint64_t wanted = uint64_t(q * double(count_)), seen = 0;
    for (unsigned i = 0; i < kBuckets; i++) {
      seen += buckets_[i];
      if (seen > wanted) {
        double edge = double(value(i + 1)) / 1000;
        return edge < maxUs() ? edge : maxUs();
      }
    }
    return maxUs();
  }
  void clear() { memset(static_cast<void*>(this), 0, sizeof *this); }

 private:
  static constexpr unsigned kStepBits = 6, kSteps = 1u << kStepBits, kBuckets = (64 - kStepBits) * kSteps;
  static unsigned index(uint64_t ns) {
    if (ns < kSteps) return unsigned(ns);
    unsigned shift = 63 - unsigned(__builtin_clzll(ns)) - kStepBits;
    return (shift + 1) * kSteps + unsigned((ns >> shift) - kSteps);
  }
  static uint64_t value(unsigned i) {
    if (i < kSteps) return i;
    unsigned shift = i / kSteps - 1;
    return uint64_t(kSteps + i % kSteps) << shift;
  }
  uint64_t buckets_[kBuckets] = {};
  uint64_t count_ = 0, max_ = 0;
};
