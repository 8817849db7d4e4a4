// Helper threads: queues of jobs that may block.
//
// Owns: the threads, their queues, the list of completed jobs and when the
// completion eventfd is readable. Must not know: JavaScript, and why a job was
// asked for. Rows are validated by the caller.
#pragma once
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <mutex>
#include <thread>
#include <vector>

namespace lockstep {

enum Operation : uint8_t { OP_PREAD, OP_PWRITE, OP_FDATASYNC, OP_FSYNC, OP_PUNCH, OP_ZERO, OP_CLOSE, OP_UNLINK, OP_RESERVE, OP_COUNT };

struct Row {
  Operation operation;
  int fd;
  uint8_t* memory;  // null for operations without a buffer
  int64_t length;
  int64_t pos;
};

struct Completion {
  double token;
  double result;
  double failedRow;
};

constexpr size_t QUEUE_COUNT = 5;

class Helpers {
 public:
  // `doneFd`: eventfd, readable while completions wait. Borrowed.
  explicit Helpers(int doneFd) : doneFd_(doneFd) {}
  ~Helpers() { stop(); }

  // Queues a job; starts the queue's threads at first use. False when no thread could be started.
  bool submit(size_t queue, std::vector<Row> rows, double token);
  // Moves up to `max` completions into `out` as triples; returns their number.
  size_t reap(double* out, size_t max);
  // Lets running jobs finish, drops those that have not begun, joins. Idempotent.
  void stop();

 private:
  struct Job {
    std::vector<Row> rows;
    double token;
  };
  struct Queue {
    std::mutex mutex;
    std::condition_variable ready;
    std::deque<Job> jobs;
    std::vector<std::thread> threads;
    bool stopping = false;
  };

  void work(Queue& queue);
  void complete(const Completion& completion);

  Queue queues_[QUEUE_COUNT];
  std::mutex doneMutex_;
  std::deque<Completion> done_;
  int doneFd_;
};

}  // namespace lockstep
