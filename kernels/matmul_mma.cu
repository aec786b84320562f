// Matrix products on tensor cores through mma.sync: half from sm_75 on, bfloat16 and TF32 from sm_80 on. On sm_90 it is
// what matmul_wgmma.cu cannot take, and on sm_100 and sm_120 the fastest there is here.
//
//              N                   A block computes BM x BN of C, and each of its warps WM x WN of that, in pieces of
//         +---------+---------+    16 x 8 whose sums are held in registers.
//         | BN      |         |
//       +-+----+----+         |    It goes along K in steps of BK. The parts of A and B that a step needs are one
//       | |WN  |    |         |    stage of a ring in shared memory. While the warps multiply one stage, STAGES - 1
//     M | +----+----+ BM      |    later ones are on their way, copied by cp.async:
//       | |    |    |         |
//       +-+----+----+         |      stage      0      1      2      0   ...
//         |         |         |      copy     k=0    k=1    k=2    k=3            (3 stages)
//         +---------+---------+      multiply                k=0    k=1   ...
//
// Within a step, the registers for the next mma along K are loaded while this one's are multiplied; those for the first
// of the next step too, so one barrier a step suffices: behind it, the next stage has arrived and the last is free.
//
// Shared memory. An operand's part of a stage has lines of adjacent elements as global memory has them: of BK elements
// where they are adjacent along K, else of BM (or BN). ldmatrix and 16-byte accesses serve 8 addresses at a time, which
// must differ in address modulo 128 bytes in units of 16. Lines of 128 bytes or more would have the 8 units of a column
// of the tile at the same place, so line i keeps its unit u at place u ^ (i mod 8). Lines of 64 bytes have two to 128
// bytes: u ^ (i / 2 mod 4). mma wants pairs of 16-bit elements adjacent along K; where lines go along M or N, ldmatrix
// transposes. It cannot for TF32: there a thread loads 4 elements of a line, which are its row (or column) of 4 pieces.
// A piece so has every fourth row of 32, which is undone when C is written. Those 8 addresses are in two units of four
// lines, so line i keeps u at u ^ 2 (i mod 4).
//
// Edges. Elements outside of the matrices are copied as zeros: cp.async takes the number of bytes that exist. So K
// needs no other care, and sums of rows and columns outside of C are not stored. Copies move BYTES at a time: 16, or
// less where an address or a stride is not a multiple of that. 2 bytes, and all copies on sm_75, go through registers:
// loaded before the multiplications of a step and stored after them.
//
// C. Each warp passes 16 of its rows at a time through shared memory (the ring's, now free), so that threads hold 16
// bytes of a row and write whole sectors.
#include "matmul_mma.cuh"

// BYTES is the size of copies from global memory. The addresses of A and B, their strides along and across batches and
// that of the axis whose elements are not adjacent are multiples of it (in bytes); split_k is one of BK.
template <class T, int BM, int BN, int BK, int WM, int WN, int STAGES, Layout A_LAYOUT, Layout B_LAYOUT, int BYTES>
__global__ void
__launch_bounds__(BM / WM * (BN / WN) * 32, resident_threads(WM * WN / 32, BYTES) / (BM / WM * (BN / WN) * 32))
matmul_mma(const __grid_constant__ MatmulArgs args) {
    using Storage = typename Number<T>::Storage;
    constexpr int WARPS_N = BN / WN, WARPS = BM / WM * WARPS_N, THREADS = WARPS * 32;
    using CopyA = Copier<T, A_LAYOUT, BM, BK, BYTES, THREADS>;
    using CopyB = Copier<T, B_LAYOUT, BN, BK, BYTES, THREADS>;
    using FragmentsA = Fragments<T, A_LAYOUT, BM, BK, WM, true>;
    using FragmentsB = Fragments<T, B_LAYOUT, BN, BK, WN, false>;
    static_assert(WARPS * Slab<T, WN, FragmentsB::BY_FOURS>::FLOATS * sizeof(float) <=
                      STAGES * (CopyA::Part::BYTES + CopyB::Part::BYTES),
                  "the slabs do not fit into the ring");

    const Tile tile = tile_at(blockIdx.x, (args.m - 1) / BM + 1, (args.n - 1) / BN + 1);
    const int row = tile.row * BM, col = tile.col * BN;
    const int rows_left = args.m - row, cols_left = args.n - col;
    const long long k_begin = static_cast<long long>(blockIdx.z) * args.split_k;
    const int k_count = static_cast<int>(max(min(args.k - k_begin, static_cast<long long>(args.split_k)), 0ll));

    for (int z = blockIdx.y; z < args.batch; z += gridDim.y) {
        const Storage* first_a = static_cast<const Storage*>(args.a) + batch_offset(args, args.a_batch, z);
        const Storage* first_b = static_cast<const Storage*>(args.b) + batch_offset(args, args.b_batch, z);
        const int thread = again<int>(threadIdx.x), warp = thread / 32;
        CopyA copy_a(thread, first_a + row * args.a_row + k_begin * args.a_col, args.a_row, args.a_col, rows_left);
        CopyB copy_b(thread, first_b + col * args.b_col + k_begin * args.b_row, args.b_col, args.b_row, cols_left);
        const FragmentsA fragments_a(thread % 32, warp / WARPS_N * WM);
        const FragmentsB fragments_b(thread % 32, warp % WARPS_N * WN);
        float sums[WM / 16][WN / 8][4] = {};
        multiply_stages<T, BK, STAGES>(copy_a, copy_b, fragments_a, fragments_b, k_count, sums);

        const Epilogue<T> epilogue(args, z, blockIdx.z);
        const int same = again(thread), same_warp = same / 32;
        const int warp_row = row + same_warp / WARPS_N * WM;
        store_sums<FragmentsA, FragmentsB>(
            epilogue, same, [warp_row](int i) { return warp_row + i; }, col + same_warp % WARPS_N * WN, sums);
        __syncthreads();  // before the next product fills the ring
    }
}
