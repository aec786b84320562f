// Dropout: random bits, comparison and product in one pass. What was kept stays known, a bit for each element, so that
// the gradient takes no drawing.
#include "flat.h"
#include "philox.h"

namespace {

constexpr long AT_ONCE = 64;  // blocks whose numbers are kept until they are used

// to[i] = from[i] * (bit i of `kept`) * scale, for `count` elements.
void thin_out(const float* from, const uint8_t* kept, float* to, long count, float scale) {
    long at = 0;
#if defined(__AVX512F__)
    for (; at + WIDTH <= count; at += WIDTH) {
        uint16_t bits;
        memcpy(&bits, kept + at / 8, sizeof bits);
        store(to + at, load(from + at) * Vector(_mm512_maskz_mov_ps(bits, _mm512_set1_ps(1))) * scale);
    }
#endif
    for (; at < count; at++) to[at] = from[at] * float(kept[at / 8] >> (at % 8) & 1) * scale;
}

}  // namespace

// y = x * (u >= p) * scale, for uniform u; the blocks from `start` to `stop`, of eight elements each. Bit i of kept[b]
// tells whether the i-th element of block b was kept.
KERNEL void dropout(const Array* x, const Array* y, const Array* kept, long size, long seed, long stream0, long stream1, long stream2, long offset, float p, float scale, long start, long stop) {
    uint32_t numbers[8 * AT_ONCE], least = threshold(p);
    uint8_t* bits = kept->data<uint8_t>();
    Draw draw(seed, stream0, stream1, stream2, offset);
    for (long block = start; block < stop; block += AT_ONCE) {
        long count = stop - block < AT_ONCE ? stop - block : AT_ONCE;
        draw.numbers(count, [&](long i) { return block + i; }, numbers);
        for (long b = 0; b < count; b++) {
            uint8_t byte = 0;
            for (int i = 0; i < 8; i++) byte |= uint8_t((numbers[8 * b + i] >> 8) >= least) << i;
            bits[block + b] = byte;
        }
        long elements = size - 8 * block < 8 * count ? size - 8 * block : 8 * count;
        thin_out(x->floats() + 8 * block, bits + block, y->floats() + 8 * block, elements, scale);
    }
}

// dx = g * (what was kept) * scale, likewise.
KERNEL void dropout_again(const Array* g, const Array* kept, const Array* dx, long size, float scale, long start, long stop) {
    long elements = size - 8 * start < 8 * (stop - start) ? size - 8 * start : 8 * (stop - start);
    thin_out(g->floats() + 8 * start, kept->data<uint8_t>() + start, dx->floats() + 8 * start, elements, scale);
}
