// Which tokens may come next: bit t of a row of words stands for token t.
#pragma once

#include <limits>
#include <vector>

#include "simd.h"

// What is not allowed among logits [vocab] becomes minus infinity.
inline void forbid(float* logits, const u32* words, i64 vocab) {
    const float never = -std::numeric_limits<float>::infinity();
    const i32x16 bit = {1,      1 << 1, 1 << 2,  1 << 3,  1 << 4,  1 << 5,  1 << 6,  1 << 7,
                        1 << 8, 1 << 9, 1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15};
    const f32x16 lowest = splat(never);
    i64 token = 0;
    for (; token + 16 <= vocab; token += 16) {
        const std::int32_t bits = words[token / 32] >> token % 32 & 0xffff;
        if (bits != 0xffff) store(logits + token, select(((i32x16{} + bits) & bit) != 0, load<f32x16>(logits + token), lowest));
    }
    for (; token < vocab; ++token)
        if (!(words[token / 32] >> token % 32 & 1)) logits[token] = never;
}

// The tokens that are allowed, ascending, where they are no more than `most`; else none.
inline void list_few(const u32* words, i64 count, i64 most, std::vector<i64>& tokens) {
    i64 allowed = 0;
    tokens.clear();
    for (i64 at = 0; at < count; ++at) allowed += __builtin_popcount(words[at]);
    if (allowed > most) return;
    for (i64 at = 0; at < count; ++at)
        for (u32 left = words[at]; left; left &= left - 1) tokens.push_back(at * 32 + __builtin_ctz(left));
}
