// Matrix products on Hopper's tensor cores (compute capability 9.0): wgmma on what the copy engine (TMA) brings.
//
//   warpgroup 0         One of its threads is the producer: it has the copy engine load tiles of A and B, step by step
//                       along K, as far ahead as there are free slots. The warpgroup gives its registers away.
//   warpgroup 1 (, 2)   The consumers: each multiplies 64 of the tile's BM rows by all of its BN columns, with the sums
//                       in registers, and finishes them.
//
// The slots are a ring in shared memory. Each has two barriers: a phase of `full` completes when the slot's bytes have
// landed, one of `empty` when every warp of the consumers is done with them. A step is 128 bytes along K, BK elements.
//
//           slot 0       slot 1       slot 2       slot 3
//        +------------+------------+------------+------------+
//        |   A    B   |   A    B   |   A    B   |   A    B   |      producer: wait empty, expect bytes, load A, load B
//        +------------+------------+------------+------------+      consumer: wait full, issue four wgmma, wait for the
//         multiplied,  multiplied   landed       landing                      step before, arrive at its slot's empty
//         soon empty
//
// So a consumer always has one step's products under way while it issues the next, and no warp waits for all of the
// block. A block stays on its processor and computes one tile after the other (persistent). The ring runs on from tile
// to tile: while the consumers finish one, the next one's first steps land.
//
// A K_MAJOR operand's part of a slot is a row of 128 bytes along K for each of the BM or BN rows; that of an MN_MAJOR
// one is blocks of 64 elements along M or N by BK rows. Both have the copy engine's 128-byte swizzle, which wgmma's
// matrix descriptors name; see ptx/hopper.cuh, also for which thread holds which sums. What lies outside of the
// matrices arrives as zeros.
//
// The epilogue goes through shared memory, 64 columns at a time: each warp puts down its 16 rows of sums and takes them
// up again as pieces of rows, so that C, residual and aux are accessed in whole lines of 128 bytes.
//
// TF32: the copy engine rounds numbers to nearest as it copies them, by the type that the tensor map gives them. wgmma
// alone would truncate: it reads the upper 19 bits only.
//
// Left for later: a cluster of two blocks with neighbouring tiles can load the operand that they share once, by
// .multicast::cluster in `load`; `empty` then counts the consumers of both.
#include "matmul_wgmma.cuh"

// What a block of the persistent grid works on next: a tile of product z, and its split's steps along K.
struct Work {
    int row, col, z, split;
    int k, steps;  // the first k, and how many steps
    int a_inner, a_outer, b_inner, b_outer;  // which matrix of A and of B; 0 along an axis that is broadcast
};

// Loads LENGTH rows (of M or N, from `mn` on) by BK elements of an operand.
template <Layout LAYOUT, int LENGTH>
DEVICE void load_part(unsigned char* to, const TensorMap& map, Barrier* full, int k, int mn, int inner, int outer) {
    if (LAYOUT == K_MAJOR) {
        tma_load(to, map, full, k, mn, inner, outer);
    } else {
#pragma unroll
        for (int i = 0; i < LENGTH; i += 64) tma_load(to + i * 128, map, full, mn + i, k, inner, outer);
    }
}

template <class T, int BM, int BN, Layout A_LAYOUT, Layout B_LAYOUT>
struct WorkList {
    static constexpr int BK = 128 / sizeof(T), A_BYTES = BM * 128;

    const MatmulArgs& args;
    const TensorMap &a_map, &b_map;
    int tiles_m, tiles_n;
    unsigned count;

    DEVICE WorkList(const MatmulArgs& args, const TensorMap& a_map, const TensorMap& b_map)
        : args(args), a_map(a_map), b_map(b_map) {
        tiles_m = (args.m + BM - 1) / BM;
        tiles_n = (args.n + BN - 1) / BN;
        count = static_cast<unsigned>(tiles_m) * tiles_n * args.batch * args.splits;
    }

    DEVICE Work at(unsigned index) const {
        Work work;
        const unsigned tiles = static_cast<unsigned>(tiles_m) * tiles_n, product = index / tiles;
        const Tile tile = tile_at(index - product * tiles, tiles_m, tiles_n);
        work.row = tile.row * BM;
        work.col = tile.col * BN;
        work.z = product / args.splits;
        work.split = product - work.z * args.splits;
        work.k = args.splits > 1 ? work.split * args.split_k : 0;  // split_k is a multiple of BK
        const int length = args.splits > 1 ? min(args.k - work.k, args.split_k) : args.k;
        work.steps = length > 0 ? (length + BK - 1) / BK : 0;
        const int outer = work.z / args.batch_inner, inner = work.z - outer * args.batch_inner;
        work.a_outer = args.a_batch[0] ? outer : 0;
        work.a_inner = args.a_batch[1] ? inner : 0;
        work.b_outer = args.b_batch[0] ? outer : 0;
        work.b_inner = args.b_batch[1] ? inner : 0;
        return work;
    }

    DEVICE void prefetch_maps() const {
        prefetch(a_map);
        prefetch(b_map);
    }

    DEVICE int bytes() const { return A_BYTES + BN * 128; }

    DEVICE void load(unsigned char* slot, Barrier* landed, const Work& work, int step) const {
        const int k = work.k + step * BK;
        load_part<A_LAYOUT, BM>(slot, a_map, landed, k, work.row, work.a_inner, work.a_outer);
        load_part<B_LAYOUT, BN>(slot + A_BYTES, b_map, landed, k, work.col, work.b_inner, work.b_outer);
    }

    DEVICE int row(const Work& work, int r) const { return work.row + r; }
};

template <class T, int BM, int BN, int STAGES, Layout A_LAYOUT, Layout B_LAYOUT>
__global__ void __launch_bounds__(128 + 2 * BM, BM == 64 ? 2 : 1)
    matmul_wgmma(const __grid_constant__ MatmulArgs args, const __grid_constant__ TensorMap a_map,
                 const __grid_constant__ TensorMap b_map) {
    static_assert(A_LAYOUT != STRIDED && B_LAYOUT != STRIDED, "the copy engine wants adjacent elements");
    const WorkList<T, BM, BN, A_LAYOUT, B_LAYOUT> list(args, a_map, b_map);
    multiply_persistently<T, BM, BN, STAGES, A_LAYOUT == MN_MAJOR, B_LAYOUT == MN_MAJOR>(args, list);
}
