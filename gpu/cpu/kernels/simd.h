// Vectors of 16 floats, bfloat16, and the few operations on them that the kernels are made of.
//
// A "unit" is 32 bits: two neighbouring bfloat16 numbers, or one float. Every product of matrices here sums over
// units, so one source serves both types. GCC's vector extensions lower to whatever the machine has; the
// instructions that matter (bfloat16 dot product, conversions, transposition) are named where they exist.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

using i64 = std::int64_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;

typedef float f32x16 __attribute__((vector_size(64), may_alias));
typedef u32 u32x16 __attribute__((vector_size(64), may_alias));
typedef std::int32_t i32x16 __attribute__((vector_size(64), may_alias));
typedef std::uint16_t u16x16 __attribute__((vector_size(32), may_alias));
typedef std::int8_t i8x16 __attribute__((vector_size(16), may_alias));

struct bf16 {
    std::uint16_t bits;
};

template <class V, class P>
inline V load(const P* at) {
    V value;
    std::memcpy(&value, at, sizeof value);
    return value;
}

template <class V, class P>
inline void store(P* at, V value) {
    std::memcpy(at, &value, sizeof value);
}

inline f32x16 splat(float x) { return f32x16{} + x; }

// The same, in a register from here on: the compiler does not load it again at each use.
inline u32x16 held(u32x16 x) {
#if defined(__AVX512F__)
    asm("" : "+v"(x));
#endif
    return x;
}

inline f32x16 select(i32x16 mask, f32x16 yes, f32x16 no) { return mask ? yes : no; }

constexpr i32x16 LANES = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// b where one is not a number.
inline f32x16 maximum(f32x16 a, f32x16 b) {
#if defined(__AVX512F__)
    return (f32x16)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return select(a > b, a, b);
#endif
}

// In an order that depends on nothing but the lanes: halves, then halves of these.
inline float sum(f32x16 x) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)x);
#else
    float lane[16];
    store(lane, x);
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
    return lane[0];
#endif
}

inline float largest(f32x16 x) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)x);
#else
    float lane[16];
    store(lane, x);
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; ++i) lane[i] = lane[i] > lane[i + width] ? lane[i] : lane[i + width];
    return lane[0];
#endif
}

// 16 numbers as floats.
inline f32x16 widen(const float* at) { return load<f32x16>(at); }
inline f32x16 widen(const bf16* at) {
    return (f32x16)(__builtin_convertvector(load<u16x16>(at), u32x16) << 16);
}
inline f32x16 widen(const std::int8_t* at) {
#if defined(__AVX512F__)
    return (f32x16)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load<__m128i>(at)));
#else
    return __builtin_convertvector(load<i8x16>(at), f32x16);
#endif
}

// Round to nearest, ties to even; not-a-number stays one.
inline void narrow(float* at, f32x16 x) { store(at, x); }
inline void narrow(bf16* at, f32x16 x) {
#if defined(__AVX512BF16__)
    store(at, (u16x16)_mm512_cvtneps_pbh((__m512)x));
#else
    u32x16 bits = (u32x16)x;
    u32x16 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    rounded = (x == x) ? rounded : (u32x16{} + 0x7fc0);
    store(at, __builtin_convertvector(rounded, u16x16));
#endif
}

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) {
    u32 bits = (u32)x.bits << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

// acc + a . b, unit by unit.
template <class T>
inline f32x16 dot(f32x16 acc, u32x16 a, u32x16 b);

template <>
inline f32x16 dot<float>(f32x16 acc, u32x16 a, u32x16 b) {
    return acc + (f32x16)a * (f32x16)b;
}

template <>
inline f32x16 dot<bf16>(f32x16 acc, u32x16 a, u32x16 b) {
#if defined(__AVX512BF16__)
    return (f32x16)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
#else
    acc = acc + (f32x16)(a << 16) * (f32x16)(b << 16);
    return acc + (f32x16)(a & 0xffff0000u) * (f32x16)(b & 0xffff0000u);
#endif
}

// acc + a . b for a unit of a in memory, which the instruction spreads itself: a register and an instruction less for each.
template <class T>
inline f32x16 dot(f32x16 acc, const u32* a, u32x16 b) {
#if defined(__AVX512BF16__)
    if constexpr (std::is_same_v<T, bf16>) {
        asm("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(acc) : "v"(b), "m"(*a));
        return acc;
    }
#endif
    return dot<T>(acc, u32x16{} + *a, b);
}

// The nearest whole number, of numbers below 2^22.
inline f32x16 whole(f32x16 x) {
    constexpr float LAST_BIT_IS_ONE = 12582912;  // 1.5 * 2^23
    return (x + LAST_BIT_IS_ONE) - LAST_BIT_IS_ONE;
}

// x * 2^n for a whole n below 128; 0 far below.
inline f32x16 times_power(f32x16 x, f32x16 n) {
#if defined(__AVX512F__)
    return (f32x16)_mm512_scalef_ps((__m512)x, (__m512)n);
#else
    const i32x16 vanishes = n < splat(-126);
    n = select(vanishes, splat(-126), n);
    f32x16 power = (f32x16)((__builtin_convertvector(n, i32x16) + 127) << 23);
    return select(vanishes, splat(0), x * power);
#endif
}

constexpr float FAR_BELOW = -160;  // 2 to this is nothing

// 2^x for x < 127 by Cephes' polynomial, relative error below 2e-7; exactly 1 at 0, 0 far below.
inline f32x16 exp2_bounded(f32x16 x) {
    x = maximum(splat(FAR_BELOW), x);
    const f32x16 n = whole(x), r = x - n;
    f32x16 p = splat(1.535336188319500e-4f);
    p = p * r + 1.339887440266574e-3f;
    p = p * r + 9.618437357674640e-3f;
    p = p * r + 5.550332471162809e-2f;
    p = p * r + 2.402264791363012e-1f;
    p = p * r + 6.931472028550421e-1f;
    return times_power(p * r + 1.0f, n);
}

// 2^x for x < 127, relative error below 3e-6, which no bfloat16 shows; exactly 1 at 0, 0 far below.
inline f32x16 exp2_rough(f32x16 x) {
#if defined(__AVX512DQ__)
    const f32x16 r = (f32x16)_mm512_reduce_ps((__m512)x, _MM_FROUND_TO_NEG_INF);
#else
    x = maximum(splat(FAR_BELOW), x);
    const f32x16 nearest = whole(x), n = nearest > x ? nearest - 1.0f : nearest, r = x - n;
#endif
    f32x16 p = splat(1.342679467e-2f);
    p = p * r + 5.224229697e-2f;
    p = p * r + 2.412802878e-1f;
    p = p * r + 6.930448344e-1f;
    p = p * r + 1.0f;
#if defined(__AVX512DQ__)
    return (f32x16)_mm512_scalef_ps((__m512)p, (__m512)x);
#else
    return times_power(p, n);
#endif
}

// e^x for x < 88, the same; what x loses by the change of base is made up for.
inline f32x16 exp_bounded(f32x16 x) {
    x = maximum(splat(FAR_BELOW * 0.693f), x);
    const f32x16 n = whole(x * 1.44269504088896341f);
    f32x16 r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    f32x16 p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return times_power(p * r * r + r + 1.0f, n);
}

// x / (1 + exp(-x)), by exp of a number that is not positive on both sides.
inline f32x16 silu(f32x16 x) {
    i32x16 negative = x < splat(0);
    f32x16 e = exp_bounded(select(negative, x, -x));
    f32x16 value = select(negative, x * e, x) / (1.0f + e);
    return select(x == x, value, x);
}

inline f32x16 tanh_of(f32x16 x) {
    i32x16 negative = x < splat(0);
    f32x16 e = exp_bounded(select(negative, x, -x) * 2.0f);
    f32x16 value = (1.0f - e) / (1.0f + e);
    return select(negative, -value, value);
}

// 16 units from each of 16 rows: columns become rows of `out`, which begin `stride` units apart.
inline void transpose16(const u32* const* from, u32* out, i64 stride) {
#if defined(__AVX512F__)
    __m512i r[16], t[16];
    for (int i = 0; i < 16; ++i) r[i] = _mm512_loadu_si512(from[i]);
    for (int i = 0; i < 8; ++i) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 4; ++i) {
        r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
        r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
        r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; ++i) {
        _mm512_storeu_si512(out + i * stride, _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88));
        _mm512_storeu_si512(out + (i + 8) * stride, _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd));
        _mm512_storeu_si512(out + (i + 4) * stride, _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88));
        _mm512_storeu_si512(out + (i + 12) * stride, _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd));
    }
#else
    for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 16; ++j) out[j * stride + i] = from[i][j];
#endif
}
