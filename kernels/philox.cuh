// Philox4x64-10 (Salmon, Moraes, Dror and Shaw, 2011): random bits whose blocks of 256 depend on nothing but their
// number. A block is eight numbers of 24 bits, the upper ones of each 32, the low half of each word first, as
// gpunet/ops/random.py lays down and kernels/cpu/philox.h computes.
#pragma once
#include "numeric.cuh"

// A draw, as a key names it.
struct Draw {
    unsigned long long seed, stream[3], offset;
};

// The bits of block `number` of a draw.
DEVICE void philox(const Draw& draw, unsigned long long number, unsigned long long (&bits)[4]) {
    constexpr unsigned long long FIRST_FACTOR = 0xD2E7470EE14C6C93ull, SECOND_FACTOR = 0xCA5A826395121157ull;
    constexpr unsigned long long FIRST_STEP = 0x9E3779B97F4A7C15ull, SECOND_STEP = 0xBB67AE8584CAA73Bull;
    unsigned long long c[4] = {draw.offset, draw.stream[0], draw.stream[1], draw.stream[2]};
    bool carry = false;  // from a word to the next, of the sum of the counter and number + 1
    c[0] += number + 1;
    carry = c[0] < number + 1;
#pragma unroll
    for (int i = 1; i < 4; i++) {
        c[i] += carry;
        carry = carry && c[i] == 0;
    }
    unsigned long long first_key = draw.seed, second_key = 0;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const unsigned long long first_high = __umul64hi(c[0], FIRST_FACTOR), first_low = c[0] * FIRST_FACTOR;
        const unsigned long long second_high = __umul64hi(c[2], SECOND_FACTOR), second_low = c[2] * SECOND_FACTOR;
        c[0] = second_high ^ c[1] ^ first_key;
        c[1] = second_low;
        c[2] = first_high ^ c[3] ^ second_key;
        c[3] = first_low;
        first_key += FIRST_STEP;
        second_key += SECOND_STEP;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) bits[i] = c[i];
}

// A bit for each of the eight numbers of a block: whether it is at least `threshold`, in units of 2^-24.
DEVICE unsigned philox_kept(const Draw& draw, unsigned long long number, unsigned threshold) {
    unsigned long long bits[4];
    philox(draw, number, bits);
    unsigned kept = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const unsigned half = static_cast<unsigned>(bits[i / 2] >> 32 * (i % 2));
        kept |= static_cast<unsigned>(half >> 8 >= threshold) << i;
    }
    return kept;
}

// The block that a draw begins with; `more`, if not null, is a number in memory that counts blocks before it, so that
// what a graph replays can draw anew.
DEVICE unsigned long long first_block(const unsigned long long* more) { return more ? *more : 0ull; }

// The 256 bits of a block as numbers.
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

DEVICE RandomBlock random_block(const Draw& draw, unsigned long long number) {
    RandomBlock block;
    philox(draw, number, block.at);
    return block;
}
