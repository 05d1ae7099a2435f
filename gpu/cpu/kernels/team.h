// A team of threads that run one function together, phase by phase.
//
// The work of a phase is cut into tasks, which are taken one by one. A phase is over when all its tasks are done, and not
// when all threads have come: one that the system has put aside delays the others by the task that it holds, if it holds
// one, and afterwards walks past the phases that it has missed. So on a machine with few cores, where other processes
// want one now and then, the team is as fast as the cores that it is given.
//
// Waiting is a short spin, then sleep. The one who calls `run` is thread 0.
#pragma once

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <climits>
#include <new>
#include <thread>
#include <type_traits>
#include <vector>

#include "meter.h"

class Team {
  public:
    // One thread's way through a run. All threads come to the same phases, in the same order.
    class Member {
      public:
        Member(Team& team, int thread, u32 phase) : thread(thread), team_(team), phase_(phase) {}

        const int thread;
        int size() const { return team_.size_; }

        // A phase: `task(i)` for each i of [0, count), `grain` at a time. What was written in it is seen by all after it.
        template <class Task>
        void share(Work work, i64 count, i64 grain, Task task) {
            if (count <= 0) return;
            give_way();
            const u32 phase = phase_++;
            const i64 begun = team_.meter.now();
            for (i64 first; (first = team_.take(phase, count, grain)) < count;) {
                const i64 end = std::min(first + grain, count);
                for (i64 i = first; i < end; ++i) task(i);
                team_.done(phase, end - first, count);
            }
            const i64 worked = team_.meter.now();
            team_.await(phase);
            team_.meter.add(thread, work, begun, worked);
        }

        // The same, each told which task this thread has next: `task(i, next)`, -1 for none or where nobody wants to know.
        // ahead: it takes them one `grain` ahead to know.
        template <class Task>
        void line_up(Work work, i64 count, i64 grain, bool ahead, Task task) {
            if (count <= 0) return;
            give_way();
            const u32 phase = phase_++;
            const i64 begun = team_.meter.now();
            for (i64 first = team_.take(phase, count, grain), next; first < count; first = next) {
                const i64 end = std::min(first + grain, count);
                next = ahead ? team_.take(phase, count, grain) : count;
                for (i64 i = first; i < end; ++i) task(i, !ahead ? -1 : i + 1 < end ? i + 1 : next < count ? next : -1);
                team_.done(phase, end - first, count);
                if (!ahead) next = team_.take(phase, count, grain);
            }
            const i64 worked = team_.meter.now();
            team_.await(phase);
            team_.meter.add(thread, work, begun, worked);
        }

      private:
        // Whoever waits for this core gets it now and then between two phases: the system would give it to him amid a task,
        // which all others wait for. He who was away for long stays the longer, and so keeps nearly all of his share.
        void give_way() {
            Stint& stint = team_.stints_[thread];
            const i64 now = nanoseconds();
            if (now < stint.end) return;
            sched_yield();
            const i64 back = nanoseconds();
            stint.end = back + std::max(STINT, 4 * (back - now));
        }

        Team& team_;
        u32 phase_;
    };

    explicit Team(int size) : meter(size), size_(size), stints_(size) {
        for (int thread = 1; thread < size; ++thread) workers_.emplace_back([this, thread] { work(thread); });
    }

    ~Team() {
        settle();
        body_ = nullptr;
        begin();
        for (auto& worker : workers_) worker.join();
    }

    Meter meter;  // to be changed when the team has settled

    int size() const { return size_; }

    // Wait for those who lag behind in the last run: what they read outside of tasks may change after this.
    void settle() {
        for (u32 left = left_.now(); inside_.load() != 0; left = left_.now()) left_.wait(left);
    }

    // All threads that are free call `call(member)`; returns when its phases are over. The caller has settled before.
    // The team keeps a copy of `call` for those who lag behind.
    template <class Call>
    void run(const Call& call) {
        static_assert(std::is_trivially_copyable_v<Call> && sizeof(Call) <= sizeof(call_) && alignof(Call) <= 64);
        new (call_) Call(call);
        body_ = [](Member& member, const void* it) { (*static_cast<const Call*>(it))(member); };
        begin();
        enter(0);
        open_.store(false);
    }

  private:
    // A number that grows, and on which one can wait.
    struct alignas(64) Bell {
        std::atomic<u32> value{0};
        std::atomic<u32> sleepers{0};

        u32 now() const { return value.load(std::memory_order_acquire); }

        void advance() {
            value.fetch_add(1);
            if (sleepers.load()) wake(&value);
        }

        void wait(u32 old) {
            spin_then([&] { return now() != old; }, sleepers, &value, old);
        }
    };

    // Until when a thread keeps its core.
    struct alignas(64) Stint {
        i64 end = 0;
    };

    static constexpr i64 STINT = 500'000;  // nanoseconds
    static constexpr int SPINS = 1000;  // 20 to 50 microseconds

    template <class Condition>
    static void spin_then(Condition holds, std::atomic<u32>& sleepers, const void* word, u32 old) {
        for (int spin = 0; spin < SPINS; ++spin) {
            if (holds()) return;
#if defined(__x86_64__)
            __builtin_ia32_pause();
#endif
        }
        sleepers.fetch_add(1);
        while (!holds()) syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, old, nullptr);
        sleepers.fetch_sub(1);
    }

    static void wake(const void* word) { syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, INT_MAX); }

    // The phase in the upper half, the tasks of it that were taken in the lower.
    static u32 phase_of(u64 claims) { return (u32)(claims >> 32); }

    // The first of the next tasks of `phase`, or `count` when none is left.
    i64 take(u32 phase, i64 count, i64 grain) {
        u64 claims = claims_.load(std::memory_order_acquire);
        do {
            if (phase_of(claims) != phase || (i64)(u32)claims >= count) return count;
        } while (!claims_.compare_exchange_weak(claims, claims + grain, std::memory_order_acq_rel, std::memory_order_acquire));
        return (u32)claims;
    }

    // Some tasks are done; with the last of them the next phase begins.
    void done(u32 phase, i64 tasks, i64 count) {
        if (done_.fetch_add(tasks, std::memory_order_acq_rel) + tasks < count) return;
        done_.store(0, std::memory_order_relaxed);
        claims_.store((u64)(phase + 1) << 32);
        if (waiting_.load()) wake(phase_word());
    }

    void await(u32 phase) {
        spin_then([&] { return phase_of(claims_.load(std::memory_order_acquire)) != phase; }, waiting_, phase_word(), phase);
    }

    const u32* phase_word() const {
        return reinterpret_cast<const u32*>(&claims_) + (__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__ ? 1 : 0);
    }

    void begin() {
        begins_ = phase_of(claims_.load());
        open_.store(true);
        runs_.advance();
    }

    void enter(int thread) {
        Member member(*this, thread, begins_);
        body_(member, call_);
    }

    // Who counts as inside while a run is open may read what belongs to it.
    void work(int thread) {
        pthread_setname_np(pthread_self(), "kernel");
        for (u32 seen = 0;;) {
            runs_.wait(seen);
            seen = runs_.now();
            inside_.fetch_add(1);
            if (open_.load()) {
                if (body_ == nullptr) return;
                enter(thread);
            }
            inside_.fetch_sub(1);
            left_.advance();
        }
    }

    const int size_;
    void (*body_)(Member&, const void*) = nullptr;
    u32 begins_ = 0;
    alignas(64) char call_[1024];
    alignas(64) std::atomic<u64> claims_{0};
    alignas(64) std::atomic<u32> waiting_{0};
    alignas(64) std::atomic<i64> done_{0};
    alignas(64) std::atomic<int> inside_{0};
    std::atomic<bool> open_{false};
    Bell runs_, left_;
    std::vector<Stint> stints_;
    std::vector<std::thread> workers_;
};
