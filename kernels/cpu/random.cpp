// Dropout: random bits, comparison and product in one pass.
#include "philox.h"

namespace {

constexpr long AT_ONCE = 64;  // blocks whose bits are kept until they are used

}  // namespace

// y = x * (u >= p) * scale, for uniform u; the blocks from `start` to `stop`, of eight elements each.
KERNEL void dropout(const Array* x, const Array* y, long size, long seed, long stream0, long stream1, long stream2, long offset, float p, float scale, long start, long stop) {
    uint32_t numbers[8 * AT_ONCE], least = threshold(p);
    Draw draw(seed, stream0, stream1, stream2, offset);
    for (long block = start; block < stop; block += AT_ONCE) {
        long count = stop - block < AT_ONCE ? stop - block : AT_ONCE;
        draw.numbers(count, [&](long i) { return block + i; }, numbers);
        const float* from = x->floats() + 8 * block;
        float* to = y->floats() + 8 * block;
        long elements = size - 8 * block < 8 * count ? size - 8 * block : 8 * count;
        for (long i = 0; i < elements; i++) to[i] = from[i] * ((numbers[i] >> 8) >= least ? 1.0f : 0.0f) * scale;
    }
}
