// Philox4x64-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011): the random bits of
// gpunet/ops/random.py. Block i of a draw is a function of the draw and of i alone, and any thread can compute it.
#pragma once
#include "array.cuh"

// What names a draw. gpunet/ops/random_kernels.py packs it.
struct Draw {
    unsigned long long seed, stream[3], offset;
    const unsigned long long* more;  // if not null, what is added to `offset` is read here: it can change between replays
};

// 256 bits: four words, each of them two numbers of 32 bits, the low half first.
struct RandomBlock {
    unsigned long long at[4];

    // The i-th of eight uniform numbers in [0, 1), multiples of 2^-24.
    DEVICE float uniform(int i) const {
        const unsigned bits = static_cast<unsigned>(i % 2 ? at[i / 2] >> 32 : at[i / 2]);
        return static_cast<float>(bits >> 8) * 0x1p-24f;
    }

    // The i-th of four uniform numbers in [0, 1), multiples of 2^-53.
    DEVICE double uniform_double(int i) const { return static_cast<double>(at[i] >> 11) * 0x1p-53; }
};

// Where a draw's blocks are counted from; read once per thread.
DEVICE unsigned long long first_block(const Draw& draw) { return draw.offset + (draw.more ? *draw.more : 0ull) + 1; }

// Block `index` of a draw whose blocks are counted from `first`.
DEVICE RandomBlock random_block(const Draw& draw, unsigned long long first, unsigned long long index) {
    unsigned long long c0 = first + index, c1 = draw.stream[0], c2 = draw.stream[1], c3 = draw.stream[2];
    if (c0 < index && ++c1 == 0 && ++c2 == 0) ++c3;  // the counter has 256 bits
    unsigned long long key0 = draw.seed, key1 = 0;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const unsigned long long high0 = __umul64hi(0xD2E7470EE14C6C93ull, c0), low0 = 0xD2E7470EE14C6C93ull * c0;
        const unsigned long long high2 = __umul64hi(0xCA5A826395121157ull, c2), low2 = 0xCA5A826395121157ull * c2;
        c0 = high2 ^ c1 ^ key0;
        c1 = low2;
        c2 = high0 ^ c3 ^ key1;
        c3 = low0;
        key0 += 0x9E3779B97F4A7C15ull;
        key1 += 0xBB67AE8584CAA73Bull;
    }
    return {{c0, c1, c2, c3}};
}
