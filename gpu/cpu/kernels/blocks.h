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
    i64 sequence, row, first, count, position;  // row: of the sequence's first row; position: of that row
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

// last: whether a row is its sequence's last one.
struct Layout {
    std::vector<Part> parts;
    std::vector<Block> blocks;
    std::vector<char> last;

    // Blocks for a team of `threads`, which are not joined where too few would be left for these.
    void cut(const Batch& batch, const Heads& h, i64 threads) {
        const i64 most = batch.sequences * h.kv_heads / (TASKS * threads);
        parts.clear();
        blocks.clear();
        last.assign(batch.rows, 0);
        for (i64 s = 0, row = 0; s < batch.sequences; ++s) {
            const i64 length = batch.query_lens[s], all = length * h.shared();
            for (i64 first = 0; first < all; first += BLOCK_ROWS) {
                parts.push_back({s, row, first, std::min(BLOCK_ROWS, all - first), batch.contexts[s] - length, h.shared()});
                if (!joins(batch, h, most)) blocks.push_back({(i64)parts.size() - 1, 0});
                blocks.back().end = parts.size();
            }
            row += length;
            last[row - 1] = 1;
        }
    }

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
