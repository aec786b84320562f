// Products of matrices, and what is left to do of a linear map when BLAS has multiplied: the bias, and a ReLU if one
// follows.
#include "conv.h"
#include "flat.h"

namespace {

// BLAS's sgemm, in the library that NumPy brings, by its C interface. It has 64-bit integers or 32-bit ones.
template <class Int>
using Sgemm = void (*)(int order, int turn_a, int turn_b, Int m, Int n, Int k, float alpha, const float* a, Int a_row,
                       const float* b, Int b_row, float beta, float* y, Int y_row);
constexpr int ROW_MAJOR = 101, AS_IT_IS = 111, TURNED = 112;
long sgemm;
bool wide;

struct Matrix {
    const float* start;
    long row, column;  // strides, in elements; one of them is 1

    explicit Matrix(const Array* array)
        : start(array->floats()), row(array->strides[0] / 4), column(array->strides[1] / 4) {}
    int order() const { return column == 1 ? AS_IT_IS : TURNED; }
    long stride() const { return column == 1 ? row : column; }
};

constexpr long BLOCK = 16;  // rows or columns that go to one thread together

}  // namespace

KERNEL void set_sgemm(long address, int has_wide_integers) {
    sgemm = address;
    wide = has_wide_integers;
}

// y = a b: the rows of y, or its columns, of the blocks [start, stop).
KERNEL void product(const Array* a, const Array* b, const Array* y, int by_columns, long start, long stop) {
    Matrix left(a), right(b), result(y);
    long m = y->shape[0], n = y->shape[1], k = a->shape[1], first = start * BLOCK;
    long count = std::min(stop * BLOCK, by_columns ? n : m) - first;
    float* to = y->floats() + first * (by_columns ? 1 : result.row);
    if (by_columns) {
        right.start += first * right.column;
        n = count;
    } else {
        left.start += first * left.row;
        m = count;
    }
    auto call = [&](auto function, auto integer) {
        using Int = decltype(integer);
        function(ROW_MAJOR, left.order(), right.order(), Int(m), Int(n), Int(k), 1, left.start, Int(left.stride()),
                 right.start, Int(right.stride()), 0, to, Int(result.row));
    };
    if (wide) call(reinterpret_cast<Sgemm<int64_t>>(sgemm), int64_t());
    else call(reinterpret_cast<Sgemm<int32_t>>(sgemm), int32_t());
}

// How many columns a block of `linear_block` has: as many as a tile is wide.
KERNEL long linear_columns(long columns) { return vectors_for(columns) * WIDTH; }

// y = x weight + bias (or None), through a ReLU if `relu`: the blocks [start, stop) of columns, as many as fill them.
// Faster than BLAS where x has few rows, as it copies nothing. x (M, K) and y (M, N) are dense in their rows, weight
// (K, N) as a whole.
KERNEL void linear_block(const Array* x, const Array* weight, const Array* bias, const Array* y, int relu, long start, long stop) {
    long rows = x->shape[0], depth = x->shape[1], columns = y->shape[1];
    long lanes = linear_columns(columns), step = std::max(8L, (40 << 10) / (lanes * long(sizeof(float))));
    long* from = scratch<long>(1, rows);
    long* to = scratch<long>(2, rows);
    for (long i = 0; i < rows; i++) {
        from[i] = i * (x->strides[0] / 4);
        to[i] = i * columns;
    }
    static const float zeros[4 * WIDTH] = {};
    for (long block = start; block < stop; block++)
        for (long k = 0; k < depth; k += step) {  // weights that stay in the first-level cache
            Segment segment = {k, std::min(step, depth - k), weight->floats() + k * columns + block * lanes};
            const float* first = bias == gn_none ? zeros : bias->floats() + block * lanes;
            Target target = {k ? nullptr : first, relu && k + step >= depth, lanes, columns};
            tiles(lanes / WIDTH, x->floats(), from, y->floats() + block * lanes, to, rows, &segment, 1, target);
        }
}

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
