// Draws of tokens under a mask, without a look at those that it forbids: `gpu.draw` in integers.
#pragma once

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "masks.h"

// As the sampler keeps them for its slots; top_k is the size of the vocabulary, top_p and min_p are 1 and 0 where they are off.
// No temperature means the most likely token.
struct Limits {
    double temperature, top_p, min_p, uniform;
    i64 top_k;
};

typedef i64 i64x16 __attribute__((vector_size(128)));

constexpr float WHOLE = 17592186044416.0f;  // the weight of the best token

// A row of logits [vocab], and a mask of which bit t of a row of words stands for token t.
class MaskedDraw {
    static constexpr i64 BLOCK = 512;

    const float* logits;
    const u32* words;
    i64 vocab;
    Limits limits;
    float highest, scale, least;
    std::vector<i64> tokens, sums;
    std::vector<float> found, powers, spare;

    // The largest, or no number where one of them is none.
    static float highest_of(const std::vector<float>& values) {
        float best = values[0];
        for (const float value : values)
            if (value > best || value != value) best = value;
        return best;
    }

    // The least power that the share top_p keeps.
    float least_by_mass() {
        spare = powers;
        std::sort(spare.begin(), spare.end(), std::greater<>());
        i64 total = 0, reached = 0;
        for (const float power : spare) total += (i64)power;
        const i64 needed = (i64)std::ceil((double)total * limits.top_p);
        for (const float power : spare)
            if ((reached += (i64)power) >= needed) return power;
        return spare.back();
    }

    // Nothing is left of what top-k does not keep.
    void keep_best(i64 k) {
        spare = found;
        std::nth_element(spare.begin(), spare.begin() + (k - 1), spare.end(), std::greater<>());
        for (std::size_t i = 0; i < found.size(); ++i) powers[i] = found[i] < spare[k - 1] ? 0 : powers[i];
    }

    i64 among_few() {
        const i64 count = tokens.size();
        found.resize(count), powers.resize(count);
        for (i64 i = 0; i < count; ++i) found[i] = logits[tokens[i]];
        highest = highest_of(found);
        if (!std::isfinite(highest)) return 0;
        if (limits.temperature == 0) return tokens[std::find(found.begin(), found.end(), highest) - found.begin()];
        for (i64 i = 0; i < count; ++i) powers[i] = std::exp2((found[i] - highest) * scale) * WHOLE;
        if (limits.top_k < count) keep_best(limits.top_k);
        if (limits.top_p < 1) least = std::max(least, least_by_mass());
        i64 total = 0;
        for (float& power : powers) total += (i64)(power = power < least ? 0 : power);
        i64 left = (i64)(limits.uniform * (double)total), at = 0;
        while ((left -= (i64)powers[at]) >= 0) ++at;
        return tokens[at];
    }

    // Of tokens first .. first + 16, what is not allowed being minus infinity.
    f32x16 allowed(i64 first) const {
        const i32x16 bit = {1,      1 << 1, 1 << 2,  1 << 3,  1 << 4,  1 << 5,  1 << 6,  1 << 7,
                            1 << 8, 1 << 9, 1 << 10, 1 << 11, 1 << 12, 1 << 13, 1 << 14, 1 << 15};
        const std::int32_t bits = words[first / 32] >> first % 32 & 0xffff;
        float some[16];
        const float* from = logits + first;
        if (first + 16 > vocab) from = std::copy(from, logits + vocab, some) - (vocab - first);
        return select(((i32x16{} + bits) & bit) != 0, load<f32x16>(from), splat(-std::numeric_limits<float>::infinity()));
    }

    // What tokens first .. first + 16 weigh.
    i64x16 weigh(i64 first) const {
        const f32x16 power = exp2_bounded((allowed(first) - highest) * scale) * WHOLE;
        return __builtin_convertvector(select(power < splat(least), splat(0), power), i64x16);
    }

    i64 block_sum(i64 first) const {
        i64x16 sums = {};
        for (i64 at = first; at < std::min(first + BLOCK, vocab); at += 16) sums += weigh(at);
        i64 sum = 0;
        for (int i = 0; i < 16; ++i) sum += sums[i];
        return sum;
    }

    i64 among_many() {
        f32x16 best = splat(-std::numeric_limits<float>::infinity());
        i32x16 numbers = best == best;
        for (i64 at = 0; at < vocab; at += 16) {
            const f32x16 some = allowed(at);
            best = maximum(best, some), numbers &= some == some;
        }
        highest = largest(best);
        for (int i = 0; i < 16; ++i)
            if (!numbers[i]) highest = std::numeric_limits<float>::quiet_NaN();
        if (!std::isfinite(highest)) return 0;
        if (limits.temperature == 0)
            for (i64 token = 0;; ++token)
                if (logits[token] == highest && words[token / 32] >> token % 32 & 1) return token;
        sums.clear();
        i64 total = 0, at = 0;
        for (i64 first = 0; first < vocab; first += BLOCK) sums.push_back(block_sum(first)), total += sums.back();
        i64 left = (i64)(limits.uniform * (double)total);
        while (left >= sums[at]) left -= sums[at++];
        for (i64 token = at * BLOCK;; token += 16) {
            const i64x16 weights = weigh(token);
            for (int i = 0; i < 16; ++i)
                if ((left -= weights[i]) < 0) return token + i;
        }
    }

public:
    // The drawn token and the greatest logit, where that is finite. -1: the mask allows more than `most`, and there are
    // restrictions for which all of them would have to be sorted.
    i64 operator()(const float* row, const u32* mask, i64 width, const Limits& by, i64 most, float* best) {
        logits = row, words = mask, vocab = width, limits = by;
        scale = limits.temperature == 0 ? 0 : (float)1.4426950408889634 / (float)limits.temperature;
        least = (float)limits.min_p * WHOLE;
        list_few(words, (vocab + 31) / 32, most, tokens);
        const bool sorts = limits.temperature != 0 && (limits.top_k < vocab || limits.top_p < 1);
        if (tokens.empty() && sorts) return -1;
        const i64 token = tokens.empty() ? among_many() : among_few();
        *best = highest;
        return token;
    }
};
