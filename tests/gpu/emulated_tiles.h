// The processor's tiles (AMX) in software, to compile the kernels with where there are none (`-include`).
//
// As Intel defines them: even and odd numbers of a row are summed apart within one instruction, then together, then into
// what was there; too small numbers are nothing. What a processor would answer with a fault is counted.
#pragma once

#include <immintrin.h>
#include <sys/syscall.h>

#include <atomic>
#include <cstdint>
#include <cstring>

namespace emulated {

inline std::atomic<long> faults{0}, products{0};

struct Tile {
    unsigned char rows[16][64];
};

struct State {
    bool configured = false;
    unsigned char height[8] = {};
    std::uint16_t width[8] = {};
    Tile tiles[8];
};

inline thread_local State state;

inline bool fault(bool wrong) {
    if (wrong) ++faults;
    return wrong;
}

// Whether the tile can be used as it is configured.
inline bool usable(int tile) {
    return !fault(!state.configured || tile < 0 || tile >= 8 || state.height[tile] == 0 || state.width[tile] == 0);
}

inline void clear() {
    for (Tile& tile : state.tiles) std::memset(&tile, 0, sizeof tile);
}

inline void configure(const void* config) {
    const auto* bytes = static_cast<const unsigned char*>(config);
    state.configured = false;
    if (fault(bytes[0] != 1 || bytes[1] != 0)) return;
    for (int tile = 0; tile < 8; ++tile) {
        std::memcpy(&state.width[tile], bytes + 16 + 2 * tile, 2);
        state.height[tile] = bytes[48 + tile];
        if (fault(state.width[tile] > 64 || state.height[tile] > 16)) return;
    }
    state.configured = true;
    clear();
}

inline void release() {
    state.configured = false;
    clear();
}

inline void zero(int tile) {
    if (usable(tile)) std::memset(&state.tiles[tile], 0, sizeof(Tile));
}

inline void load(int tile, const void* from, std::int64_t stride) {
    if (!usable(tile)) return;
    std::memset(&state.tiles[tile], 0, sizeof(Tile));
    for (int row = 0; row < state.height[tile]; ++row)
        std::memcpy(state.tiles[tile].rows[row], static_cast<const char*>(from) + row * stride, state.width[tile]);
}

inline void store(int tile, void* to, std::int64_t stride) {
    if (!usable(tile)) return;
    for (int row = 0; row < state.height[tile]; ++row)
        std::memcpy(static_cast<char*>(to) + row * stride, state.tiles[tile].rows[row], state.width[tile]);
}

typedef float Columns __attribute__((vector_size(64)));
typedef std::uint32_t Pairs __attribute__((vector_size(64)));

inline Columns flushed(Columns x) {
    const Columns least = Columns{} + 1.17549435e-38f;
    return (x < least) & (x > -least) ? Columns{} : x;
}

// The even (0) or odd (1) numbers of a row.
inline Columns widened(const unsigned char* row, int half) {
    Pairs pairs;
    std::memcpy(&pairs, row, 64);
    return flushed((Columns)(half ? pairs & 0xffff0000u : pairs << 16));
}

inline void multiply(int to, int left, int right) {
    if (!usable(to) || !usable(left) || !usable(right)) return;
    State& s = state;
    if (fault(to == left || to == right || left == right)) return;
    if (fault(s.height[to] != s.height[left] || s.width[to] != s.width[right] || s.width[left] / 4 != s.height[right])) return;
    ++products;
    for (int m = 0; m < s.height[to]; ++m) {
        Columns sums[2] = {}, before;
        for (int half = 0; half < 2; ++half) {
            const Columns a = widened(s.tiles[left].rows[m], half);
            for (int k = 0; k < s.width[left] / 4; ++k) sums[half] = flushed(sums[half] + a[k] * widened(s.tiles[right].rows[k], half));
        }
        std::memcpy(&before, s.tiles[to].rows[m], 64);
        const Columns after = flushed(flushed(before) + flushed(sums[0] + sums[1]));
        std::memcpy(s.tiles[to].rows[m], &after, 64);
    }
}

}  // namespace emulated

extern "C" inline __attribute__((used)) long tile_faults() { return emulated::faults; }
extern "C" inline __attribute__((used)) long tile_products() { return emulated::products; }

#define __AMX_BF16__ 1
#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig(config) emulated::configure(config)
#define _tile_release() emulated::release()
#define _tile_zero(tile) emulated::zero(tile)
#define _tile_loadd(tile, from, stride) emulated::load(tile, from, stride)
#define _tile_stored(tile, to, stride) emulated::store(tile, to, stride)
#define _tile_dpbf16ps(to, left, right) emulated::multiply(to, left, right)

// A kernel that knows no tiles is asked for none: this always succeeds.
#undef SYS_arch_prctl
#define SYS_arch_prctl SYS_sched_yield
