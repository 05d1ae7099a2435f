// Attention over pages: a block of query rows of one sequence and one KV head against 64 keys at a time, with the
// running maximum and sum of FlashAttention (https://arxiv.org/abs/2205.14135).
//
// Blocks of keys begin at multiples of 64 positions, and what a row may not see weighs exactly nothing, so that a row
// gets the same result whether it is decoded alone or prefilled with others.
//
// Where pages are made of whole vectors of 16 tokens, keys and values lie in them as the products want them, for each
// head of the page: keys as [dim / unit][page_size] units, values as [page_size / unit][dim] units. Other pages are
// [page_size, kv_heads, dim], and are packed at each use.
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

// Columns of a unit of values are read by 16 or 32, also beyond value_dim: the pool has a page behind its last one.
struct Heads {
    i64 heads, kv_heads, key_dim, value_dim, page_size;
    i64 shared() const { return heads / kv_heads; }
    bool in_units() const { return page_size % 16 == 0 && (page_size & (page_size - 1)) == 0 && key_dim % 2 == 0; }
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

// How a step's rows are attended. last: whether a row is its sequence's last one.
struct Layout {
    std::vector<Block> blocks;
    std::vector<char> last;

    void cut(const Batch& batch, i64 shared) {
        blocks.clear();
        last.assign(batch.rows, 0);
        for (i64 s = 0, row = 0; s < batch.sequences; ++s) {
            const i64 length = batch.query_lens[s], all = length * shared;
            for (i64 first = 0; first < all; first += ROWS)
                blocks.push_back({s, row, first, std::min(ROWS, all - first), batch.contexts[s] - length});
            row += length;
            last[row - 1] = 1;
        }
    }
};

struct AttentionScratch {
    std::vector<u32> q, k, v;
    std::vector<float> acc;
    alignas(64) float scores[(ROWS + 16) * KEYS];
    alignas(64) u32 p[(ROWS + SPARE_ROWS) * KEYS] = {};
    float highest[ROWS], total[ROWS];
};

// 64 keys: 16 in each of four places.
template <class X>
struct Keys {
    using Number = X;
    const X* column[4];
    i64 step;
    static constexpr bool tiles = true;
    const X* at(i64 u, i64 j) const { return column[j] + u * step; }
};

// Values of 64 keys, in runs of 1 << shift = `even` units.
template <class X>
struct Values {
    using Number = X;
    const X* run[4];
    i64 step, even;
    int shift;
    static constexpr bool tiles = false;  // so many units as there are keys
    const X* at(i64 u, i64 j) const { return run[u >> shift] + (u & (even - 1)) * step + j * 16 * Weight<X>::per_unit; }
};

// Where a sequence's tokens are.
template <class X>
struct Sequence {
    const Heads& h;
    const Pages& pages;
    const std::int32_t* table;
    i64 head;

    // The head's part of a page of units; tokens from `position` on.
    const X* keys(i64 position) const {
        const i64 page = table[position / h.page_size];
        return static_cast<const X*>(pages.keys) + (page * h.kv_heads + head) * h.page_size * h.key_dim +
               position % h.page_size * Weight<X>::per_unit;
    }
    const X* values(i64 position) const {
        const i64 page = table[position / h.page_size];
        return static_cast<const X*>(pages.values) + (page * h.kv_heads + head) * h.page_size * h.value_dim +
               position % h.page_size * h.value_dim;
    }
    // One token's row in a page of rows.
    i64 row(i64 position) const {
        return ((i64)table[position / h.page_size] * h.page_size + position % h.page_size) * h.kv_heads + head;
    }
};

// One token's key and value into their place. last: no token of the sequence comes after it in this step.
template <class X>
inline void keep(const Heads& h, const Pages& pages, i64 place, bool last, const X* key, const X* value) {
    constexpr i64 per = Weight<X>::per_unit;
    X* keys = static_cast<X*>(pages.keys);
    X* values = static_cast<X*>(pages.values);
    if (!h.in_units()) {
        std::memcpy(keys + place * h.kv_heads * h.key_dim, key, h.kv_heads * h.key_dim * sizeof(X));
        std::memcpy(values + place * h.kv_heads * h.value_dim, value, h.kv_heads * h.value_dim * sizeof(X));
        return;
    }
    const i64 page = place / h.page_size, offset = place % h.page_size;
    for (i64 head = 0; head < h.kv_heads; ++head) {
        X* k = keys + (page * h.kv_heads + head) * h.page_size * h.key_dim + offset * per;
        for (i64 i = 0; i < h.key_dim; i += per, k += h.page_size * per, key += per) std::memcpy(k, key, 4);
        X* v = values + (page * h.kv_heads + head) * h.page_size * h.value_dim + offset / per * per * h.value_dim;
        for (i64 i = 0; i < h.value_dim; ++i) v[i * per + offset % per] = value[i];
        // What shares a unit with it is multiplied too, by nothing: it must be a number.
        if (per == 2 && last && offset % per == 0)
            for (i64 i = 0; i < h.value_dim; ++i) v[i * per + 1] = X{};
        value += h.value_dim;
    }
}

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

// Keys from `begin` on, of which those up to `last` are there; packed into s.k where they have to be.
template <class X>
inline Keys<X> keys_from(const Sequence<X>& sequence, i64 begin, i64 seen, i64 last, AttentionScratch& s) {
    const Heads& h = sequence.h;
    constexpr i64 per = Weight<X>::per_unit;
    Keys<X> keys;
    if (h.in_units()) {
        keys.step = h.page_size * per;
        for (i64 j = 0; j < 4; ++j) keys.column[j] = sequence.keys(std::min(begin + j * 16, last / 16 * 16));
        return keys;
    }
    static const char zeros[4096] = {};
    const char* rows[KEYS];
    for (i64 t = 0; t < KEYS; ++t) {
        const i64 at = begin + t;
        const bool there = at >= seen && at <= last;
        rows[t] = there ? reinterpret_cast<const char*>(static_cast<const X*>(sequence.pages.keys) + sequence.row(at) * h.key_dim) : zeros;
    }
    pack_keys<X>(rows, h.key_dim, s.k.data());
    keys.step = KEYS * per;
    for (i64 j = 0; j < 4; ++j) keys.column[j] = reinterpret_cast<const X*>(s.k.data()) + j * 16 * per;
    return keys;
}

// The same keys' values, columns from `column` on.
template <class X>
inline Values<X> values_from(const Sequence<X>& sequence, i64 begin, i64 seen, i64 last, i64 column, AttentionScratch& s) {
    const Heads& h = sequence.h;
    constexpr i64 per = Weight<X>::per_unit;
    Values<X> values;
    if (h.in_units()) {
        values.even = std::min(h.page_size, KEYS) / per;
        values.shift = __builtin_ctzll(values.even);
        values.step = h.value_dim * per;
        for (i64 i = 0; i < KEYS / (values.even * per); ++i)
            values.run[i] = sequence.values(std::min(begin + i * values.even * per, last / 16 * 16)) + column * per;
        return values;
    }
    static const char zeros[4096] = {};
    const char* rows[KEYS];
    for (i64 t = 0; t < KEYS; ++t) {
        const i64 at = begin + t;
        const bool there = at >= seen && at <= last;
        rows[t] = there ? reinterpret_cast<const char*>(static_cast<const X*>(sequence.pages.values) + sequence.row(at) * h.value_dim) : zeros;
    }
    pack_values(rows, column, h.value_dim, reinterpret_cast<X*>(s.v.data()));
    values.even = KEYS / per;
    values.shift = __builtin_ctzll(values.even);
    values.step = COLUMNS * per;
    values.run[0] = reinterpret_cast<const X*>(s.v.data());
    return values;
}

// query and out: [rows, heads, dim] with ldq and ldo numbers between rows.
template <class X>
inline void attend_block(const Heads& h, const Manner& manner, const Pages& pages, const Batch& batch, const Block& block,
                         i64 head, const X* query, i64 ldq, X* out, i64 ldo, AttentionScratch& s) {
    constexpr i64 per = Weight<X>::per_unit;
    const i64 shared = h.shared(), units_d = units_of<X>(h.key_dim), panels = (h.value_dim + COLUMNS - 1) / COLUMNS;
    const i64 used_units = h.in_units() ? h.key_dim / per : units_d;
    const i64 first = block.position + block.first / shared, last = block.position + (block.first + block.count - 1) / shared;
    const i64 height = ROWS + 16;
    if ((i64)s.q.size() < (ROWS + SPARE_ROWS) * units_d) s.q.resize((ROWS + SPARE_ROWS) * units_d);
    if ((i64)s.acc.size() < panels * height * COLUMNS) s.acc.resize(panels * height * COLUMNS);
    if (!h.in_units()) {
        s.k.assign(units_d * KEYS, 0);
        s.v.resize(KEYS / per * COLUMNS);
    }
    for (i64 i = 0; i < block.count; ++i) {
        const i64 pair = block.first + i;
        const X* from = query + (block.row + pair / shared) * ldq + (head * shared + pair % shared) * h.key_dim;
        X* to = reinterpret_cast<X*>(&s.q[i * units_d]);
        std::memcpy(to, from, h.key_dim * sizeof(X));
        std::memset(to + h.key_dim, 0, (units_d * per - h.key_dim) * sizeof(X));
        s.highest[i] = -std::numeric_limits<float>::infinity();
        s.total[i] = 0;
    }
    const Sequence<X> sequence{h, pages, batch.tables + block.sequence * batch.table_width, head};
    const i64 seen = manner.window ? std::max<i64>(0, first - manner.window + 1) : 0;
    const i64 start = seen / KEYS * KEYS;
    for (i64 begin = start; begin <= last; begin += KEYS) {
        const Keys<X> keys = keys_from<X>(sequence, begin, seen, last, s);
        multiply(s.q.data(), units_d, block.count, keys, used_units, s.scores, false);
        for (i64 i = 0; i < block.count; ++i) {
            const i64 own = block.position + (block.first + i) / shared;
            const i64 from = manner.window ? std::max<i64>(0, own - manner.window + 1 - begin) : 0;
            X* p = reinterpret_cast<X*>(s.p + i * KEYS / per);
            float factor = weigh(s.scores + i * KEYS, manner, from, std::min(KEYS, own + 1 - begin), s.highest[i], s.total[i], p);
            if (factor != 1 && begin != start)
                for (i64 panel = 0; panel < panels; ++panel)
                    for (i64 j = 0; j < COLUMNS; j += 16) {
                        float* at = &s.acc[(panel * height + i) * COLUMNS + j];
                        store(at, load<f32x16>(at) * factor);
                    }
        }
        const i64 there = h.in_units() ? (std::min(KEYS, last + 1 - begin) + per - 1) / per : KEYS / per;
        for (i64 panel = 0; panel < panels; ++panel) {
            const i64 column = panel * COLUMNS;
            const Values<X> values = values_from<X>(sequence, begin, seen, last, column, s);
            multiply(s.p, KEYS / per, block.count, values, there, &s.acc[panel * height * COLUMNS], begin != start, h.value_dim - column);
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
            const float* from = &s.acc[(column / COLUMNS * height + i) * COLUMNS + column % COLUMNS];
            narrow(numbers, load<f32x16>(from) / total);
            std::memcpy(to + column, numbers, std::min<i64>(16, h.value_dim - column) * sizeof(X));
        }
    }
}

// A phase of the team's. blocks: how many the layout has; who lags behind must not look.
template <class X>
inline void attend(Team::Member& team, const Heads& h, const Manner& manner, const Pages& pages, const Batch& batch,
                   const Layout& layout, i64 blocks, const X* query, i64 ldq, X* out, i64 ldo, AttentionScratch& s) {
    team.share(blocks * h.kv_heads, 1, [&](i64 task) {
        attend_block<X>(h, manner, pages, batch, layout.blocks[task / h.kv_heads], task % h.kv_heads, query, ldq, out, ldo, s);
    });
}
