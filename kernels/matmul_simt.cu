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
#include "matmul_simt.cuh"

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
    static_assert(TM % G == 0 && TN % G == 0, "a thread's part is made of whole groups");
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
        multiply_tiles<BK, TM, TN, G>(a, b, tiles, k_count, from.thread_row, from.thread_col, sums);

        const Place<BM, BN, WM, WN, G> to(tile);
        const Epilogue<T> epilogue(args, opaque(z), blockIdx.z);
        const int row = to.row + to.thread_row;
        store_sums<TM, TN, G>(epilogue, [row](int i) { return row + i; }, to.col + to.thread_col, sums);
    }
}
