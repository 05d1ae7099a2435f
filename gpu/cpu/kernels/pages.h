// Where keys and values lie in pages, how they get there, and how products read them.
//
// Where pages are made of whole vectors of 16 tokens, keys and values lie in them as the products want them, for each
// head of the page: keys as [dim / unit][page_size] units, values as [page_size / unit][dim] units. Other pages are
// [page_size, kv_heads, dim], and are packed at each use.
#pragma once

#include <algorithm>

#include "blocks.h"
#include "gemm.h"

// 64 keys: 16 in each of four places.
template <class X>
struct Keys {
    using Number = X;
    using Next = Along;
    const X* column[COLUMNS / 16];
    i64 step;
    static constexpr bool tiles = true;
    const X* at(i64 u, i64 j) const { return column[j] + u * step; }
};

// Values of KEYS keys, in runs of 1 << shift = `even` units.
template <class X>
struct Values {
    using Number = X;
    using Next = Along;
    const X* run[KEYS / 16];
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

    // What is read for positions [begin, end), to be fetched ahead.
    void lay(Trail& trail, i64 begin, i64 end) const {
        static_assert(2 * KEYS / 16 <= Trail::MOST);
        if (h.page_size > KEYS || !h.in_units()) return;  // it does not lie in whole pieces
        for (i64 at = begin; at < end; at += h.page_size) trail.add(keys(at), h.page_size * h.key_dim * sizeof(X));
        for (i64 at = begin; at < end; at += h.page_size) trail.add(values(at), h.page_size * h.value_dim * sizeof(X));
    }

    // One token's row in a page of rows.
    const char* key_row(i64 position) const { return reinterpret_cast<const char*>(static_cast<const X*>(pages.keys) + row(position) * h.key_dim); }
    const char* value_row(i64 position) const { return reinterpret_cast<const char*>(static_cast<const X*>(pages.values) + row(position) * h.value_dim); }

  private:
    i64 row(i64 position) const {
        return ((i64)table[position / h.page_size] * h.page_size + position % h.page_size) * h.kv_heads + head;
    }
};

// Positions that a block looks at: those from `begin` on, of which [seen, last] are there.
struct Span {
    i64 begin, seen, last;

    bool has(i64 position) const { return position >= seen && position <= last; }

    // A position from whose 16 neighbours on something can be read in the place of that one's.
    i64 readable(i64 position) const { return std::min(position, last / 16 * 16); }
};

constexpr char NOTHING[4096] = {};  // a row of zeros

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
    for (i64 group = 0; group < COLUMNS; group += 16) {
        const u32* from[16];
        for (i64 block = 0; block < whole; ++block) {
            for (int i = 0; i < 16; ++i) from[i] = reinterpret_cast<const u32*>(key[group + i]) + block * 16;
            transpose16(from, out + block * 16 * COLUMNS + group, COLUMNS);
        }
        if (bytes % 64) {
            for (int i = 0; i < 16; ++i) {
                std::memset(tail[i], 0, 64);
                std::memcpy(tail[i], key[group + i] + whole * 64, bytes % 64);
                from[i] = tail[i];
            }
            transpose16(from, out + whole * 16 * COLUMNS + group, COLUMNS);
        }
    }
}

// Columns from `column` on, 64 of them, of KEYS values: units [KEYS / per unit][64].
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

// The first 64 keys of a span; packed into `room` where they have to be.
template <class X>
inline Keys<X> keys_of(const Sequence<X>& sequence, const Span& span, u32* room) {
    constexpr i64 per = Weight<X>::per_unit;
    const Heads& h = sequence.h;
    Keys<X> keys;
    if (h.in_units()) {
        keys.step = h.page_size * per;
        for (i64 j = 0; j < COLUMNS / 16; ++j) keys.column[j] = sequence.keys(span.readable(span.begin + j * 16));
        return keys;
    }
    const char* rows[COLUMNS];
    for (i64 t = 0; t < COLUMNS; ++t) rows[t] = span.has(span.begin + t) ? sequence.key_row(span.begin + t) : NOTHING;
    pack_keys<X>(rows, h.key_dim, room);
    keys.step = COLUMNS * per;
    for (i64 j = 0; j < COLUMNS / 16; ++j) keys.column[j] = reinterpret_cast<const X*>(room) + j * 16 * per;
    return keys;
}

// The values of a span's first KEYS keys, columns from `column` on.
template <class X>
inline Values<X> values_of(const Sequence<X>& sequence, const Span& span, i64 column, u32* room) {
    constexpr i64 per = Weight<X>::per_unit;
    const Heads& h = sequence.h;
    Values<X> values;
    if (h.in_units()) {
        const i64 tokens = std::min(h.page_size, KEYS);  // of a run
        values.even = tokens / per;
        values.step = h.value_dim * per;
        for (i64 i = 0; i < KEYS / tokens; ++i) values.run[i] = sequence.values(span.readable(span.begin + i * tokens)) + column * per;
    } else {
        const char* rows[KEYS];
        for (i64 t = 0; t < KEYS; ++t) rows[t] = span.has(span.begin + t) ? sequence.value_row(span.begin + t) : NOTHING;
        pack_values(rows, column, h.value_dim, reinterpret_cast<X*>(room));
        values.even = KEYS / per;
        values.step = COLUMNS * per;
        values.run[0] = reinterpret_cast<const X*>(room);
    }
    values.shift = __builtin_ctzll(values.even);
    return values;
}
