// together(threads, work) runs `work` on up to `threads` threads and returns when all threads that began it have ended. `work` takes its
// parts from atomic counters, so it is correct for any number of threads, including one.
#pragma once
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <system_error>
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
template <class Done> bool spin(Done done) {  // polls for 50 us, because waking a thread takes longer than half of a split row
  const auto end = Clock::now() + std::chrono::microseconds(50);
  for (int i = 0; !done(); i++) {
    pause();
    if (i % 16 == 15 && Clock::now() > end) return false;
  }
  return true;
}

// A pool of threads that sleep between calls, after polling for the next call for a moment.
class Pool {
  std::atomic_flag taken = ATOMIC_FLAG_INIT;
  std::mutex m;
  std::condition_variable wake, done;
  const Work* job = nullptr;
  std::atomic<int64_t> ticket{0};
  std::atomic<int> busy{0};
  int seats = 0, size = 0;
  void loop() {
    for (int64_t seen = 0;;) {
      spin([&] { return ticket != seen; });
      std::unique_lock<std::mutex> lock(m);
      wake.wait(lock, [&] { return ticket != seen; });
      seen = ticket;
      if (seats <= 0) continue;
      seats--;
      busy++;
      lock.unlock();
      (*job)();
      lock.lock();
      if (--busy == 0) done.notify_one();
    }
  }
  static Pool*& slot() {
    static Pool* p = nullptr;
    return p;
  }

 public:
  static Pool& get() {  // never freed, because its threads never end; a forked child gets a new pool
    static bool once = (slot() = new Pool, pthread_atfork(nullptr, nullptr, [] { slot() = new Pool; }), true);
    (void)once;
    return *slot();
  }
  void run(int threads, const Work& work) {
    if (taken.test_and_set()) return work();  // another Python thread uses the pool, or a signal handler calls within a call
    struct Release {
      std::atomic_flag& flag;
      ~Release() { flag.clear(); }
    } release{taken};
    {
      std::lock_guard<std::mutex> lock(m);
      try {
        for (; size < threads - 1; size++) std::thread([this] { loop(); }).detach();
      } catch (const std::system_error&) {
      }  // the system refuses more threads: there are fewer
      job = &work;
      seats = threads - 1;
      ticket++;
    }
    wake.notify_all();
    work();
    {
      std::lock_guard<std::mutex> lock(m);
      seats = 0;
    }  // threads that have not begun by now are not needed
    if (spin([&] { return busy == 0; })) {
      std::lock_guard<std::mutex> lock(m);
      return;
    }
    std::unique_lock<std::mutex> lock(m);
    done.wait(lock, [&] { return busy == 0; });
  }
};

// Uses the OpenMP runtime that is already loaded in the process (that of torch), without linking to one. Its threads poll for milliseconds
// after a torch operation, and other threads would compete with them for the cores: a second libgomp was 25 times slower. libgomp hangs in
// a child that was forked after it ran, so a forked child uses the pool.
inline bool borrow(int threads, const Work& work) {
  using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
  static std::atomic<bool> forked{false};
  static bool once = (pthread_atfork(nullptr, nullptr, [] { forked = true; }), true);
  (void)once;
  static std::atomic<Parallel> found{nullptr};
  static std::atomic<unsigned> calls{0};
  Parallel parallel = found;
  if (!parallel && calls++ % 64 == 0)
    found = parallel = (Parallel)dlsym(RTLD_DEFAULT, "GOMP_parallel");  // the search takes microseconds, hence every 64th call
  if (!parallel || forked) return false;
  parallel([](void* w) { (*(const Work*)w)(); }, (void*)&work, (unsigned)threads, 0);
  return true;
}

inline void together(int threads, const Work& work) {
  if (threads <= 1) return work();
  if (!borrow(threads, work)) Pool::get().run(threads, work);
}
}
