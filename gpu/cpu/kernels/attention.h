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

#include "blocks.h"
#include "gemm.h"

static_assert(KEYS == COLUMNS);

// One layer's way to attend. sinks: [heads] or null.
struct Manner {
    float scale, softcap;
    i64 window;
    const float* sinks;
};

static_assert(BLOCK_ROWS == ROWS);

struct AttentionScratch {
    std::vector<u32> q, k, v;
    std::vector<float> acc;
    alignas(64) float scores[(ROWS + 16) * KEYS];
    alignas(64) u32 p[(ROWS + SPARE_ROWS) * KEYS] = {};
    float highest[ROWS], total[ROWS];
    i64 own[ROWS];  // positions
};

// 64 keys: 16 in each of four places.
template <class X>
struct Keys {
    using Number = X;
    using Next = Alike<Keys>;
    const X* column[4];
    i64 step;
    static constexpr bool tiles = true;
    const X* at(i64 u, i64 j) const { return column[j] + u * step; }
};

// Values of 64 keys, in runs of 1 << shift = `even` units.
template <class X>
struct Values {
    using Number = X;
    using Next = Alike<Values>;
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
    f32x16 s[4];
    for (int j = 0; j < 4; ++j) s[j] = load<f32x16>(scores + j * 16) * manner.scale;
    if (manner.softcap != 0)
        for (int j = 0; j < 4; ++j) s[j] = tanh_of(s[j] / manner.softcap) * manner.softcap;
    if (from > 0 || to < KEYS)
        for (int j = 0; j < 4; ++j) {
            const i32x16 at = lanes + j * 16;
            s[j] = select((at >= (std::int32_t)from) & (at < (std::int32_t)to), s[j], splat(lowest));
        }
    const float before = highest, now = std::max(before, largest(maximum(maximum(s[0], s[1]), maximum(s[2], s[3]))));
    const float base = now == lowest ? 0 : now;
    f32x16 weight[4];
    for (int j = 0; j < 4; ++j) {
        weight[j] = exp_nonpositive(s[j] - base);
        narrow(p + j * 16, weight[j]);
    }
    const float sums = sum((weight[0] + weight[1]) + (weight[2] + weight[3]));
    float factor = 1;
    if (before != now) factor = before == lowest ? 0 : exp_nonpositive(splat(before - now))[0];
    highest = now;
    total = total * factor + sums;
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

// Query heads of one KV head in one block.
template <class X>
class Attention {
  public:
    Attention(const Heads& h, const Manner& manner, const Pages& pages, const Batch& batch, const Layout& layout, i64 task)
        : h_(h), manner_(manner), pages_(pages), batch_(batch), head_(task % h.kv_heads),
          parts_(&layout.parts[layout.blocks[task / h.kv_heads].first]),
          count_(layout.blocks[task / h.kv_heads].end - layout.blocks[task / h.kv_heads].first) {}

    // query and out: [rows, heads, dim] with ldq and ldo numbers between rows. then: what this thread does next, or null.
    void run(const X* query, i64 ldq, X* out, i64 ldo, AttentionScratch& s, const Attention* then) const {
        fit(s);
        take(query, ldq, s);
        for (Stop at = first(), next; at.part < count_; at = next) {
            next = after(at);
            if (next.part < count_)
                look(at, this, next, s);
            else
                look(at, then, then ? then->first() : next, s);
        }
        give(out, ldo, s);
    }

  private:
    static constexpr i64 PER = Weight<X>::per_unit, HEIGHT = ROWS + 16;

    // The keys from `begin` on, and the parts [part, end) that look at them together; row: of the first of these.
    struct Stop {
        i64 begin, part, end, row;
    };

    i64 units_d() const { return units_of<X>(h_.key_dim); }
    i64 panels() const { return (h_.value_dim + COLUMNS - 1) / COLUMNS; }
    Sequence<X> sequence(const Part& part) const { return {h_, pages_, batch_.table(part.sequence), head_}; }

    void fit(AttentionScratch& s) const {
        if ((i64)s.q.size() < (ROWS + SPARE_ROWS) * units_d()) s.q.resize((ROWS + SPARE_ROWS) * units_d());
        if ((i64)s.acc.size() < panels() * HEIGHT * COLUMNS) s.acc.resize(panels() * HEIGHT * COLUMNS);
        if (!h_.in_units()) {
            s.k.assign(units_d() * KEYS, 0);
            s.v.resize(KEYS / PER * COLUMNS);
        }
    }

    // put(pair of the part, row of the block, row of the step, query head) for all rows.
    template <class Put>
    void each(Put put) const {
        for (i64 i = 0, row = 0; i < count_; ++i)
            for (i64 pair = 0; pair < parts_[i].count; ++pair, ++row) {
                const i64 number = parts_[i].first + pair, shared = h_.shared();
                put(parts_[i], pair, row, parts_[i].row + number / shared, head_ * shared + number % shared);
            }
    }

    void take(const X* query, i64 ldq, AttentionScratch& s) const {
        each([&](const Part& part, i64 pair, i64 row, i64 of, i64 head) {
            X* to = reinterpret_cast<X*>(&s.q[row * units_d()]);
            std::memcpy(to, query + of * ldq + head * h_.key_dim, h_.key_dim * sizeof(X));
            std::memset(to + h_.key_dim, 0, (units_d() * PER - h_.key_dim) * sizeof(X));
            s.own[row] = part.own(pair);
            s.highest[row] = -std::numeric_limits<float>::infinity();
            s.total[row] = 0;
        });
    }

    Stop first() const {
        Stop at{parts_[0].start(manner_.window), 0, 0, 0};
        for (i64 i = 1; i < count_; ++i) at.begin = std::min(at.begin, parts_[i].start(manner_.window));
        return looks(parts_[0], at.begin) ? joined(at) : after({at.begin, 0, 1, 0});
    }

    bool looks(const Part& part, i64 begin) const { return begin >= part.start(manner_.window) && begin <= part.last(); }

    // With all parts that may look together with its first one.
    Stop joined(Stop at) const {
        const i64 start = parts_[at.part].start(manner_.window);
        for (at.end = at.part + 1; at.end < count_; ++at.end) {
            const Part& part = parts_[at.end];
            if (part.start(manner_.window) != start || !Layout::same_pages(batch_, h_, parts_[at.part], part, at.begin)) break;
        }
        return at;
    }

    Stop after(Stop at) const {
        i64 last = 0;
        for (i64 i = 0; i < count_; ++i) last = std::max(last, parts_[i].last());
        while (at.begin <= last) {
            for (; at.part < at.end; ++at.part) at.row += parts_[at.part].count;
            if (at.part == count_) at = {at.begin + KEYS, 0, 0, 0};
            if (looks(parts_[at.part], at.begin)) return joined(at);
            at.end = at.part + 1;
        }
        return {at.begin, count_, count_, 0};
    }

    Keys<X> keys(const Stop& at, AttentionScratch& s) const {
        const Part& part = parts_[at.part];
        return keys_from<X>(sequence(part), at.begin, part.seen(manner_.window), part.last(), s);
    }

    Values<X> values(const Stop& at, i64 column, AttentionScratch& s) const {
        const Part& part = parts_[at.part];
        return values_from<X>(sequence(part), at.begin, part.seen(manner_.window), part.last(), column, s);
    }

    // Look at the keys of a stop, while those of the next one, `then` of `by`, are sent for.
    void look(const Stop& at, const Attention* by, const Stop& then, AttentionScratch& s) const {
        const i64 start = parts_[at.part].start(manner_.window);
        const bool more = at.begin != start, sends = h_.in_units() && by;
        i64 rows = 0, last = 0;
        for (i64 i = at.part; i < at.end; ++i) rows += parts_[i].count, last = std::max(last, parts_[i].last());
        const Keys<X> next_keys = sends ? by->keys(then, s) : Keys<X>{};
        multiply(s.q.data() + at.row * units_d(), units_d(), rows, keys(at, s), h_.in_units() ? h_.key_dim / PER : units_d(), s.scores,
                 false, COLUMNS, Alike<Keys<X>>{sends ? &next_keys : nullptr});
        for (i64 i = 0; i < rows; ++i) weigh_row(at.begin, at.row + i, s.scores + i * KEYS, reinterpret_cast<X*>(s.p + i * KEYS / PER), more, s);
        const i64 there = h_.in_units() ? (std::min(KEYS, last + 1 - at.begin) + PER - 1) / PER : KEYS / PER;
        for (i64 panel = 0; panel < panels(); ++panel) {
            const i64 column = panel * COLUMNS;
            const Values<X> next_values = sends ? by->values(then, column, s) : Values<X>{};
            multiply(s.p, KEYS / PER, rows, values(at, column, s), there, &s.acc[(panel * HEIGHT + at.row) * COLUMNS], more,
                     h_.value_dim - column, Alike<Values<X>>{sends ? &next_values : nullptr});
        }
    }

    void weigh_row(i64 begin, i64 row, const float* scores, X* p, bool more, AttentionScratch& s) const {
        const i64 own = s.own[row], from = manner_.window ? std::max<i64>(0, own - manner_.window + 1 - begin) : 0;
        const float factor = weigh(scores, manner_, from, std::min(KEYS, own + 1 - begin), s.highest[row], s.total[row], p);
        if (factor == 1 || !more) return;
        for (i64 panel = 0; panel < panels(); ++panel)
            for (i64 j = 0; j < COLUMNS; j += 16) {
                float* at = &s.acc[(panel * HEIGHT + row) * COLUMNS + j];
                store(at, load<f32x16>(at) * factor);
            }
    }

    void give(X* out, i64 ldo, AttentionScratch& s) const {
        each([&](const Part&, i64, i64 row, i64 of, i64 head) {
            float total = s.total[row];
            // One more logit in the softmax, without a value.
            if (manner_.sinks) total += std::exp(manner_.sinks[head] - s.highest[row]);
            X* to = out + of * ldo + head * h_.value_dim;
            for (i64 column = 0; column < h_.value_dim; column += 16) {
                alignas(64) X numbers[16];
                const float* from = &s.acc[(column / COLUMNS * HEIGHT + row) * COLUMNS + column % COLUMNS];
                narrow(numbers, load<f32x16>(from) / total);
                std::memcpy(to + column, numbers, std::min<i64>(16, h_.value_dim - column) * sizeof(X));
            }
        });
    }

    const Heads& h_;
    const Manner& manner_;
    const Pages& pages_;
    const Batch& batch_;
    const i64 head_;
    const Part* const parts_;
    const i64 count_;
};

// A phase of the team's. blocks: how many the layout has; who lags behind must not look.
template <class X>
inline void attend(Team::Member& team, const Heads& h, const Manner& manner, const Pages& pages, const Batch& batch,
                   const Layout& layout, i64 blocks, const X* query, i64 ldq, X* out, i64 ldo, AttentionScratch& s) {
    team.line_up(ATTEND, blocks * h.kv_heads, 1, true, [&](i64 task, i64 next) {
        const Attention<X> now(h, manner, pages, batch, layout, task);
        const Attention<X> then(h, manner, pages, batch, layout, next < 0 ? task : next);
        now.run(query, ldq, out, ldo, s, next < 0 ? nullptr : &then);
    });
}
