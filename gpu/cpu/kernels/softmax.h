// The softmax of one row, 64 or more scores at a time (https://arxiv.org/abs/2205.14135): its scores become weights, 2 to
// their distance from a reference, and what was summed under an older reference is scaled.
//
// The reference follows the highest score only where that gets far above it, so that most sums are never scaled. It
// depends on nothing but the row's own scores, in their order.
#pragma once

#include <algorithm>
#include <limits>

#include "blocks.h"
#include "gemm.h"

constexpr float LOG2_E = 1.44269504088896341f;
constexpr float SLACK = 8;  // powers of 2 that a weight may come to
constexpr float NEVER = -std::numeric_limits<float>::infinity();

// One layer's way to attend. sinks: [heads] or null.
struct Manner {
    float scale, softcap;
    i64 window;
    const float* sinks;
};

// What a row has seen so far: its reference as a power of 2, and the sum of its weights.
struct Softmax {
    float reference = NEVER, total = 0;

    // The factor for what was summed before, when scores as high as this are seen.
    float follow(float highest) {
        if (!(highest > reference + SLACK)) return 1;
        const float factor = reference == NEVER ? 0 : exp2_bounded(splat(reference - highest))[0];
        reference = highest;
        total *= factor;
        return factor;
    }

    // Of a logit that has no value.
    float sink(float logit) const { return std::exp2(logit * LOG2_E - reference); }
};

// Weights of the type that they are kept in.
template <class X>
inline f32x16 weights(f32x16 powers) {
    if constexpr (std::is_same_v<X, bf16>) return exp2_rough(powers);
    return exp2_bounded(powers);
}

// Scores of 16 keys from number `first` on, of which a row sees [from, to), to be multiplied by `steepness`.
inline f32x16 seen(f32x16 scores, const Manner& manner, i64 first, i64 from, i64 to) {
    const f32x16 x = manner.softcap != 0 ? tanh_of(scores * (manner.scale / manner.softcap)) : scores;
    if (first >= from && first + 16 <= to) return x;
    const i32x16 at = LANES + (std::int32_t)first;
    return select((at >= (std::int32_t)from) & (at < (std::int32_t)to), x, splat(NEVER));
}

// By which scores become powers of 2.
inline float steepness(const Manner& manner) { return (manner.softcap != 0 ? manner.softcap : manner.scale) * LOG2_E; }

// One row's scores of KEYS keys -> weights p. scores: 64 at a time, `stride` numbers apart. Returns the factor for what
// was summed before.
template <class X>
inline float weigh(const float* scores, i64 stride, const Manner& manner, i64 from, i64 to, Softmax& row, X* p) {
    constexpr int PARTS = KEYS / 16, A_PANEL = COLUMNS / 16;
    const float steep = steepness(manner);
    f32x16 s[PARTS], highest = splat(NEVER), sums = splat(0);
#pragma GCC unroll 8
    for (int i = 0; i < PARTS; ++i) {
        s[i] = seen(load<f32x16>(scores + i / A_PANEL * stride + i % A_PANEL * 16), manner, i * 16, from, to);
        highest = maximum(s[i], highest);
    }
    const float factor = row.follow(largest(highest) * steep);
    const float base = row.reference == NEVER ? 0 : row.reference;
#pragma GCC unroll 8
    for (int i = 0; i < PARTS; ++i) {
        const f32x16 weight = weights<X>(s[i] * steep - base);
        narrow(p + i * 16, weight);
        sums += weight;
    }
    row.total += sum(sums);
    return factor;
}
