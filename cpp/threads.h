// together(threads, work): up to `threads` threads run `work` side by side; it returns when all who began have ended.
// `work` hands out its parts by atomic counters, so that it is right for any number of threads that come, one included.
#pragma once
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <thread>

namespace softxent {
using Work = std::function<void()>;
typedef std::chrono::steady_clock Clock;

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}
template <class Done> bool spin(Done done) {         // looks for 50 us: a row split in two is shorter than a wake-up
  const auto end = Clock::now() + std::chrono::microseconds(50);
  for (int i = 0; !done(); i++) { pause(); if (i % 16 == 15 && Clock::now() > end) return false; }
  return true;
}

// Threads that sleep between calls, after looking out for the next one.
class Pool {
  std::mutex call, m; std::condition_variable wake, done;
  const Work* job = nullptr; std::atomic<int64_t> ticket{0}; std::atomic<int> busy{0}; int seats = 0, size = 0;
  void loop() {
    for (int64_t seen = 0;;) {
      spin([&] { return ticket != seen; });
      std::unique_lock<std::mutex> lock(m);
      wake.wait(lock, [&] { return ticket != seen; });
      seen = ticket;
      if (seats <= 0) continue;
      seats--; busy++;
      lock.unlock(); (*job)(); lock.lock();
      if (--busy == 0) done.notify_one();
    }
  }
  static Pool*& slot() { static Pool* p = nullptr; return p; }
public:
  static Pool& get() {                               // leaked on purpose: its threads never end; a forked child starts with none
    static bool once = (slot() = new Pool, pthread_atfork(nullptr, nullptr, [] { slot() = new Pool; }), true);
    (void)once; return *slot();
  }
  void run(int threads, const Work& work) {
    std::unique_lock<std::mutex> one(call, std::try_to_lock);
    if (!one) return work();                         // two Python threads at once: the second works alone
    { std::lock_guard<std::mutex> lock(m);
      for (; size < threads - 1; size++) std::thread([this] { loop(); }).detach();
      job = &work; seats = threads - 1; ticket++; }
    wake.notify_all();
    work();
    { std::lock_guard<std::mutex> lock(m); seats = 0; }         // who has not come by now need not
    if (spin([&] { return busy == 0; })) { std::lock_guard<std::mutex> lock(m); return; }
    std::unique_lock<std::mutex> lock(m);
    done.wait(lock, [&] { return busy == 0; });
  }
};

// The OpenMP runtime that is in the process already (torch's, loaded globally), without linking to one: its threads spin
// for milliseconds after a torch operation, and threads of our own would compete with them for the cores (25 times slower
// with a second libgomp). libgomp hangs in a child forked after it ran, so a child uses the pool.
inline bool borrow(int threads, const Work& work) {
  using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
  static std::atomic<bool> forked{false};
  static bool once = (pthread_atfork(nullptr, nullptr, [] { forked = true; }), true); (void)once;
  static std::atomic<Parallel> found{nullptr}; static std::atomic<unsigned> calls{0};
  Parallel parallel = found;
  if (!parallel && calls++ % 64 == 0) found = parallel = (Parallel)dlsym(RTLD_DEFAULT, "GOMP_parallel");   // a look costs microseconds
  if (!parallel || forked) return false;
  parallel([](void* w) { (*(const Work*)w)(); }, (void*)&work, (unsigned)threads, 0);
  return true;
}

inline void together(int threads, const Work& work) {
  if (threads <= 1) return work();
  if (!borrow(threads, work)) Pool::get().run(threads, work);
}
}
