// What is left to do of a linear map when BLAS has multiplied: the bias, and a ReLU if one follows.
#include "flat.h"

// y += bias in every row, through a ReLU if `relu`, for the rows from `start` to `stop`; bias may be None. 1 if it was
// done, 0 if y is no matrix without gaps, or the bias does not fit it. The caller has checked that y is float32.
KERNEL long finish_rows(const Array* y, const Array* bias, long relu, long start, long stop) {
    if (y->ndim != 2) return 0;
    long rows = y->shape[0], columns = y->shape[1];
    bool whole = (columns < 2 || y->strides[1] == 4) && (rows < 2 || y->strides[0] == 4 * columns);
    if (rows && columns && !whole) return 0;
    if (bias != gn_none) {
        if (bias->ndim != 1 || bias->shape[0] != columns || bias->dtype != y->dtype) return 0;
        if (columns > 1 && bias->strides[0] != 4) return 0;
    }
    const float* shift = optional(bias);
    for (long row = start; row < stop; row++) {
        float* to = y->floats() + row * columns;
        by_vectors(0, columns, [&](long at, long lanes) {
            Vector v = load_some(to + at, lanes);
            if (shift) v += load_some(shift + at, lanes);
            store_some(to + at, relu ? select(v <= 0, Vector{}, v) : v, lanes);
        });
    }
    return 1;
}

// The same for all rows: small arrays notice how many arguments there are.
KERNEL long finish(const Array* y, const Array* bias, long relu) {
    return finish_rows(y, bias, relu, 0, y->ndim ? y->shape[0] : 0);
}
