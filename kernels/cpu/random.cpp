// Dropout: random bits, comparison and product in one pass.
//
// The bits are Philox4x64-10 (Salmon, Moraes, Dror and Shaw, 2011), whose blocks of 256 bits depend on nothing but their
// number. A block is eight numbers of 24 bits, the low half of each word first, as gpunet/ops/random.py lays down.
#include "array.h"

namespace {

constexpr long AT_ONCE = 64;  // blocks whose bits are kept until they are used

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

}  // namespace

// y = x * (u >= p) * scale, for uniform u; the blocks from `start` to `stop`, of eight elements each.
KERNEL void dropout(const Array* x, const Array* y, long size, long seed, long stream0, long stream1, long stream2, long offset, float p, float scale, long start, long stop) {
    uint64_t bits[4 * AT_ONCE];
    uint32_t numbers[8 * AT_ONCE];
    uint32_t least = ceil(double(p) * (1 << 24));  // u is a multiple of 2^-24
    Counter counter{{uint64_t(offset), uint64_t(stream0), uint64_t(stream1), uint64_t(stream2)}};
    counter.add(1 + start);
    for (long block = start; block < stop; block += AT_ONCE) {
        long count = stop - block < AT_ONCE ? stop - block : AT_ONCE;
        for (long i = 0; i < count; i++) {
            philox(counter, seed, bits + 4 * i);
            counter.add(1);
        }
        memcpy(numbers, bits, count * 4 * sizeof(uint64_t));  // a little-endian machine has low halves first
        const float* from = x->floats() + 8 * block;
        float* to = y->floats() + 8 * block;
        long elements = size - 8 * block < 8 * count ? size - 8 * block : 8 * count;
        for (long i = 0; i < elements; i++) to[i] = from[i] * ((numbers[i] >> 8) >= least ? 1.0f : 0.0f) * scale;
    }
}
