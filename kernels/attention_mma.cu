// Attention on tensor cores, of half, bfloat16 and TF32: compute capability 8.0 and up. What is computed, and by which
// block, is as in attention.cu.
//
// Each of 4 warps has 16 rows of a block's own tile, whole: scores (16, BN) come of mma.sync in the registers of the warp,
// become weights there, and go, rounded to T, as the first operand into the product with the other tile. What is next is
// copied to shared memory by cp.async while the tensor cores work: in the forward pass the values during the product with
// the keys and the next keys during that with the values, in the backward pass the next tiles during all of a step.
// Rows in shared memory have 16 bytes between them, so that the 8 rows of an ldmatrix are in different banks.
#include "attention.cuh"
#include "ptx/mma.cuh"

extern __shared__ __align__(1024) unsigned char gn_shared[];

constexpr int WARPS = 4, THREADS = 32 * WARPS, BM = 16 * WARPS;
constexpr float LOG2_E = 1.44269504088896340736f;

DEVICE float exponential_of(float x) { return exp2f(x * LOG2_E); }

DEVICE int lane() { return static_cast<int>(threadIdx.x) % 32; }

// What the operands of T's products are: steps of K numbers along the sum, 32 bytes, in registers as mma.cuh has them.
template <class T>
struct Cores {
    static constexpr int K = 16;

    static DEVICE void multiply(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
        mma_m16n8k16<T>(sums, a, b);
    }
    static DEVICE void round(unsigned (&)[4]) {}
};

template <>
struct Cores<tf32> {
    static constexpr int K = 8;

    static DEVICE void multiply(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
        mma_m16n8k8_tf32(sums, a, b);
    }
    static DEVICE void round(unsigned (&x)[4]) {
#pragma unroll
        for (int i = 0; i < 4; i++) x[i] = round_to_tf32(x[i]);
    }
};

// Rows of D numbers in shared memory.
template <class T, int D>
struct Tile {
    using S = Stored<T>;
    static constexpr int SIZE = sizeof(S), CHUNK = 16 / SIZE, PITCH = D + CHUNK, CHUNKS = D / CHUNK;
    unsigned base;

    union Chunk {
        unsigned words[4];
        S numbers[CHUNK];
    };

    static DEVICE constexpr int bytes(int rows) { return rows * PITCH * SIZE; }
    DEVICE unsigned at(int row, int column) const { return base + (row * PITCH + column) * SIZE; }

    // Rows `from` to `from` + ROWS of a matrix of `rows` rows and `columns` columns; zeros where it has none. They have
    // arrived after cp_async_wait.
    template <int ROWS>
    DEVICE void load(const S* matrix, long long stride, int from, int rows, int columns) const {
        const bool aligned = (reinterpret_cast<unsigned long long>(matrix) | stride * SIZE) % 16 == 0;
#pragma unroll
        for (int i = threadIdx.x; i < ROWS * CHUNKS; i += THREADS) {
            const int row = i / CHUNKS, column = i % CHUNKS * CHUNK;
            const int count = from + row < rows ? max(0, min(columns - column, CHUNK)) : 0;
            const S* source = count ? matrix + (from + row) * stride + column : matrix;
            if (aligned) {
                cp_async<16>(at(row, column), source, count * SIZE);
            } else {
                Chunk chunk{};
#pragma unroll
                for (int n = 0; n < CHUNK; n++)
                    if (n < count) chunk.numbers[n] = source[n];
                store_shared<16>(at(row, column), chunk.words);
            }
        }
    }

    // The 16 rows of a warp, from `row` on, to a matrix. Nothing else may be going on with them.
    DEVICE void store(const float (&sums)[D / 8][4], const float (&factors)[2], int row, S* matrix, long long stride,
                      int from, int rows, int columns) const {
        const bool aligned = (reinterpret_cast<unsigned long long>(matrix) | stride * SIZE) % 16 == 0;
        __syncwarp();
#pragma unroll
        for (int d = 0; d < D / 8; d++)
#pragma unroll
            for (int half = 0; half < 2; half++) {
                Chunk pair;
#pragma unroll
                for (int i = 0; i < 2; i++) pair.numbers[i] = Number<T>::store(sums[d][2 * half + i] * factors[half]);
                unsigned words[SIZE / 2];
#pragma unroll
                for (int i = 0; i < SIZE / 2; i++) words[i] = pair.words[i];
                store_shared<2 * SIZE>(at(row + lane() / 4 + 8 * half, 8 * d + lane() % 4 * 2), words);
            }
        __syncwarp();
        for (int i = lane(); i < 16 * CHUNKS; i += 32) {
            const int r = row + i / CHUNKS, column = i % CHUNKS * CHUNK, count = min(columns - column, CHUNK);
            if (from + r >= rows || count <= 0) continue;
            Chunk chunk;
            load_shared(chunk.words, at(r, column));
            S* to = matrix + (from + r) * stride + column;
            if (aligned && count == CHUNK) {
                *reinterpret_cast<Vector<unsigned, 4>*>(to) = {
                    {chunk.words[0], chunk.words[1], chunk.words[2], chunk.words[3]}};
            } else {
#pragma unroll
                for (int n = 0; n < CHUNK; n++)
                    if (n < count) to[n] = chunk.numbers[n];
            }
        }
    }
};

// scores += the products of rows `row` to `row` + 16 of a and all BN rows of b.
template <class T, int D, int BN>
DEVICE void multiply_rows(const Tile<T, D>& a, int row, const Tile<T, D>& b, float (&scores)[BN / 8][4]) {
    constexpr int CHUNK = Tile<T, D>::CHUNK;
#pragma unroll
    for (int d = 0; d < D; d += 2 * CHUNK) {
        unsigned left[4], right[4];
        ldmatrix<false>(left, a.at(row + lane() % 16, d + lane() / 16 * CHUNK));
        Cores<T>::round(left);
#pragma unroll
        for (int n = 0; n < BN; n += 16) {
            ldmatrix<false>(right, b.at(n + lane() / 16 * 8 + lane() % 8, d + lane() / 8 % 2 * CHUNK));
            Cores<T>::round(right);
            Cores<T>::multiply(scores[n / 8], left, {right[0], right[1]});
            Cores<T>::multiply(scores[n / 8 + 1], left, {right[2], right[3]});
        }
    }
}

// sums += weights (16, BN), as the result of `multiply_rows` lies, times b (BN, D).
template <class T, int D, int BN>
DEVICE void multiply_weights(const float (&weights)[BN / 8][4], const Tile<T, D>& b, float (&sums)[D / 8][4]) {
    if constexpr (Cores<T>::K == 16) {
#pragma unroll
        for (int n = 0; n < BN; n += 16) {
            unsigned left[4], right[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float(&pair)[4] = weights[n / 8 + i / 2];
                left[i] = Number<T>::store(pair[i % 2 * 2]).bits |
                          static_cast<unsigned>(Number<T>::store(pair[i % 2 * 2 + 1]).bits) << 16;
            }
#pragma unroll
            for (int d = 0; d < D; d += 16) {
                ldmatrix<true>(right, b.at(n + lane() % 16, d + lane() / 16 * 8));
                Cores<T>::multiply(sums[d / 8], left, {right[0], right[1]});
                Cores<T>::multiply(sums[d / 8 + 1], left, {right[2], right[3]});
            }
        }
    } else {
        // A lane has columns 2 t and 2 t + 1 of the weights where an operand has t and t + 4. A sum does not care for the
        // order of its terms: these rows of b are taken in the same one.
#pragma unroll
        for (int n = 0; n < BN; n += 8) {
            unsigned left[4];
#pragma unroll
            for (int i = 0; i < 4; i++) left[i] = __float_as_uint(weights[n / 8][i % 2 * 2 + i / 2]);
            Cores<T>::round(left);
            const unsigned from = b.at(n + lane() % 4 * 2, lane() / 4);
#pragma unroll
            for (int d = 0; d < D; d += 16) {
                unsigned right[4];
#pragma unroll
                for (int i = 0; i < 4; i++)
                    right[i] = load_word(from + (i % 2 * Tile<T, D>::PITCH + d + i / 2 * 8) * 4);
                Cores<T>::round(right);
                Cores<T>::multiply(sums[d / 8], left, {right[0], right[1]});
                Cores<T>::multiply(sums[d / 8 + 1], left, {right[2], right[3]});
            }
        }
    }
}

template <class T, int D, int BN>
__global__ void __launch_bounds__(THREADS, 2) attention_forward(const __grid_constant__ AttentionArgs args) {
    using Bits = KeptBits<BM, BN>;
    const Tile<T, D> queries{shared_address(gn_shared)}, keys{queries.base + queries.bytes(BM)};
    const Tile<T, D> values{keys.base + keys.bytes(BN)};
    unsigned char* bits = gn_shared + (values.base - queries.base) + values.bytes(BN);
    const int row = threadIdx.x / 32 * 16, g = lane() / 4, t = lane() % 4;
    const int tiles = (args.queries + BM - 1) / BM;
    const long long item = blockIdx.x / tiles;
    const int from = (tiles - 1 - static_cast<int>(blockIdx.x % tiles)) * BM;  // under causal, the longest first
    const int end = args.causal ? min(args.keys, from + BM) : args.keys;
    const Stored<T>* k = matrix_of<T>(args, args.k, item);
    const Stored<T>* v = matrix_of<T>(args, args.v, item);
    const Seen<T> seen(args, item);

    queries.template load<BM>(matrix_of<T>(args, args.q, item), args.q.row, from, args.queries, args.features);
    keys.template load<BN>(k, args.k.row, 0, args.keys, args.features);
    cp_async_commit();
    float top[2] = {-infinity<float>(), -infinity<float>()}, total[2] = {}, sums[D / 8][4] = {};
    for (int key = 0; key < end; key += BN) {
        if (args.threshold) Bits::template draw<THREADS>(bits, args, item, from, key);
        cp_async_wait<0>();
        __syncthreads();
        values.template load<BN>(v, args.v.row, key, args.keys, args.values);
        cp_async_commit();
        float scores[BN / 8][4] = {};
        multiply_rows<T, D, BN>(queries, row, keys, scores);
        const bool plain = args.mask_kind == NO_MASK && key + BN <= args.keys && !(args.causal && key + BN > from);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const int query = from + row + g + 8 * half;
            float most = top[half];
#pragma unroll
            for (int n = 0; n < BN / 8; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float& score = scores[n][2 * half + i];
                    score = plain ? score * static_cast<float>(args.scale) : seen.score(score, query, key + 8 * n + 2 * t + i);
                    most = Larger::of(score, most);
                }
            most = reduce_lanes<Larger, 4>(most);
            const float base = most == -infinity<float>() ? 0.0f : most;
            const float shrink = exponential_of(top[half] - base);
            top[half] = most;
            total[half] *= shrink;
#pragma unroll
            for (int d = 0; d < D / 8; d++) sums[d][2 * half] *= shrink, sums[d][2 * half + 1] *= shrink;
            const int within = static_cast<int>(Bits::first(args, item, query, key) % 8);
#pragma unroll
            for (int n = 0; n < BN / 8; n++)
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float& score = scores[n][2 * half + i];
                    score = exponential_of(score - base);
                    total[half] += score;
                    if (args.threshold)
                        score = query < args.queries && Bits::kept(bits, row + g + 8 * half, 8 * n + 2 * t + i, within)
                                    ? score * static_cast<float>(args.grown)
                                    : 0.0f;
                }
        }
        cp_async_wait<0>();
        __syncthreads();
        if (key + BN < end) keys.template load<BN>(k, args.k.row, key + BN, args.keys, args.features);
        cp_async_commit();
        multiply_weights<T, D, BN>(scores, values, sums);
    }
    float factors[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int query = from + row + g + 8 * half;
        total[half] = reduce_lanes<Add, 4>(total[half]);
        const bool none = total[half] == 0.0f;
        factors[half] = none ? 0.0f : 1.0f / total[half];
        if (t == 0 && query < args.queries)
            static_cast<float*>(args.logarithm)[item * args.queries + query] =
                none ? infinity<float>() : log(total[half]) + top[half];
    }
    queries.store(sums, factors, row, matrix_of<T>(args, args.y, item), args.y.row, from, args.queries, args.values);
}

// The gradients, for tiles of BM queries (dq), or with OF_KEYS of BM keys (dk and dv). What a block has is called its
// own (q and g, or k and v), what it goes through BN rows at a time the others (k and v, or q and g).
template <class T, int D, int BN, bool OF_KEYS>
__global__ void __launch_bounds__(THREADS, 2) attention_backward(const __grid_constant__ AttentionArgs args) {
    using Bits = KeptBits<OF_KEYS ? BN : BM, OF_KEYS ? BM : BN>;
    const Tile<T, D> own{shared_address(gn_shared)}, own_second{own.base + own.bytes(BM)};
    const unsigned ring = own_second.base + own.bytes(BM);
    unsigned char* bits = gn_shared + (ring - own.base) + 4 * own.bytes(BN);
    const int row = threadIdx.x / 32 * 16, g = lane() / 4, t = lane() % 4;
    const int rows = OF_KEYS ? args.keys : args.queries, columns = OF_KEYS ? args.queries : args.keys;
    const int tiles = (rows + BM - 1) / BM, groups = OF_KEYS ? args.groups : 1;
    const int tile = static_cast<int>(blockIdx.x % tiles);
    const int from = (OF_KEYS ? tile : tiles - 1 - tile) * BM;
    const long long first = blockIdx.x / tiles * static_cast<long long>(groups);
    const Matrices &left = OF_KEYS ? args.k : args.q, &left_second = OF_KEYS ? args.v : args.g;
    const Matrices &right = OF_KEYS ? args.q : args.k, &right_second = OF_KEYS ? args.g : args.v;
    const int begin = args.causal && OF_KEYS ? from / BN * BN : 0;
    const int end = args.causal && !OF_KEYS ? min(columns, from + BM) : columns;
    const int steps = max(0, (end - begin + BN - 1) / BN);  // of an item
    const long long all = static_cast<long long>(steps) * groups;

    const auto other = [&](long long step, int which) {
        return Tile<T, D>{ring + static_cast<unsigned>(step % 2 * 2 + which) * own.bytes(BN)};
    };
    const auto fetch = [&](long long step) {
        const long long item = first + step / steps;
        const int at = begin + static_cast<int>(step % steps) * BN;
        other(step, 0).template load<BN>(matrix_of<T>(args, right, item), right.row, at, columns, args.features);
        other(step, 1).template load<BN>(matrix_of<T>(args, right_second, item), right_second.row, at, columns,
                                         args.values);
    };

    own.template load<BM>(matrix_of<T>(args, left, first), left.row, from, rows, args.features);
    own_second.template load<BM>(matrix_of<T>(args, left_second, first), left_second.row, from, rows, args.values);
    if (all) fetch(0);
    cp_async_commit();
    float sums[D / 8][4] = {}, values[OF_KEYS ? D / 8 : 1][4] = {};
    for (long long step = 0; step < all; step++) {
        const long long item = first + step / steps;
        const int at = begin + static_cast<int>(step % steps) * BN;
        if (step + 1 < all) fetch(step + 1);
        cp_async_commit();
        if (args.threshold) Bits::template draw<THREADS>(bits, args, item, OF_KEYS ? at : from, OF_KEYS ? from : at);
        cp_async_wait<1>();
        __syncthreads();
        const Tile<T, D> others = other(step, 0), others_second = other(step, 1);
        float scores[BN / 8][4] = {}, slopes[BN / 8][4] = {};
        multiply_rows<T, D, BN>(own, row, others, scores);
        multiply_rows<T, D, BN>(own_second, row, others_second, slopes);
        const float* logarithms = static_cast<const float*>(args.logarithm) + item * args.queries;
        const float* deltas = static_cast<const float*>(args.delta) + item * args.queries;
        const Seen<T> seen(args, item);
        const int first_query = OF_KEYS ? at : from, first_key = OF_KEYS ? from : at;
        const bool plain = args.mask_kind == NO_MASK && first_key + (OF_KEYS ? BM : BN) <= args.keys &&
                           first_query + (OF_KEYS ? BN : BM) <= args.queries &&
                           !(args.causal && first_key + (OF_KEYS ? BM : BN) > first_query);
#pragma unroll
        for (int n = 0; n < BN / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int r = row + g + i / 2 * 8, c = 8 * n + 2 * t + i % 2;
                const int q = OF_KEYS ? c : r, k = OF_KEYS ? r : c, query = first_query + q;
                const int near_query = min(query, args.queries - 1);
                const float score = plain ? scores[n][i] * static_cast<float>(args.scale)
                                          : seen.score(scores[n][i], query, first_key + k);
                const float weight = exponential_of(score - logarithms[near_query]);
                float grown = 1.0f;
                if (args.threshold) {
                    const int within = static_cast<int>(Bits::first(args, item, query, first_key) % 8);
                    grown = query < args.queries && Bits::kept(bits, q, k, within) ? static_cast<float>(args.grown) : 0.0f;
                }
                scores[n][i] = weight * grown;
                slopes[n][i] = weight * (grown * slopes[n][i] - deltas[near_query]);
            }
        multiply_weights<T, D, BN>(slopes, others, sums);
        if constexpr (OF_KEYS) multiply_weights<T, D, BN>(scores, others_second, values);
        __syncthreads();
    }
    cp_async_wait<0>();
    __syncthreads();
    const float scale[2] = {static_cast<float>(args.scale), static_cast<float>(args.scale)}, ones[2] = {1.0f, 1.0f};
    const Matrices& to = OF_KEYS ? args.dk : args.dq;
    own.store(sums, scale, row, matrix_of<T>(args, to, first), to.row, from, rows, args.features);
    if constexpr (OF_KEYS)
        own_second.store(values, ones, row, matrix_of<T>(args, args.dv, first), args.dv.row, from, rows, args.values);
}
