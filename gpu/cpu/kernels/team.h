// A team of threads that run one function together and meet at barriers.
//
// Work between two barriers is cut into tasks that are taken one by one, so that a thread which the system has put
// aside delays the others by one task and not by its share. Waiting is a short spin, then sleep: on a machine with
// few cores the other processes need them. The one who calls `run` is thread 0.
#pragma once

#include <linux/futex.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <thread>
#include <vector>

#include "simd.h"

class Team {
  public:
    using Body = void (*)(int thread, void* argument);

    explicit Team(int size) : size_(size) {
        for (int thread = 1; thread < size; ++thread) workers_.emplace_back([this, thread] { work(thread); });
    }

    ~Team() {
        body_ = nullptr;
        turn_.advance();
        for (auto& worker : workers_) worker.join();
    }

    int size() const { return size_; }

    void run(Body body, void* argument) {
        body_ = body;
        argument_ = argument;
        phase_ = 0;
        for (auto& counter : counters_) counter.next.store(0, std::memory_order_relaxed);
        if (size_ > 1) turn_.advance();
        body(0, argument);
        barrier();
    }

    // Every thread of the team calls this; all that was written before is seen by all after it.
    void barrier() {
        u32 now = meeting_.now();
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
            arrived_.store(0, std::memory_order_relaxed);
            counters_[(phase_ + 2) % PHASES].next.store(0, std::memory_order_relaxed);
            phase_ += 1;
            meeting_.advance();
        } else {
            meeting_.wait(now);
        }
    }

    // The next of `count` tasks since the last barrier, `grain` at once: its first, or `count` when none is left.
    i64 take(i64 count, i64 grain) {
        i64 first = counters_[phase_ % PHASES].next.fetch_add(grain, std::memory_order_relaxed);
        return first < count ? first : count;
    }

  private:
    // A number that grows, and on which one can wait.
    struct alignas(64) Bell {
        std::atomic<u32> value{0};
        std::atomic<u32> sleepers{0};

        u32 now() const { return value.load(std::memory_order_acquire); }

        void advance() {
            value.fetch_add(1, std::memory_order_seq_cst);
            if (sleepers.load(std::memory_order_seq_cst)) syscall(SYS_futex, &value, FUTEX_WAKE_PRIVATE, 1 << 20);
        }

        void wait(u32 old) {
            for (int spin = 0; spin < SPINS; ++spin) {
                if (now() != old) return;
                pause();
            }
            sleepers.fetch_add(1, std::memory_order_seq_cst);
            while (now() == old) syscall(SYS_futex, &value, FUTEX_WAIT_PRIVATE, old, nullptr);
            sleepers.fetch_sub(1, std::memory_order_relaxed);
        }

        static void pause() {
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
        }
    };

    static constexpr int SPINS = 1000;  // 20 to 50 microseconds
    static constexpr int PHASES = 3;    // counters in turn: the last one used, this one, the next one

    void work(int thread) {
        pthread_setname_np(pthread_self(), "kernel");
        for (u32 seen = 0;;) {
            turn_.wait(seen);
            seen += 1;
            if (body_ == nullptr) return;
            body_(thread, argument_);
            barrier();
        }
    }

    struct alignas(64) Counter {
        std::atomic<i64> next{0};
    };

    const int size_;
    Body body_ = nullptr;
    void* argument_ = nullptr;
    int phase_ = 0;
    Bell turn_, meeting_;
    alignas(64) std::atomic<int> arrived_{0};
    Counter counters_[PHASES];
    std::vector<std::thread> workers_;
};
