// What Python calls (gpu/cpu/library.py). Nothing here checks arguments: the caller does.
#include "decoder.h"
#include "masked.h"

namespace {

struct Machine {
    explicit Machine(int threads) : team(threads), scratches(threads) {}

    Team team;
    std::vector<ThreadScratch> scratches;
    Workspace<float> floats;
    Workspace<bf16> halves;
    std::vector<Layer> layers;  // of the last step
    Layout layout;
};

template <class X>
Workspace<X>& workspace(Machine& machine);
template <>
Workspace<float>& workspace(Machine& machine) { return machine.floats; }
template <>
Workspace<bf16>& workspace(Machine& machine) { return machine.halves; }

template <class X>
void forward(Machine& machine, Model model, const Step& step) {
    machine.team.settle();
    machine.layers.assign(model.layer, model.layer + model.layers);
    model.layer = machine.layers.data();
    Workspace<X>& space = workspace<X>(machine);
    space.fit(model, step, machine.team.size());
    const Extent every = space.every.extent(), needed = space.needed.extent();
    machine.team.run([=, &machine, &space](Team::Member& team) {
        Forward<X>{model, step, every, needed, space, team, machine.scratches[team.thread]}.run();
    });
}

// Where the sequences of several steps in a row stand, each with one row.
struct Walk {
    std::vector<i64> tokens, positions, contexts, places;

    void begin(const Step& step) {
        const Batch& batch = step.batch;
        tokens.assign(step.tokens, step.tokens + batch.rows);
        positions.assign(batch.positions, batch.positions + batch.rows);
        contexts.assign(batch.contexts, batch.contexts + batch.rows);
        places.assign(batch.places, batch.places + batch.rows);
    }

    void go_on(const Batch& batch, i64 page_size, const i64* sampled) {
        for (i64 i = 0; i < batch.rows; ++i) {
            tokens[i] = sampled[i];
            contexts[i] += 1;
            const i64 position = positions[i] += 1;
            places[i] = batch.tables[i * batch.table_width + position / page_size] * page_size + position % page_size;
        }
    }
};

// One layer's attention for models whose other parts run elsewhere.
template <class X>
void attend_layer(Machine& machine, const Heads& heads, const Manner& manner, const Pages& pages, const Batch& batch,
                  const void* query, const void* key, const void* value, void* out) {
    machine.team.settle();
    machine.layout.attended.all(batch);
    machine.layout.cut(batch, heads, machine.team.size());
    const i64 blocks = machine.layout.blocks.size();
    machine.team.run([=, &machine](Team::Member& team) {
        Tiles tiles;
        const i64 keys = heads.kv_heads * heads.key_dim, values = heads.kv_heads * heads.value_dim;
        team.share(TURN, batch.rows, std::max<i64>(1, batch.rows / (4 * team.size())), [&](i64 i) {
            keep(heads, pages, batch.places[i], machine.layout.last[i] != 0, static_cast<const X*>(key) + i * keys,
                 static_cast<const X*>(value) + i * values);
        });
        attend<X>(team, heads, manner, pages, batch, machine.layout, blocks, static_cast<const X*>(query), heads.heads * heads.key_dim,
                  static_cast<X*>(out), heads.heads * heads.value_dim, machine.scratches[team.thread].attention);
    });
}

template <class X>
void pack_rows(const void* rows, i64 n, i64 k, void* out) {
    pack(static_cast<const X*>(rows), n, k, static_cast<X*>(out));
}

}  // namespace

extern "C" {

// Null when there is no room for it.
Machine* machine_new(int threads) {
    try {
        return new Machine(threads);
    } catch (...) {
        return nullptr;
    }
}
void machine_free(Machine* machine) { delete machine; }

// Begin to measure with nothing spent, or end it.
void machine_measure(Machine* machine, int on) {
    machine->team.settle();
    machine->team.meter.on = on;
    std::fill(machine->team.meter.spent.begin(), machine->team.meter.spent.end(), Meter::Spent{});
}

// Nanoseconds [threads][WORKS][working, waiting] since then.
void machine_spent(Machine* machine, i64* out) {
    machine->team.settle();
    for (const Meter::Spent& each : machine->team.meter.spent) *out++ = each.working, *out++ = each.waiting;
}

// What gpu/cpu/library.py has to agree with.
void layout(i64* out) {
    const i64 sizes[] = {sizeof(Linear), sizeof(Pages), sizeof(Heads), sizeof(Manner), sizeof(Batch),
                         sizeof(Layer),  sizeof(Model), sizeof(Step),  sizeof(LowRank), sizeof(Adapted),
                         COLUMNS,        SPARE_ROWS,    ALIGNED_UNITS,   BLOCK,          WORKS};
    std::copy(std::begin(sizes), std::end(sizes), out);
}

// Whether the processor's tiles may be used by this process; they are when `wanted`.
int machine_tiles(int wanted) {
    static const bool allowed = ask_for_tiles();
    tiles_in_use = allowed && wanted;
    return allowed;
}

i64 packed_bytes(int kind, i64 n, i64 k) {
    const i64 columns = round_up(n, COLUMNS);
    switch (kind) {
        case FLOAT: return units_of<float>(k) * columns * 4;
        case BFLOAT16: return units_of<bf16>(k) * columns * 4;
        default: return units_of<bf16>(k) * columns * 2;
    }
}

void pack_weight(int kind, const void* rows, i64 n, i64 k, void* out) {
    switch (kind) {
        case FLOAT: return pack_rows<float>(rows, n, k, out);
        case BFLOAT16: return pack_rows<bf16>(rows, n, k, out);
        default: return pack_rows<std::int8_t>(rows, n, k, out);
    }
}

void model_forward(Machine* machine, const Model* model, const Step* step) {
    model->kind == FLOAT ? forward<float>(*machine, *model, *step) : forward<bf16>(*machine, *model, *step);
}

// Steps in a row, each with the most likely token of the one before: `likeliest` [rounds, rows]. Ends before a round in
// which a row has none; how many rounds are done. The tables reach as far as the last round.
i64 model_decode(Machine* machine, const Model* model, const Step* first, i64 rounds) {
    Walk walk;
    walk.begin(*first);
    Step step = *first;
    step.tokens = walk.tokens.data();
    step.batch.positions = walk.positions.data();
    step.batch.contexts = walk.contexts.data();
    step.batch.places = walk.places.data();
    const i64 rows = step.batch.rows;
    for (i64 round = 0; round < rounds; ++round, step.likeliest += rows) {
        model_forward(machine, model, &step);
        if (std::find(step.likeliest, step.likeliest + rows, -1) != step.likeliest + rows) return round;
        if (round + 1 < rounds) walk.go_on(step.batch, model->heads.page_size, step.likeliest);
    }
    return rounds;
}

void attention(Machine* machine, int kind, const Heads* heads, const Manner* manner, const Pages* pages, const Batch* batch,
               const void* query, const void* key, const void* value, void* out) {
    const auto run = kind == FLOAT ? attend_layer<float> : attend_layer<bf16>;
    run(*machine, *heads, *manner, *pages, *batch, query, key, value, out);
}

// A token for each of rows [count] of logits [*, vocab], of those that masks [count, words] allow, and its greatest allowed logit.
// Where they would have to be sorted, and are more than `most`, there is none (-1), and the row keeps what its mask allows.
void draw_masked(float* logits, i64 vocab, const i64* rows, i64 count, const u32* masks, i64 words, i64 most, const Limits* limits,
                 i64* chosen, float* best) {
    MaskedDraw draw;
    for (i64 i = 0; i < count; ++i) {
        float* row = logits + rows[i] * vocab;
        chosen[i] = draw(row, masks + i * words, vocab, limits[i], most, best + i);
        if (chosen[i] < 0) forbid(row, masks + i * words, vocab);
    }
}

// y [m, n] = x [m, k] W^T in floats, for checks and measurements. x: units_of(k) units a row, SPARE_ROWS rows to spare.
void linear_forward(Machine* machine, const Linear* linear, const void* x, i64 m, float* y) {
    machine->team.settle();
    const Linear by = *linear;
    machine->team.run([=](Team::Member& team) {
        Tiles tiles;
        const i64 ldx = by.kind == FLOAT ? units_of<float>(by.k) : units_of<bf16>(by.k);
        apply(team, OTHER, by, static_cast<const u32*>(x), ldx, m, machine->scratches[team.thread].gemm, [&](i64 panel, i64 row, const float* from) {
            const i64 column = panel * COLUMNS;
            std::memcpy(y + row * by.n + column, from, std::min(COLUMNS, by.n - column) * 4);
        });
    });
}
}
