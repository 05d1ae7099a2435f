// How a step's rows are attended: in blocks of query rows that look at the same KV head together.
//
// A block belongs to one sequence, or to neighbours that begin with the same pages, each with its part of the block:
// as long as their pages are the same, their keys and values are read once for all.
#pragma once

#include <algorithm>
#include <vector>

#include "simd.h"

constexpr i64 KEYS = 128;       // that are looked at together: with fewer, sums are put down and picked up too often
constexpr i64 BLOCK_ROWS = 48;  // of a block at most
constexpr i64 TASKS = 4;         // for each thread, at least, where there are so many

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

// The rows of a step; see gpu.attention.base.Batch.
struct Batch {
    i64 rows, sequences;
    const i64 *query_lens, *contexts, *positions, *places;
    const std::int32_t* tables;
    i64 table_width;

    const std::int32_t* table(i64 sequence) const { return tables + sequence * table_width; }
};

// Some (row, head of the group) pairs of a sequence, numbered row by row.
struct Part {
    i64 sequence, row, to;       // row: the sequence's first one; to: where that would be in what comes out
    i64 first, count, position;  // position: of that row
    i64 shared;                                 // heads of a group

    i64 own(i64 pair) const { return position + (first + pair) / shared; }  // position
    i64 last() const { return own(count - 1); }

    // Where its keys begin, a whole number of blocks of them. window: 0 for none.
    i64 seen(i64 window) const { return window ? std::max<i64>(0, own(0) - window + 1) : 0; }
    i64 start(i64 window) const { return seen(window) / KEYS * KEYS; }
};

// Parts [first, end).
struct Block {
    i64 first, end;
};

// Rows of a step that are attended: of each sequence those from the first on of which something is wanted.
struct Attended {
    std::vector<i64> rows;     // of the step, in order
    std::vector<i64> skipped;  // how many of each sequence's first rows are not

    void all(const Batch& batch) {
        wanted_.assign(batch.rows, 1);
        find(batch);
    }

    // wanted, tapped: numbers of rows.
    void only(const Batch& batch, const i64* wanted, i64 wanted_count, const i64* tapped, i64 tapped_count) {
        wanted_.assign(batch.rows, 0);
        for (i64 i = 0; i < wanted_count; ++i) wanted_[wanted[i]] = 1;
        for (i64 i = 0; i < tapped_count; ++i) wanted_[tapped[i]] = 1;
        find(batch);
    }

  private:
    void find(const Batch& batch) {
        rows.clear();
        skipped.clear();
        for (i64 s = 0, row = 0, end; s < batch.sequences; ++s, row = end) {
            end = row + batch.query_lens[s];
            i64 first = row;
            while (first < end && !wanted_[first]) ++first;
            skipped.push_back(first - row);
            for (; first < end; ++first) rows.push_back(first);
        }
    }

    std::vector<char> wanted_;
};

// How many rows are attended, in how many blocks.
struct Extent {
    i64 rows, blocks;
};

// last: whether a row of the step is its sequence's last one.
struct Layout {
    Attended attended;
    std::vector<Part> parts;
    std::vector<Block> blocks;
    std::vector<char> last;

    // The attended rows in blocks for a team of `threads`, which are not joined where too few would be left for these.
    void cut(const Batch& batch, const Heads& h, i64 threads) {
        const i64 most = batch.sequences * h.kv_heads / (TASKS * threads);
        parts.clear();
        blocks.clear();
        last.assign(batch.rows, 0);
        for (i64 s = 0, row = 0, skipped = 0; s < batch.sequences; ++s) {
            const i64 length = batch.query_lens[s], pairs = length * h.shared();
            skipped += attended.skipped[s];
            for (i64 first = attended.skipped[s] * h.shared(); first < pairs; first += BLOCK_ROWS) {
                const i64 count = std::min(BLOCK_ROWS, pairs - first), position = batch.contexts[s] - length;
                parts.push_back({s, row, row - skipped, first, count, position, h.shared()});
                if (!joins(batch, h, most)) blocks.push_back({(i64)parts.size() - 1, 0});
                blocks.back().end = parts.size();
            }
            row += length;
            last[row - 1] = 1;
        }
    }

    Extent extent() const { return {(i64)attended.rows.size(), (i64)blocks.size()}; }

  private:
    // Whether the newest part belongs into the newest block.
    bool joins(const Batch& batch, const Heads& h, i64 most) const {
        if (blocks.empty() || !h.in_units()) return false;
        const Part &part = parts.back(), &first = parts[blocks.back().first];
        if ((i64)parts.size() - 1 - blocks.back().first >= most || part.sequence == parts[parts.size() - 2].sequence) return false;
        i64 count = 0;
        for (i64 i = blocks.back().first; i < (i64)parts.size(); ++i) count += parts[i].count;
        return count <= BLOCK_ROWS && same_pages(batch, h, first, part, 0);
    }

  public:
    // Whether both parts look at all keys from `begin` on, and these lie in the same pages.
    static bool same_pages(const Batch& batch, const Heads& h, const Part& a, const Part& b, i64 begin) {
        if (begin + KEYS > std::min(a.last(), b.last())) return false;
        const std::int32_t *one = batch.table(a.sequence), *other = batch.table(b.sequence);
        for (i64 page = begin / h.page_size; page <= (begin + KEYS - 1) / h.page_size; ++page)
            if (one[page] != other[page]) return false;
        return true;
    }
};
