// Attention over pages: a block of query rows and one KV head against KEYS keys at a time (`softmax.h`).
//
// Blocks of keys begin at multiples of KEYS positions, and what a row may not see weighs exactly nothing, so that a row
// gets the same result whether it is decoded alone or prefilled with others.
#pragma once

#include <algorithm>

#include "pages.h"
#include "softmax.h"

static_assert(BLOCK_ROWS == ROWS && KEYS % COLUMNS == 0);

constexpr i64 HEIGHT = ROWS + 16;  // rows of a block's products, to whole tiles

struct AttentionScratch {
    std::vector<u32> q, k, v;
    std::vector<float> acc;
    alignas(64) float scores[KEYS / COLUMNS][HEIGHT * COLUMNS];
    alignas(64) u32 p[(ROWS + SPARE_ROWS) * KEYS] = {};
    Softmax softmax[ROWS];
    i64 own[ROWS];  // positions
};

// Query heads of one KV head in one block.
template <class X>
class Attention {
  public:
    Attention(const Heads& h, const Manner& manner, const Pages& pages, const Batch& batch, const Layout& layout, i64 task)
        : h_(h), manner_(manner), pages_(pages), batch_(batch), head_(task % h.kv_heads),
          parts_(&layout.parts[layout.blocks[task / h.kv_heads].first]),
          count_(layout.blocks[task / h.kv_heads].end - layout.blocks[task / h.kv_heads].first) {}

    // query: [rows, heads, dim], out: [attended rows, heads, dim], with ldq and ldo numbers between rows. then: what this thread does next, or null.
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
    static constexpr i64 PER = Weight<X>::per_unit;

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
            s.k.assign(units_d() * COLUMNS, 0);
            s.v.resize(KEYS / PER * COLUMNS);
        }
    }

    // put(part, pair of it, row of the block, row of the sequence, query head) for all rows.
    template <class Put>
    void each(Put put) const {
        for (i64 i = 0, row = 0; i < count_; ++i)
            for (i64 pair = 0; pair < parts_[i].count; ++pair, ++row) {
                const i64 number = parts_[i].first + pair, shared = h_.shared();
                put(parts_[i], pair, row, number / shared, head_ * shared + number % shared);
            }
    }

    void take(const X* query, i64 ldq, AttentionScratch& s) const {
        each([&](const Part& part, i64 pair, i64 row, i64 of, i64 head) {
            X* to = reinterpret_cast<X*>(&s.q[row * units_d()]);
            std::memcpy(to, query + (part.row + of) * ldq + head * h_.key_dim, h_.key_dim * sizeof(X));
            std::memset(to + h_.key_dim, 0, (units_d() * PER - h_.key_dim) * sizeof(X));
            s.own[row] = part.own(pair);
            s.softmax[row] = {};
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

    // The keys of a stop from number `first` on.
    Span span(const Stop& at, i64 first) const {
        const Part& part = parts_[at.part];
        return {at.begin + first, part.seen(manner_.window), part.last()};
    }

    Keys<X> keys(const Stop& at, i64 first, AttentionScratch& s) const {
        return keys_of<X>(sequence(parts_[at.part]), span(at, first), s.k.data());
    }

    Values<X> values(const Stop& at, i64 column, AttentionScratch& s) const {
        return values_of<X>(sequence(parts_[at.part]), span(at, 0), column, s.v.data());
    }

    // How many of a stop's keys are there for any of its rows.
    i64 there(const Stop& at) const {
        i64 last = 0;
        for (i64 i = at.part; i < at.end; ++i) last = std::max(last, parts_[i].last());
        return std::min(KEYS, last + 1 - at.begin);
    }

    // Look at the keys of a stop, while those of the next one, `then` of `by`, are sent for.
    void look(const Stop& at, const Attention* by, const Stop& then, AttentionScratch& s) const {
        i64 rows = 0;
        for (i64 i = at.part; i < at.end; ++i) rows += parts_[i].count;
        const bool more = at.begin != parts_[at.part].start(manner_.window);
        Trail trail;
        if (by) by->lay(trail, then, units_of_look(at, rows));
        score(at, rows, {&trail}, s);
        for (i64 row = 0; row < rows; ++row) weigh_row(at, row, more, s);
        collect(at, rows, more, {&trail}, s);
    }

    // What a stop looks at, to be brought within so many units.
    void lay(Trail& trail, const Stop& at, i64 units) const {
        sequence(parts_[at.part]).lay(trail, at.begin, at.begin + there(at));
        trail.spread(units);
    }

    // Units of all passes of `score` and `collect`.
    i64 units_of_look(const Stop& at, i64 rows) const {
        const i64 keys = there(at), passes = (rows + MAX_R - 1) / MAX_R;
        return passes * (round_up(keys, COLUMNS) / COLUMNS * (h_.key_dim / PER) + panels() * ((keys + PER - 1) / PER));
    }

    // Scores of the stop's rows with those of its keys that are there.
    void score(const Stop& at, i64 rows, Along ahead, AttentionScratch& s) const {
        const i64 keys_there = there(at), units_k = h_.in_units() ? h_.key_dim / PER : units_d();
        for (i64 first = 0; first < keys_there; first += COLUMNS)
            multiply(s.q.data() + at.row * units_d(), units_d(), rows, keys(at, first, s), units_k, s.scores[first / COLUMNS], false,
                     keys_there - first, ahead);
    }

    void weigh_row(const Stop& at, i64 number, bool more, AttentionScratch& s) const {
        const i64 row = at.row + number, own = s.own[row];
        const i64 from = manner_.window ? std::max<i64>(0, own - manner_.window + 1 - at.begin) : 0;
        const i64 to = std::min(KEYS, own + 1 - at.begin);
        X* p = reinterpret_cast<X*>(s.p + number * KEYS / PER);
        const float factor = weigh(s.scores[0] + number * COLUMNS, HEIGHT * COLUMNS, manner_, from, to, s.softmax[row], p);
        if (factor == 1 || !more) return;
        for (i64 panel = 0; panel < panels(); ++panel)
            for (i64 j = 0; j < COLUMNS; j += 16) {
                float* sums = &s.acc[(panel * HEIGHT + row) * COLUMNS + j];
                store(sums, load<f32x16>(sums) * factor);
            }
    }

    // Add the values of the keys that are there, weighed.
    void collect(const Stop& at, i64 rows, bool more, Along ahead, AttentionScratch& s) const {
        const i64 units_k = h_.in_units() ? (there(at) + PER - 1) / PER : KEYS / PER;
        for (i64 panel = 0; panel < panels(); ++panel) {
            const i64 column = panel * COLUMNS;
            multiply(s.p, KEYS / PER, rows, values(at, column, s), units_k, &s.acc[(panel * HEIGHT + at.row) * COLUMNS], more,
                     h_.value_dim - column, ahead);
        }
    }

    void give(X* out, i64 ldo, AttentionScratch& s) const {
        each([&](const Part& part, i64, i64 row, i64 of, i64 head) {
            const float total = s.softmax[row].total + (manner_.sinks ? s.softmax[row].sink(manner_.sinks[head]) : 0);
            X* to = out + (part.to + of) * ldo + head * h_.value_dim;
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
