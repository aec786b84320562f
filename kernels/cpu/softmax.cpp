// Softmax, its logarithm, and their gradients, along rows of `columns` elements side by side: the cache holds a row
// while it is gone through.
#include "rows.h"

KERNEL void softmax(const Array* x, const Array* y, long columns, long start, long stop) {
    for (long row = start; row < stop; row++) {
        const float* from = x->floats() + row * columns;
        float* to = y->floats() + row * columns;
        float sum = exponentials(from, columns, largest_of_row(from, columns), to);
        by_vectors(0, columns, [&](long at, long lanes) { store_some(to + at, load_some(to + at, lanes) / sum, lanes); });
    }
}

KERNEL void softmax_grad(const Array* g, const Array* y, const Array* dx, long columns, long start, long stop) {
    for (long row = start; row < stop; row++) {
        const float *slopes = g->floats() + row * columns, *values = y->floats() + row * columns;
        float* to = dx->floats() + row * columns;
        float sums[1];
        sum_over<1>(columns, sums, [&](long at, long lanes, Vector* out) {
            out[0] = load_some(slopes + at, lanes) * load_some(values + at, lanes);
        });
        by_vectors(0, columns, [&](long at, long lanes) {
            store_some(to + at, load_some(values + at, lanes) * (load_some(slopes + at, lanes) - sums[0]), lanes);
        });
    }
}

KERNEL void log_softmax(const Array* x, const Array* y, long columns, long start, long stop) {
    for (long row = start; row < stop; row++) {
        const float* from = x->floats() + row * columns;
        float* to = y->floats() + row * columns;
        float most = largest_of_row(from, columns), log_sum = logf(exponentials(from, columns, most, nullptr));
        by_vectors(0, columns, [&](long at, long lanes) {
            store_some(to + at, load_some(from + at, lanes) - most - log_sum, lanes);
        });
    }
}

KERNEL void log_softmax_grad(const Array* g, const Array* y, const Array* dx, long columns, long start, long stop) {
    for (long row = start; row < stop; row++) {
        const float *slopes = g->floats() + row * columns, *values = y->floats() + row * columns;
        float* to = dx->floats() + row * columns;
        float sums[1];
        sum_over<1>(columns, sums, [&](long at, long lanes, Vector* out) { out[0] = load_some(slopes + at, lanes); });
        by_vectors(0, columns, [&](long at, long lanes) {
            store_some(to + at, load_some(slopes + at, lanes) - exp(load_some(values + at, lanes)) * sums[0], lanes);
        });
    }
}
