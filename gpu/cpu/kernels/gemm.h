// y = x W^T over packed weights: each element is summed over k from first to last, in one accumulator, whatever the
// number of rows, so that a row's result does not depend on the rows beside it.
//
// W [n, k] is packed into panels of 64 columns (its rows), each [units][64] units: the layout of a vector kernel's
// loads and of the tiles of AMX alike. Weights of 8 bits become bfloat16 on the way.
#pragma once

#include <type_traits>

#include "ahead.h"
#include "simd.h"
#include "team.h"
#if defined(__AMX_BF16__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

constexpr i64 COLUMNS = 64;  // of a panel
constexpr i64 ROWS = 48;     // at most, in one call of `multiply`
constexpr i64 SPARE_ROWS = 32;  // that may be read behind the last row of x, by whole tiles
constexpr i64 ALIGNED_UNITS = 16;

template <class W>
struct Weight {  // int8
    using X = bf16;
    static constexpr i64 per_unit = 2;
};
template <>
struct Weight<float> {
    using X = float;
    static constexpr i64 per_unit = 1;
};
template <>
struct Weight<bf16> {
    using X = bf16;
    static constexpr i64 per_unit = 2;
};

inline i64 round_up(i64 x, i64 to) { return (x + to - 1) / to * to; }

template <class X>
inline i64 units_of(i64 k) {
    return round_up((k * (i64)sizeof(X) + 3) / 4, ALIGNED_UNITS);
}

inline u32x16 units(const float* b) { return load<u32x16>(b); }
inline u32x16 units(const bf16* b) { return load<u32x16>(b); }
inline u32x16 units(const std::int8_t* b) {
    f32x16 low = widen(b), high = widen(b + 16);
#if defined(__AVX512BF16__)
    return (u32x16)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
#else
    bf16 both[32];
    narrow(both, low);
    narrow(both + 16, high);
    return load<u32x16>(both);
#endif
}

#if defined(__AVX512F__)
constexpr int MAX_R = 6;  // 24 accumulators of 32 registers
#else
constexpr int MAX_R = 1;
#endif

// Where the 16 columns from 16 * j on of unit u of a panel lie: source.at(u, j). step: numbers between units. tiles:
// whether units lie evenly and their number depends on nothing but the model: tiles round in another order than
// vectors, so which of the two multiplies must not depend on the rows.
template <class W>
struct PackedPanel {
    using Number = W;
    using Next = Run;
    const W* first;
    static constexpr i64 step = COLUMNS * Weight<W>::per_unit;
    static constexpr bool tiles = true;
    const W* at(i64 u, i64 j) const { return first + u * step + j * 16 * Weight<W>::per_unit; }
};

// Out of line, with all registers to itself: R * J sums, J of w and one of x.
template <class Source, int R, int J>
[[gnu::noinline]] void multiply_rows(const u32* x, i64 ldx, const Source& w, i64 units_k, float* c, bool add, typename Source::Next next) {
    using W = typename Source::Number;
    f32x16 acc[R][J];
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int j = 0; j < J; ++j) acc[r][j] = add ? load<f32x16>(c + r * COLUMNS + j * 16) : f32x16{};
    for (i64 u = 0; u < units_k; ++u) {
        next.go_on();
        u32x16 b[J];
#pragma GCC unroll 4
        for (int j = 0; j < J; ++j) b[j] = held(units(w.at(u, j)));
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
            for (int j = 0; j < J; ++j) acc[r][j] = dot<typename Weight<W>::X>(acc[r][j], x + r * ldx + u, b[j]);
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (int j = 0; j < J; ++j) store(c + r * COLUMNS + j * 16, acc[r][j]);
}

template <int R, int J, class Source>
inline void multiply_height(i64 height, const u32* x, i64 ldx, const Source& w, i64 units_k, float* c, bool add, typename Source::Next next) {
    if (height == R)
        multiply_rows<Source, R, J>(x, ldx, w, units_k, c, add, next);
    else if constexpr (R > 1)
        multiply_height<R - 1, J>(height, x, ldx, w, units_k, c, add, next);
}

template <int J, class Source>
inline void multiply_vectors(const u32* x, i64 ldx, i64 rows, const Source& w, i64 units_k, float* c, bool add, typename Source::Next next) {
    const i64 passes = (rows + MAX_R - 1) / MAX_R;
    for (i64 pass = 0, row = 0; pass < passes; ++pass) {
        const i64 height = (rows - row) / (passes - pass);
        multiply_height<MAX_R, J>(height, x + row * ldx, ldx, w, units_k, c + row * COLUMNS, add, next.part(pass, passes, units_k));
        row += height;
    }
}

#if defined(__AMX_BF16__)
struct alignas(64) TileConfig {
    std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
    std::uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

inline bool ask_for_tiles() {
    constexpr int ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18;
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0;
}

// 32 rows by 32 columns at a time: four tiles of sums, two of x, two of w.
template <class Source>
inline void multiply_tiles(const u32* x, i64 ldx, i64 rows, const Source& w, i64 units_k, float* c, bool add) {
    for (; rows > 0; rows -= 32, x += 32 * ldx, c += 32 * COLUMNS)
        for (i64 j = 0; j < COLUMNS; j += 32) {
            float* below = c + 16 * COLUMNS;
            const bool both = rows > 16;
            if (add) {
                _tile_loadd(0, c + j, COLUMNS * 4);
                _tile_loadd(1, c + j + 16, COLUMNS * 4);
                _tile_loadd(2, below + j, COLUMNS * 4);
                _tile_loadd(3, below + j + 16, COLUMNS * 4);
            } else {
                _tile_zero(0);
                _tile_zero(1);
                _tile_zero(2);
                _tile_zero(3);
            }
            for (i64 u = 0; u < units_k; u += 16) {
                _tile_loadd(6, w.at(u, j / 16), w.step * 2);
                _tile_loadd(7, w.at(u, j / 16 + 1), w.step * 2);
                _tile_loadd(4, x + u, ldx * 4);
                _tile_dpbf16ps(0, 4, 6);
                _tile_dpbf16ps(1, 4, 7);
                if (both) {
                    _tile_loadd(5, x + 16 * ldx + u, ldx * 4);
                    _tile_dpbf16ps(2, 5, 6);
                    _tile_dpbf16ps(3, 5, 7);
                }
            }
            _tile_stored(0, c + j, COLUMNS * 4);
            _tile_stored(1, c + j + 16, COLUMNS * 4);
            if (both) {
                _tile_stored(2, below + j, COLUMNS * 4);
                _tile_stored(3, below + j + 16, COLUMNS * 4);
            }
        }
}
#else
inline bool ask_for_tiles() { return false; }
#endif

inline bool tiles_in_use = false;  // by everything in this process

// Around everything that a thread multiplies: the tiles' shape is a state of the processor.
struct Tiles {
    Tiles() {
#if defined(__AMX_BF16__)
        if (tiles_in_use) {
            static const TileConfig config;
            _tile_loadconfig(&config);
        }
#endif
    }
    ~Tiles() {
#if defined(__AMX_BF16__)
        if (tiles_in_use) _tile_release();
#endif
    }
};

// c [rows, 64] = (add ? c : 0) + x w: x is `rows` <= ROWS rows of units, w a source of at least `width` columns, the
// others of c are undefined. c has room for ROWS + 16 rows. next: what is multiplied after this, if known.
template <class Source>
inline void multiply(const u32* x, i64 ldx, i64 rows, const Source& w, i64 units_k, float* c, bool add, i64 width = COLUMNS,
                     typename Source::Next next = {}) {
#if defined(__AMX_BF16__)
    if constexpr (sizeof(typename Source::Number) == 2 && Source::tiles)
        if (tiles_in_use && units_k % 16 == 0) return multiply_tiles(x, ldx, rows, w, units_k, c, add);
#endif
    if (width > 32)
        multiply_vectors<4>(x, ldx, rows, w, units_k, c, add, next);
    else
        multiply_vectors<2>(x, ldx, rows, w, units_k, c, add, next);
}

// A packed linear map. scale: of each column, null but for 8-bit weights. bias: may be null.
struct Linear {
    const void* weight;
    const float* scale;
    const float* bias;
    i64 n, k;
    std::int32_t kind;  // enum Kind

    i64 panels() const { return round_up(n, COLUMNS) / COLUMNS; }
};

enum Kind { FLOAT = 0, BFLOAT16 = 1, INT8 = 2 };

struct Scratch {
    alignas(64) float c[(ROWS + 16) * COLUMNS];
    std::vector<bf16> panel;
};

// One panel against m rows; `put(row, c)` gets each row's 64 sums, scaled and with the bias. then: the thread's next
// panel, or -1.
template <class W, class Put>
inline void one_panel(const Linear& linear, i64 panel, i64 then, const u32* x, i64 ldx, i64 from, i64 to, Scratch& scratch, Put put) {
    using X = typename Weight<W>::X;
    const i64 units_k = units_of<X>(linear.k);
    const i64 size = units_k * COLUMNS * Weight<W>::per_unit;
    const W* w = static_cast<const W*>(linear.weight) + panel * size;
    const Run next = then < 0 ? Run{} : Run{reinterpret_cast<const char*>(w + (then - panel) * size), PackedPanel<W>::step * (i64)sizeof(W)};
    const bool changed = linear.scale || linear.bias;
    f32x16 scale[4], bias[4];
    for (int j = 0; j < 4; ++j) {
        scale[j] = linear.scale ? load<f32x16>(linear.scale + panel * COLUMNS + j * 16) : splat(1);
        bias[j] = linear.bias ? load<f32x16>(linear.bias + panel * COLUMNS + j * 16) : splat(0);
    }
    const bool widened = sizeof(W) == 1 && (to - from > 2 * MAX_R || tiles_in_use);
    if (widened) {
        scratch.panel.resize(units_k * COLUMNS * 2);
        for (i64 i = 0; i < units_k * COLUMNS * 2; i += 32) store(&scratch.panel[i], units(w + i * Weight<W>::per_unit / 2));
    }
    for (i64 row = from; row < to; row += ROWS) {
        const i64 rows = to - row < ROWS ? to - row : ROWS;
        if (widened)
            multiply(x + row * ldx, ldx, rows, PackedPanel<bf16>{scratch.panel.data()}, units_k, scratch.c, false);
        else
            multiply(x + row * ldx, ldx, rows, PackedPanel<W>{w}, units_k, scratch.c, false, COLUMNS, row == from ? next : Run{});
        for (i64 r = 0; r < rows; ++r) {
            float* c = scratch.c + r * COLUMNS;
            for (int j = 0; changed && j < 4; ++j) store(c + j * 16, load<f32x16>(c + j * 16) * scale[j] + bias[j]);
            put(row + r, c);
        }
    }
}

// All panels against m rows, a phase of the team's. put(panel, row, c): 64 numbers from column panel * 64 on,
// to be changed at will.
template <class Put>
inline void apply(Team::Member& team, Work work, const Linear& linear, const u32* x, i64 ldx, i64 m, Scratch& scratch, Put put) {
    const i64 panels = linear.panels(), wanted = 4 * team.size();
    const i64 most = (m + ROWS - 1) / ROWS;
    const i64 cuts = panels >= wanted ? 1 : std::min(most, (wanted + panels - 1) / panels);
    const i64 height = round_up((m + cuts - 1) / cuts, ROWS), tasks = panels * cuts;
    const i64 bytes = units_of<bf16>(linear.k) * COLUMNS * 4;
    const i64 grain = std::max<i64>(1, std::min<i64>(panels / wanted, (128 << 10) / bytes));
    // Some rows take about as long as their weights need to come from memory: these are sent for in time.
    const bool ahead = m > MAX_R + 2 && m <= ROWS;
    team.line_up(work, tasks, m > 4 ? 1 : grain, ahead, [&](i64 task, i64 next) {
        const i64 panel = task / cuts, from = task % cuts * height, to = std::min(m, from + height), then = next < 0 ? -1 : next / cuts;
        auto into = [&](i64 row, float* c) { put(panel, row, c); };
        switch (linear.kind) {
            case FLOAT: one_panel<float>(linear, panel, then, x, ldx, from, to, scratch, into); break;
            case BFLOAT16: one_panel<bf16>(linear, panel, then, x, ldx, from, to, scratch, into); break;
            case INT8: one_panel<std::int8_t>(linear, panel, then, x, ldx, from, to, scratch, into); break;
        }
    });
}

// W [n, k] row-major -> panels; `out` holds round_up(n, 64) * units_of(k) units and is zero beforehand.
template <class W>
inline void pack(const W* rows, i64 n, i64 k, W* out) {
    constexpr i64 per = Weight<W>::per_unit;
    const i64 units_k = units_of<typename Weight<W>::X>(k);
    for (i64 row = 0; row < n; ++row) {
        W* panel = out + row / COLUMNS * units_k * COLUMNS * per + row % COLUMNS * per;
        for (i64 i = 0; i < k; ++i) panel[i / per * COLUMNS * per + i % per] = rows[row * k + i];
    }
}
