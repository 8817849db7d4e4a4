// The module: creates Contexts and ends them with their environment.
//
// The same library is loaded by the main thread and by every Worker; each
// environment has its own list of Contexts and nothing is shared between them
// but constant tables. When an environment ends (Worker terminated, process
// exits) the clean-up hook joins the helper threads before the arena's memory
// can go away under them.
#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "context.h"
#include "helpers.h"

namespace lockstep {

Context::Context() = default;
Context::~Context() { close(); }

void Context::close() {
  if (disposed) return;
  disposed = true;
  helpers.reset();  // joins; nothing touches the arena afterwards
  for (int* fd : {&epollFd, &jobsFd, &wakeFd}) {
    if (*fd >= 0) ::close(*fd);
    *fd = -1;
  }
  arena = nullptr;
  arenaBytes = 0;
}

namespace {

struct Environment {
  Context* first = nullptr;
};

void endEnvironment(void* data) {
  Environment* environment = static_cast<Environment*>(data);
  while (environment->first != nullptr) {
    Context* context = environment->first;
    environment->first = context->next;
    delete context;  // its references go with the environment
  }
  delete environment;
}

void define(napi_env env, napi_value object, Methods methods, void* data) {
  for (size_t i = 0; i < methods.count; i++) {
    napi_value function = nullptr;
    napi_create_function(env, methods.list[i].name, NAPI_AUTO_LENGTH, methods.list[i].function, data, &function);
    napi_set_named_property(env, object, methods.list[i].name, function);
  }
}

// Opens epoll and the eventfds; 0 or -errno.
int openDescriptors(Context& context) {
  context.epollFd = epoll_create1(EPOLL_CLOEXEC);
  if (context.epollFd < 0) return -errno;
  context.jobsFd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (context.jobsFd < 0) return -errno;
  context.wakeFd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (context.wakeFd < 0) return -errno;
  epoll_event event = {};
  event.events = EPOLLIN;
  event.data.u64 = TAG_JOBS;
  if (epoll_ctl(context.epollFd, EPOLL_CTL_ADD, context.jobsFd, &event) != 0) return -errno;
  event.data.u64 = TAG_WAKE;
  if (epoll_ctl(context.epollFd, EPOLL_CTL_ADD, context.wakeFd, &event) != 0) return -errno;
  return 0;
}

napi_value disposeCall(napi_env env, napi_callback_info info) {
  Call<0> call(env, info);
  Context& context = call.context();
  if (!context.disposed) {
    context.close();
    napi_delete_reference(env, context.arenaRef);
    napi_delete_reference(env, context.controlRef);
  }
  return nullptr;
}

napi_value wakeFdCall(napi_env env, napi_callback_info info) {
  Call<0> call(env, info);
  return give(env, call.context().wakeFd);
}

const Method LIFE_METHODS[] = {{"dispose", disposeCall}, {"wakeFd", wakeFdCall}};

// create(arena: ArrayBuffer, control: ArrayBuffer): the object with all functions on this arena,
// or -errno. The Context lives as long as the environment, because its functions may be kept.
napi_value createCall(napi_env env, napi_callback_info info) {
  Call<2> call(env, info);
  void *arena = nullptr, *control = nullptr;
  size_t arenaBytes = 0, controlBytes = 0;
  if (napi_get_arraybuffer_info(env, call.value(0), &arena, &arenaBytes) != napi_ok ||
      napi_get_arraybuffer_info(env, call.value(1), &control, &controlBytes) != napi_ok) {
    call.fail("create takes two ArrayBuffers");
    return nullptr;
  }
  if (arenaBytes > UINT32_MAX || controlBytes < RESULT_BYTES + 1024 * 8) {
    call.fail("the arena must be below 4 GiB and the control buffer hold 1024 vectors");
    return nullptr;
  }
  Environment* environment = nullptr;
  napi_get_instance_data(env, reinterpret_cast<void**>(&environment));

  auto context = std::make_unique<Context>();
  const int opened = openDescriptors(*context);
  if (opened < 0) return give(env, opened);
  context->arena = static_cast<uint8_t*>(arena);
  context->arenaBytes = arenaBytes;
  context->results = static_cast<double*>(control);
  context->pairs = reinterpret_cast<uint32_t*>(static_cast<uint8_t*>(control) + RESULT_BYTES);
  context->pairCount = (controlBytes - RESULT_BYTES) / 8;
  context->vectors = std::make_unique<iovec[]>(context->pairCount);
  context->helpers = std::make_unique<Helpers>(context->jobsFd);
  napi_create_reference(env, call.value(0), 1, &context->arenaRef);
  napi_create_reference(env, call.value(1), 1, &context->controlRef);

  napi_value object = nullptr;
  napi_create_object(env, &object);
  for (const Methods& methods : {fileMethods(), checksumMethods(), jobMethods(), socketMethods(), epollMethods(),
                                 Methods{LIFE_METHODS, sizeof LIFE_METHODS / sizeof LIFE_METHODS[0]}}) {
    define(env, object, methods, context.get());
  }
  context->next = environment->first;
  environment->first = context.release();
  return object;
}

const Method MODULE_METHODS[] = {{"create", createCall}};

}  // namespace
}  // namespace lockstep

NAPI_MODULE_INIT() {
  using namespace lockstep;
  auto* environment = new Environment;
  napi_set_instance_data(env, environment, nullptr, nullptr);
  napi_add_env_cleanup_hook(env, endEnvironment, environment);
  define(env, exports, netlinkMethods(), nullptr);
  define(env, exports, {MODULE_METHODS, 1}, nullptr);
  return exports;
}
