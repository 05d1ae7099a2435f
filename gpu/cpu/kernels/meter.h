// Where a team's time goes: for each thread and kind of work the nanoseconds in tasks and those of waiting for others.
#pragma once

#include <time.h>

#include <vector>

#include "simd.h"

// As gpu/cpu/library.py names them.
enum Work { OTHER, EMBED, NORM, QKV, TURN, ATTEND, OUTPUT, GATE_UP, DOWN, HEAD, LIKELIEST, SHRINK, WORKS };

inline i64 nanoseconds() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

class Meter {
  public:
    struct Spent {
        i64 working, waiting;
    };

    explicit Meter(int threads) : spent(threads * WORKS) {}

    bool on = false;
    std::vector<Spent> spent;  // [threads][WORKS]

    i64 now() const {
        return on ? nanoseconds() : 0;
    }

    void add(int thread, Work work, i64 begun, i64 worked) {
        if (!on) return;
        Spent& so_far = spent[thread * WORKS + work];
        so_far.working += worked - begun;
        so_far.waiting += now() - worked;
    }
};
