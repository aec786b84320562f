// Activations and their gradients, one pass each; sums; and copies of another layout.
//
// But for these, the arrays of a call lie alike and without gaps in memory, in whatever order of axes; a range of
// elements is one of their memory. What is computed of an element does not depend on where a range begins.
#include "flat.h"
#include "math.h"

namespace {

constexpr float TANH_SCALE = 0.79788456f;  // sqrt(2 / pi)
constexpr float CUBIC = 0.044715f;
constexpr float FLAT = 40.0f;  // beyond, gelu is x or 0, and powers of x must not overflow

// Functions of v that rise from 0 to 1 and are 1/2 plus something odd: that is v times a polynomial in
// s = 2 (v / reach)^2 - 1, its coefficients fitted so that the largest error is the least. Beyond `reach` they are 0 or 1.
template <int N> Vector rising(Vector v, float reach, const float (&coefficients)[N]) {
    Vector z = limited(v, -reach, reach);
    Vector s = z * z * (2 / (reach * reach)) - 1.0f;
    Vector p = broadcast(coefficients[0]);
    for (int i = 1; i < N; i++) p = p * s + coefficients[i];
    return select(v < -reach, Vector{}, p * z + 0.5f);
}

// P(X <= v) of a standard normal X, to 1.3e-7.
constexpr float NORMAL[] = {
    0.000538067711f, -0.00136882547f, 0.00102387887f, -0.00122941264f, 0.00423633313f,
    -0.0076746572f,  0.0104686517f,   -0.0146713729f, 0.0202879713f,   -0.0261124668f,
    0.0320817428f,   -0.038787267f,   0.0477369896f,  -0.0641724751f,  0.128551937f};
// The derivative of v P(X <= v), to 2.8e-7. (It rises above 1 in between.)
constexpr float SLOPE[] = {
    -0.00581988756f, 0.0138214283f, -0.00265093129f, -0.00534072587f, -0.025945551f, 0.0519965653f,
    -0.0424215031f,  0.0429087667f, -0.0627675525f,  0.0706512602f,   -0.06513816f,  0.0579988973f,
    -0.0508158108f,  0.0446193025f, -0.0423733546f,  0.0460554738f,   -0.059342663f, 0.117897774f};

template <class Function> void apply(const Array* x, const Array* y, long start, long stop, Function function) {
    const float* from = x->floats();
    float* to = y->floats();
    by_vectors(start, stop, [&](long at, long lanes) {
        store_some(to + at, function(load_some(from + at, lanes)), lanes);
    });
}

template <class Function> void apply(const Array* a, const Array* b, const Array* y, long start, long stop, Function function) {
    const float *left = a->floats(), *right = b->floats();
    float* to = y->floats();
    by_vectors(start, stop, [&](long at, long lanes) {
        store_some(to + at, function(load_some(left + at, lanes), load_some(right + at, lanes)), lanes);
    });
}

Vector tanh_of_cubic(Vector z) { return tanh(TANH_SCALE * (z + CUBIC * z * z * z)); }

}  // namespace

KERNEL void add(const Array* a, const Array* b, const Array* y, long start, long stop) {
    apply(a, b, y, start, stop, [](Vector a, Vector b) { return a + b; });
}

// How many columns of a matrix are a unit of work for `turn`: those of several vectors where it is reading that jumps
// through memory, of one where it is writing.
KERNEL long turn_strip(long rows, long columns) { return columns > rows ? 4 * WIDTH : WIDTH; }

// y = x transposed, plus `a`, which lies as y does, unless it is None. x is a number of matrices (rows, columns), one
// after the other.
KERNEL void turn(const Array* x, const Array* a, const Array* y, long rows, long columns, long start, long stop) {
    long strip = turn_strip(rows, columns), strips = (columns + strip - 1) / strip;
    const float* others = optional(a);
    for (long unit = start; unit < stop; unit++) {
        long matrix = unit / strips * rows * columns, first = unit % strips * strip;
        long end = columns - first < strip ? columns : first + strip;
        by_vectors(0, rows, [&](long row, long height) {
            by_vectors(first, end, [&](long column, long width) {
                const float* from = x->floats() + matrix + row * columns + column;
                Vector square[WIDTH] = {};
                for (long i = 0; i < height; i++) square[i] = load_some(from + i * columns, width);
                transpose(square);
                float* to = y->floats() + matrix + column * rows + row;
                const float* terms = others + (to - y->floats());
                for (long i = 0; i < width; i++) {
                    Vector values = others ? square[i] + load_some(terms + i * rows, height) : square[i];
                    store_some(to + i * rows, values, height);
                }
            });
        });
    }
}

KERNEL void relu(const Array* x, const Array* y, long start, long stop) {
    apply(x, y, start, stop, [](Vector v) { return select(v <= 0, Vector{}, v); });
}

// In the gradients, g is that of the result, y the result, x the input.
KERNEL void relu_grad(const Array* g, const Array* y, const Array* dx, long start, long stop) {
    apply(g, y, dx, start, stop, [](Vector g, Vector y) { return g * select(y > 0, broadcast(1), Vector{}); });
}

// The same for whole arrays, if they are of the type of dx, which is without gaps in C order, and lie as it does: 1 if
// they do, else 0. Small arrays notice how many arguments there are, and what is asked of them in Python.
KERNEL long relu_grad_alike(const Array* g, const Array* y, const Array* dx) {
    if (g->dtype != dx->dtype || y->dtype != dx->dtype || g->ndim != dx->ndim || y->ndim != dx->ndim) return 0;
    for (int axis = 0; axis < dx->ndim; axis++)
        if (g->shape[axis] != dx->shape[axis] || y->shape[axis] != dx->shape[axis]) return 0;
    if (!alike(g, dx) || !alike(y, dx)) return 0;
    relu_grad(g, y, dx, 0, size_of(dx));
    return 1;
}

KERNEL void tanh_all(const Array* x, const Array* y, long start, long stop) {
    apply(x, y, start, stop, [](Vector v) { return tanh(v); });
}

KERNEL void tanh_grad(const Array* g, const Array* y, const Array* dx, long start, long stop) {
    apply(g, y, dx, start, stop, [](Vector g, Vector y) { return g * (1.0f - y * y); });
}

KERNEL void sigmoid_all(const Array* x, const Array* y, long start, long stop) {
    apply(x, y, start, stop, [](Vector v) { return sigmoid(v); });
}

KERNEL void sigmoid_grad(const Array* g, const Array* y, const Array* dx, long start, long stop) {
    apply(g, y, dx, start, stop, [](Vector g, Vector y) { return g * (y * (1.0f - y)); });
}

KERNEL void silu(const Array* x, const Array* y, long start, long stop) {
    apply(x, y, start, stop, [](Vector v) { return v * sigmoid(v); });
}

KERNEL void silu_grad(const Array* g, const Array* x, const Array* dx, long start, long stop) {
    apply(g, x, dx, start, stop, [](Vector g, Vector v) {
        Vector s = sigmoid(v);
        return g * (s * (1.0f + v * (1.0f - s)));
    });
}

KERNEL void gelu(const Array* x, const Array* y, long start, long stop) {
    apply(x, y, start, stop, [](Vector v) { return v * rising(v, 5.5f, NORMAL); });
}

KERNEL void gelu_grad(const Array* g, const Array* x, const Array* dx, long start, long stop) {
    apply(g, x, dx, start, stop, [](Vector g, Vector v) { return g * rising(v, 6.0f, SLOPE); });
}

KERNEL void gelu_tanh(const Array* x, const Array* y, long start, long stop) {
    apply(x, y, start, stop, [](Vector v) { return 0.5f * v * (1.0f + tanh_of_cubic(limited(v, -FLAT, FLAT))); });
}

KERNEL void gelu_tanh_grad(const Array* g, const Array* x, const Array* dx, long start, long stop) {
    apply(g, x, dx, start, stop, [](Vector g, Vector v) {
        Vector z = limited(v, -FLAT, FLAT), t = tanh_of_cubic(z);
        return g * (0.5f * (1.0f + t) + 0.5f * z * (1.0f - t * t) * TANH_SCALE * (1.0f + 3 * CUBIC * z * z));
    });
}
