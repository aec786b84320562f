// Products of matrices with ordinary multiply-adds: any type, any layout, any alignment, every GPU.
//
// The plan of matmul_simt. A block of threads computes a BM x BN tile of C, a warp a WM x WN part of it, and a thread
// WM/8 x WN/4 elements of that, which it holds in registers. The sum over K is done BK at a time:
//
//     global memory --(VECTOR elements a load)--> registers --(convert, transpose)--> shared memory --> registers
//
// While one tile of A and of B in shared memory is multiplied, the next ones are on their way from global memory to
// registers, and then go to the other of two buffers; so there is one __syncthreads for each BK. In shared memory both
// tiles lie with M (or N) adjacent, in the type that is computed in, so that a step of K is an outer product of two
// short vectors read 16 bytes at a time.
//
// Bank conflicts (tests/kernels/test_matmul_simt.py counts them, over the addresses of all warps): none in any read;
// none in the transposing stores of K_MAJOR and STRIDED; none in the stores of MN_MAJOR, but that those of 8 elements
// of a 16-bit type take two rounds more than they need.
//
// A sum's order depends on BK and the number of splits alone, never on timing: results are the same bits every time.
#include "matmul.cuh"

// Where part `split` of the sum over K begins: the end, if the parts before it are all there is.
DEVICE int first_k(const MatmulArgs& args, int split) {
    if (args.splits == 1) return split == 0 ? 0 : args.k;
    return static_cast<int>(min(static_cast<long long>(split) * args.split_k, static_cast<long long>(args.k)));
}

// The specification: one thread for each element of C, every operand by its strides, the sum over K in order, in
// double. Launch it with blockIdx.x over the M N elements in blocks of 256, and y and z as everywhere.
template <class T>
__global__ void __launch_bounds__(256) matmul_reference(const __grid_constant__ MatmulArgs args) {
    using Storage = typename Number<T>::Storage;
    using F = typename Number<T>::Compute;
    const long long element = blockIdx.x * 256ll + threadIdx.x;
    if (element >= static_cast<long long>(args.m) * args.n) return;
    const int row = static_cast<int>(element / args.n), col = static_cast<int>(element % args.n);
    const int first = first_k(args, blockIdx.z), last = first_k(args, blockIdx.z + 1);

    for (int z = blockIdx.y; z < args.batch; z += gridDim.y) {
        const Storage* a = static_cast<const Storage*>(args.a) + batch_offset(args, args.a_batch, z) + row * args.a_row;
        const Storage* b = static_cast<const Storage*>(args.b) + batch_offset(args, args.b_batch, z) + col * args.b_col;
        double sum = 0;
        for (int k = first; k < last; k++)
            sum += static_cast<double>(Number<T>::load(a[k * args.a_col])) * Number<T>::load(b[k * args.b_row]);
        const F sums[1] = {static_cast<F>(sum)};
        Epilogue<T>(args, z, blockIdx.z).store(row, col, sums);
    }
}

// x, of which the compiler knows nothing: so it computes what follows from x where that is needed. Otherwise it would
// do so once, before all loops, and keep the results in registers that the sums need.
DEVICE int opaque(int x) {
#ifndef GN_EMULATED
    asm volatile("" : "+r"(x));
#endif
    return x;
}

// How a tile of LENGTH rows of A (or columns of B) by BK lies in shared memory, and how the block's THREADS threads
// bring it there, each LOADS times VECTOR elements.
template <class T, int LENGTH, int BK, Layout LAYOUT, int VECTOR, int THREADS>
struct Operand {
    using Storage = typename Number<T>::Storage;
    using F = typename Number<T>::Compute;
    static_assert(LAYOUT != STRIDED || VECTOR == 1, "vectors need adjacent elements");
    static constexpr int LOADS = LENGTH * BK / (VECTOR * THREADS);
    static_assert(LOADS * VECTOR * THREADS == LENGTH * BK, "the threads share the tile evenly");

    // A step of K is PITCH elements on, and every 8 steps there are 16 elements more. PITCH is 4 modulo 8, so the
    // transposing stores of a warp, which reach over 8 or 16 steps of K, fall into different banks.
    static constexpr int PITCH = LENGTH + 4;
    static constexpr int SIZE = BK * PITCH + (BK - 1) / 8 * 16;
    static DEVICE constexpr int place(int k, int i) { return k * PITCH + k / 8 * 16 + i; }

    // Where in the tile thread t's load number `load` begins: at the sum of where its first and thread 0's begin.
    // Neighbouring threads take neighbouring addresses: along K, 8 single elements or 2 vectors and then the next row,
    // so that whole sectors of 32 bytes are read.
    static DEVICE constexpr int at_k(int load, int t) {
        const int v = t + load * THREADS;
        return LAYOUT == MN_MAJOR ? v / (LENGTH / VECTOR) : (v % ALONG_K + v / (ALONG_K * LENGTH) * ALONG_K) * VECTOR;
    }
    static DEVICE constexpr int at(int load, int t) {
        const int v = t + load * THREADS;
        return LAYOUT == MN_MAJOR ? v % (LENGTH / VECTOR) * VECTOR : v / ALONG_K % LENGTH;
    }
    static constexpr int ALONG_K = VECTOR == 1 ? 8 : 2;
    static_assert(BK % (ALONG_K * VECTOR) == 0 || LAYOUT == MN_MAJOR, "a row of the tile is loaded evenly");

    Vector<Storage, VECTOR> held[LOADS];
    const Storage* from;     // this thread's first element of the next tile
    long long stride, step;  // from one row to the next, and from one step of K to the next
    int k;                   // the step of K of this thread's first element
    unsigned to;             // and that element's place in shared memory
    int rows;                // how many rows there are from this thread's first on

    // The tile's first row and the first step of K are at p; `length` rows from there on exist. A thread whose first
    // row does not exist takes the last one instead: what it makes of it is not stored.
    DEVICE Operand(const Storage* p, int length, long long row_stride, long long k_stride, int thread) {
        const int row = min(at(0, thread), length - (LAYOUT == MN_MAJOR ? VECTOR : 1));
        k = at_k(0, thread);
        to = place(k, at(0, thread));
        rows = length - row;
        stride = LAYOUT == MN_MAJOR ? 1 : row_stride;
        step = LAYOUT == K_MAJOR ? 1 : k_stride;
        from = p + row * stride + k * step;
    }

    // Start loading the next tile, of which `left` steps of K exist; beyond, there are zeros.
    DEVICE void fetch(int left) {
#pragma unroll
        for (int load = 0; load < LOADS; load++) {
            const Storage* p = from + at(load, 0) * stride + at_k(load, 0) * step;
            if (k + at_k(load, 0) < left && (at(load, 0) == 0 || at(load, 0) < rows))
                held[load] = *reinterpret_cast<const Vector<Storage, VECTOR>*>(p);
            else
                held[load] = {};
        }
        from += BK * step;
    }

    // Store the fetched tile to shared memory.
    DEVICE void put(F* tiles) const {
#pragma unroll
        for (int load = 0; load < LOADS; load++) {
            F* p = &tiles[to] + place(at_k(load, 0), at(load, 0));
            if constexpr (LAYOUT == MN_MAJOR) {
                constexpr int WIDTH = VECTOR * sizeof(F) > 16 ? 16 / sizeof(F) : VECTOR;
#pragma unroll
                for (int j = 0; j < VECTOR; j += WIDTH) {
                    Vector<F, WIDTH> v;
#pragma unroll
                    for (int e = 0; e < WIDTH; e++) v.at[e] = Number<T>::load(held[load].at[j + e]);
                    *reinterpret_cast<Vector<F, WIDTH>*>(p + j) = v;
                }
            } else {
#pragma unroll
                for (int j = 0; j < VECTOR; j++) p[j * PITCH] = Number<T>::load(held[load].at[j]);
            }
        }
    }
};

// Where a thread works: its block's tile begins at (row, col) of C, its own part at (thread_row, thread_col) of that.
template <int BM, int BN, int WM, int WN, int GROUP>
struct Place {
    int row, col, thread;
    unsigned thread_row, thread_col;

    DEVICE Place(const Tile& tile) {
        row = tile.row * BM;
        col = tile.col * BN;
        // The threads of a warp that read the same 16 bytes of A differ in bits 0 and 2 of their number, those that
        // read the same of B in bits 1, 3 and 4: so in each half of a warp only 4 different groups of each are read.
        thread = opaque(threadIdx.x);
        const int lane = thread % 32, warp = thread / 32;
        thread_row = warp / (BN / WN) * WM + ((lane >> 1 & 1) | (lane >> 3) << 1) * GROUP;
        thread_col = warp % (BN / WN) * WN + ((lane & 1) | (lane >> 2 & 1) << 1) * GROUP;
    }
};

// The threads of a block, and how many of these a processor is to hold at once: threads get 128 registers each, those
// that compute in double 255.
DEVICE constexpr int simt_threads(int bm, int bn, int wm, int wn) { return bm / wm * (bn / wn) * 32; }
DEVICE constexpr int simt_blocks(int itemsize, int threads) { return (itemsize == 8 ? 256 : 512) / threads; }

// K_MAJOR and MN_MAJOR with VECTOR > 1 need the addresses of A and B, their strides (the batch's too), their lengths
// along the axis of adjacent elements, and split_k to be multiples of VECTOR elements.
template <class T, int BM, int BN, int BK, int WM, int WN, Layout A_LAYOUT, Layout B_LAYOUT, int VECTOR>
__global__ void __launch_bounds__(simt_threads(BM, BN, WM, WN), simt_blocks(sizeof(T), simt_threads(BM, BN, WM, WN)))
    matmul_simt(const __grid_constant__ MatmulArgs args) {
    using Storage = typename Number<T>::Storage;
    using F = typename Number<T>::Compute;
    constexpr int THREADS = simt_threads(BM, BN, WM, WN);
    constexpr int G = 16 / sizeof(F);        // a thread's elements come in groups of G, which are 16 bytes
    constexpr int TM = WM / 8, TN = WN / 4;  // a warp is 8 x 4 threads
    constexpr int GROUPS_M = TM / G, GROUPS_N = TN / G;
    static_assert(GROUPS_M * G * 8 == WM && GROUPS_N * G * 4 == WN, "a thread's part is made of whole groups");
    using A = Operand<T, BM, BK, A_LAYOUT, VECTOR, THREADS>;
    using B = Operand<T, BN, BK, B_LAYOUT, VECTOR, THREADS>;
    constexpr int PAIR = A::SIZE + B::SIZE;  // a tile of A, and behind it one of B
    __shared__ __align__(16) F tiles[2 * PAIR];

    __shared__ Tile tile;  // here, not in registers, as it is needed before and after the sums
    if (threadIdx.x == 0) tile = tile_at(blockIdx.x, (args.m - 1) / BM + 1, (args.n - 1) / BN + 1);
    __syncthreads();
    for (int z = blockIdx.y; z < args.batch; z += gridDim.y) {
        const Place<BM, BN, WM, WN, G> from(tile);
        const int split = opaque(blockIdx.z), k_first = first_k(args, split);
        const int k_count = first_k(args, split + 1) - k_first;
        const Storage* a_from = static_cast<const Storage*>(args.a) + batch_offset(args, args.a_batch, z);
        const Storage* b_from = static_cast<const Storage*>(args.b) + batch_offset(args, args.b_batch, z);
        a_from += from.row * args.a_row + k_first * args.a_col;
        b_from += from.col * args.b_col + k_first * args.b_row;
        A a(a_from, args.m - from.row, args.a_row, args.a_col, from.thread);
        B b(b_from, args.n - from.col, args.b_col, args.b_row, from.thread);

        F sums[TM * TN] = {};
        a.fetch(k_count);
        b.fetch(k_count);
        a.put(tiles);
        b.put(tiles + A::SIZE);
        __syncthreads();
        unsigned a_at = from.thread_row, b_at = A::SIZE + from.thread_col;
        int jump = PAIR;  // to the other pair of tiles
        // The last round fetches and stores zeros that nobody reads: if it did not, the compiler would move the fetch
        // behind the products, next to the store.
        for (int left = k_count; left > 0; left -= BK) {
            a.fetch(left - BK);
            b.fetch(left - BK);
            const F *a_tile = &tiles[a_at], *b_tile = &tiles[b_at];
#pragma unroll
            for (int k = 0; k < BK; k++) {
                Vector<F, G> x[GROUPS_M], y[GROUPS_N];
#pragma unroll
                for (int i = 0; i < GROUPS_M; i++)
                    x[i] = *reinterpret_cast<const Vector<F, G>*>(&a_tile[A::place(k, i * 8 * G)]);
#pragma unroll
                for (int j = 0; j < GROUPS_N; j++)
                    y[j] = *reinterpret_cast<const Vector<F, G>*>(&b_tile[B::place(k, j * 4 * G)]);
#pragma unroll
                for (int i = 0; i < TM; i++)
#pragma unroll
                    for (int j = 0; j < TN; j++) sums[i * TN + j] += x[i / G].at[i % G] * y[j / G].at[j % G];
            }
            a.to += jump;
            b.to += jump;
            a.put(tiles);  // where all threads had finished reading at the last barrier
            b.put(tiles + A::SIZE);
            a_at += jump;
            b_at += jump;
            jump = -jump;
            __syncthreads();
        }

        // Not unrolled, as the epilogue is long: the sums move up by a group instead, so that it is always the first
        // that is stored.
        const Place<BM, BN, WM, WN, G> to(tile);
        const int row = to.row + to.thread_row, col = to.col + to.thread_col;
        const Epilogue<T> epilogue(args, opaque(z), blockIdx.z);
#pragma unroll 1
        for (int group = 0; group < TM * GROUPS_N; group++) {
            F first[G];
#pragma unroll
            for (int e = 0; e < G; e++) first[e] = sums[e];
            const int i = group / GROUPS_N, j = group % GROUPS_N;
            epilogue.store(row + i / G * 8 * G + i % G, col + j * 4 * G, first);
#pragma unroll
            for (int e = 0; e + G < TM * TN; e++) sums[e] = sums[e + G];
        }
    }
}
