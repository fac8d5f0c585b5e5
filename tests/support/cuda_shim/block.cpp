#include "block.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>
#include <utility>

#include "settings.h"

namespace cuda_shim {
namespace {

__thread Block* entering = nullptr;  // whose fibers begin

void land(void* to, const void* from) {
  if (from) memcpy(to, from, 16);
  else memset(to, 0, 16);
}

}  // namespace

// ---- Asynchronous copies
// --------------------------------------------------------------------------------------------------------

void Copies::clear() {
  waiting_.clear();
  group_ = 0;
}

void Copies::add(void* to, const void* from, bool valid) {
  const Order order = settings().order;
  const bool now = order == Order::kDescending || (order == Order::kShuffled && entering->random().below(2));
  if (now) land(to, valid ? from : nullptr);
  else waiting_.push_back({to, valid ? from : nullptr, group_});
}

void Copies::wait(int pending_groups) {
  size_t done = 0;
  for (; done < waiting_.size() && waiting_[done].group < group_ - pending_groups; ++done)
    land(waiting_[done].to, waiting_[done].from);
  waiting_.erase(waiting_.begin(), waiting_.begin() + static_cast<int64_t>(done));
}

// ---- Running
// --------------------------------------------------------------------------------------------------------------------

void Block::prepare(uint64_t seed) {
  count_ = static_cast<int>(launch_.block.x * launch_.block.y * launch_.block.z);
  alive_ = ready_ = count_;
  arrived_ = votes_ = position_ = 0;
  barrier_ = nullptr;
  problem_.clear();
  random_ = Random(seed);
  if (static_cast<int>(threads_.size()) < count_) threads_.resize(count_);
  warps_.resize((count_ + kLanes - 1) / kLanes);
  for (int w = 0; w < static_cast<int>(warps_.size()); ++w) {
    const int lanes = count_ - w * kLanes < kLanes ? count_ - w * kLanes : kLanes;
    warps_[w].alive = warps_[w].ready = lanes == kLanes ? ~0u : (1u << lanes) - 1;
    warps_[w].meetings.clear();
    restart_warp(warps_[w]);
  }
  warp_ = settings().order == Order::kDescending ? static_cast<int>(warps_.size()) - 1 : 0;
  shuffled_.resize(count_);
  for (int i = 0; i < count_; ++i) {
    shuffled_[i] = i;
    Thread& thread = threads_[i];
    const auto linear = static_cast<unsigned>(i);
    thread.index = {linear % launch_.block.x, linear / launch_.block.x % launch_.block.y,
                    linear / launch_.block.x / launch_.block.y};
    thread.waits_for = nullptr;
    thread.copies.clear();
    prepare_fiber(thread.fiber, i, enter);
  }
  position_ = count_;  // shuffle first
}

void Block::run(const Launch& launch, void (*body)(const void*), const void* arguments, uint64_t seed) {
  launch_ = launch;
  body_ = body;
  arguments_ = arguments;
  // Exactly what was asked for, so that AddressSanitizer sees the first byte beyond; NaN in every format until written.
  shared_ = static_cast<char*>(malloc(static_cast<size_t>(launch.shared_bytes)));
  memset(shared_, 0xff, static_cast<size_t>(launch.shared_bytes));
  prepare(seed);
  entering = this;
  running_ = -1;
  fresh_ = true;
  leave(false);  // comes back when no thread can go on
  if (alive_ > 0 && problem_.empty()) problem_ = describe_deadlock();
  free(shared_);
  shared_ = nullptr;
}

void Block::enter() {
  Block& block = *entering;
  arrive_on_fiber(block.fresh_ ? &block.main_ : nullptr);
  block.fresh_ = false;
  try {
    block.body_(block.arguments_);
  } catch (const std::exception& error) {
    block.stop(std::string("an exception left the kernel: ") + error.what());
  }
  block.end_of_thread();
}

void Block::leave(bool ends) {
  Fiber& from = running_ < 0 ? main_ : threads_[running_].fiber;
  const int chosen = problem_.empty() ? next() : -1;
  if (chosen >= 0 && chosen == running_) return;
  if (chosen < 0 && running_ < 0) return;
  running_ = chosen;
  if (chosen >= 0) threadIdx = threads_[chosen].index;
  switch_fiber(from, chosen < 0 ? main_ : threads_[chosen].fiber, ends);
}

void Block::stop(const std::string& problem) {
  problem_ = problem;
  leave(true);
  abort();  // nobody switches back
}

void Block::end_of_thread() {
  Warp& warp = warps_[running_ / kLanes];
  const unsigned bit = 1u << (running_ % kLanes);
  warp.alive &= ~bit;
  --alive_;
  for (const Meeting& meeting : warp.meetings) {
    if (!(meeting.mask & bit)) continue;
    fault("ends while lanes 0x%08x wait for it in %s (mask 0x%08x)", meeting.arrived, meeting.operation, meeting.mask);
  }
  if (alive_ > 0 && arrived_ == alive_) release_block();
  leave(true);
  abort();
}

// ---- Waiting
// --------------------------------------------------------------------------------------------------------------------

int Block::wait_for_block(const char* operation, bool predicate) {
  if (arrived_ > 0 && strcmp(barrier_, operation) != 0)
    fault("is at %s, others of its block at %s", operation, barrier_);
  barrier_ = operation;
  votes_ += predicate;
  ++arrived_;
  Thread& thread = threads_[running_];
  thread.waits_for = operation;
  thread.waits_mask = 0;
  if (arrived_ == alive_) release_block();
  leave(false);
  return result_;
}

void Block::release_block() {
  result_ = votes_;
  arrived_ = votes_ = 0;
  ready_ = alive_;
  for (Warp& warp : warps_) {
    warp.ready = warp.alive;
    restart_warp(warp);
  }
  warp_ = settings().order == Order::kDescending ? static_cast<int>(warps_.size()) - 1 : 0;
}

void Block::meet_warp(const char* operation, unsigned mask, void* operand, WarpExecute execute) {
  Warp& warp = warps_[running_ / kLanes];
  const int lane = running_ % kLanes;
  const unsigned bit = 1u << lane;
  if (!(mask & bit)) fault("%s: lane %d is not in its own mask 0x%08x", operation, lane, mask);
  if (mask & ~warp.alive)
    fault("%s: the mask 0x%08x names lanes 0x%08x, which have ended", operation, mask, mask & ~warp.alive);
  size_t at = 0;
  while (at < warp.meetings.size() && warp.meetings[at].mask != mask) ++at;
  if (at == warp.meetings.size()) warp.meetings.push_back({mask, 0, operation, execute, {}});
  Meeting& meeting = warp.meetings[at];
  if (meeting.execute != execute || strcmp(meeting.operation, operation) != 0) {
    fault("lane %d is at %s, lanes 0x%08x of its warp at %s (mask 0x%08x)", lane, operation, meeting.arrived,
          meeting.operation, mask);
  }
  meeting.operands[lane] = operand;
  meeting.arrived |= bit;
  Thread& thread = threads_[running_];
  thread.waits_for = operation;
  thread.waits_mask = mask;
  if (meeting.arrived == mask) {
    execute(mask, meeting.operands);
    warp.meetings.erase(warp.meetings.begin() + static_cast<int64_t>(at));
    warp.ready |= mask;
    ready_ += __builtin_popcount(mask);
    restart_warp(warp);
  }
  leave(false);
}

// ---- Who is next
// ----------------------------------------------------------------------------------------------------------------

void Block::restart_warp(Warp& warp) { warp.cursor = settings().order == Order::kDescending ? kLanes - 1 : 0; }

int Block::next() {
  if (ready_ == 0) return -1;
  const Order order = settings().order;
  const int chosen = order == Order::kShuffled ? next_shuffled() : next_in_turn(order == Order::kAscending ? 1 : -1);
  warps_[chosen / kLanes].ready &= ~(1u << (chosen % kLanes));
  --ready_;
  return chosen;
}

// Stays with a warp while one of its lanes can go on.
int Block::next_in_turn(int step) {
  const int count = static_cast<int>(warps_.size());
  while (warps_[warp_].ready == 0) warp_ = (warp_ + step + count) % count;
  Warp& warp = warps_[warp_];
  while (!(warp.ready >> warp.cursor & 1)) warp.cursor = (warp.cursor + step + kLanes) % kLanes;
  return warp_ * kLanes + warp.cursor;
}

int Block::next_shuffled() {
  for (;; ++position_) {
    if (position_ == count_) {
      for (int i = count_ - 1; i > 0; --i)
        std::swap(shuffled_[i], shuffled_[random_.below(static_cast<uint32_t>(i) + 1)]);
      position_ = 0;
    }
    const int thread = shuffled_[position_];
    if (warps_[thread / kLanes].ready >> (thread % kLanes) & 1) return thread;
  }
}

std::string Block::describe_deadlock() const {
  std::map<std::string, std::pair<int, int>> waiting;  // what: how many, the first of them
  for (int i = 0; i < count_; ++i) {
    if (!(warps_[i / kLanes].alive >> (i % kLanes) & 1)) continue;
    char what[128];
    const Thread& thread = threads_[i];
    if (thread.waits_mask) snprintf(what, sizeof(what), "%s (mask 0x%08x)", thread.waits_for, thread.waits_mask);
    else snprintf(what, sizeof(what), "%s", thread.waits_for);
    auto& entry = waiting[what];
    if (entry.first++ == 0) entry.second = i;
  }
  char where[128];
  snprintf(where, sizeof(where), ": block (%u,%u,%u): deadlock:", blockIdx.x, blockIdx.y, blockIdx.z);
  std::string text = name_of_kernel(launch_.kernel) + where;
  for (const auto& [what, who] : waiting) {
    const uint3 first = threads_[who.second].index;
    char line[256];
    snprintf(line, sizeof(line), " %d threads wait at %s, the first of them (%u,%u,%u);", who.first, what.c_str(),
             first.x, first.y, first.z);
    text += line;
  }
  return text;
}

}  // namespace cuda_shim
