// Philox4x64-10 (Salmon, Moraes, Dror and Shaw, 2011): random bits whose blocks of 256 depend on nothing but their
// number. A block is eight numbers of 24 bits, the low half of each word first, as gpunet/ops/random.py lays down.
#pragma once
#include "array.h"

#if defined(__AVX512DQ__)
#include <immintrin.h>
#endif

namespace {

constexpr uint64_t FIRST_FACTOR = 0xD2E7470EE14C6C93, SECOND_FACTOR = 0xCA5A826395121157;
constexpr uint64_t FIRST_STEP = 0x9E3779B97F4A7C15, SECOND_STEP = 0xBB67AE8584CAA73B;

struct Counter {
    uint64_t word[4];

    void add(uint64_t n) {
        uint64_t before = word[0];
        word[0] += n;
        if (word[0] < before)
            for (int i = 1; i < 4 && ++word[i] == 0; i++) {}
    }
};

// The halves of a product.
inline void multiply_wide(uint64_t x, uint64_t factor, uint64_t& high, uint64_t& low) {
    auto product = (unsigned __int128)factor * x;
    high = uint64_t(product >> 64);
    low = uint64_t(product);
}

#if defined(__AVX512DQ__)
constexpr int LANES = 8;
typedef uint64_t Words __attribute__((vector_size(8 * LANES)));

inline Words multiply_halves(Words a, Words b) { return Words(_mm512_mul_epu32(__m512i(a), __m512i(b))); }

inline void multiply_wide(Words x, uint64_t factor, Words& high, Words& low) {
    Words lower = Words{} + (factor & 0xffffffff), upper = Words{} + (factor >> 32), x_upper = x >> 32;
    Words mixed = multiply_halves(x, upper), other = multiply_halves(x_upper, lower);
    Words carries = (multiply_halves(x, lower) >> 32) + (mixed & 0xffffffff) + (other & 0xffffffff);
    high = multiply_halves(x_upper, upper) + (mixed >> 32) + (other >> 32) + (carries >> 32);
    low = Words(_mm512_mullo_epi64(__m512i(x), __m512i(Words{} + factor)));
}
#endif

// The bits (words, N) of N counters (words, N), or of N vectors of them.
template <int N, class Word> inline void philox(Word (&c)[4][N], uint64_t seed) {
    uint64_t keys[2] = {seed, 0};
    for (int round = 0; round < 10; round++) {
#pragma GCC unroll 4
        for (int n = 0; n < N; n++) {
            Word first_high, first_low, second_high, second_low;
            multiply_wide(c[0][n], FIRST_FACTOR, first_high, first_low);
            multiply_wide(c[2][n], SECOND_FACTOR, second_high, second_low);
            c[0][n] = second_high ^ c[1][n] ^ keys[0];
            c[1][n] = second_low;
            c[2][n] = first_high ^ c[3][n] ^ keys[1];
            c[3][n] = first_low;
        }
        keys[0] += FIRST_STEP;
        keys[1] += SECOND_STEP;
    }
}

// A draw, as a key names it.
struct Draw {
    uint64_t seed;
    Counter first;  // of the block before the first

    Draw(long seed, long stream0, long stream1, long stream2, long offset)
        : seed(seed), first{{uint64_t(offset), uint64_t(stream0), uint64_t(stream1), uint64_t(stream2)}} {}

    // The numbers of `count` blocks, eight each, as the upper 24 of 32 bits; number(i) says which block the i-th is.
    template <class Number> void numbers(long count, Number number, uint32_t* out) const {
        long done = 0;
#if defined(__AVX512DQ__)
        for (; done + 4 * LANES <= count; done += 4 * LANES) vectors<4>(done, number, out);
        for (; done + LANES <= count; done += LANES) vectors<1>(done, number, out);
#endif
        for (; done < count; done++) {
            Counter counter = counter_of(number(done));
            uint64_t bits[4][1] = {{counter.word[0]}, {counter.word[1]}, {counter.word[2]}, {counter.word[3]}};
            philox<1>(bits, seed);
            memcpy(out + 8 * done, bits, sizeof bits);  // a little-endian machine has low halves first
        }
    }

  private:
    Counter counter_of(uint64_t block) const {
        Counter counter = first;
        counter.add(1 + block);
        return counter;
    }

#if defined(__AVX512DQ__)
    template <int N, class Number> void vectors(long done, Number number, uint32_t* out) const {
        uint64_t words[4][N * LANES];
        for (int i = 0; i < N * LANES; i++) {
            Counter counter = counter_of(number(done + i));
            for (int w = 0; w < 4; w++) words[w][i] = counter.word[w];
        }
        Words bits[4][N];
        memcpy(bits, words, sizeof bits);
        philox<N>(bits, seed);
        memcpy(words, bits, sizeof bits);
        for (int i = 0; i < N * LANES; i++) {
            uint64_t block[4] = {words[0][i], words[1][i], words[2][i], words[3][i]};
            memcpy(out + 8 * (done + i), block, sizeof block);
        }
    }
#endif
};

// A number is at least this, shifted as they are, if it stands for a uniform one in [0, 1) that is at least p.
inline uint32_t threshold(float p) { return ceil(double(p) * (1 << 24)); }  // they are multiples of 2^-24

}  // namespace
