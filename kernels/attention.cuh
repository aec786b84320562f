// What the kernels of attention share: their arguments, which keys a query sees, the random bits of its dropout, and
// how rows of matrices come into shared memory.
//
// An item is one of the products that the leading axes count, in C order. Of each, q is (queries, features), k (keys,
// features), v and y (queries or keys, values); the last axis of all is adjacent in memory, every other has a stride.
// Where k and v are broadcast along the last leading axes, `groups` items follow each other that share them.
#pragma once
#include "array.cuh"
#include "philox.cuh"

enum MaskKind { NO_MASK, BOOLEAN, ADDED };

struct Matrices {
    void* data;
    long long items[MOST_AXES];
    long long row;
};

struct AttentionArgs {
    Matrices q, k, v, y, g, dq, dk, dv;  // g, dq, dk, dv: gradients of y, q, k, v
    const void* mask;
    long long mask_items[MOST_AXES], mask_row, mask_col;
    void* logarithm;             // (items, queries): log(sum(exp(scores))), infinite if there is no key
    void* delta;                 // (items, queries): sum(g y) - logarithm_gradient
    const void* logarithm_gradient;  // (items, queries), or null
    Axes items;
    Draw draw;
    double scale;
    double grown;  // 1 / (1 - p), what weights that are kept are multiplied by
    int queries, keys, features, values;
    int count;  // of items
    int groups;
    int mask_kind;
    int causal;
    unsigned threshold;  // of the numbers whose weights are kept; 0 for no dropout
};

template <class T>
DEVICE Stored<T>* matrix_of(const AttentionArgs& args, const Matrices& m, long long item) {
    return static_cast<Stored<T>*>(m.data) + args.items.offset(item, m.items);
}

// What decides which keys of an item take part.
template <class T>
struct Seen {
    using F = Computed<T>;
    const AttentionArgs& args;
    const unsigned char* truths;
    const Stored<T>* added;

    DEVICE Seen(const AttentionArgs& args, long long item) : args(args), truths(nullptr), added(nullptr) {
        if (args.mask_kind == NO_MASK) return;
        const long long offset = args.items.offset(item, args.mask_items);
        if (args.mask_kind == BOOLEAN)
            truths = static_cast<const unsigned char*>(args.mask) + offset;
        else
            added = static_cast<const Stored<T>*>(args.mask) + offset;
    }

    // What becomes of the product of a query and a key, times the scale.
    DEVICE F score(F product, int query, int key) const {
        if (query >= args.queries || key >= args.keys || (args.causal && key > query)) return -infinity<F>();
        F score = product * F(args.scale);
        if (truths) {
            if (!truths[query * args.mask_row + key * args.mask_col]) score = -infinity<F>();
        } else if (added) {
            score += Number<T>::load(added[query * args.mask_row + key * args.mask_col]);
        }
        return score;
    }
};

// Which weights of a tile of QUERIES x KEYS dropout keeps: bits in shared memory, a row of bytes for each query. The
// draw is that of an array (items, queries, keys) in C order, so blocks of eight need not begin where the tile does.
template <int QUERIES, int KEYS>
struct KeptBits {
    static constexpr int PITCH = KEYS / 8 + 1, BYTES = (QUERIES * PITCH + 15) / 16 * 16;

    static DEVICE unsigned long long first(const AttentionArgs& args, long long item, int query, int key) {
        return (static_cast<unsigned long long>(item) * args.queries + query) * args.keys + key;
    }

    // By all threads of the block.
    template <int THREADS>
    static DEVICE void draw(unsigned char* bits, const AttentionArgs& args, long long item, int query, int key) {
        for (int i = threadIdx.x; i < QUERIES * PITCH; i += THREADS) {
            if (query + i / PITCH >= args.queries) break;
            const unsigned long long number = first(args, item, query + i / PITCH, key) / 8 + i % PITCH;
            bits[i] = static_cast<unsigned char>(philox_kept(args.draw, number, args.threshold));
        }
    }

    // Whether that of the tile's query `i` and key `j` is kept. `within`: `first` of the query, modulo 8.
    static DEVICE bool kept(const unsigned char* bits, int i, int j, int within) {
        return bits[i * PITCH + (j + within) / 8] >> (j + within) % 8 & 1;
    }
};
