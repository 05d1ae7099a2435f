// LoRA in a step: y += B (scale * (A x)) for the rows that have an adapter, each row its own.
//
// The rows are listed by adapter, so that A is read once for several of them; B is added where the base's product is put
// down, panel by panel, and stays in the cache for all rows of its adapter. Each sum runs over the same terms in the
// same order whatever other rows there are, so a row's result does not depend on them.
#pragma once

#include <algorithm>

#include "gemm.h"

constexpr i64 MAPS = 4;    // of a layer that adapters may change
constexpr i64 BLOCK = 32;  // columns that B is cut into: half a panel
constexpr i64 ROWS_AT_ONCE = 4, RANKS_AT_ONCE = 4;
constexpr i64 RANKS_OF_A_TASK = 16;
constexpr i64 AHEAD = 4;  // rows whose B is on its way while one is computed

// One adapter's change of one linear map. ranks: 0 where it has none. down: [ranks][units_of(k)] units of X. up: for each
// block of columns the ranks that reach it, [count][BLOCK] of X. blocks: for each block its first rank, their count, and
// where in `up` they begin.
struct LowRank {
    i64 ranks;
    const void* down;
    const float* scale;
    const void* up;
    const i64* blocks;
};

// A step's adapters. change: [slots][maps], maps in the order in which a step runs them. adapter: of each row of the
// step its slot, or -1. rows: those `count` that have one, by adapter. most: ranks of any change at most.
struct Adapted {
    const LowRank* change;
    i64 maps;
    const i64 *adapter, *rows;
    i64 count, most;
};

template <class X, int R, int J>
inline void low_rank_dots(const u32* const* x, const u32* a, i64 units_k, float (&out)[ROWS_AT_ONCE][RANKS_AT_ONCE]) {
    f32x16 acc[R][J] = {};
    for (i64 u = 0; u < units_k; u += ALIGNED_UNITS) {
        u32x16 b[J];
#pragma GCC unroll 4
        for (int j = 0; j < J; ++j) b[j] = load<u32x16>(a + j * units_k + u);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
            const u32x16 row = load<u32x16>(x[r] + u);
#pragma GCC unroll 4
            for (int j = 0; j < J; ++j) acc[r][j] = dot<X>(acc[r][j], row, b[j]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int j = 0; j < J; ++j) out[r][j] = sum(acc[r][j]);
}

template <class X, int R>
inline void low_rank_dots(i64 ranks, const u32* const* x, const u32* a, i64 units_k, float (&out)[ROWS_AT_ONCE][RANKS_AT_ONCE]) {
    switch (ranks) {
        case 1: return low_rank_dots<X, R, 1>(x, a, units_k, out);
        case 2: return low_rank_dots<X, R, 2>(x, a, units_k, out);
        case 3: return low_rank_dots<X, R, 3>(x, a, units_k, out);
        default: return low_rank_dots<X, R, 4>(x, a, units_k, out);
    }
}

// What lies between the two products of a map: [rows of the step][most].
template <class X>
struct Shrunk {
    std::vector<float> numbers;

    // numbers[row] = scale * (A x[row]) for the rows that have an adapter, a phase of the team's. k: columns of A; ldx:
    // numbers of X.
    void fill(Team::Member& team, const Adapted& by, i64 map, const X* x, i64 ldx, i64 k) {
        const i64 blocks = (by.count + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE;
        const i64 parts = (by.most + RANKS_OF_A_TASK - 1) / RANKS_OF_A_TASK;
        team.share(SHRINK, blocks * parts, 1, [&](i64 task) {
            const i64 from = task / parts * ROWS_AT_ONCE, to = std::min(from + ROWS_AT_ONCE, by.count);
            const i64 rank = task % parts * RANKS_OF_A_TASK;
            for (i64 first = from, end; first < to; first = end) {
                const i64 adapter = by.adapter[by.rows[first]];
                for (end = first + 1; end < to && by.adapter[by.rows[end]] == adapter;) ++end;
                const LowRank& change = by.change[adapter * by.maps + map];
                fill(by, change, first, end, rank, std::min(rank + RANKS_OF_A_TASK, change.ranks), x, ldx, units_of<X>(k));
            }
        });
    }

    void fill(const Adapted& by, const LowRank& change, i64 first, i64 end, i64 rank, i64 ranks, const X* x, i64 ldx, i64 units_k) {
        const u32* rows[ROWS_AT_ONCE];
        float out[ROWS_AT_ONCE][RANKS_AT_ONCE];
        for (i64 i = first; i < end; ++i) rows[i - first] = reinterpret_cast<const u32*>(x + by.rows[i] * ldx);
        for (; rank < ranks; rank += RANKS_AT_ONCE) {
            const i64 together = std::min(RANKS_AT_ONCE, ranks - rank);
            const u32* a = static_cast<const u32*>(change.down) + rank * units_k;
            switch (end - first) {
                case 1: low_rank_dots<X, 1>(together, rows, a, units_k, out); break;
                case 2: low_rank_dots<X, 2>(together, rows, a, units_k, out); break;
                case 3: low_rank_dots<X, 3>(together, rows, a, units_k, out); break;
                default: low_rank_dots<X, 4>(together, rows, a, units_k, out);
            }
            for (i64 i = first; i < end; ++i)
                for (i64 j = 0; j < together; ++j)
                    numbers[by.rows[i] * by.most + rank + j] = out[i - first][j] * change.scale[rank + j];
        }
    }

    // What `expand` will read of B for a row.
    void prefetch(const Adapted& by, i64 map, i64 panel, i64 row) const {
        if (by.adapter[row] < 0) return;
        const LowRank& change = by.change[by.adapter[row] * by.maps + map];
        if (change.ranks == 0) return;
        const i64* place = change.blocks + 3 * panel * COLUMNS / BLOCK;
        const char* first = (const char*)(static_cast<const X*>(change.up) + place[2]);
        const i64 bytes = (place[1] + place[4]) * BLOCK * (i64)sizeof(X);
        for (i64 at = 0; at < bytes; at += 64) __builtin_prefetch(first + at);
    }

    // c, the 64 numbers of a row from column panel * 64 on, += B numbers[row]. rows: of the step.
    void expand(const Adapted& by, i64 map, i64 panel, i64 row, i64 rows, float* c) const {
        if (row + AHEAD < rows) prefetch(by, map, panel, row + AHEAD);
        if (by.adapter[row] < 0) return;
        const LowRank& change = by.change[by.adapter[row] * by.maps + map];
        if (change.ranks == 0) return;
        for (i64 block = panel * COLUMNS / BLOCK; block < (panel + 1) * COLUMNS / BLOCK; ++block, c += BLOCK) {
            const i64* place = change.blocks + 3 * block;
            const float* t = &numbers[row * by.most + place[0]];
            const X* up = static_cast<const X*>(change.up) + place[2];
            f32x16 low = load<f32x16>(c), high = load<f32x16>(c + 16);
            for (i64 i = 0; i < place[1]; ++i, up += BLOCK) {
                low += t[i] * widen(up);
                high += t[i] * widen(up + 16);
            }
            store(c, low);
            store(c + 16, high);
        }
    }
};
