// Attention by multiply-adds, for every type and every GPU: what attention_mma.cu has no tensor cores for.
//
// The matrix of scores is never in memory (Dao et al., "FlashAttention", 2022): a block has a tile of BM queries, goes
// through the keys BN at a time, and keeps for each query the largest score so far, the sum of the exponentials relative
// to it, and the mean of the values, which are scaled down whenever a larger score comes. What is kept for the derivative
// is the logarithm of the sum. The derivative computes the weights again; one kernel has tiles of queries and gathers dq,
// another has tiles of keys and gathers dk and dv, so that no two blocks add to the same numbers.
//
// 16 x 16 threads. Thread (y, x) has the scores of rows y + 16 i and columns x + 16 j, and the same rows of the results.
// Tiles are in shared memory as F, float or double, features beyond those there are being zero.
#include "attention.cuh"

extern __shared__ __align__(1024) unsigned char gn_shared[];

constexpr int SIDE = 16, THREADS = SIDE * SIDE;

// Shared memory for rows of WIDTH numbers, with room between them such that rows below each other are in other banks.
template <class F, int WIDTH>
struct Tile {
    static constexpr int N = 16 / sizeof(F), PITCH = WIDTH + N;
    F* data;

    DEVICE Vector<F, N> at(int row, int column) const {
        return *reinterpret_cast<const Vector<F, N>*>(data + row * PITCH + column);
    }

    // Rows `from` to `from` + ROWS of a matrix of `rows` rows and `columns` columns; zeros where it has none.
    template <class T, int ROWS>
    DEVICE void load(const Stored<T>* matrix, long long stride, int from, int rows, int columns) const {
        constexpr int V = 16 / sizeof(Stored<T>);
        const bool aligned =
            (reinterpret_cast<unsigned long long>(matrix) | stride * static_cast<long long>(sizeof(Stored<T>))) % 16 == 0;
        for (int i = threadIdx.x; i < ROWS * WIDTH / V; i += THREADS) {
            const int row = i / (WIDTH / V), column = i % (WIDTH / V) * V;
            const int count = from + row < rows ? min(columns - column, V) : 0;
            F x[V];
            load_vector<T, V>(matrix + (from + row) * stride + column, aligned && count == V, count, x);
#pragma unroll
            for (int j = 0; j < V; j += N) {
                Vector<F, N> part;
#pragma unroll
                for (int n = 0; n < N; n++) part.at[n] = x[j + n];
                *reinterpret_cast<Vector<F, N>*>(data + row * PITCH + column + j) = part;
            }
        }
    }
};

// sums[i][j] += the product of row y + 16 i of a and row x + 16 j of b.
template <class F, int D, int RM, int RN>
DEVICE void multiply_rows(const Tile<F, D>& a, const Tile<F, D>& b, F (&sums)[RM][RN]) {
    constexpr int N = Tile<F, D>::N;
    const int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
#pragma unroll 2
    for (int d = 0; d < D; d += N) {
        Vector<F, N> left[RM], right[RN];
#pragma unroll
        for (int i = 0; i < RM; i++) left[i] = a.at(y + SIDE * i, d);
#pragma unroll
        for (int j = 0; j < RN; j++) right[j] = b.at(x + SIDE * j, d);
#pragma unroll
        for (int i = 0; i < RM; i++)
#pragma unroll
            for (int j = 0; j < RN; j++)
#pragma unroll
                for (int n = 0; n < N; n++) sums[i][j] += left[i].at[n] * right[j].at[n];
    }
}

// The numbers of one thread in a result of rows of D: W adjacent ones, then those 16 W further, and so on.
template <class F, int D>
struct Columns {
    static constexpr int W = D / SIDE < Tile<F, D>::N ? D / SIDE : Tile<F, D>::N, COUNT = D / SIDE / W;
    static DEVICE int at(int c) { return (c * SIDE + static_cast<int>(threadIdx.x) % SIDE) * W; }
};

// sums[i] += the product of row y + 16 i of `weights` (.., BN) and `b` (BN, D).
template <class F, int D, int BN, int RM>
DEVICE void multiply_weights(const Tile<F, BN>& weights, const Tile<F, D>& b,
                             F (&sums)[RM][Columns<F, D>::COUNT][Columns<F, D>::W]) {
    using Own = Columns<F, D>;
    constexpr int N = Tile<F, BN>::N, W = Own::W;
    const int y = threadIdx.x / SIDE;
#pragma unroll 2
    for (int n = 0; n < BN; n += N) {
        Vector<F, N> w[RM];
#pragma unroll
        for (int i = 0; i < RM; i++) w[i] = weights.at(y + SIDE * i, n);
#pragma unroll
        for (int m = 0; m < N; m++)
#pragma unroll
            for (int c = 0; c < Own::COUNT; c++) {
                const auto x = *reinterpret_cast<const Vector<F, W>*>(b.data + (n + m) * b.PITCH + Own::at(c));
#pragma unroll
                for (int i = 0; i < RM; i++)
#pragma unroll
                    for (int v = 0; v < W; v++) sums[i][c][v] += w[i].at[m] * x.at[v];
            }
    }
}

// Rows y + 16 i of a result, times factors[i].
template <class T, int D, int RM>
DEVICE void store_rows(Stored<T>* matrix, long long stride, int from, int rows, int columns,
                       const Computed<T> (&sums)[RM][Columns<Computed<T>, D>::COUNT][Columns<Computed<T>, D>::W],
                       const Computed<T> (&factors)[RM]) {
    using Own = Columns<Computed<T>, D>;
    constexpr int W = Own::W;
    const bool aligned =
        (reinterpret_cast<unsigned long long>(matrix) | stride * static_cast<long long>(sizeof(Stored<T>))) %
            (W * sizeof(Stored<T>)) == 0;
#pragma unroll
    for (int i = 0; i < RM; i++) {
        const int row = from + threadIdx.x / SIDE + SIDE * i;
        if (row >= rows) continue;
#pragma unroll
        for (int c = 0; c < Own::COUNT; c++) {
            Computed<T> x[W];
#pragma unroll
            for (int v = 0; v < W; v++) x[v] = sums[i][c][v] * factors[i];
            const int count = min(columns - Own::at(c), W);
            store_vector<T, W>(matrix + row * stride + Own::at(c), aligned && count == W, count, x);
        }
    }
}

template <class T, int D, int BM, int BN>
__global__ void __launch_bounds__(THREADS, sizeof(Stored<T>) == 8 ? 1 : 2)
    attention_forward(const __grid_constant__ AttentionArgs args) {
    using F = Computed<T>;
    using Own = Columns<F, D>;
    using Bits = KeptBits<BM, BN>;
    constexpr int RM = BM / SIDE, RN = BN / SIDE;
    const Tile<F, D> queries{reinterpret_cast<F*>(gn_shared)}, others{queries.data + BM * queries.PITCH};
    const Tile<F, BN> weights{others.data + BN * others.PITCH};
    unsigned char* bits = reinterpret_cast<unsigned char*>(weights.data + BM * weights.PITCH);
    const int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
    const int tiles = (args.queries + BM - 1) / BM;
    const long long item = blockIdx.x / tiles;
    const int from = (tiles - 1 - static_cast<int>(blockIdx.x % tiles)) * BM;  // under causal, the longest first
    const int end = args.causal ? min(args.keys, from + BM) : args.keys;
    const Stored<T>* k = matrix_of<T>(args, args.k, item);
    const Stored<T>* v = matrix_of<T>(args, args.v, item);
    const Seen<T> seen(args, item);

    queries.template load<T, BM>(matrix_of<T>(args, args.q, item), args.q.row, from, args.queries, args.features);
    F top[RM], total[RM], sums[RM][Own::COUNT][Own::W] = {};
#pragma unroll
    for (int i = 0; i < RM; i++) top[i] = -infinity<F>(), total[i] = F(0);
    for (int key = 0; key < end; key += BN) {
        __syncthreads();
        others.template load<T, BN>(k, args.k.row, key, args.keys, args.features);
        if (args.threshold) Bits::template draw<THREADS>(bits, args, item, from, key);
        __syncthreads();
        F scores[RM][RN] = {};
        multiply_rows(queries, others, scores);
        __syncthreads();
        others.template load<T, BN>(v, args.v.row, key, args.keys, args.values);
#pragma unroll
        for (int i = 0; i < RM; i++) {
            const int query = from + y + SIDE * i;
            F most = -infinity<F>();
#pragma unroll
            for (int j = 0; j < RN; j++) {
                scores[i][j] = seen.score(scores[i][j], query, key + x + SIDE * j);
                most = Larger::of(scores[i][j], most);
            }
            most = Larger::of(reduce_lanes<Larger, SIDE>(most), top[i]);
            const F base = most == -infinity<F>() ? F(0) : most;
            const F shrink = exp(top[i] - base);
            top[i] = most;
            total[i] *= shrink;
#pragma unroll
            for (int c = 0; c < Own::COUNT; c++)
#pragma unroll
                for (int n = 0; n < Own::W; n++) sums[i][c][n] *= shrink;
            const int within = static_cast<int>(Bits::first(args, item, query, key) % 8);
#pragma unroll
            for (int j = 0; j < RN; j++) {
                F weight = exp(scores[i][j] - base);
                total[i] += weight;
                if (args.threshold)
                    weight = query < args.queries && Bits::kept(bits, y + SIDE * i, x + SIDE * j, within)
                                 ? weight * F(args.grown)
                                 : F(0);
                weights.data[(y + SIDE * i) * weights.PITCH + x + SIDE * j] = weight;
            }
        }
        __syncthreads();
        multiply_weights<F, D, BN, RM>(weights, others, sums);
    }
    F factors[RM];
#pragma unroll
    for (int i = 0; i < RM; i++) {
        const int query = from + y + SIDE * i;
        total[i] = reduce_lanes<Add, SIDE>(total[i]);
        const bool none = total[i] == F(0);
        factors[i] = none ? F(0) : F(1) / total[i];
        if (x == 0 && query < args.queries)
            static_cast<F*>(args.logarithm)[item * args.queries + query] =
                none ? infinity<F>() : log(total[i]) + top[i];
    }
    store_rows<T, D, RM>(matrix_of<T>(args, args.y, item), args.y.row, from, args.queries, args.values, sums, factors);
}

// sum(g y) - logarithm_gradient of each query: a warp for each.
template <class T>
__global__ void __launch_bounds__(THREADS) attention_delta(const __grid_constant__ AttentionArgs args) {
    using F = Computed<T>;
    constexpr int V = 16 / sizeof(Stored<T>);
    const long long all = static_cast<long long>(args.count) * args.queries;
    const int lane = threadIdx.x % 32;
    for (long long i = blockIdx.x * 8ll + threadIdx.x / 32; i < all; i += gridDim.x * 8ll) {
        const long long item = i / args.queries, query = i - item * args.queries;
        const Stored<T>* g = matrix_of<T>(args, args.g, item) + query * args.g.row;
        const Stored<T>* y = matrix_of<T>(args, args.y, item) + query * args.y.row;
        const bool aligned = (reinterpret_cast<unsigned long long>(g) | reinterpret_cast<unsigned long long>(y)) % 16 == 0;
        F sum = F(0);
        for (int d = lane * V; d < args.values; d += 32 * V) {
            F a[V], b[V];
            const int count = min(args.values - d, V);
            load_vector<T, V>(g + d, aligned && count == V, count, a);
            load_vector<T, V>(y + d, aligned && count == V, count, b);
#pragma unroll
            for (int n = 0; n < V; n++) sum += a[n] * b[n];
        }
        sum = reduce_lanes<Add>(sum);
        if (lane == 0) {
            if (args.logarithm_gradient) sum -= static_cast<const F*>(args.logarithm_gradient)[i];
            static_cast<F*>(args.delta)[i] = sum;
        }
    }
}

// The gradients, for tiles of BM queries (dq), or with OF_KEYS of BM keys (dk and dv). What a block has is called its
// own (q and g, or k and v), what it goes through BN rows at a time the others (k and v, or q and g).
template <class T, int D, int BM, int BN, bool OF_KEYS>
__global__ void __launch_bounds__(THREADS, sizeof(Stored<T>) == 2 ? 1 : 2)
    attention_backward(const __grid_constant__ AttentionArgs args) {
    using F = Computed<T>;
    using Own = Columns<F, D>;
    using Bits = KeptBits<OF_KEYS ? BN : BM, OF_KEYS ? BM : BN>;
    constexpr int RM = BM / SIDE, RN = BN / SIDE;
    const Tile<F, D> own{reinterpret_cast<F*>(gn_shared)}, own_second{own.data + BM * own.PITCH};
    const Tile<F, D> others{own_second.data + BM * own.PITCH}, others_second{others.data + BN * own.PITCH};
    const Tile<F, BN> weights{others_second.data + BN * own.PITCH};
    unsigned char* bits = reinterpret_cast<unsigned char*>(weights.data + BM * weights.PITCH);
    const int x = threadIdx.x % SIDE, y = threadIdx.x / SIDE;
    const int rows = OF_KEYS ? args.keys : args.queries, columns = OF_KEYS ? args.queries : args.keys;
    const int tiles = (rows + BM - 1) / BM, groups = OF_KEYS ? args.groups : 1;
    const int tile = static_cast<int>(blockIdx.x % tiles);
    const int from = (OF_KEYS ? tile : tiles - 1 - tile) * BM;
    const long long first = blockIdx.x / tiles * static_cast<long long>(groups);
    const Matrices &left = OF_KEYS ? args.k : args.q, &left_second = OF_KEYS ? args.v : args.g;
    const Matrices &right = OF_KEYS ? args.q : args.k, &right_second = OF_KEYS ? args.g : args.v;

    own.template load<T, BM>(matrix_of<T>(args, left, first), left.row, from, rows, args.features);
    own_second.template load<T, BM>(matrix_of<T>(args, left_second, first), left_second.row, from, rows, args.values);
    F sums[RM][Own::COUNT][Own::W] = {}, values[OF_KEYS ? RM : 1][Own::COUNT][Own::W] = {};
    for (long long item = first; item < first + groups; item++) {
        const Stored<T>* b = matrix_of<T>(args, right, item);
        const Stored<T>* b_second = matrix_of<T>(args, right_second, item);
        const F* logarithms = static_cast<const F*>(args.logarithm) + item * args.queries;
        const F* deltas = static_cast<const F*>(args.delta) + item * args.queries;
        const Seen<T> seen(args, item);
        int begin = 0, end = columns;
        if (args.causal && OF_KEYS) begin = from / BN * BN;
        if (args.causal && !OF_KEYS) end = min(columns, from + BM);
        for (int at = begin; at < end; at += BN) {
            __syncthreads();
            others.template load<T, BN>(b, right.row, at, columns, args.features);
            others_second.template load<T, BN>(b_second, right_second.row, at, columns, args.values);
            if (args.threshold)
                Bits::template draw<THREADS>(bits, args, item, OF_KEYS ? at : from, OF_KEYS ? from : at);
            __syncthreads();
            F scores[RM][RN] = {}, slopes[RM][RN] = {}, kept[RM][RN];
            multiply_rows(own, others, scores);
            multiply_rows(own_second, others_second, slopes);
#pragma unroll
            for (int i = 0; i < RM; i++)
#pragma unroll
                for (int j = 0; j < RN; j++) {
                    const int r = y + SIDE * i, c = x + SIDE * j;
                    const int query = OF_KEYS ? at + c : from + r, key = OF_KEYS ? from + r : at + c;
                    const int near_query = min(query, args.queries - 1);
                    const F score = seen.score(scores[i][j], query, key);
                    const F weight = exp(score - logarithms[near_query]);
                    F grown = F(1);
                    if (args.threshold) {
                        const int q = OF_KEYS ? c : r, k = OF_KEYS ? r : c;
                        const int within =
                            static_cast<int>(Bits::first(args, item, query, OF_KEYS ? from : at) % 8);
                        grown = query < args.queries && Bits::kept(bits, q, k, within) ? F(args.grown) : F(0);
                    }
                    kept[i][j] = weight * grown;
                    weights.data[r * weights.PITCH + c] = weight * (grown * slopes[i][j] - deltas[near_query]);
                }
            __syncwarp();  // a row of weights is the same warp's all through
            multiply_weights<F, D, BN, RM>(weights, others, sums);
            if constexpr (OF_KEYS) {
                __syncwarp();
#pragma unroll
                for (int i = 0; i < RM; i++)
#pragma unroll
                    for (int j = 0; j < RN; j++)
                        weights.data[(y + SIDE * i) * weights.PITCH + x + SIDE * j] = kept[i][j];
                __syncwarp();
                multiply_weights<F, D, BN, RM>(weights, others_second, values);
            }
        }
    }
    F factors[RM], ones[RM];
#pragma unroll
    for (int i = 0; i < RM; i++) factors[i] = F(args.scale), ones[i] = F(1);
    const Matrices& to = OF_KEYS ? args.dk : args.dq;
    store_rows<T, D, RM>(matrix_of<T>(args, to, first), to.row, from, rows, args.features, sums, factors);
    if constexpr (OF_KEYS)
        store_rows<T, D, RM>(matrix_of<T>(args, args.dv, first), args.dv.row, from, rows, args.values, values, ones);
}
