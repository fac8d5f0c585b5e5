// One block: its fibers, who may run next, who waits for what.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine.h"
#include "fiber.h"

namespace cuda_shim {

// xorshift64*: small, and the same everywhere.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 2 + 1) {}
  uint32_t below(uint32_t bound) {
    state_ ^= state_ >> 12;
    state_ ^= state_ << 25;
    state_ ^= state_ >> 27;
    return static_cast<uint32_t>((state_ * 0x2545f4914f6cdd1du >> 32) * bound >> 32);
  }

 private:
  uint64_t state_;
};

// The asynchronous copies of one thread.
class Copies {
 public:
  void clear();
  void add(void* to, const void* from, bool valid);
  void commit() { ++group_; }
  void wait(int pending_groups);

 private:
  struct Copy {
    void* to;
    const void* from;  // null: zeros
    int64_t group;
  };
  std::vector<Copy> waiting_;  // oldest first
  int64_t group_ = 0;          // of the copies asked for now
};

class Block {
 public:
  // Until every thread has ended or a problem has stopped them.
  void run(const Launch& launch, void (*body)(const void*), const void* arguments, uint64_t seed);
  const std::string& problem() const { return problem_; }

  const Launch& launch() const { return launch_; }
  char* shared() const { return shared_; }
  int running() const { return running_; }
  Copies& copies() { return threads_[running_].copies; }
  Random& random() { return random_; }

  // Called on a thread's fiber.
  [[noreturn]] void stop(const std::string& problem);
  int wait_for_block(const char* operation, bool predicate);
  void meet_warp(const char* operation, unsigned mask, void* operand, WarpExecute execute);

 private:
  struct Thread {
    Fiber fiber;
    uint3 index{};
    const char* waits_for = nullptr;
    unsigned waits_mask = 0;  // 0: the whole block
    Copies copies;
  };
  // Lanes that came to a warp operation with the same mask.
  struct Meeting {
    unsigned mask, arrived;
    const char* operation;
    WarpExecute execute;
    void* operands[kLanes];
  };
  struct Warp {
    unsigned alive = 0, ready = 0;  // lanes
    int cursor = 0;                 // the lane to look at first
    std::vector<Meeting> meetings;
  };

  static void enter();  // where a fiber begins
  void prepare(uint64_t seed);
  void leave(bool ends);  // the running thread cannot go on: somebody else does
  void end_of_thread();
  void release_block();
  int next();  // a thread that can go on, or -1
  int next_in_turn(int step);
  int next_shuffled();
  void restart_warp(Warp& warp);
  std::string describe_deadlock() const;

  Launch launch_;
  void (*body_)(const void*) = nullptr;
  const void* arguments_ = nullptr;
  std::vector<Thread> threads_;
  std::vector<Warp> warps_;
  Fiber main_;          // the OS thread's own stack
  bool fresh_ = false;  // the next fiber to begin comes from main_
  int count_ = 0, alive_ = 0, ready_ = 0;
  int running_ = -1, warp_ = 0;  // the warp that is looked at first
  char* shared_ = nullptr;
  std::string problem_;
  Random random_{0};
  std::vector<int> shuffled_;
  int position_ = 0;
  // The block's barrier.
  int arrived_ = 0, votes_ = 0, result_ = 0;
  const char* barrier_ = nullptr;
};

}  // namespace cuda_shim
