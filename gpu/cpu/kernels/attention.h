// Attention over pages: a block of query rows of one sequence and one KV head against 64 keys at a time, with the
// running maximum and sum of FlashAttention (https://arxiv.org/abs/2205.14135).
//
// Blocks of keys begin at multiples of 64 positions, and what a row may not see weighs exactly nothing, so that a row
// gets the same result whether it is decoded alone or prefilled with others.
#pragma once

#include <algorithm>
#include <limits>

#include "gemm.h"

constexpr i64 KEYS = 64;  // of a block
static_assert(KEYS == COLUMNS);

// The pages of one layer: [pages, page_size, kv_heads, dim].
struct Pages {
    void* keys;
    void* values;
};

struct Heads {
    i64 heads, kv_heads, key_dim, value_dim, page_size;
    i64 shared() const { return heads / kv_heads; }
};

// One layer's way to attend. sinks: [heads] or null.
struct Manner {
    float scale, softcap;
    i64 window;
    const float* sinks;
};

// The rows of a step; see gpu.attention.base.Batch.
struct Batch {
    i64 rows, sequences;
    const i64 *query_lens, *contexts, *positions, *places;
    const std::int32_t* tables;
    i64 table_width;
};

// Some (row, head of the group) pairs of a sequence, numbered row by row.
struct Block {
    i64 sequence, row, first, count, position;  // row: of the sequence's first row; position: of that row
};

inline void cut_into_blocks(const Batch& batch, i64 shared, std::vector<Block>& blocks) {
    blocks.clear();
    for (i64 s = 0, row = 0; s < batch.sequences; row += batch.query_lens[s++])
        for (i64 all = batch.query_lens[s] * shared, first = 0; first < all; first += ROWS)
            blocks.push_back({s, row, first, std::min(ROWS, all - first), batch.contexts[s] - batch.query_lens[s]});
}

struct AttentionScratch {
    std::vector<u32> q, k, v;
    std::vector<float> acc;
    alignas(64) float scores[(ROWS + 16) * KEYS];
    alignas(64) u32 p[(ROWS + SPARE_ROWS) * KEYS] = {};
    const char *key[KEYS], *value[KEYS];
    float highest[ROWS], total[ROWS];
};

// Keys of 64 places as units [dim / unit][64], zeros where there are none.
template <class X>
inline void pack_keys(const char* const* key, i64 dim, u32* out) {
    const i64 bytes = dim * sizeof(X), whole = bytes / 64;
    alignas(64) u32 tail[16][16];
    for (i64 group = 0; group < KEYS; group += 16) {
        const u32* from[16];
        for (i64 block = 0; block < whole; ++block) {
            for (int i = 0; i < 16; ++i) from[i] = reinterpret_cast<const u32*>(key[group + i]) + block * 16;
            transpose16(from, out + block * 16 * KEYS + group, KEYS);
        }
        if (bytes % 64) {
            for (int i = 0; i < 16; ++i) {
                std::memset(tail[i], 0, 64);
                std::memcpy(tail[i], key[group + i] + whole * 64, bytes % 64);
                from[i] = tail[i];
            }
            transpose16(from, out + whole * 16 * KEYS + group, KEYS);
        }
    }
}

// Columns from `column` on, 64 of them, of 64 values: units [64 / per unit][64].
inline void pack_values(const char* const* value, i64 column, i64 dim, float* out) {
    for (i64 t = 0; t < KEYS; ++t, out += COLUMNS) {
        const i64 width = std::min(COLUMNS, dim - column);
        std::memcpy(out, value[t] + column * 4, width * 4);
        std::memset(out + width, 0, (COLUMNS - width) * 4);
    }
}
inline void pack_values(const char* const* value, i64 column, i64 dim, bf16* out) {
    const i64 width = std::min(COLUMNS, dim - column);
    for (i64 t = 0; t < KEYS; t += 2, out += 2 * COLUMNS) {
        bf16 even[COLUMNS] = {}, odd[COLUMNS] = {};
        std::memcpy(even, value[t] + column * 2, width * 2);
        std::memcpy(odd, value[t + 1] + column * 2, width * 2);
        for (i64 i = 0; i < COLUMNS; i += 16) {
            u32x16 low = __builtin_convertvector(load<u16x16>(even + i), u32x16);
            u32x16 high = __builtin_convertvector(load<u16x16>(odd + i), u32x16);
            store(out + 2 * i, low | high << 16);
        }
    }
}

inline f32x16 tanh_of(f32x16 x) {
    i32x16 negative = x < splat(0);
    f32x16 e = exp_nonpositive(select(negative, x, -x) * 2.0f);
    f32x16 value = (1.0f - e) / (1.0f + e);
    return select(negative, -value, value);
}

// One row of scores -> weights p, given which of the 64 keys [from, to) it sees. Returns the factor for what was
// summed before.
template <class X>
inline float weigh(const float* scores, const Manner& manner, i64 from, i64 to, float& highest, float& total, X* p) {
    const float lowest = -std::numeric_limits<float>::infinity();
    const i32x16 lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    f32x16 s[4], best = splat(lowest), sums = splat(0);
    for (int j = 0; j < 4; ++j) {
        s[j] = load<f32x16>(scores + j * 16) * manner.scale;
        if (manner.softcap != 0) s[j] = tanh_of(s[j] / manner.softcap) * manner.softcap;
        i32x16 at = lanes + j * 16;
        s[j] = select((at >= (std::int32_t)from) & (at < (std::int32_t)to), s[j], splat(lowest));
        best = maximum(s[j], best);
    }
    const float before = highest, now = std::max(before, largest(best));
    const float base = now == lowest ? 0 : now;
    for (int j = 0; j < 4; ++j) {
        f32x16 weight = exp_nonpositive(s[j] - base);
        narrow(p + j * 16, weight);
        sums += weight;
    }
    f32x16 shrink = exp_nonpositive(splat(before == lowest ? lowest : before - now));
    const float factor = before == now ? 1.0f : shrink[0];
    highest = now;
    total = total * factor + sum(sums);
    return factor;
}

// query and out: [rows, heads, dim] with ldq and ldo numbers between rows.
template <class X>
inline void attend_block(const Heads& h, const Manner& manner, const Pages& pages, const Batch& batch, const Block& block,
                         i64 head, const X* query, i64 ldq, X* out, i64 ldo, AttentionScratch& s) {
    constexpr i64 per = Weight<X>::per_unit;
    const i64 shared = h.shared(), units_d = units_of<X>(h.key_dim), panels = (h.value_dim + COLUMNS - 1) / COLUMNS;
    const i64 first = block.position + block.first / shared, last = block.position + (block.first + block.count - 1) / shared;
    static const char zeros[4096] = {};
    s.q.assign((ROWS + SPARE_ROWS) * units_d, 0);
    s.k.resize(units_d * KEYS);
    if (h.key_dim * (i64)sizeof(X) % 64) std::fill(s.k.begin(), s.k.end(), 0);
    s.v.resize(KEYS / per * COLUMNS);
    s.acc.assign(panels * (ROWS + 16) * COLUMNS, 0);
    for (i64 i = 0; i < block.count; ++i) {
        const i64 pair = block.first + i;
        const X* from = query + (block.row + pair / shared) * ldq + (head * shared + pair % shared) * h.key_dim;
        std::memcpy(&s.q[i * units_d], from, h.key_dim * sizeof(X));
        s.highest[i] = -std::numeric_limits<float>::infinity();
        s.total[i] = 0;
    }
    const std::int32_t* table = batch.tables + block.sequence * batch.table_width;
    const i64 seen = manner.window ? std::max<i64>(0, first - manner.window + 1) : 0;
    for (i64 begin = seen / KEYS * KEYS; begin <= last; begin += KEYS) {
        for (i64 t = 0; t < KEYS; ++t) {
            const i64 position = begin + t;
            if (position > last || position < seen) {
                s.key[t] = s.value[t] = zeros;
                continue;
            }
            const i64 place = (i64)table[position / h.page_size] * h.page_size + position % h.page_size;
            s.key[t] = static_cast<const char*>(pages.keys) + (place * h.kv_heads + head) * h.key_dim * sizeof(X);
            s.value[t] = static_cast<const char*>(pages.values) + (place * h.kv_heads + head) * h.value_dim * sizeof(X);
        }
        pack_keys<X>(s.key, h.key_dim, s.k.data());
        multiply<X>(s.q.data(), units_d, block.count, reinterpret_cast<const X*>(s.k.data()), units_d, s.scores, false);
        for (i64 i = 0; i < block.count; ++i) {
            const i64 own = block.position + (block.first + i) / shared;
            const i64 from = manner.window ? std::max<i64>(0, own - manner.window + 1 - begin) : 0;
            X* p = reinterpret_cast<X*>(s.p + i * KEYS / per);
            float factor = weigh(s.scores + i * KEYS, manner, from, std::min(KEYS, own + 1 - begin), s.highest[i], s.total[i], p);
            if (factor != 1)
                for (i64 panel = 0; panel < panels; ++panel)
                    for (i64 j = 0; j < COLUMNS; j += 16) {
                        float* at = &s.acc[(panel * (ROWS + 16) + i) * COLUMNS + j];
                        store(at, load<f32x16>(at) * factor);
                    }
        }
        for (i64 panel = 0; panel < panels; ++panel) {
            pack_values(s.value, panel * COLUMNS, h.value_dim, reinterpret_cast<X*>(s.v.data()));
            multiply<X>(s.p, KEYS / per, block.count, reinterpret_cast<const X*>(s.v.data()), KEYS / per,
                        &s.acc[panel * (ROWS + 16) * COLUMNS], true);
        }
    }
    for (i64 i = 0; i < block.count; ++i) {
        const i64 pair = block.first + i, query_head = head * shared + pair % shared;
        float total = s.total[i];
        // One more logit in the softmax, without a value.
        if (manner.sinks) total += std::exp(manner.sinks[query_head] - s.highest[i]);
        X* to = out + (block.row + pair / shared) * ldo + query_head * h.value_dim;
        for (i64 column = 0; column < h.value_dim; column += 16) {
            alignas(64) X numbers[16];
            const float* from = &s.acc[(column / COLUMNS * (ROWS + 16) + i) * COLUMNS + column % COLUMNS];
            narrow(numbers, load<f32x16>(from) / total);
            std::memcpy(to + column, numbers, std::min<i64>(16, h.value_dim - column) * sizeof(X));
        }
    }
}

template <class X>
inline void attend(Team& team, const Heads& h, const Manner& manner, const Pages& pages, const Batch& batch,
                   const std::vector<Block>& blocks, const X* query, i64 ldq, X* out, i64 ldo, AttentionScratch& s) {
    const i64 tasks = (i64)blocks.size() * h.kv_heads;
    for (i64 task = team.take(tasks, 1); task < tasks; task = team.take(tasks, 1))
        attend_block<X>(h, manner, pages, batch, blocks[task / h.kv_heads], task % h.kv_heads, query, ldq, out, ldo, s);
}
