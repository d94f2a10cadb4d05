// Threads for a call: together(threads, work) runs `work` on up to `threads` threads and returns when all threads that began it have ended.
// bind.cpp calls it, with the GIL released.
//
// It assumes that `work` takes its parts from atomic counters, so that it is correct for any number of threads, including one, and that it
// throws no exception. What the system refuses here, threads or memory, makes the threads fewer. Nothing here throws: to throw the first
// exception of a thread takes memory, and the process ends if that is refused.
#pragma once
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <new>

namespace softxent {
struct Work {  // a reference to a function
  void (*call)(const void*);
  const void* what;
  void operator()() const { call(what); }
};
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

 public:
  void run(int threads, const Work& work) {
    if (taken.test_and_set()) return work();  // another Python thread uses the pool, or a signal handler calls within a call
    struct Release {
      std::atomic_flag& flag;
      ~Release() { flag.clear(); }
    } release{taken};
    {
      std::lock_guard<std::mutex> lock(m);
      pthread_t begun;
      for (; size < threads - 1; size++) {
        auto loop = [](void* pool) -> void* { return ((Pool*)pool)->loop(), nullptr; };
        if (pthread_create(&begun, nullptr, loop, this)) break;
        pthread_detach(begun);
      }
      job = &work;
      seats = threads - 1;
      ticket++;
    }
    wake.notify_all();
    work();
    {
      std::lock_guard<std::mutex> lock(m);
      seats = 0;  // threads that have not begun by now are not needed
    }
    if (spin([&] { return busy == 0; })) {
      std::lock_guard<std::mutex> lock(m);
      return;
    }
    std::unique_lock<std::mutex> lock(m);
    done.wait(lock, [&] { return busy == 0; });
  }
};

// What a thread keeps between calls. It is no thread_local: the first use of one in a thread ends the process if memory is refused.
struct Local {
  struct Block {
    void* data;
    size_t bytes;
  } scratch, rows;
  int team;  // the threads that libgomp last had for this one
  static void end(void* mine) {
    ::free(((Local*)mine)->scratch.data);
    ::free(((Local*)mine)->rows.data);
    ::free(mine);
  }
  static Local* get() {  // null if memory is refused
    static pthread_key_t key;
    static const bool made = !pthread_key_create(&key, end);
    if (!made) return nullptr;
    Local* mine = (Local*)pthread_getspecific(key);
    if (mine) return mine;
    mine = (Local*)::calloc(1, sizeof(Local));
    if (mine && !pthread_setspecific(key, mine)) return mine;
    ::free(mine);
    return nullptr;
  }
};

// A forked child has none of the threads of its parent, and libgomp hangs in a child that was forked after it ran, whoever called it.
// So a child has a new pool, and uses that alone. The pool is never freed, because its threads never end.
inline std::atomic<bool> forked{false};
inline Pool* pool = nullptr;

// Whether this process was forked and has not executed another program since: the flag PF_FORKNOEXEC, on Linux.
inline bool is_a_fork() {
  unsigned long flags = 0;
  char name[64];
  std::FILE* file = std::fopen("/proc/self/stat", "re");
  if (!file) return false;
  const int found = std::fscanf(file, "%*d (%63[^)]) %*c %*d %*d %*d %*d %*d %lu", name, &flags);
  std::fclose(file);
  return found == 2 && flags & 0x40;
}

// libgomp ends the process if it is refused memory or a thread. So both are asked for before it is called: memory for its team (200 bytes
// for each thread), and threads that run at the same time, if it has fewer for this one.
inline bool libgomp_may(int threads) {
  Local* mine = Local::get();
  pthread_t* volatile tried = (pthread_t*)::malloc(4096 + 1024 * (size_t)threads);  // volatile, or the compiler leaves it out
  bool may = mine && tried;
  if (may && threads > mine->team) {
    std::mutex held;
    auto wait = [](void* m) -> void* { return ((std::mutex*)m)->lock(), ((std::mutex*)m)->unlock(), nullptr; };
    int begun = 1;
    held.lock();
    while (begun < threads && !pthread_create(tried + begun, nullptr, wait, &held)) begun++;
    held.unlock();
    for (int k = 1; k < begun; k++) pthread_join(tried[k], nullptr);
    may = begun == threads;
  }
  if (mine) mine->team = may ? threads : 0;  // it ends the threads that a smaller team leaves out
  ::free(tried);
  return may;
}

// Uses the OpenMP runtime that is already loaded in the process (that of torch), without linking to one. Its threads poll for milliseconds
// after a torch operation, and other threads would compete with them for the cores: a second libgomp was 25 times slower.
inline bool borrow(int threads, const Work& work) {
  using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);
  static std::atomic<Parallel> found{nullptr};
  static std::atomic<unsigned> calls{0};
  if (forked) return false;
  Parallel parallel = found;
  if (!parallel && calls++ % 64 == 0)
    found = parallel = (Parallel)dlsym(RTLD_DEFAULT, "GOMP_parallel");  // the search takes microseconds, hence every 64th call
  if (!parallel || !libgomp_may(threads)) return false;
  parallel([](void* w) { (*(const Work*)w)(); }, (void*)&work, (unsigned)threads, 0);
  return true;
}

template <class F> void together(int threads, const F& f) {
  const Work work = {[](const void* f) { (*(const F*)f)(); }, &f};
  if (threads <= 1 || !pool) return work();
  if (!borrow(threads, work)) pool->run(threads, work);
}
}
