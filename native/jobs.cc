// See helpers.h; and the two calls through which JavaScript uses the helpers.
#include "helpers.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "context.h"
#include "syscalls.h"

namespace lockstep {

namespace {

// Threads per queue, in the order of `Queue` in src/io/io.ts. One thread makes a queue a FIFO.
constexpr size_t THREADS[QUEUE_COUNT] = {1, 2, 1, 1, 1};
constexpr size_t JOB_COLUMNS = 5;  // operation, fd, buffer, length, pos
constexpr double MAX_ROWS = 1 << 20;

int64_t perform(const Row& row) {
  switch (row.operation) {
    case OP_PREAD:
      return readExact(row.fd, row.memory, static_cast<size_t>(row.length), row.pos);
    case OP_PWRITE:
      return writeExact(row.fd, row.memory, static_cast<size_t>(row.length), row.pos);
    case OP_FDATASYNC:
      return syncData(row.fd);
    case OP_FSYNC:
      return syncAll(row.fd);
    case OP_PUNCH:
      return punchHole(row.fd, row.length, row.pos);
    case OP_ZERO:
      return writeZeros(row.fd, row.length, row.pos);
    case OP_CLOSE:
      return closeFile(row.fd);
    case OP_UNLINK:
      return removeFile(reinterpret_cast<const char*>(row.memory), static_cast<size_t>(row.length));
    case OP_RESERVE:
      return reserveBlocks(row.fd, row.length, row.pos);
    case OP_COUNT:
      break;
  }
  return -EINVAL;
}

}  // namespace

bool Helpers::submit(size_t index, std::vector<Row> rows, double token) {
  Queue& queue = queues_[index];
  if (queue.threads.empty()) {
    // Signals are the business of Node's own threads: a helper inherits a mask that blocks all.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    try {
      for (size_t i = 0; i < THREADS[index]; i++) queue.threads.emplace_back([this, &queue] { work(queue); });
    } catch (const std::system_error&) {
      // One thread of two is enough to serve; none is not.
    }
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (queue.threads.empty()) return false;
  }
  {
    std::lock_guard<std::mutex> lock(queue.mutex);
    queue.jobs.push_back({std::move(rows), token});
  }
  queue.ready.notify_one();
  return true;
}

void Helpers::work(Queue& queue) {
  // A batch thread that is woken does not take the processor from the one that runs. Otherwise the data thread, which
  // wakes a helper in the middle of a step, may stand still for the helper's time slice (3 to 4 ms) there and then.
  // Where that is refused, it is as fast as it can be.
  const sched_param none = {};
  pthread_setschedparam(pthread_self(), SCHED_BATCH, &none);
  for (;;) {
    Job job;
    {
      std::unique_lock<std::mutex> lock(queue.mutex);
      queue.ready.wait(lock, [&queue] { return queue.stopping || !queue.jobs.empty(); });
      if (queue.stopping) return;
      job = std::move(queue.jobs.front());
      queue.jobs.pop_front();
    }
    Completion completion = {job.token, 0, -1};
    for (size_t i = 0; i < job.rows.size(); i++) {
      const int64_t result = perform(job.rows[i]);
      if (result < 0) {
        completion.result = static_cast<double>(result);
        completion.failedRow = static_cast<double>(i);
        break;
      }
    }
    complete(completion);
  }
}

void Helpers::complete(const Completion& completion) {
  std::lock_guard<std::mutex> lock(doneMutex_);
  const bool wasEmpty = done_.empty();
  done_.push_back(completion);
  // The eventfd is readable exactly while the list is not empty: see reap.
  if (wasEmpty) {
    const uint64_t one = 1;
    while (write(doneFd_, &one, sizeof one) < 0 && errno == EINTR) {
    }
  }
}

size_t Helpers::reap(double* out, size_t max) {
  std::lock_guard<std::mutex> lock(doneMutex_);
  size_t count = 0;
  while (count < max && !done_.empty()) {
    const Completion& completion = done_.front();
    out[3 * count] = completion.token;
    out[3 * count + 1] = completion.result;
    out[3 * count + 2] = completion.failedRow;
    count++;
    done_.pop_front();
  }
  if (count > 0 && done_.empty()) {
    uint64_t drained;
    while (read(doneFd_, &drained, sizeof drained) < 0 && errno == EINTR) {
    }
  }
  return count;
}

void Helpers::stop() {
  for (Queue& queue : queues_) {
    {
      std::lock_guard<std::mutex> lock(queue.mutex);
      queue.stopping = true;
      queue.jobs.clear();
    }
    queue.ready.notify_all();
  }
  for (Queue& queue : queues_) {
    for (std::thread& thread : queue.threads) thread.join();
    queue.threads.clear();
  }
}

namespace {

// Reads one row of the table; false when it is not a valid one.
bool loadRow(const Context& context, const double* cells, Row* row) {
  const double operation = cells[0], fd = cells[1], buffer = cells[2], length = cells[3], pos = cells[4];
  const double limit = 9007199254740991.0;
  if (!(operation >= 0 && operation < OP_COUNT) || operation != static_cast<int>(operation)) return false;
  if (!(fd >= INT32_MIN && fd <= INT32_MAX)) return false;
  row->operation = static_cast<Operation>(static_cast<int>(operation));
  row->fd = static_cast<int>(fd);
  row->memory = nullptr;
  row->length = 0;
  row->pos = 0;
  if (row->operation == OP_FDATASYNC || row->operation == OP_FSYNC || row->operation == OP_CLOSE) return true;
  if (!(length >= 0 && length <= limit) || !(pos >= 0 && pos <= limit)) return false;
  row->length = static_cast<int64_t>(length);
  row->pos = static_cast<int64_t>(pos);
  if (static_cast<double>(row->length) != length || static_cast<double>(row->pos) != pos) return false;
  if (row->operation == OP_PREAD || row->operation == OP_PWRITE || row->operation == OP_UNLINK) {
    if (!(buffer >= 0 && buffer + length <= static_cast<double>(context.arenaBytes))) return false;
    const size_t offset = static_cast<size_t>(buffer);
    if (static_cast<double>(offset) != buffer) return false;
    row->memory = context.arena + offset;
  }
  return true;
}

napi_value submitCall(napi_env env, napi_callback_info info) {  // queue, rows, count, token
  Call<4> call(env, info);
  const size_t queue = static_cast<size_t>(call.whole(0, QUEUE_COUNT - 1));
  const size_t count = static_cast<size_t>(call.whole(2, MAX_ROWS));
  const double token = call.number(3);
  if (call.failed()) return nullptr;
  size_t cells = 0;
  const double* table = static_cast<double*>(call.elements(1, napi_float64_array, &cells));
  if (call.failed()) return nullptr;
  Context& context = call.context();
  if (context.disposed || count * JOB_COLUMNS > cells) {
    call.fail("a job has more rows than its table");
    return nullptr;
  }
  std::vector<Row> rows(count);
  for (size_t i = 0; i < count; i++) {
    if (!loadRow(context, table + i * JOB_COLUMNS, &rows[i])) {
      call.fail("a row of a job is out of range");
      return nullptr;
    }
  }
  if (!context.helpers->submit(queue, std::move(rows), token)) {
    napi_throw_error(env, nullptr, "no helper thread could be started: the system allows no more threads");
    return nullptr;
  }
  napi_value nothing = nullptr;
  napi_get_undefined(env, &nothing);
  return nothing;
}

napi_value reapCall(napi_env env, napi_callback_info info) {  // out
  Call<1> call(env, info);
  size_t cells = 0;
  double* out = static_cast<double*>(call.elements(0, napi_float64_array, &cells));
  if (call.failed()) return nullptr;
  if (call.context().disposed) return give(env, 0);
  return give(env, static_cast<int64_t>(call.context().helpers->reap(out, cells / 3)));
}

const Method METHODS[] = {{"submit", submitCall}, {"reap", reapCall}};

}  // namespace

Methods jobMethods() { return {METHODS, sizeof METHODS / sizeof METHODS[0]}; }

}  // namespace lockstep
