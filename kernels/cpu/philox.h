// Philox4x64-10 (Salmon, Moraes, Dror and Shaw, 2011): random bits whose blocks of 256 depend on nothing but their
// number. A block is eight numbers of 24 bits, the low half of each word first, as gpunet/ops/random.py lays down.
#pragma once
#include "array.h"

namespace {

struct Counter {
    uint64_t word[4];

    void add(uint64_t n) {
        uint64_t before = word[0];
        word[0] += n;
        if (word[0] < before)
            for (int i = 1; i < 4 && ++word[i] == 0; i++) {}
    }
};

void philox(Counter counter, uint64_t key, uint64_t* out) {
    uint64_t *c = counter.word, keys[2] = {key, 0};
    for (int round = 0; round < 10; round++) {
        auto first = (unsigned __int128)0xD2E7470EE14C6C93 * c[0];
        auto second = (unsigned __int128)0xCA5A826395121157 * c[2];
        c[0] = uint64_t(second >> 64) ^ c[1] ^ keys[0];
        c[1] = uint64_t(second);
        c[2] = uint64_t(first >> 64) ^ c[3] ^ keys[1];
        c[3] = uint64_t(first);
        keys[0] += 0x9E3779B97F4A7C15;
        keys[1] += 0xBB67AE8584CAA73B;
    }
    for (int i = 0; i < 4; i++) out[i] = c[i];
}

// A draw, as a key names it.
struct Draw {
    uint64_t seed;
    Counter first;  // of the block before the first

    Draw(long seed, long stream0, long stream1, long stream2, long offset)
        : seed(seed), first{{uint64_t(offset), uint64_t(stream0), uint64_t(stream1), uint64_t(stream2)}} {}

    // The numbers of `count` blocks from number `block` on, eight each, as the upper 24 of 32 bits.
    void numbers(uint64_t block, long count, uint32_t* out) const {
        Counter counter = first;
        counter.add(1 + block);
        for (long i = 0; i < count; i++) {
            uint64_t bits[4];
            philox(counter, seed, bits);
            memcpy(out + 8 * i, bits, sizeof bits);  // a little-endian machine has low halves first
            counter.add(1);
        }
    }
};

// A number is at least this, shifted as they are, if it stands for a uniform one in [0, 1) that is at least p.
inline uint32_t threshold(float p) { return ceil(double(p) * (1 << 24)); }  // they are multiples of 2^-24

}  // namespace
