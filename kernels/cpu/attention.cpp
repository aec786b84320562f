// Attention: softmax(q kᵀ * scale) v, and its gradients, with no more than a block of the scores in memory.
//
// A block of queries lies across the lanes of vectors, and goes through the keys in strips. The scores of a strip are
// (keys, queries): each row of k is multiplied, element by element, with the rows of qᵀ, which is packed once. So a
// query's maximum and sum of exponentials are a lane each, and nothing is ever added up across lanes; k and v are read
// as they lie in memory. What is left is oᵀ, which is transposed back at the end. When a strip raises a query's maximum,
// what was summed so far is scaled down (Milakov and Gimelshein, 2018; Dao et al., 2022).
//
// Backward, the scores are computed again, and their softmax from the logarithm that was kept. A sample's head is one
// piece of work, in a fixed order, so the sums of its gradients depend on no threads.
//
// Arrays are (..., rows, columns), with the same leading axes (which may have stride 0), a row's columns side by side.
// A mask is (..., queries, keys) of any strides. In a causal one, strips at the diagonal are of one vector's keys, and
// leave out the vectors of queries before it.
#include "flat.h"
#include "math.h"
#include "philox.h"
#include "tile.h"

#include <algorithm>

namespace {

constexpr int ACROSS = 4;                 // vectors of a block of queries
constexpr long QUERIES = ACROSS * WIDTH;  // of a block
constexpr long KEYS = 64;                 // of a strip
constexpr long FEW = WIDTH / 4;           // queries that leave so many lanes empty that each is better off by itself
enum MaskKind { NO_MASK, BOOLEAN, ADDED };

// --- products

// As a tile of products, for any number of rows and of vectors.
void multiply(Scalars x, long rows, long count, Rows panel, long vectors, Rows out, bool add,
              const float* factor = nullptr) {
    for (long first = 0; first < vectors; first += ACROSS) {
        int across = std::min<long>(ACROSS, vectors - first);
        long column = first * WIDTH, tiles = (rows + rows_for(across) - 1) / rows_for(across);
        for (long i = 0; i < tiles; i++) {
            long row = rows * i / tiles, height = rows * (i + 1) / tiles - row;
            tile_for<Product>(across, height)({x.start + row * x.row, x.row, x.step}, count, panel.start + column,
                                              panel.stride, out.from(row, column), add,
                                              factor ? factor + column : nullptr);
        }
    }
}

// --- transposition

#if defined(__clang__)
inline Vector sums_of(Vector (&rows)[WIDTH]) {
    float sums[WIDTH];
    for (int i = 0; i < WIDTH; i++) sums[i] = sum_of(rows[i]);
    return load(sums);
}

inline void exchange(Vector (&rows)[WIDTH]) {
    float lanes[WIDTH][WIDTH];
    for (int i = 0; i < WIDTH; i++)
        for (int j = 0; j < WIDTH; j++) lanes[j][i] = rows[i][j];
    for (int i = 0; i < WIDTH; i++) rows[i] = load(lanes[i]);
}
#else
// Of vectors a and b, lanes that bit HALF of their numbers is not set for, or is.
template <int HALF> struct Halves {
    IntVector upper, lower;

    Halves() {
        for (int lane = 0; lane < WIDTH; lane++) {
            upper[lane] = lane & HALF ? WIDTH + lane - HALF : lane;
            lower[lane] = lane & HALF ? WIDTH + lane : lane + HALF;
        }
    }
};

// Each vector's sum, in the lane of its number.
template <int HALF = WIDTH / 2> inline Vector sums_of(Vector (&rows)[WIDTH]) {
    if constexpr (HALF > 0) {
        Halves<HALF> halves;
#pragma GCC unroll 16
        for (int i = 0; i < HALF; i++) {
            Vector a = rows[i], b = rows[i + HALF];
            rows[i] = __builtin_shuffle(a, b, halves.upper) + __builtin_shuffle(a, b, halves.lower);
        }
        return sums_of<HALF / 2>(rows);
    }
    return rows[0];
}

// Exchanges the quarters that are not on the diagonal, and then so within each quarter.
template <int HALF = WIDTH / 2> inline void exchange(Vector (&rows)[WIDTH]) {
    if constexpr (HALF > 0) {
        Halves<HALF> halves;
#pragma GCC unroll 16
        for (int i = 0; i < WIDTH; i++)
            if (!(i & HALF)) {
                Vector a = rows[i], b = rows[i + HALF];
                rows[i] = __builtin_shuffle(a, b, halves.upper);
                rows[i + HALF] = __builtin_shuffle(a, b, halves.lower);
            }
        exchange<HALF / 2>(rows);
    }
}
#endif

// take(row, column, lanes) gives a vector of a row; put(column, row, lanes, vector) gets one of a column, of rows.
// Beyond the last row there are zeros.
template <class Take, class Put> inline void transpose(long rows, long columns, Take take, Put put) {
    for (long row = 0; row < rows; row += WIDTH)
        for (long column = 0; column < columns; column += WIDTH) {
            long height = std::min(rows - row, long(WIDTH)), width = std::min(columns - column, long(WIDTH));
            Vector block[WIDTH];
            if (height == WIDTH && width == WIDTH) {
                for (int i = 0; i < WIDTH; i++) block[i] = take(row + i, column, long(WIDTH));
                exchange(block);
                for (int i = 0; i < WIDTH; i++) put(column + i, row, long(WIDTH), block[i]);
            } else {
                for (int i = 0; i < WIDTH; i++) block[i] = i < height ? take(row + i, column, width) : Vector{};
                exchange(block);
                for (int i = 0; i < width; i++) put(column + i, row, height, block[i]);
            }
        }
}

// --- arrays

long vectors_of(long elements) { return (elements + WIDTH - 1) / WIDTH; }
long rounded(long elements) { return vectors_of(elements) * WIDTH; }

// Where the `item`-th of an array's leading axes begins, all but the last `last`.
const char* item_of(const Array* array, long item, int last) {
    const char* at = array->bytes;
    for (int axis = array->ndim - last - 1; axis >= 0; axis--) {
        at += item % array->shape[axis] * array->strides[axis];
        item /= array->shape[axis];
    }
    return at;
}

Rows rows_of(const Array* array, long item) {
    return {(float*)item_of(array, item, 2), array->strides[array->ndim - 2] / long(sizeof(float))};
}

long length_of(const Array* array) { return array->shape[array->ndim - 2]; }
long width_of(const Array* array) { return array->shape[array->ndim - 1]; }

// The mask of an item.
struct Mask {
    MaskKind kind;
    const char* start;
    long row, column;

    Mask(const Array* mask, long item, long kind) : kind(MaskKind(kind)), start(nullptr), row(0), column(0) {
        if (!kind) return;
        start = item_of(mask, item, 2);
        row = mask->strides[mask->ndim - 2];
        column = mask->strides[mask->ndim - 1];
    }

    float at(long query, long key) const {
        const char* element = start + query * row + key * column;
        if (kind == ADDED) return *reinterpret_cast<const float*>(element);
        return *element ? 0.0f : -INFINITY;
    }

    Vector some(long query, long key, long lanes) const {
        if (kind == ADDED && column == sizeof(float))
            return load_some(reinterpret_cast<const float*>(start + query * row) + key, lanes);
        if (kind == BOOLEAN && column == 1 && lanes == WIDTH) {
            typedef int8_t Bytes __attribute__((vector_size(WIDTH)));
            Bytes bytes;
            memcpy(&bytes, start + query * row + key, sizeof bytes);
            return select(__builtin_convertvector(bytes, IntVector) != 0, Vector{}, broadcast(-INFINITY));
        }
        float found[WIDTH] = {};
        for (long i = 0; i < lanes; i++) found[i] = at(query, key + i);
        return load(found);
    }
};

// Which of the weights are dropped: numbers as of an array (items, queries, keys).
struct Dropout {
    Draw draw;
    uint32_t least;
    float scale;  // of what is kept; 0: nothing is dropped

    Dropout(float p, Draw draw) : draw(draw), least(threshold(p)), scale(p > 0 ? 1.0f / (1.0f - p) : 0.0f) {}
};

// --- blocks

// What a block of queries needs to find its scores.
struct Block {
    const Mask mask;
    Rows k;
    long features;  // of a query and a key
    long first, count, vectors;
    bool causal;
    Rows packed;  // (features, QUERIES), already scaled
    Rows kept;    // (KEYS, QUERIES), for dropout

    void pack(Rows q, float scale) {
        transpose(count, features,
                  [&](long query, long d, long lanes) { return load_some(q[first + query] + d, lanes) * scale; },
                  [&](long d, long query, long, Vector column) { store(packed[d] + query, column); });
    }

    void clear(Rows sums, long rows) const {
        for (long row = 0; row < rows; row++)
            for (long i = 0; i < vectors; i++) store(sums[row] + i * WIDTH, Vector{});
    }

    // Calls strip(key, keys, vector): a strip's keys, and the first vector of queries that see any of them.
    template <class Strip> void strips(long length, Strip strip) const {
        long all = causal ? std::min(first, length) : length;
        for (long key = 0; key < all; key += KEYS) strip(key, std::min(KEYS, all - key), 0L);
        if (!causal) return;
        long last = std::min(first + count, length);
        for (long key = first; key < last; key += WIDTH)
            strip(key, std::min(long(WIDTH), last - key), (key - first) / WIDTH);
    }

    // The scores (keys, QUERIES) of a strip.
    void scores(long key, long keys, long vector, Rows out) const {
        long column = vector * WIDTH;
        multiply({k[key], k.stride, 1}, keys, features, packed.from(0, column), vectors - vector, out.from(0, column),
                 false);
        if (mask.kind) add_mask(key, keys, column, out);
        if (causal && key >= first) {
            IntVector lanes;
            for (int i = 0; i < WIDTH; i++) lanes[i] = i;
            for (int j = 0; j < keys; j++) {
                float* at = out[j] + column;
                store(at, select(lanes >= j, load(at), broadcast(-INFINITY)));
            }
        }
    }

    void add_mask(long key, long keys, long column, Rows out) const {
        auto apply = [&](float* at, Vector bias) {
            // Whatever the score is: a key that does not take part may be anything.
            Vector sum = mask.kind == BOOLEAN ? select(bias == 0.0f, load(at), bias) : load(at) + bias;
            store(at, sum);
        };
        if (!mask.row) {  // the same for all queries
            for (long j = 0; j < keys; j++) {
                Vector bias = broadcast(mask.at(0, key + j));
                for (long i = column; i < vectors * WIDTH; i += WIDTH) apply(out[j] + i, bias);
            }
            return;
        }
        transpose(count - column, keys,
                  [&](long query, long j, long lanes) { return mask.some(first + column + query, key + j, lanes); },
                  [&](long j, long query, long, Vector bias) { apply(out[j] + column + query, bias); });
    }
};

// What dropout multiplies the weights (keys, QUERIES) by, for up to KEYS keys from `key` on. `row` is the number of the
// block's first query among those of all items.
void drop(const Dropout& dropout, const Block& block, long row, long length, long key) {
    constexpr long EACH = KEYS / 8 + 1;  // blocks of random bits that a query's keys may lie in
    long keys = std::min(KEYS, length - key);
    uint32_t* numbers = scratch<uint32_t>(1, QUERIES * EACH * 8);
    auto start = [&](long i) { return uint64_t(row + i) * length + key; };
    dropout.draw.numbers(block.count * EACH, [&](long i) { return start(i / EACH) / 8 + i % EACH; }, numbers);
    transpose(block.count, keys,
              [&](long i, long j, long lanes) {
                  typedef uint32_t Numbers __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
                  Numbers found = *reinterpret_cast<const Numbers*>(numbers + i * EACH * 8 + start(i) % 8 + j);
                  Vector factors = select((found >> 8) >= dropout.least, broadcast(dropout.scale), Vector{});
                  return keep_some(factors, lanes);
              },
              [&](long j, long i, long, Vector kept) { store(block.kept[j] + i, kept); });
}

// One query by itself, where there are too few for the lanes of a vector: keys lie across these, then features of values.
// Returns the logarithm of the sum of exponentials.
float attend(const Block& block, long query, Rows q, Rows values, long outputs, long length, float scale, float* out) {
    long row = block.first + query, last = block.causal ? std::min(length, row + 1) : length;
    float most = -INFINITY, total = 0.0f, weights[KEYS];
    float* packed = block.packed.start;
    by_vectors(0, block.features, [&](long d, long lanes) { store(packed + d, load_some(q[row] + d, lanes) * scale); });
    by_vectors(0, outputs, [&](long d, long lanes) { store_some(out + d, Vector{}, lanes); });
    for (long first = 0; first < last; first += KEYS) {
        long keys = std::min(KEYS, last - first);
        Vector above = broadcast(-INFINITY), sums = {};
        for (long at = 0; at < keys; at += WIDTH) {
            long count = std::min(long(WIDTH), keys - at);
            const float* rows[WIDTH];
            for (long j = 0; j < WIDTH; j++) rows[j] = block.k[first + at + std::min(j, count - 1)];
            Vector products[WIDTH] = {};
            by_vectors(0, block.features, [&](long d, long lanes) {
                Vector part = load(packed + d);
#pragma GCC unroll 16
                for (int j = 0; j < WIDTH; j++) products[j] += part * load_some(rows[j] + d, lanes);
            });
            Vector scores = sums_of(products);
            if (block.mask.kind) {
                Vector bias = block.mask.some(row, first + at, count);
                if (block.mask.kind == BOOLEAN) scores = select(bias == 0.0f, scores, bias);
                else scores += bias;
            }
            IntVector lanes;
            for (int i = 0; i < WIDTH; i++) lanes[i] = i;
            scores = select(lanes < int(count), scores, broadcast(-INFINITY));
            store(weights + at, scores);
            above = larger(scores, above);
        }
        float before = most;
        for (long lane = 0; lane < WIDTH; lane++) most = above[lane] > most ? above[lane] : most;
        float shift = most == -INFINITY ? 0.0f : most;
        Vector factor = exp(broadcast(before - shift));
        for (long at = 0; at < keys; at += WIDTH) {
            Vector weight = exp(load(weights + at) - shift);
            store(weights + at, weight);
            sums += weight;
        }
        total = total * factor[0] + sum_of(sums);
        by_vectors(0, outputs, [&](long d, long lanes) {
            Vector parts[4] = {load_some(out + d, lanes) * factor};
            long j = 0;
            for (; j + 4 <= keys; j += 4)
                for (int part = 0; part < 4; part++)
                    parts[part] += load_some(values[first + j + part] + d, lanes) * weights[j + part];
            for (; j < keys; j++) parts[0] += load_some(values[first + j] + d, lanes) * weights[j];
            store_some(out + d, (parts[0] + parts[1]) + (parts[2] + parts[3]), lanes);
        });
    }
    float share = total == 0.0f ? 0.0f : 1.0f / total;
    by_vectors(0, outputs, [&](long d, long lanes) { store_some(out + d, load_some(out + d, lanes) * share, lanes); });
    return total == 0.0f ? INFINITY : logf(total) + most;
}

// Parts of this thread's scratch memory, one after another.
struct Memory {
    float* next;

    explicit Memory(long floats) : next(scratch(0, floats)) {}
    Rows rows(long count, long stride) {
        Rows taken{next, stride};
        next += count * stride;
        return taken;
    }
};

}  // namespace

// How many blocks the queries are divided into.
KERNEL long attention_blocks(const Array* q) { return (length_of(q) + QUERIES - 1) / QUERIES; }

// y and logarithm, for the blocks of queries from `start` to `stop`, of all items one after another.
KERNEL void attention(const Array* q, const Array* k, const Array* v, const Array* mask, const Array* y, const Array* logarithm, long kind, long causal, float scale, float p, long seed, long stream0, long stream1, long stream2, long offset, long start, long stop) {
    long features = width_of(q), outputs = width_of(v), queries = length_of(q), keys = length_of(k);
    long blocks = attention_blocks(q);
    Dropout dropout(p, Draw(seed, stream0, stream1, stream2, offset));
    Memory memory((features + outputs + 2 * KEYS) * QUERIES);
    Rows packed = memory.rows(features, QUERIES), sums = memory.rows(outputs, QUERIES);
    Rows scores = memory.rows(KEYS, QUERIES), kept = memory.rows(KEYS, QUERIES);
    for (long unit = start; unit < stop; unit++) {
        // Later blocks see more keys where the mask is causal, so early and late ones take turns.
        long item = unit / blocks, turn = unit % blocks, number = turn % 2 ? blocks - 1 - turn / 2 : turn / 2;
        long first = number * QUERIES, count = std::min(QUERIES, queries - first);
        Rows values = rows_of(v, item), out = rows_of(y, item);
        Block block{Mask(mask, item, kind), rows_of(k, item), features, first, count, vectors_of(count), bool(causal),
                    packed, kept};
        float* logarithms = logarithm->floats() + item * queries + first;
        if (count <= FEW && !dropout.scale) {
            for (long i = 0; i < count; i++)
                logarithms[i] = attend(block, i, rows_of(q, item), values, outputs, keys, scale, out[first + i]);
            continue;
        }
        block.pack(rows_of(q, item), scale);
        block.clear(sums, outputs);
        Vector most[ACROSS], totals[ACROSS] = {};
        float factors[QUERIES];
        long drawn = -KEYS;  // the first key that `kept` is for
        for (Vector& m : most) m = broadcast(-INFINITY);
        block.strips(keys, [&](long key, long height, long vector) {
            block.scores(key, height, vector, scores);
            for (long i = vector; i < block.vectors; i++) {
                float* column = scores.start + i * WIDTH;
                Vector above = most[i], other = above;
                for (long j = 0; j + 1 < height; j += 2) {
                    above = larger(load(column + j * QUERIES), above);
                    other = larger(load(column + (j + 1) * QUERIES), other);
                }
                above = larger(larger(load(column + (height - 1) * QUERIES), other), above);
                Vector shift = select(above == -INFINITY, Vector{}, above), sum = {};
                Vector factor = exp(most[i] - shift);
                for (long j = 0; j < height; j++) {
                    Vector weight = exp(load(column + j * QUERIES) - shift);
                    store(column + j * QUERIES, weight);
                    sum += weight;
                }
                totals[i] = totals[i] * factor + sum;
                most[i] = above;
                store(factors + i * WIDTH, factor);
            }
            long column = vector * WIDTH;
            if (dropout.scale) {
                if (key >= drawn + KEYS) drop(dropout, block, item * queries + first, keys, drawn = key);
                for (long j = 0; j < height; j++)
                    for (long i = column; i < block.vectors * WIDTH; i += WIDTH)
                        store(scores[j] + i, load(scores[j] + i) * load(kept[key - drawn + j] + i));
            }
            multiply({values[key], 1, values.stride}, outputs, height, scores.from(0, column), block.vectors - vector,
                     sums.from(0, column), true, factors + column);
        });
        for (long i = 0; i < block.vectors; i++) {
            store(factors + i * WIDTH, select(totals[i] == 0.0f, Vector{}, 1.0f / totals[i]));
            for (long lane = 0; lane < std::min(long(WIDTH), count - i * WIDTH); lane++)
                logarithms[i * WIDTH + lane] = totals[i][lane] == 0.0f ? INFINITY : logf(totals[i][lane]) + most[i][lane];
        }
        transpose(outputs, count,
                  [&](long d, long query, long lanes) {
                      return load_some(sums[d] + query, lanes) * load_some(factors + query, lanes);
                  },
                  [&](long query, long d, long lanes, Vector row) { store_some(out[first + query] + d, row, lanes); });
    }
}

// The gradients dq, dk and dv, for the items from `start` to `stop`.
KERNEL void attention_grad(const Array* g, const Array* q, const Array* k, const Array* v, const Array* mask, const Array* y, const Array* logarithm, const Array* dq, const Array* dk, const Array* dv, long kind, long causal, float scale, float p, long seed, long stream0, long stream1, long stream2, long offset, long start, long stop) {
    long features = width_of(q), outputs = width_of(v), queries = length_of(q), keys = length_of(k);
    long wide_features = rounded(features), wide_outputs = rounded(outputs);
    bool whole = features == wide_features && outputs == wide_outputs;  // else sums need more room than dk and dv have
    Memory memory((features + outputs + features + 3 * KEYS + wide_features + wide_outputs) * QUERIES +
                  (whole ? 0 : keys * (wide_features + wide_outputs)));
    Rows packed = memory.rows(features, QUERIES), packed_g = memory.rows(outputs, QUERIES);
    Rows sums = memory.rows(features, QUERIES);
    Rows weights = memory.rows(KEYS, QUERIES), slopes = memory.rows(KEYS, QUERIES), kept = memory.rows(KEYS, QUERIES);
    Dropout dropout(p, Draw(seed, stream0, stream1, stream2, offset));
    Rows q_rows = memory.rows(QUERIES, wide_features), g_rows = memory.rows(QUERIES, wide_outputs);
    float shared[QUERIES], logarithms[QUERIES];
    for (long item = start; item < stop; item++) {
        Rows q_item = rows_of(q, item), g_item = rows_of(g, item), y_item = rows_of(y, item), values = rows_of(v, item);
        Rows to_q = rows_of(dq, item), to_k = rows_of(dk, item), to_v = rows_of(dv, item);
        Memory rest = memory;
        Rows k_sums = whole ? to_k : rest.rows(keys, wide_features);
        Rows v_sums = whole ? to_v : rest.rows(keys, wide_outputs);
        for (long key = causal ? queries : keys; key < keys; key++) {  // no query sees these
            memset(k_sums[key], 0, wide_features * sizeof(float));
            memset(v_sums[key], 0, wide_outputs * sizeof(float));
        }
        for (long first = 0; first < queries; first += QUERIES) {
            long count = std::min(QUERIES, queries - first);
            Block block{Mask(mask, item, kind), rows_of(k, item), features, first, count, vectors_of(count),
                        bool(causal), packed, kept};
            block.pack(q_item, scale);
            transpose(count, outputs, [&](long i, long d, long lanes) { return load_some(g_item[first + i] + d, lanes); },
                      [&](long d, long i, long, Vector column) { store(packed_g[d] + i, column); });
            for (long i = 0; i < QUERIES; i++) {
                logarithms[i] = i < count ? logarithm->floats()[item * queries + first + i] : INFINITY;
                shared[i] = 0.0f;
            }
            for (long i = 0; i < count; i++) {
                by_vectors(0, features, [&](long d, long lanes) {
                    store(q_rows[i] + d, load_some(q_item[first + i] + d, lanes) * scale);
                });
                Vector sum = {};
                by_vectors(0, outputs, [&](long d, long lanes) {
                    Vector slope = load_some(g_item[first + i] + d, lanes);
                    store(g_rows[i] + d, slope);
                    sum += slope * load_some(y_item[first + i] + d, lanes);
                });
                shared[i] = sum_of(sum);
            }
            block.clear(sums, features);
            long drawn = -KEYS;  // the first key that `kept` is for
            block.strips(keys, [&](long key, long height, long vector) {
                long column = vector * WIDTH, across = block.vectors - vector;
                block.scores(key, height, vector, weights);
                multiply({values[key], values.stride, 1}, height, outputs, packed_g.from(0, column), across,
                         slopes.from(0, column), false);
                if (dropout.scale && key >= drawn + KEYS)
                    drop(dropout, block, item * queries + first, keys, drawn = key);
                for (long j = 0; j < height; j++)
                    for (long i = column; i < block.vectors * WIDTH; i += WIDTH) {
                        Vector weight = exp(load(weights[j] + i) - load(logarithms + i)), slope = load(slopes[j] + i);
                        Vector factor = dropout.scale ? load(kept[key - drawn + j] + i) : broadcast(1.0f);
                        store(weights[j] + i, weight * factor);
                        store(slopes[j] + i, weight * (slope * factor - load(shared + i)));
                    }
                bool seen = first > 0 && !(causal && key >= first);  // by queries before these
                multiply({weights[0] + column, QUERIES, 1}, height, count - column, g_rows.from(column, 0),
                         wide_outputs / WIDTH, v_sums.from(key, 0), seen);
                multiply({slopes[0] + column, QUERIES, 1}, height, count - column, q_rows.from(column, 0),
                         wide_features / WIDTH, k_sums.from(key, 0), seen);
                multiply({block.k[key], 1, block.k.stride}, features, height, slopes.from(0, column), across,
                         sums.from(0, column), true);
            });
            transpose(features, count,
                      [&](long d, long i, long lanes) { return load_some(sums[d] + i, lanes) * scale; },
                      [&](long i, long d, long lanes, Vector row) { store_some(to_q[first + i] + d, row, lanes); });
        }
        if (whole) continue;
        for (long key = 0; key < keys; key++) {
            memcpy(to_k[key], k_sums[key], features * sizeof(float));
            memcpy(to_v[key], v_sums[key], outputs * sizeof(float));
        }
    }
}
