// Products on Hopper's tensor cores: the ring that the copy engine fills, and what consumers make of it. The plan is in
// matmul_wgmma.cu; conv_wgmma.cu has operands that are windows of images.
#pragma once
#include "matmul.cuh"
#include "ptx/hopper.cuh"

extern __shared__ __align__(1024) unsigned char gn_shared[];

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

// Computes a list of tiles, each block every gridDim.x-th of them. The list says
//
//     count                              how many there are
//     at(index)                          one of them: its first column `col`, its product `z`, its part `split` of the
//                                        sum, and how many `steps` along K that has
//     prefetch_maps()                    of what it loads from
//     load(slot, barrier, work, step)    has the operands of a step land in a slot: BM rows of A, and behind them BN of
//     bytes()                            B; they are so many bytes
//     row(work, r)                       which row of C the tile's row r is; one beyond the last if it is none
template <class T, int BM, int BN, int STAGES, bool A_MN, bool B_MN, class List>
DEVICE void multiply_persistently(const MatmulArgs& args, const List& list) {
    static_assert(BM == 128 || (BM == 64 && BN < 256), "consumers of 64 rows, with registers for their sums");
    constexpr int CONSUMERS = BM / 64, BK = 128 / sizeof(T);
    constexpr int A_BYTES = BM * 128, SLOT = A_BYTES + BN * 128;
    constexpr int STRIP = 16 * 64;  // floats of a warp's 16 rows by 64 columns in the epilogue

    float* const strips = reinterpret_cast<float*>(gn_shared + STAGES * SLOT);
    Barrier* const full = reinterpret_cast<Barrier*>(strips + 4 * CONSUMERS * STRIP);
    Barrier* const empty = full + STAGES;
    const int warpgroup = threadIdx.x / 128, warp = threadIdx.x / 32 % 4, lane = threadIdx.x % 32;

    if (threadIdx.x == 0) {
        list.prefetch_maps();
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
                const auto work = list.at(index);
                for (int step = 0; step < work.steps; step++) {
                    unsigned char* const slot = gn_shared + place.slot * SLOT;
                    Barrier* const landed = &full[place.slot];
                    mbarrier_wait(&empty[place.slot], place.parity ^ 1);
                    mbarrier_arrive_expect(landed, list.bytes());
                    list.load(slot, landed, work, step);
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
            const auto work = list.at(index);
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
            const int row = consumer * 64 + warp * 16;
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
                    epilogue.store(list.row(work, row + r), work.col + part * 64 + c, values);
                }
                __syncwarp();
            }
        }
    }
}
