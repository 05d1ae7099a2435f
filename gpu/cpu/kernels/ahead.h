// What is read next, brought into the cache while something is multiplied, a little with each unit of that. A product of
// many rows goes through its units in several passes.
#pragma once

#include "simd.h"

// A run of memory. rate: 64ths of a line with each unit, 0 for nothing.
struct Run {
    const char* from = nullptr;
    i64 rate = 0;
    i64 due = 0;  // 64ths of a line that are not yet brought

    void go_on() {
        for (due += rate; due >= 64; due -= 64, from += 64) __builtin_prefetch(from, 0, 2);
    }

    // Pass number `pass` of `passes` brings a part of it.
    Run part(i64 pass, i64 passes, i64 units_k) const { return {from + pass * units_k * (rate / passes), rate / passes}; }
};

// Pieces of memory, one after another, at the same pace from product to product.
class Trail {
  public:
    static constexpr i64 MOST = 16;  // pieces

    void add(const void* from, i64 bytes) { pieces_[count_++] = {static_cast<const char*>(from), static_cast<const char*>(from) + bytes}; }

    // All of it is to be brought within so many units.
    void spread(i64 units) {
        i64 bytes = 0;
        for (i64 i = 0; i < count_; ++i) bytes += pieces_[i].end - pieces_[i].from;
        rate_ = units ? bytes / units + 1 : 0;
    }

    void go_on() {
        for (due_ += rate_; due_ >= 64; due_ -= 64) {
            while (at_.from >= at_.end) {
                if (next_ == count_) return;
                at_ = pieces_[next_++];
            }
            __builtin_prefetch(at_.from, 0, 2);
            at_.from += 64;
        }
    }

  private:
    struct Piece {
        const char *from, *end;
    };

    Piece pieces_[MOST], at_{};  // at_: what is left of the piece before number next_
    i64 count_ = 0, next_ = 0;
    i64 rate_ = 0, due_ = 0;  // 64ths of a line: with each unit, and not yet brought
};

// A trail, as products follow it.
struct Along {
    Trail* trail = nullptr;

    void go_on() const {
        if (trail) trail->go_on();
    }

    Along part(i64, i64, i64) const { return *this; }
};
