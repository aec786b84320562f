// What convolution's kernels share: the geometry, padded images, tiles in registers, sums of outer products.
#pragma once
#include "array.h"
#include "tile.h"

#include <algorithm>

namespace {

// As gpunet/ops/conv.py lays it out.
struct Geometry {
    long channels, height, width;  // of the input
    long outputs, out_height, out_width;
    long kernel_height, kernel_width, stride_height, stride_width, top, left, dilation_height, dilation_width, groups;

    long taps() const { return kernel_height * kernel_width; }
    long in_group() const { return channels / groups; }
    long out_group() const { return outputs / groups; }
    long padded_height() const { return (out_height - 1) * stride_height + (kernel_height - 1) * dilation_height + 1; }
    long padded_width() const { return (out_width - 1) * stride_width + (kernel_width - 1) * dilation_width + 1; }
};

const Geometry& geometry_of(const Array* array) { return *array->data<const Geometry>(); }

// How many vectors wide a tile is, for so many output channels: the widest of those that waste the least.
int vectors_for(long outputs) {
    int best = 1;
    long least = (outputs + WIDTH - 1) / WIDTH;
    for (int v : {2, 4}) {
        long vectors = (outputs + v * WIDTH - 1) / (v * WIDTH) * v;
        if (vectors <= least) best = v;
    }
    return best;
}

// Along one axis, for one position of the result of a convolution of `length` elements: which taps meet an element, and
// which. For the transposed convolution, the result is that of the gradient with respect to the input.
struct Axis {
    long kernel, stride, before, dilation, length;
    bool transposed;

    // The element that tap k meets, or -1.
    long meets(long position, long k) const {
        long i = transposed ? position + before - k * dilation : position * stride + k * dilation - before;
        if (transposed) {
            if (i < 0 || i % stride) return -1;
            i /= stride;
        }
        return i >= 0 && i < length ? i : -1;
    }
};

Axis rows_of(const Geometry& g, bool transposed) {
    return {g.kernel_height, g.stride_height, g.top, g.dilation_height, transposed ? g.out_height : g.height, transposed};
}

Axis columns_of(const Geometry& g, bool transposed) {
    return {g.kernel_width, g.stride_width, g.left, g.dilation_width, transposed ? g.out_width : g.width, transposed};
}

// Weights (groups, blocks, taps, I, lanes) as gpunet/ops/conv.py hands them over: copied to lie so, or a view of weights
// that lie (taps, I, O), in which the rows of a block are further apart than they are long.
struct Weights {
    const Array* array;

    long blocks() const { return array->shape[1]; }
    long taps() const { return array->shape[2]; }
    long channels() const { return array->shape[3]; }
    long lanes() const { return array->shape[4]; }
    long row() const { return array->strides[3] / long(sizeof(float)); }  // from one input channel to the next
    long tap() const { return array->strides[2] / long(sizeof(float)); }
    const float* block(long group, long i) const {
        return reinterpret_cast<const float*>(array->bytes + group * array->strides[0] + i * array->strides[1]);
    }
};

// Adjacent inputs of a window, from `offset` on behind the window's pixel, and their weights.
struct Segment {
    long offset, length;
    const float* weights;
};

struct Target {
    const float* start;  // what the sums start from: a bias, or nullptr for what the output holds already
    bool relu;
    long lanes;  // how many of the tile's output channels there are
    long row;    // from one row of weights to the next
};

template <int P, int V>
void tile(const float* const* pixels, const Segment* segments, int count, float* const* outputs, const Target& target) {
    Vector sums[P][V];
    constexpr long BLOCK = V * WIDTH;
    bool whole = target.lanes == BLOCK;
    for (int p = 0; p < P; p++)
        for (int v = 0; v < V; v++) {
            const float* from = target.start ? target.start + v * WIDTH : outputs[p] + v * WIDTH;
            if (target.start || whole) {
                sums[p][v] = load(from);
            } else {
                float part[WIDTH] = {};
                long n = std::clamp(target.lanes - v * WIDTH, 0L, long(WIDTH));
                memcpy(part, from, n * sizeof(float));
                sums[p][v] = load(part);
            }
        }
    for (int s = 0; s < count; s++) {
        const float* inputs[P];
        for (int p = 0; p < P; p++) inputs[p] = pixels[p] + segments[s].offset;
        const float* weights = segments[s].weights;
        for (long k = 0; k < segments[s].length; k++, weights += target.row) {
            Vector row[V];
            for (int v = 0; v < V; v++) row[v] = load(weights + v * WIDTH);
#pragma GCC unroll 12
            for (int p = 0; p < P; p++) {
                Vector x = broadcast(inputs[p][k]);
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) sums[p][v] += x * row[v];
            }
        }
    }
    for (int p = 0; p < P; p++)
        for (int v = 0; v < V; v++) {
            Vector y = sums[p][v];
            if (target.relu) y = select(y < 0.0f, Vector{}, y);  // NaN stays
            if (whole) {
                store(outputs[p] + v * WIDTH, y);
            } else {
                float part[WIDTH];
                store(part, y);
                long n = std::clamp(target.lanes - v * WIDTH, 0L, long(WIDTH));
                memcpy(outputs[p] + v * WIDTH, part, n * sizeof(float));
            }
        }
}

// Tiles over `count` pixels: pixel i reads from input + from[i] and goes to output + to[i].
template <int V>
void tiles(const float* input, const long* from, float* output, const long* to, long count, const Segment* segments,
           int segment_count, const Target& target) {
    constexpr int P = rows_for(V);
    for (long first = 0; first < count; first += P) {
        const float* pixels[P];
        float* outputs[P];
        for (int p = 0; p < P; p++) {  // past the end, the last pixel again
            long i = std::min(first + p, count - 1);
            pixels[p] = input + from[i];
            outputs[p] = output + to[i];
        }
        tile<P, V>(pixels, segments, segment_count, outputs, target);
    }
}

void tiles(int vectors, const float* input, const long* from, float* output, const long* to, long count,
           const Segment* segments, int segment_count, const Target& target) {
    if (!count) return;
    auto run = vectors == 4 ? tiles<4> : vectors == 2 ? tiles<2> : tiles<1>;
    run(input, from, output, to, count, segments, segment_count, target);
}

// The image `n` of x (N, C, H, W, in any order in memory) with zeros around it, (height, width, C).
const float* padded_image(const Array* x, long n, const Geometry& g, long height, long width) {
    const char* image = x->bytes + n * x->strides[0];
    long by_channel = x->strides[1], by_row = x->strides[2], by_column = x->strides[3];
    long channels = g.channels, size = sizeof(float);
    bool dense = (by_channel == size || channels == 1) && by_column == channels * size;
    if (dense && !g.top && !g.left && height <= g.height && width == g.width && by_row == width * channels * size)
        return reinterpret_cast<const float*>(image);
    float* padded = scratch(0, height * width * channels);
    long first = std::min(g.left, width), inside = std::clamp(g.width, 0L, width - first);
    for (long h = 0; h < height; h++) {
        float* row = padded + h * width * channels;
        long source = h - g.top;
        if (source < 0 || source >= g.height) {
            memset(row, 0, width * channels * size);
            continue;
        }
        const char* from = image + source * by_row;
        memset(row, 0, first * channels * size);
        float* middle = row + first * channels;
        if (dense) {
            memcpy(middle, from, inside * channels * size);
        } else {
            for (long c = 0; c < channels; c++)
                for (long w = 0; w < inside; w++)
                    middle[w * channels + c] = *reinterpret_cast<const float*>(from + c * by_channel + w * by_column);
        }
        memset(middle + inside * channels, 0, (width - first - inside) * channels * size);
    }
    return padded;
}

// sums (R, V vectors), rows `stride` apart, plus the outer products of R inputs and V vectors of gradients.
template <int R, int V> struct OuterProducts {
    static void run(const float* inputs, const long* from, const float* gradients, const long* to, long count,
                    float* sums, long stride) {
        Vector total[R][V] = {};
        for (long i = 0; i < count; i++) {
            const float* x = inputs + from[i];
            const float* g = gradients + to[i];
            Vector row[V];
            for (int v = 0; v < V; v++) row[v] = load(g + v * WIDTH);
#pragma GCC unroll 12
            for (int r = 0; r < R; r++) {
                Vector element = broadcast(x[r]);
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) total[r][v] += element * row[v];
            }
        }
        for (int r = 0; r < R; r++)
            for (int v = 0; v < V; v++) {
                float* to = sums + r * stride + v * WIDTH;
                store(to, load(to) + total[r][v]);
            }
    }
};

// The outer products of `length` inputs at each of `count` places with blocks of gradients, added to sums
// (length, blocks * lanes).
void add_products(const float* inputs, const long* from, long length, const float* gradients, const long* to,
                  long count, float* sums, long blocks, int vectors) {
    int most = rows_for(vectors);
    long lanes = vectors * WIDTH, parts = (length + most - 1) / most;
    for (long part = 0; part < parts; part++) {
        long first = length * part / parts, rows = length * (part + 1) / parts - first;
        auto outer = tile_for<OuterProducts>(vectors, rows);
        for (long block = 0; block < blocks; block++)
            outer(inputs + first, from, gradients + block * lanes, to, count,
                  sums + first * blocks * lanes + block * lanes, blocks * lanes);
    }
}

// Sums over the ranges that range(n) is cut into, as many as `sums` has along its first axis: those of the ranges
// [start, stop), each by `add(its sums, first, last)`.
template <class Add> void by_part(const Array* sums, long n, long start, long stop, Add add) {
    long parts = sums->shape[0], size = 1;
    for (int axis = 1; axis < sums->ndim; axis++) size *= sums->shape[axis];
    for (long part = start; part < stop; part++)
        add(sums->floats() + part * size, n * part / parts, n * (part + 1) / parts);
}

constexpr long PLACES = 96;  // at a time, so that what they hold stays in the first-level cache

// Sums over very many places, added up in three steps, so that rounding errors do not grow with their number: those of
// PLACES in registers, those of a few thousand in `part`, and all of them in `total`.
struct Sums {
    float* total;
    long size;
    float* part;
    long places = 0;

    Sums(float* total, long size, int slot) : total(total), size(size), part(scratch(slot, size)) {
        memset(part, 0, size * sizeof(float));
    }
    ~Sums() { add(); }

    // To be called once the sums of so many more places are in `part`.
    void count(long more) {
        places += more;
        if (places >= 32 * PLACES) add();
    }

    void add() {
        for (long i = 0; i < size; i++) total[i] += part[i];
        memset(part, 0, size * sizeof(float));
        places = 0;
    }
};

// The largest of 2x2 neighbours (the first of equal ones; NaN if there is one), and which it is.
void store_maximum(const Vector part[2][2], float* y, uint8_t* offsets) {
    Vector largest = part[0][0];
    IntVector which = {};
    for (int i = 1; i < 4; i++) {
        Vector other = part[i / 2][i % 2];
        IntVector better = (other > largest) | (other != other);
        largest = select(better, other, largest);
        which = better ? IntVector{} + i : which;
    }
    store(y, largest);
    typedef uint8_t Bytes __attribute__((vector_size(WIDTH), aligned(1), may_alias));
    *reinterpret_cast<Bytes*>(offsets) = __builtin_convertvector(which, Bytes);
}

}  // namespace
