// Normalization: of channels over a batch, and of rows.
//
// Channels: (N, C, *) that lies either channels-last, (N, *, C) in memory, or channels-first, as its axes say. Memory is
// divided into blocks: channels-last into runs of about BLOCK elements, channels-first into the samples. A block
// fits in cache, so what is read from memory once is gone through twice: for its mean, then for the squared distances
// from that. Blocks are combined by the formula of Chan, Golub and LeVeque (1979), in double precision. Their
// bounds depend on the shape alone, and so do the results.
//
// Rows: each lies in one piece, and the cache holds it while it is gone through. Backward computes the row's mean and
// variance again, which is cheaper than keeping them.
#include "flat.h"

namespace {

constexpr long BLOCK = 16384;

struct Layout {
    long samples, channels, pixels;
    bool last;    // channels-last; then memory is rows of `width` elements, the channels repeated to whole vectors
    long width;
    long length;  // of a block; of a channels-first array, of a plane
    long blocks;

    explicit Layout(const Array* x) : samples(x->shape[0]), channels(x->shape[1]), pixels(1) {
        for (int axis = 2; axis < x->ndim; axis++) pixels *= x->shape[axis];
        last = is_channels_last(x);
        width = repeat_of(channels);
        length = last ? width * (BLOCK / width > 1 ? BLOCK / width : 1) : pixels;
        blocks = last ? (size() + length - 1) / length : samples;
    }

    long size() const { return samples * channels * pixels; }
    double values() const { return double(samples) * pixels; }  // of a channel

    long begin(long block) const { return block * length * (last ? 1 : channels); }
    long count(long block) const { return last && size() - block * length < length ? size() - block * length : length; }
    long values(long block) const { return last ? count(block) / channels : length; }

    static bool is_channels_last(const Array* x) {
        long expected = sizeof(float);
        auto fits = [&](int axis) {
            bool does = x->shape[axis] < 2 || x->strides[axis] == expected;
            expected *= x->shape[axis];
            return does;
        };
        if (!fits(1)) return false;
        for (int axis = x->ndim - 1; axis > 1; axis--)
            if (!fits(axis)) return false;
        return fits(0);
    }

    static bool is_channels_first(const Array* x) {
        long expected = sizeof(float);
        for (int axis = x->ndim - 1; axis >= 0; axis--) {
            if (x->shape[axis] > 1 && x->strides[axis] != expected) return false;
            expected *= x->shape[axis];
        }
        return true;
    }
};

// The sums, over a block, of `S` terms in each channel. term(at, lanes, v, out) gives a vector of each, from the
// channels' `values` as vectors v; `at` counts from the array's first element.
template <int S, int V, class Term>
void sum_channels(const Layout& of, long block, const float* const (&values)[V], float* const (&sums)[S], Term term) {
    long begin = of.begin(block);
    Vector v[V];
    if (!of.last) {
        for (long c = 0; c < of.channels; c++) {
            float totals[S];
            for (int i = 0; i < V; i++) v[i] = broadcast(values[i][c]);
            long plane = begin + c * of.length;
            sum_over<S>(of.length, totals, [&](long at, long lanes, Vector* out) { term(plane + at, lanes, v, out); });
            for (int s = 0; s < S; s++) sums[s][c] = totals[s];
        }
        return;
    }
    float *repeated[V], *columns[S];
    for (int i = 0; i < V; i++) repeat(values[i], of.channels, repeated[i] = scratch(i, of.width), of.width);
    for (int s = 0; s < S; s++) columns[s] = scratch(V + s, of.width);
    sum_columns<S>(of.count(block), of.width, columns, [&](long at, long column, long lanes, Vector* out) {
        for (int i = 0; i < V; i++) v[i] = load(repeated[i] + column);
        term(begin + at, lanes, v, out);
    });
    for (int s = 0; s < S; s++) fold(columns[s], of.width, of.channels, sums[s]);
}

// step(at, lanes, v) for all vectors of the blocks from `start` to `stop`; v as in `sum_channels`.
template <int V, class Step>
void map_channels(const Layout& of, long start, long stop, const float* const (&values)[V], Step step) {
    Vector v[V];
    if (!of.last) {
        for (long plane = start * of.channels; plane < stop * of.channels; plane++) {
            for (int i = 0; i < V; i++) v[i] = broadcast(values[i][plane % of.channels]);
            by_vectors(plane * of.length, (plane + 1) * of.length, [&](long at, long lanes) { step(at, lanes, v); });
        }
        return;
    }
    float* repeated[V];
    for (int i = 0; i < V; i++) repeat(values[i], of.channels, repeated[i] = scratch(i, of.width), of.width);
    long end = stop == of.blocks ? of.size() : of.begin(stop);
    for (long row = of.begin(start); row < end; row += of.width)
        by_vectors(0, end - row < of.width ? end - row : of.width, [&](long column, long lanes) {
            for (int i = 0; i < V; i++) v[i] = load(repeated[i] + column);
            step(row + column, lanes, v);
        });
}

float scale_of(float variance, float eps) { return 1.0f / sqrtf(variance + eps); }

float mean_of_row(const float* x, long columns) {
    float sums[1], first = x[0];  // sums of distances from an element lose nothing to a large mean
    sum_over<1>(columns, sums, [&](long at, long lanes, Vector* out) { out[0] = load_some(x + at, lanes) - first; });
    return first + sums[0] / columns;
}

}  // namespace

// How many blocks x is divided into; 0 if it lies otherwise.
KERNEL long norm_blocks(const Array* x) {
    return Layout::is_channels_last(x) || Layout::is_channels_first(x) ? Layout(x).blocks : 0;
}

// partials (blocks, 2, C): each block's mean and the sum of the squared distances from it.
KERNEL void norm_moments(const Array* x, const Array* partials, long start, long stop) {
    Layout of(x);
    const float* from = x->floats();
    float* firsts = scratch(7, of.channels);
    for (long block = start; block < stop; block++) {
        float* means = partials->floats() + block * 2 * of.channels;
        float* squares = means + of.channels;
        for (long c = 0; c < of.channels; c++) firsts[c] = from[of.begin(block) + (of.last ? c : c * of.length)];
        sum_channels<1, 1>(of, block, {firsts}, {means}, [&](long at, long lanes, const Vector* v, Vector* out) {
            out[0] = load_some(from + at, lanes) - v[0];  // sums of these lose nothing to a large mean
        });
        float share = 1.0f / of.values(block);
        for (long c = 0; c < of.channels; c++) means[c] = firsts[c] + means[c] * share;
        sum_channels<1, 1>(of, block, {means}, {squares}, [&](long at, long lanes, const Vector* v, Vector* out) {
            Vector distance = load_some(from + at, lanes) - v[0];
            out[0] = distance * distance;
        });
    }
}

// The mean and variance (C) of all blocks together.
KERNEL void norm_combine(const Array* x, const Array* partials, const Array* mean, const Array* variance) {
    Layout of(x);
    long channels = of.channels;
    double* centres = scratch<double>(0, channels);
    double* squares = scratch<double>(1, channels);
    for (long c = 0; c < channels; c++) centres[c] = squares[c] = 0;
    for (long block = 0; block < of.blocks; block++) {
        const float* means = partials->floats() + block * 2 * channels;
        double share = of.values(block) / of.values();
        for (long c = 0; c < channels; c++) centres[c] += share * means[c];
    }
    for (long block = 0; block < of.blocks; block++) {
        const float* means = partials->floats() + block * 2 * channels;
        double values = of.values(block);
        for (long c = 0; c < channels; c++) {
            double apart = means[c] - centres[c];
            squares[c] += means[channels + c] + values * apart * apart;
        }
    }
    for (long c = 0; c < channels; c++) {
        mean->floats()[c] = centres[c];
        variance->floats()[c] = squares[c] / of.values();
    }
}

// y = (x - mean) / sqrt(variance + eps) * weight + bias, which lies as x does.
KERNEL void norm_apply(const Array* x, const Array* mean, const Array* variance, const Array* weight, const Array* bias, const Array* y, float eps, long start, long stop) {
    Layout of(x);
    float* scales = scratch(6, of.channels);
    float* shifts = scratch(7, of.channels);
    for (long c = 0; c < of.channels; c++) {
        scales[c] = scale_of(variance->floats()[c], eps) * (optional(weight) ? weight->floats()[c] : 1);
        shifts[c] = optional(bias) ? bias->floats()[c] : 0;
    }
    const float* from = x->floats();
    float* to = y->floats();
    map_channels<3>(of, start, stop, {mean->floats(), scales, shifts}, [&](long at, long lanes, const Vector* v) {
        store_some(to + at, (load_some(from + at, lanes) - v[0]) * v[1] + v[2], lanes);
    });
}

// partials (blocks, 2, C): each block's sums of (x - mean) g and of g, which lies as x does.
KERNEL void norm_grad_sums(const Array* g, const Array* x, const Array* mean, const Array* partials, long start, long stop) {
    Layout of(x);
    const float *values = x->floats(), *slopes = g->floats();
    for (long block = start; block < stop; block++) {
        float* sums = partials->floats() + block * 2 * of.channels;
        sum_channels<2, 1>(of, block, {mean->floats()}, {sums, sums + of.channels},
                           [&](long at, long lanes, const Vector* v, Vector* out) {
                               Vector slope = load_some(slopes + at, lanes);
                               out[0] = (load_some(values + at, lanes) - v[0]) * slope;
                               out[1] = slope;
                           });
    }
}

// The gradients (C) of weight and bias, from all blocks.
KERNEL void norm_grad_combine(const Array* partials, const Array* variance, const Array* grad_weight, const Array* grad_bias, float eps) {
    long blocks = partials->shape[0], channels = partials->shape[2];
    double* totals = scratch<double>(0, 2 * channels);
    for (long i = 0; i < 2 * channels; i++) totals[i] = 0;
    for (long block = 0; block < blocks; block++)
        for (long i = 0; i < 2 * channels; i++) totals[i] += partials->floats()[block * 2 * channels + i];
    for (long c = 0; c < channels; c++) {
        grad_weight->floats()[c] = totals[c] * scale_of(variance->floats()[c], eps);
        grad_bias->floats()[c] = totals[channels + c];
    }
}

// The gradient dx of x, from those of weight and bias: (g - the mean of g - hat * the mean of g hat) * scale * weight.
KERNEL void norm_grad_apply(const Array* g, const Array* x, const Array* mean, const Array* variance, const Array* weight, const Array* grad_weight, const Array* grad_bias, const Array* dx, float eps, long start, long stop) {
    Layout of(x);
    float* scales = scratch(5, of.channels);
    float* slopes = scratch(6, of.channels);
    float* shifts = scratch(7, of.channels);
    for (long c = 0; c < of.channels; c++) {
        float scale = scale_of(variance->floats()[c], eps);
        scales[c] = scale * (optional(weight) ? weight->floats()[c] : 1);
        slopes[c] = scale * float(grad_weight->floats()[c] / of.values());
        shifts[c] = grad_bias->floats()[c] / of.values();
    }
    const float *values = x->floats(), *gradients = g->floats();
    float* to = dx->floats();
    map_channels<4>(of, start, stop, {mean->floats(), slopes, shifts, scales}, [&](long at, long lanes, const Vector* v) {
        Vector shared = (load_some(values + at, lanes) - v[0]) * v[1] + v[2];
        store_some(to + at, (load_some(gradients + at, lanes) - shared) * v[3], lanes);
    });
}

// running = (1 - momentum) running + momentum (mean, variance * unbias), in place.
KERNEL void norm_running(const Array* running_mean, const Array* running_variance, const Array* mean, const Array* variance, float momentum, float unbias) {
    for (long c = 0, channels = running_mean->shape[0]; c < channels; c++) {
        float& centre = running_mean->floats()[c];
        float& spread = running_variance->floats()[c];
        centre += (mean->floats()[c] - centre) * momentum;
        spread += (variance->floats()[c] * unbias - spread) * momentum;
    }
}

// --- rows

KERNEL void rows_apply(const Array* x, const Array* weight, const Array* bias, const Array* y, long columns, float eps, long start, long stop) {
    const float *weights = optional(weight), *biases = optional(bias);
    for (long row = start; row < stop; row++) {
        const float* from = x->floats() + row * columns;
        float* to = y->floats() + row * columns;
        float mean = mean_of_row(from, columns), squares[1];
        sum_over<1>(columns, squares, [&](long at, long lanes, Vector* out) {
            Vector distance = load_some(from + at, lanes) - mean;
            out[0] = distance * distance;
        });
        float scale = scale_of(squares[0] / columns, eps);
        by_vectors(0, columns, [&](long at, long lanes) {
            Vector value = (load_some(from + at, lanes) - mean) * scale;
            if (weights) value *= load_some(weights + at, lanes);
            if (biases) value += load_some(biases + at, lanes);
            store_some(to + at, value, lanes);
        });
    }
}

// dx, and partials (blocks, 2, columns): the sums of g hat and of g over each block of `height` rows.
KERNEL void rows_grad(const Array* g, const Array* x, const Array* weight, const Array* dx, const Array* partials, long rows, long columns, long height, float eps, long start, long stop) {
    const float* weights = optional(weight);
    long padded = (columns + WIDTH - 1) / WIDTH * WIDTH;
    float* sums = scratch(0, 2 * padded);
    for (long block = start; block < stop; block++) {
        memset(sums, 0, 2 * padded * sizeof(float));
        long end = (block + 1) * height < rows ? (block + 1) * height : rows;
        for (long row = block * height; row < end; row++) {
            const float *values = x->floats() + row * columns, *slopes = g->floats() + row * columns;
            float* to = dx->floats() + row * columns;
            auto slope = [&](long at, long lanes) {
                Vector gradient = load_some(slopes + at, lanes);
                return weights ? gradient * load_some(weights + at, lanes) : gradient;
            };
            float mean = mean_of_row(values, columns), totals[3];
            sum_over<3>(columns, totals, [&](long at, long lanes, Vector* out) {
                Vector distance = load_some(values + at, lanes) - mean;
                out[0] = distance * distance;
                out[1] = slope(at, lanes);
                out[2] = out[1] * distance;
            });
            float scale = scale_of(totals[0] / columns, eps);
            float shared = totals[1] / columns, along = scale * totals[2] / columns;
            by_vectors(0, columns, [&](long at, long lanes) {
                Vector hat = (load_some(values + at, lanes) - mean) * scale, gradient = load_some(slopes + at, lanes);
                store_some(to + at, (slope(at, lanes) - shared - hat * along) * scale, lanes);
                store(sums + at, load(sums + at) + keep_some(hat * gradient, lanes));
                store(sums + padded + at, load(sums + padded + at) + gradient);
            });
        }
        memcpy(partials->floats() + block * 2 * columns, sums, columns * sizeof(float));
        memcpy(partials->floats() + (block * 2 + 1) * columns, sums + padded, columns * sizeof(float));
    }
}

// The gradients (columns) of weight and bias, from all blocks.
KERNEL void rows_grad_combine(const Array* partials, const Array* grad_weight, const Array* grad_bias) {
    long blocks = partials->shape[0], columns = partials->shape[2];
    double* totals = scratch<double>(0, 2 * columns);
    for (long i = 0; i < 2 * columns; i++) totals[i] = 0;
    for (long block = 0; block < blocks; block++)
        for (long i = 0; i < 2 * columns; i++) totals[i] += partials->floats()[block * 2 * columns + i];
    for (long c = 0; c < columns; c++) {
        grad_weight->floats()[c] = totals[c];
        grad_bias->floats()[c] = totals[columns + c];
    }
}
