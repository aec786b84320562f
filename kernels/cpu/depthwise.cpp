// Depthwise convolution, in which each channel has a window of weights to itself, and its gradients.
//
// Arrays are dense and lie channels-last: x (N, H, W, C), weights (taps, C). A vector is of channels; the sums of up to
// 8 pixels in a row are held in registers, so that weights are loaded once for all of them. Where a window reaches into
// the padding, and in the gradient of a strided convolution, a pixel has fewer taps, and is computed alone. Memory is
// the limit: each pixel is read from the first-level cache for every tap, but from memory once.
#include "conv.h"
#include "flat.h"

namespace {

struct Tap {
    long offset;  // of the input behind the pixel's first
    const float* weights;
};

// P pixels of the result, side by side, whose inputs lie `step` apart, from channel `c` on: a vector of channels, or the
// last `lanes` of them.
template <int P, bool WHOLE>
void pixels(const float* x, long step, const Tap* taps, int count, const float* bias, bool relu, float* y, long channels,
            long c, long lanes) {
    auto read = [&](const float* p) { return WHOLE ? load(p) : load_some(p, lanes); };
    Vector sums[P];
    for (int p = 0; p < P; p++) sums[p] = bias ? read(bias + c) : Vector{};
    for (int t = 0; t < count; t++) {
        const float* from = x + taps[t].offset + c;
        Vector weights = read(taps[t].weights + c);
#pragma GCC unroll 8
        for (int p = 0; p < P; p++) sums[p] += read(from + p * step) * weights;
    }
    for (int p = 0; p < P; p++) {
        Vector sum = relu ? select(sums[p] < 0.0f, Vector{}, sums[p]) : sums[p];  // NaN stays
        store_some(y + p * channels + c, sum, WHOLE ? WIDTH : lanes);
    }
}

template <int P>
void pixels(const float* x, long step, const Tap* taps, int count, const float* bias, bool relu, float* y, long channels) {
    long c = 0;
    for (; c + WIDTH <= channels; c += WIDTH) pixels<P, true>(x, step, taps, count, bias, relu, y, channels, c, WIDTH);
    if (c < channels) pixels<P, false>(x, step, taps, count, bias, relu, y, channels, c, channels - c);
}

constexpr int MOST = 8;  // pixels at a time

using Pixels = void (*)(const float*, long, const Tap*, int, const float*, bool, float*, long);

template <int... P> Pixels pixels_for(int count, std::integer_sequence<int, P...>) {
    static constexpr Pixels functions[] = {pixels<P + 1>...};
    return functions[count - 1];
}

// sums (C,) plus the products of `count` pixels of x and g, which lie so far apart.
template <int V> void add_pixels(const float* x, long x_apart, const float* g, long g_apart, long count, float* sums) {
    Vector total[V] = {};
    for (long i = 0; i < count; i++)
        for (int v = 0; v < V; v++) total[v] += load(x + i * x_apart + v * WIDTH) * load(g + i * g_apart + v * WIDTH);
    for (int v = 0; v < V; v++) store(sums + v * WIDTH, load(sums + v * WIDTH) + total[v]);
}

}  // namespace

// y (N, OH, OW, C) of the images [start, stop).
// transposed: shape is that of a convolution whose input is y and whose output is x, and this is the gradient with
// respect to its input.
KERNEL void depthwise_forward(const Array* x, const Array* weights, const Array* bias, const Array* y, const Array* shape, int relu, int transposed, long start, long stop) {
    const Geometry& g = geometry_of(shape);
    long height = transposed ? g.out_height : g.height, width = transposed ? g.out_width : g.width;
    long to_height = transposed ? g.height : g.out_height, to_width = transposed ? g.width : g.out_width;
    long channels = g.channels, step = (transposed ? 1 : g.stride_width) * channels;
    Axis rows = rows_of(g, transposed), columns = columns_of(g, transposed);
    Tap* taps = scratch<Tap>(0, g.taps());
    bool* inside = scratch<bool>(1, to_width);  // whether all taps of a row meet a column
    for (long w = 0; w < to_width; w++) {
        inside[w] = true;
        for (long k = 0; k < g.kernel_width; k++) inside[w] = inside[w] && columns.meets(w, k) >= 0;
    }
    // The taps of the pixel (h, w); how many there are.
    auto meet = [&](long h, long w) {
        int count = 0;
        for (long kh = 0; kh < g.kernel_height; kh++) {
            long row = rows.meets(h, kh);
            for (long kw = 0; row >= 0 && kw < g.kernel_width; kw++) {
                long column = columns.meets(w, kw), tap = kh * g.kernel_width + kw;
                if (column >= 0) taps[count++] = {(row * width + column) * channels, weights->floats() + tap * channels};
            }
        }
        return count;
    };
    for (long n = start; n < stop; n++)
        for (long h = 0; h < to_height; h++) {
            const float* image = x->floats() + n * height * width * channels;
            float* to = y->floats() + (n * to_height + h) * to_width * channels;
            for (long w = 0; w < to_width;) {
                int count = meet(h, w);
                long first = w;
                do {  // the pixels behind it that have the same taps
                    int run = 1;
                    while (inside[w] && run < MOST && w + run < to_width && inside[w + run]) run++;
                    auto compute = pixels_for(run, std::make_integer_sequence<int, MOST>());
                    compute(image + (w - first) * step, step, taps, count, optional(bias), relu, to + w * channels, channels);
                    w += run;
                } while (inside[first] && w < to_width && inside[w]);
            }
        }
}

namespace {

// Adds to sums (taps, C) the weights' gradient of the images [start, stop).
void add_weight_sums(const Array* x, const Array* gradient, float* sums, const Geometry& g, long start, long stop) {
    long channels = g.channels, apart = g.stride_width * channels;
    Axis rows = rows_of(g, false), columns = columns_of(g, false);
    for (long n = start; n < stop; n++)
        for (long h = 0; h < g.out_height; h++)
            for (long kh = 0; kh < g.kernel_height; kh++) {
                long row = rows.meets(h, kh);
                for (long kw = 0; row >= 0 && kw < g.kernel_width; kw++) {
                    long first = 0, last = g.out_width;
                    while (first < last && columns.meets(first, kw) < 0) first++;
                    while (first < last && columns.meets(last - 1, kw) < 0) last--;
                    if (first == last) continue;
                    const float* from = x->floats() + ((n * g.height + row) * g.width + columns.meets(first, kw)) * channels;
                    const float* by = gradient->floats() + ((n * g.out_height + h) * g.out_width + first) * channels;
                    float* to = sums + (kh * g.kernel_width + kw) * channels;
                    long c = 0;
                    for (; c + 4 * WIDTH <= channels; c += 4 * WIDTH)
                        add_pixels<4>(from + c, apart, by + c, channels, last - first, to + c);
                    for (; c + WIDTH <= channels; c += WIDTH)
                        add_pixels<1>(from + c, apart, by + c, channels, last - first, to + c);
                    for (; c < channels; c++) {
                        float total = 0;
                        for (long i = 0; i < last - first; i++) total += from[i * apart + c] * by[i * channels + c];
                        to[c] += total;
                    }
                }
            }
}

}  // namespace

// sums (parts, taps, C): the weights' gradients of the parts [start, stop) of the images; they start as zeros.
// gradient: (N, OH, OW, C).
KERNEL void depthwise_weight_sums(const Array* x, const Array* gradient, const Array* sums, const Array* shape, long start, long stop) {
    by_part(sums, gradient->shape[0], start, stop, [&](float* own, long first, long last) {
        add_weight_sums(x, gradient, own, geometry_of(shape), first, last);
    });
}
