// Shares work out to plain threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <new>
#include <thread>
#include <vector>

namespace medimg {

// Calls work(n) for n from 0 to count - 1, each in a thread of its own, the first in this one; fewer are called if
// the system has no more threads. Throws bad_alloc, after all have ended, if one of them threw.
template <class Work>
void run_in_threads(std::int64_t count, Work&& work) {
  std::atomic<bool> is_short{false};
  const auto guarded = [&](std::int64_t number) {
    try {
      work(number);
    } catch (const std::exception&) {
      is_short = true;
    }
  };
  std::vector<std::thread> pool;
  for (std::int64_t n = 1; n < count; ++n) {
    try {
      pool.emplace_back(guarded, n);
    } catch (const std::exception&) {
      break;
    }
  }
  guarded(0);
  for (std::thread& thread : pool) {
    thread.join();
  }
  if (is_short) {
    throw std::bad_alloc();
  }
}

}  // namespace medimg
