// The Llama family's forward in one call; see gpu/models/llama.py for its composition.
//
// The residual stream is float32; what is multiplied has the model's type X.
#pragma once

#include "attention.h"
#include "lora.h"

enum Activation { SILU = 0, GELU = 1, GELU_TANH = 2, RELU = 3 };

struct Layer {
    Linear qkv, output, gate_up, down;
    const float *before_attention, *before_mlp;  // weights of the norms
    const float *query_norm, *key_norm;          // [dim], or null
    Pages pages;
    i64 window;
};

// cos, sin: [context, dim / 2] by position. embedding: [vocab, hidden] of X.
struct Model {
    i64 hidden, inner, vocab, layers, activation, kind;
    float eps, scale;
    Heads heads;
    const void* embedding;
    const float *cos, *sin, *norm;
    Linear head;
    const Layer* layer;
};

// logits: [wanted, vocab] of the rows `wanted`, or null when there are none. states: [tapped, hidden], what the
// head sees of the rows `tapped`. likeliest: the most likely token of each row of logits, or null.
struct Step {
    Batch batch;
    const i64 *tokens, *wanted;
    i64 wanted_count;
    float* logits;
    const i64* tapped;
    i64 tapped_count;
    float* states;
    Adapted adapted;
    i64* likeliest;
};

// The index of the greatest of `size` numbers, the first of several; -1 where one is not a number, or that is infinite.
inline i64 likeliest_of(const float* x, i64 size) {
    f32x16 best = splat(-std::numeric_limits<float>::infinity());
    i32x16 at = {}, strange = {};
    i64 i = 0;
    for (; i + 16 <= size; i += 16) {
        const f32x16 part = load<f32x16>(x + i);
        const i32x16 greater = part > best;
        strange |= part != part;
        best = select(greater, part, best);
        at = (greater & (LANES + (std::int32_t)i)) | (~greater & at);
    }
    float highest = best[0];
    i64 found = at[0];
    bool bad = false;
    for (int lane = 0; lane < 16; ++lane) {
        bad |= strange[lane] != 0;
        if (best[lane] > highest || (best[lane] == highest && at[lane] < found)) highest = best[lane], found = at[lane];
    }
    for (; i < size; ++i) {
        bad |= x[i] != x[i];
        if (x[i] > highest) highest = x[i], found = i;
    }
    return bad || !(std::fabs(highest) <= std::numeric_limits<float>::max()) ? -1 : found;
}

[[gnu::always_inline]] inline f32x16 activate(i64 kind, f32x16 x) {
    switch (kind) {
        case SILU: return silu(x);
        case RELU: return maximum(x, splat(0));
        case GELU_TANH: return 0.5f * x * (1.0f + tanh_of(0.7978845608028654f * (x + 0.044715f * x * x * x)));
        default:
            for (int i = 0; i < 16; ++i) x[i] = 0.5f * x[i] * (1.0f + std::erf(x[i] * 0.70710678118654752f));
            return x;
    }
}

// 1 / sqrt(mean(x^2) + eps)
inline float inverse_norm(const float* x, i64 size, float eps) {
    f32x16 squares = splat(0);
    i64 i = 0;
    for (; i + 16 <= size; i += 16) {
        f32x16 part = load<f32x16>(x + i);
        squares += part * part;
    }
    float total = sum(squares);
    for (; i < size; ++i) total += x[i] * x[i];
    return 1.0f / std::sqrt(total / size + eps);
}

template <class X>
inline void put_one(X* at, float x) {
    alignas(64) X numbers[16];
    narrow(numbers, splat(x));
    *at = numbers[0];
}

template <class X>
inline void rms_norm(const float* x, const float* weight, i64 size, float eps, X* out) {
    const float factor = inverse_norm(x, size, eps);
    i64 i = 0;
    for (; i + 16 <= size; i += 16) narrow(out + i, load<f32x16>(x + i) * factor * load<f32x16>(weight + i));
    for (; i < size; ++i) put_one(out + i, x[i] * factor * weight[i]);
}

struct ThreadScratch {
    Scratch gemm;
    std::vector<float> kept;
    AttentionScratch attention;
};

// What a step keeps between its phases. Rows of X have room for whole units and are zero behind their end.
template <class X>
struct Workspace {
    std::vector<float> x, qkv;
    std::vector<X> a, q, attended, inner;
    Shrunk<X> shrunk;
    Layout every, needed;  // the step's rows, and those that the last layer attends
    i64 ldx, ldqkv, lda, ldq, ldo, ldi;

    static i64 row_of(i64 k) { return units_of<X>(k) * Weight<X>::per_unit; }

    void fit(const Model& model, const Step& step, int threads) {
        const Heads& h = model.heads;
        const Batch& batch = step.batch;
        const i64 rows = batch.rows + ROWS;
        ldx = round_up(model.hidden, COLUMNS);
        ldqkv = round_up((h.heads + h.kv_heads) * h.key_dim + h.kv_heads * h.value_dim, COLUMNS);
        lda = row_of(model.hidden);
        ldq = h.heads * h.key_dim;
        ldo = row_of(h.heads * h.value_dim);
        ldi = row_of(round_up(model.inner, 32));
        grow(x, rows * ldx);
        grow(qkv, rows * ldqkv);
        grow(a, rows * lda);
        grow(q, rows * ldq);
        grow(attended, rows * ldo);
        grow(inner, rows * ldi);
        if (step.adapted.count) grow(shrunk.numbers, batch.rows * step.adapted.most);
        lay_out(model, step, threads);
    }

    // After the last layer only wanted rows are read, so after its keys and values it goes on with these alone.
    void lay_out(const Model& model, const Step& step, int threads) {
        every.attended.all(step.batch);
        every.cut(step.batch, model.heads, threads);
        const bool all = step.wanted_count && !step.wanted;
        if (all || step.adapted.count)
            needed.attended.all(step.batch);
        else
            needed.attended.only(step.batch, step.wanted, step.wanted_count, step.tapped, step.tapped_count);
        needed.cut(step.batch, model.heads, threads);
    }

    template <class T>
    static void grow(std::vector<T>& numbers, i64 size) {
        if ((i64)numbers.size() < size) numbers.resize(size);
    }
};

// One thread's forward. Outside of tasks a thread that lags behind reads what is here, and nothing that it points to but
// the layers.
template <class X>
struct Forward {
    const Model& model;
    const Step& step;
    const Extent every, needed;
    Workspace<X>& w;
    Team::Member& team;
    ThreadScratch& s;

    template <class Row>
    void rows(Work work, i64 count, Row row) {
        team.share(work, count, std::max<i64>(1, count / (4 * team.size())), row);
    }

    template <class Put>
    void linear(Work work, const Linear& by, const std::vector<X>& from, i64 ld, i64 m, Put put) {
        apply(team, work, by, reinterpret_cast<const u32*>(from.data()), ld / Weight<X>::per_unit, m, s.gemm, put);
    }

    // The linear map number `map` of a step, with what the rows' adapters change of it.
    template <class Put>
    void adapted(Work work, i64 map, const Linear& by, const std::vector<X>& from, i64 ld, i64 m, Put put) {
        const Adapted& adapters = step.adapted;
        if (adapters.count == 0) return linear(work, by, from, ld, m, put);
        w.shrunk.fill(team, adapters, map, from.data(), ld, by.k);
        linear(work, by, from, ld, m, [&](i64 panel, i64 row, float* c) {
            w.shrunk.expand(adapters, map, panel, row, m, c);
            put(panel, row, c);
        });
    }

    void run() {
        Tiles tiles;
        const i64 m = step.batch.rows;
        rows(EMBED, m, [&](i64 row) { embed(row); });
        for (i64 i = 0; i < model.layers; ++i) layer(i, m);
        rows(NORM, step.tapped_count, [&](i64 i) {
            const float* x = w.x.data() + step.tapped[i] * w.ldx;
            rms_norm(x, model.norm, model.hidden, model.eps, step.states + i * model.hidden);
        });
        rows(NORM, step.wanted_count, [&](i64 i) { norm_row(i, step.wanted ? step.wanted[i] : i, model.norm); });
        if (step.wanted_count == 0) return;
        linear(HEAD, model.head, w.a, w.lda, step.wanted_count, [&](i64 panel, i64 row, const float* c) {
            const i64 column = panel * COLUMNS, width = std::min(COLUMNS, model.vocab - column);
            std::memcpy(step.logits + row * model.vocab + column, c, width * 4);
        });
        if (step.likeliest)
            rows(LIKELIEST, step.wanted_count, [&](i64 i) { step.likeliest[i] = likeliest_of(step.logits + i * model.vocab, model.vocab); });
    }

    void layer(i64 number, i64 m) {
        const Layer& l = model.layer[number];
        rows(NORM, m, [&](i64 row) { norm_row(row, row, l.before_attention); });
        adapted(QKV, number * MAPS, l.qkv, w.a, w.lda, m, [&](i64 panel, i64 row, const float* c) {
            std::memcpy(&w.qkv[row * w.ldqkv + panel * COLUMNS], c, COLUMNS * 4);
        });
        rows(TURN, m, [&](i64 row) { turn(l, row); });
        const bool last = number + 1 == model.layers;
        go_on(l, number * MAPS, last ? w.needed : w.every, last ? needed : every);
    }

    // The attended rows through what comes after keys and values.
    void go_on(const Layer& l, i64 map, const Layout& layout, Extent extent) {
        const i64 m = extent.rows;
        if (m == 0) return;
        const Manner manner{model.scale, 0, l.window, nullptr};
        attend<X>(team, model.heads, manner, l.pages, step.batch, layout, extent.blocks, w.q.data(), w.ldq, w.attended.data(), w.ldo, s.attention);
        const auto add = [&](i64 panel, i64 i, const float* c) { add_row(panel, layout.attended.rows[i], c); };
        adapted(OUTPUT, map + 1, l.output, w.attended, w.ldo, m, add);
        rows(NORM, m, [&](i64 i) { norm_row(i, layout.attended.rows[i], l.before_mlp); });
        adapted(GATE_UP, map + 2, l.gate_up, w.a, w.lda, m, [&](i64 panel, i64 i, const float* c) {
            X* to = &w.inner[i * w.ldi + panel * 32];
            for (i64 j = 0; j < 32; j += 16)
                narrow(to + j, activate(model.activation, load<f32x16>(c + j)) * load<f32x16>(c + 32 + j));
        });
        adapted(DOWN, map + 3, l.down, w.inner, w.ldi, m, add);
    }

    void embed(i64 row) {
        const X* from = static_cast<const X*>(model.embedding) + step.tokens[row] * model.hidden;
        for (i64 i = 0; i < model.hidden; ++i) w.x[row * w.ldx + i] = to_float(from[i]);
    }

    void norm_row(i64 to, i64 from, const float* weight) {
        rms_norm(&w.x[from * w.ldx], weight, model.hidden, model.eps, &w.a[to * w.lda]);
    }

    void add_row(i64 panel, i64 row, const float* c) {
        float* x = &w.x[row * w.ldx + panel * COLUMNS];
        for (i64 i = 0; i < COLUMNS; i += 16) store(x + i, load<f32x16>(x + i) + load<f32x16>(c + i));
    }

    // Norm and rotate the row's query and key heads; queries to w.q, keys and values to the pages.
    void turn(const Layer& l, i64 row) {
        const Heads& h = model.heads;
        const i64 dim = h.key_dim, position = step.batch.positions[row], values = h.kv_heads * h.value_dim;
        float* from = &w.qkv[row * w.ldqkv];
        s.kept.resize(h.kv_heads * (dim + h.value_dim));
        X* key = reinterpret_cast<X*>(s.kept.data());
        for (i64 head = 0; head < h.heads + h.kv_heads; ++head, from += dim) {
            const bool is_query = head < h.heads;
            X* to = is_query ? &w.q[row * w.ldq + head * dim] : key + (head - h.heads) * dim;
            turn_head(from, is_query ? l.query_norm : l.key_norm, position, dim, to);
        }
        X* value = key + h.kv_heads * dim;
        i64 i = 0;
        for (; i + 16 <= values; i += 16) narrow(value + i, load<f32x16>(from + i));
        for (; i < values; ++i) put_one(value + i, from[i]);
        keep(h, l.pages, step.batch.places[row], w.every.last[row] != 0, key, value);
    }

    void turn_head(float* x, const float* norm, i64 position, i64 dim, X* to) {
        if (norm) {
            const float factor = inverse_norm(x, dim, model.eps);
            for (i64 i = 0; i < dim; ++i) x[i] *= factor * norm[i];
        }
        const i64 half = dim / 2;
        const float *cos = model.cos + position * half, *sin = model.sin + position * half;
        i64 i = 0;
        for (; i + 16 <= half; i += 16) {
            f32x16 low = load<f32x16>(x + i), high = load<f32x16>(x + half + i);
            f32x16 c = load<f32x16>(cos + i), n = load<f32x16>(sin + i);
            narrow(to + i, low * c - high * n);
            narrow(to + half + i, high * c + low * n);
        }
        for (; i < half; ++i) {
            put_one(to + i, x[i] * cos[i] - x[half + i] * sin[i]);
            put_one(to + half + i, x[half + i] * cos[i] + x[i] * sin[i]);
        }
    }
};
