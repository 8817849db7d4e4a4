// What one Io object of JavaScript is to the addon.
//
// Owns: the arena's address, the epoll instance, the two eventfds, the helper
// threads. One Context belongs to one environment (main thread or Worker) and
// is used from that thread only; several may exist in one process and in one
// environment. Must not know: what the bytes mean, and any policy.
#pragma once
#define NAPI_VERSION 8
#include <node_api.h>
#include <sys/epoll.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

namespace lockstep {

class Helpers;

// Layout of the control buffer that JavaScript and the addon share.
constexpr size_t RESULT_COUNT = 8;                      // float64 results of calls that have several
constexpr size_t RESULT_BYTES = RESULT_COUNT * 8;       // then: pairs of uint32 (arena offset, length)
constexpr size_t MAX_EVENTS = 256;                      // readiness events per wait
constexpr uint32_t TAG_JOBS = 0;
constexpr uint32_t TAG_WAKE = 1;

struct Context {
  uint8_t* arena = nullptr;
  size_t arenaBytes = 0;
  double* results = nullptr;
  uint32_t* pairs = nullptr;
  size_t pairCount = 0;
  std::unique_ptr<iovec[]> vectors;  // pairCount of them
  napi_ref arenaRef = nullptr;
  napi_ref controlRef = nullptr;
  int epollFd = -1;
  int jobsFd = -1;
  int wakeFd = -1;
  bool disposed = false;
  std::unique_ptr<Helpers> helpers;
  epoll_event events[MAX_EVENTS];
  Context* next = nullptr;  // list of the environment

  Context();
  ~Context();
  // Joins the helper threads and closes the descriptors. Idempotent.
  void close();
};

// Arguments of one call. The first bad one throws (RangeError or TypeError: a bug of ours) and
// makes `failed()` true; the function then returns nullptr.
template <size_t N>
class Call {
 public:
  Call(napi_env env, napi_callback_info info) : env_(env) {
    size_t count = N;
    void* data = nullptr;
    napi_get_cb_info(env, info, &count, values_, nullptr, &data);
    context_ = static_cast<Context*>(data);
  }
  bool failed() const { return failed_; }
  Context& context() const { return *context_; }
  napi_value value(size_t k) const { return values_[k]; }

  double number(size_t k) {
    double out = 0;
    if (napi_get_value_double(env_, values_[k], &out) != napi_ok) fail("a number was expected");
    return out;
  }
  // An integer from 0 to `max`.
  double whole(size_t k, double max) {
    const double out = number(k);
    if (!(out >= 0 && out <= max) || out != static_cast<double>(static_cast<uint64_t>(out))) {
      fail("a number is out of range");
      return 0;
    }
    return out;
  }
  int integer(size_t k) {
    int32_t out = 0;
    if (napi_get_value_int32(env_, values_[k], &out) != napi_ok) fail("a number was expected");
    return out;
  }
  int64_t position(size_t k) { return static_cast<int64_t>(whole(k, 9007199254740991.0)); }
  // The arena range (offset, length) of arguments k and k + 1.
  uint8_t* range(size_t k, size_t* length) {
    const double max = static_cast<double>(context_->arenaBytes);
    const double offset = whole(k, max);
    const double bytes = whole(k + 1, max);
    if (offset + bytes > max || context_->disposed) fail("a range lies outside of the arena");
    if (failed_) return nullptr;
    *length = static_cast<size_t>(bytes);
    return context_->arena + static_cast<size_t>(offset);
  }
  // A path or name; a NUL inside is refused, for the kernel would see another name.
  std::string text(size_t k) {
    size_t length = 0;
    if (napi_get_value_string_utf8(env_, values_[k], nullptr, 0, &length) != napi_ok) {
      fail("a string was expected");
      return {};
    }
    std::string out(length + 1, '\0');
    napi_get_value_string_utf8(env_, values_[k], out.data(), length + 1, &length);
    out.resize(length);
    if (out.find('\0') != std::string::npos) fail("a string contains a NUL");
    return out;
  }
  // The elements of a typed array of the given type.
  void* elements(size_t k, napi_typedarray_type want, size_t* count) {
    napi_typedarray_type type = napi_int8_array;
    void* data = nullptr;
    if (napi_get_typedarray_info(env_, values_[k], &type, count, &data, nullptr, nullptr) != napi_ok || type != want) {
      fail("another kind of typed array was expected");
      return nullptr;
    }
    return data;
  }
  void fail(const char* why) {
    if (failed_) return;
    failed_ = true;
    napi_throw_range_error(env_, nullptr, why);
  }

 private:
  napi_env env_;
  napi_value values_[N == 0 ? 1 : N];
  Context* context_ = nullptr;
  bool failed_ = false;
};

// A result for JavaScript. Small integers take the road that allocates nothing.
inline napi_value give(napi_env env, int64_t value) {
  napi_value out = nullptr;
  if (value >= INT32_MIN && value <= INT32_MAX) {
    napi_create_int32(env, static_cast<int32_t>(value), &out);
  } else {
    napi_create_double(env, static_cast<double>(value), &out);
  }
  return out;
}

inline napi_value giveNumber(napi_env env, double value) {
  napi_value out = nullptr;
  napi_create_double(env, value, &out);
  return out;
}

inline napi_value giveText(napi_env env, const std::string& text) {
  napi_value out = nullptr;
  napi_create_string_utf8(env, text.data(), text.size(), &out);
  return out;
}

// Loads pairs [0, count) of the control buffer into context.vectors, checked against the arena.
template <size_t N>
bool loadVectors(Call<N>& call, size_t count) {
  Context& context = call.context();
  if (count > context.pairCount || context.disposed) {
    call.fail("more vectors than the table holds");
    return false;
  }
  for (size_t i = 0; i < count; i++) {
    const size_t offset = context.pairs[2 * i];
    const size_t length = context.pairs[2 * i + 1];
    if (offset + length > context.arenaBytes) {
      call.fail("a vector lies outside of the arena");
      return false;
    }
    context.vectors[i] = {context.arena + offset, length};
  }
  return true;
}

// One function of the addon's surface.
struct Method {
  const char* name;
  napi_callback function;
};
struct Methods {
  const Method* list;
  size_t count;
};

Methods fileMethods();
Methods checksumMethods();
Methods jobMethods();
Methods socketMethods();
Methods epollMethods();
// These need no Context: they belong to the module itself.
Methods netlinkMethods();

}  // namespace lockstep
