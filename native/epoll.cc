// Readiness: one epoll instance per Context, the clock, and the wake eventfd.
//
// Must not know: what a tag stands for, except the two that are its own.
#include <sched.h>
#include <sys/epoll.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>

#include "context.h"

namespace lockstep {
namespace {

// A wait without an end returns empty-handed twice a second: JavaScript then has a moment in which
// Worker.terminate() and process.exit() can take effect. (The contract says "at most".)
constexpr double LONGEST_WAIT_US = 500000;

int control(Context& context, int operation, int fd, uint32_t events, uint32_t tag) {
  epoll_event event = {};
  event.events = events;
  event.data.u64 = tag;
  return epoll_ctl(context.epollFd, operation, fd, &event) != 0 ? -errno : 0;
}

napi_value change(napi_env env, napi_callback_info info, int operation) {  // fd, events, tag
  Call<3> call(env, info);
  const int fd = call.integer(0);
  const int events = call.integer(1);
  const double tag = call.whole(2, INT32_MAX);
  if (call.failed()) return nullptr;
  if (tag <= TAG_WAKE) {
    call.fail("this tag is reserved");
    return nullptr;
  }
  return give(env, control(call.context(), operation, fd, static_cast<uint32_t>(events), static_cast<uint32_t>(tag)));
}

napi_value watchCall(napi_env env, napi_callback_info info) { return change(env, info, EPOLL_CTL_ADD); }
napi_value rewatchCall(napi_env env, napi_callback_info info) { return change(env, info, EPOLL_CTL_MOD); }

napi_value unwatchCall(napi_env env, napi_callback_info info) {  // fd
  Call<1> call(env, info);
  const int fd = call.integer(0);
  if (call.failed()) return nullptr;
  return give(env, control(call.context(), EPOLL_CTL_DEL, fd, 0, 0));
}

int waitFor(int epollFd, epoll_event* events, int max, double timeoutUs) {
  if (timeoutUs == 0) return epoll_wait(epollFd, events, max, 0);
#ifdef SYS_epoll_pwait2
  static bool missing = false;  // a kernel before 5.11; a race only repeats the question
  if (!__atomic_load_n(&missing, __ATOMIC_RELAXED)) {
    const int64_t us = static_cast<int64_t>(timeoutUs + 0.999);
    const timespec timeout = {us / 1000000, (us % 1000000) * 1000};
    const int n = static_cast<int>(syscall(SYS_epoll_pwait2, epollFd, events, max, &timeout, nullptr, 0));
    if (n >= 0 || (errno != ENOSYS && errno != EPERM)) return n;  // EPERM: old container filters
    __atomic_store_n(&missing, true, __ATOMIC_RELAXED);
  }
#endif
  return epoll_wait(epollFd, events, max, static_cast<int>((timeoutUs + 999) / 1000));
}

napi_value waitCall(napi_env env, napi_callback_info info) {  // timeoutUs, out
  Call<2> call(env, info);
  double timeoutUs = call.number(0);
  if (call.failed()) return nullptr;
  size_t cells = 0;
  int32_t* out = static_cast<int32_t*>(call.elements(1, napi_int32_array, &cells));
  if (call.failed()) return nullptr;
  Context& context = call.context();
  if (cells < 2) {
    call.fail("wait needs room for one event");
    return nullptr;
  }
  if (!(timeoutUs >= 0 && timeoutUs <= LONGEST_WAIT_US)) timeoutUs = LONGEST_WAIT_US;
  const size_t max = cells / 2 < MAX_EVENTS ? cells / 2 : MAX_EVENTS;
  const int count = waitFor(context.epollFd, context.events, static_cast<int>(max), timeoutUs);
  if (count < 0) return give(env, errno == EINTR ? 0 : -errno);
  for (int i = 0; i < count; i++) {
    const uint32_t tag = static_cast<uint32_t>(context.events[i].data.u64);
    if (tag == TAG_WAKE) {
      uint64_t drained;
      while (read(context.wakeFd, &drained, sizeof drained) < 0 && errno == EINTR) {
      }
    }
    out[2 * i] = static_cast<int32_t>(tag);
    out[2 * i + 1] = static_cast<int32_t>(context.events[i].events);
  }
  return give(env, count);
}

// A thread that spins must not keep the one that it waits for (a helper, the client) from its core.
napi_value relaxCall(napi_env, napi_callback_info) {
  sched_yield();
  return nullptr;
}

napi_value nowUsCall(napi_env env, napi_callback_info) {
  timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return giveNumber(env, static_cast<double>(now.tv_sec) * 1e6 + static_cast<double>(now.tv_nsec) * 1e-3);
}

const Method METHODS[] = {
    {"watch", watchCall}, {"rewatch", rewatchCall}, {"unwatch", unwatchCall},
    {"wait", waitCall},   {"relax", relaxCall},     {"nowUs", nowUsCall},
};

}  // namespace

Methods epollMethods() { return {METHODS, sizeof METHODS / sizeof METHODS[0]}; }

}  // namespace lockstep
