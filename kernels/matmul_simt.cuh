// Products with ordinary multiply-adds: how operands reach shared memory and what a thread does with them. The plan is
// in matmul_simt.cu; conv_simt.cu has operands that are windows of images.
#pragma once
#include "matmul.cuh"

// Where part `split` of the sum over K begins: the end, if the parts before it are all there is.
DEVICE int first_k(const MatmulArgs& args, int split) {
    if (args.splits == 1) return split == 0 ? 0 : args.k;
    return static_cast<int>(min(static_cast<long long>(split) * args.split_k, static_cast<long long>(args.k)));
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
// Neighbouring threads have ALONG_K loads along K, and then the next row.
template <class T, int LENGTH, int BK, Layout LAYOUT, int VECTOR, int THREADS, int ALONG_K = VECTOR == 1 ? 8 : 2>
struct TilePart {
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
    static_assert(BK % (ALONG_K * VECTOR) == 0 || LAYOUT == MN_MAJOR, "a row of the tile is loaded evenly");

    Vector<Storage, VECTOR> held[LOADS];
    unsigned to;  // the place of this thread's first element in shared memory

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

// An operand that is a matrix of any strides.
template <class T, int LENGTH, int BK, Layout LAYOUT, int VECTOR, int THREADS>
struct Operand : TilePart<T, LENGTH, BK, LAYOUT, VECTOR, THREADS> {
    using Part = TilePart<T, LENGTH, BK, LAYOUT, VECTOR, THREADS>;
    using typename Part::Storage;
    using Part::LOADS, Part::at, Part::at_k, Part::held, Part::place, Part::to;

    const Storage* from;     // this thread's first element of the next tile
    long long stride, step;  // from one row to the next, and from one step of K to the next
    int k;                   // the step of K of this thread's first element
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

// sums += the products of the tiles of A and B, along k_count steps of K. `tiles` has room for two pairs of them; this
// thread's rows of A begin at a_at, its columns of B at b_at.
template <int BK, int TM, int TN, int G, class A, class B, class F>
DEVICE void multiply_tiles(A& a, B& b, F* tiles, int k_count, unsigned a_at, unsigned b_at, F (&sums)[TM * TN]) {
    constexpr int PAIR = A::SIZE + B::SIZE;  // a tile of A, and behind it one of B
    a.fetch(k_count);
    b.fetch(k_count);
    a.put(tiles);
    b.put(tiles + A::SIZE);
    __syncthreads();
    b_at += A::SIZE;
    int jump = PAIR;  // to the other pair of tiles
    // The last round fetches and stores zeros that nobody reads: if it did not, the compiler would move the fetch
    // behind the products, next to the store.
    for (int left = k_count; left > 0; left -= BK) {
        a.fetch(left - BK);
        b.fetch(left - BK);
        const F *a_tile = &tiles[a_at], *b_tile = &tiles[b_at];
#pragma unroll
        for (int k = 0; k < BK; k++) {
            Vector<F, G> x[TM / G], y[TN / G];
#pragma unroll
            for (int i = 0; i < TM / G; i++)
                x[i] = *reinterpret_cast<const Vector<F, G>*>(&a_tile[A::place(k, i * 8 * G)]);
#pragma unroll
            for (int j = 0; j < TN / G; j++)
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
}

// Finish and store a thread's sums. row_of(i) is the row of C of row i from its first on; `col` is its first column.
//
// Not unrolled, as the epilogue is long: the sums move up by a group instead, so that it is always the first that is
// stored.
template <int TM, int TN, int G, class T, class Rows, class F>
DEVICE void store_sums(const Epilogue<T>& epilogue, Rows row_of, int col, F (&sums)[TM * TN]) {
    constexpr int GROUPS_N = TN / G;
#pragma unroll 1
    for (int group = 0; group < TM * GROUPS_N; group++) {
        F first[G];
#pragma unroll
        for (int e = 0; e < G; e++) first[e] = sums[e];
        const int i = group / GROUPS_N, j = group % GROUPS_N;
        epilogue.store(row_of(i / G * 8 * G + i % G), col + j * 4 * G, first);
#pragma unroll
        for (int e = 0; e + G < TM * TN; e++) sums[e] = sums[e + G];
    }
}
