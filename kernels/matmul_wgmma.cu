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
#include "matmul.cuh"
#include "ptx/hopper.cuh"

extern __shared__ __align__(1024) unsigned char gn_shared[];

// What a block of the persistent grid works on next: a tile of product z, and its split's steps along K.
struct Work {
    int row, col, z, split;
    int k, steps;  // the first k, and how many steps
    int a_inner, a_outer, b_inner, b_outer;  // which matrix of A and of B; 0 along an axis that is broadcast
};

template <int BM, int BN, int BK>
struct WorkList {
    const MatmulArgs& args;
    int tiles_m, tiles_n;
    unsigned count;

    DEVICE explicit WorkList(const MatmulArgs& args) : args(args) {
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
};

// A place in the ring, and how often the ring was gone around, modulo two.
template <int STAGES>
struct Place {
    int slot = 0;
    unsigned parity = 0;

    DEVICE void advance() {
        if (++slot == STAGES) {
            slot = 0;
            parity ^= 1;
        }
    }
};

// Loads LENGTH rows (of M or N, from `mn` on) by BK elements of an operand.
template <Layout LAYOUT, int LENGTH>
DEVICE void load(unsigned char* to, const TensorMap& map, Barrier* full, int k, int mn, int inner, int outer) {
    if (LAYOUT == K_MAJOR) {
        tma_load(to, map, full, k, mn, inner, outer);
    } else {
#pragma unroll
        for (int i = 0; i < LENGTH; i += 64) tma_load(to + i * 128, map, full, mn + i, k, inner, outer);
    }
}

template <class T, int BM, int BN, int STAGES, Layout A_LAYOUT, Layout B_LAYOUT>
__global__ void __launch_bounds__(128 + 2 * BM, BM == 64 ? 2 : 1)
    matmul_wgmma(const __grid_constant__ MatmulArgs args, const __grid_constant__ TensorMap a_map,
                 const __grid_constant__ TensorMap b_map) {
    static_assert(BM == 128 || (BM == 64 && BN < 256), "consumers of 64 rows, with registers for their sums");
    static_assert(A_LAYOUT != STRIDED && B_LAYOUT != STRIDED, "the copy engine wants adjacent elements");
    constexpr int CONSUMERS = BM / 64, BK = 128 / sizeof(T);
    constexpr int A_BYTES = BM * 128, SLOT = A_BYTES + BN * 128;
    constexpr int STRIP = 16 * 64;  // floats of a warp's 16 rows by 64 columns in the epilogue
    constexpr bool A_MN = A_LAYOUT == MN_MAJOR, B_MN = B_LAYOUT == MN_MAJOR;

    float* const strips = reinterpret_cast<float*>(gn_shared + STAGES * SLOT);
    Barrier* const full = reinterpret_cast<Barrier*>(strips + 4 * CONSUMERS * STRIP);
    Barrier* const empty = full + STAGES;
    const int warpgroup = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;
    const WorkList<BM, BN, BK> list(args);

    if (threadIdx.x == 0) {
        prefetch(a_map);
        prefetch(b_map);
        for (int i = 0; i < STAGES; i++) {
            mbarrier_init(&full[i], 1);
            mbarrier_init(&empty[i], 4 * CONSUMERS);
        }
        fence_barriers();
    }
    __syncthreads();

    Place<STAGES> place;
    if (warpgroup == 0) {
        release_registers<40>();
        if (warp == 0 && elect()) {
            for (unsigned index = blockIdx.x; index < list.count; index += gridDim.x) {
                const Work work = list.at(index);
                for (int step = 0; step < work.steps; step++) {
                    unsigned char* const slot = gn_shared + place.slot * SLOT;
                    Barrier* const landed = &full[place.slot];
                    const int k = work.k + step * BK;
                    mbarrier_wait(&empty[place.slot], place.parity ^ 1);
                    mbarrier_arrive_expect(landed, SLOT);
                    load<A_LAYOUT, BM>(slot, a_map, landed, k, work.row, work.a_inner, work.a_outer);
                    load<B_LAYOUT, BN>(slot + A_BYTES, b_map, landed, k, work.col, work.b_inner, work.b_outer);
                    place.advance();
                }
            }
        }
    } else {
        claim_registers<CONSUMERS == 2 ? 232 : 216>();  // with the producers' 40, what the block was launched with
        const int consumer = warpgroup - 1;
        float* const strip = strips + (consumer * 4 + warp) * STRIP;
        const unsigned long long a_first = matrix_in_shared(gn_shared + consumer * 64 * 128, BK * 128);
        const unsigned long long b_first = matrix_in_shared(gn_shared + A_BYTES, BK * 128);
        float sums[BN / 2];

        for (unsigned index = blockIdx.x; index < list.count; index += gridDim.x) {
            const Work work = list.at(index);
            if (work.steps == 0) {
#pragma unroll
                for (int i = 0; i < BN / 2; i++) sums[i] = 0;
            }
            Barrier* before = nullptr;  // of the slot whose products were issued last
            for (int step = 0; step < work.steps; step++) {
                const unsigned long long a = a_first + place.slot * (SLOT >> 4), b = b_first + place.slot * (SLOT >> 4);
                mbarrier_wait(&full[place.slot], place.parity);
                wgmma_fence();
#pragma unroll
                for (int i = 0; i < 4; i++)
                    wgmma<T, BN, A_MN, B_MN>(sums, a + i * ((A_MN ? 2048 : 32) >> 4), b + i * ((B_MN ? 2048 : 32) >> 4),
                                             step + i > 0);
                wgmma_commit();
                wgmma_wait<1>();
                if (before && lane == 0) mbarrier_arrive(before);
                before = &empty[place.slot];
                place.advance();
            }
            wgmma_wait<0>();
            if (before && lane == 0) mbarrier_arrive(before);

            constexpr int WIDTH = 16 / sizeof(T);  // columns that a thread finishes at a time
            const Epilogue<T> epilogue(args, work.z, work.split);
            const int row = work.row + consumer * 64 + warp * 16;
#pragma unroll 1
            for (int part = 0; part < BN / 64; part++) {
                // Groups of eight columns change places with each other by row, so that banks do not collide.
#pragma unroll
                for (int i = 0; i < BN / 64; i++)
                    if (i == part)
#pragma unroll
                        for (int j = 0; j < 8; j++) {
                            float* const to = strip + lane / 4 * 64 + (j ^ lane / 4) * 8 + lane % 4 * 2;
                            const float* const from = sums + i * 32 + j * 4;
                            *reinterpret_cast<Vector<float, 2>*>(to) = {from[0], from[1]};
                            *reinterpret_cast<Vector<float, 2>*>(to + 8 * 64) = {from[2], from[3]};
                        }
                __syncwarp();
#pragma unroll 1
                for (int i = lane * WIDTH; i < STRIP; i += 32 * WIDTH) {
                    const int r = i / 64, c = i % 64;
                    float values[WIDTH];
#pragma unroll
                    for (int j = 0; j < WIDTH; j += 4) {
                        const auto v = *reinterpret_cast<const Vector<float, 4>*>(
                            strip + r * 64 + (c / 8 ^ r % 8) * 8 + c % 8 + j);
#pragma unroll
                        for (int l = 0; l < 4; l++) values[j + l] = v.at[l];
                    }
                    epilogue.store(row + r, work.col + part * 64 + c, values);
                }
                __syncwarp();
            }
        }
    }
}
