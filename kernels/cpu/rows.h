// Exponentials of a row, shifted so that none overflows. A NaN makes the sum NaN, and so whatever is divided by it.
#pragma once
#include "flat.h"
#include "math.h"

namespace {

inline float largest_of_row(const float* x, long count) {
    float most = x[0];
    if (count < WIDTH) {
        for (long i = 1; i < count; i++) most = x[i] > most ? x[i] : most;
        return most;
    }
    Vector found = load(x + count - WIDTH);  // overlaps the one before, which does no harm to a maximum
    for (long at = 0; at + WIDTH <= count; at += WIDTH) found = larger(load(x + at), found);
    float lanes[WIDTH];
    store(lanes, found);
    for (float lane : lanes) most = lane > most ? lane : most;
    return most;
}

// out = exp(x - shift), and the sum of it. `out` may be x, or nullptr if only the sum is wanted.
inline float exponentials(const float* x, long count, float shift, float* out) {
    float sums[1];
    sum_over<1>(count, sums, [&](long at, long lanes, Vector* terms) {
        terms[0] = exp(load_some(x + at, lanes) - shift);
        if (out) store_some(out + at, terms[0], lanes);
    });
    return sums[0];
}

}  // namespace
