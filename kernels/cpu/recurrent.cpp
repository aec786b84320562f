// Recurrent layers: all steps of a layer for a range of the samples of a batch, forward and backward.
//
// A step multiplies the state of each sample, (B, H), by a weight. The weight is packed first, once for all steps and
// threads: into panels of as many columns as a tile in registers is wide, which then stream from the second-level cache
// to the first, once for each step. Forward, a panel has the columns of all gates of a vector of units, so that these
// units' gates and states are computed as soon as their sums are there. Threads take samples, and so never wait for one
// another: a sample's arithmetic does not depend on which others are computed beside it.
//
// Arrays are (T, B, ...), dense; a state that is None is zero, and needs no packed weight. Sigmoid and tanh are within
// 2.5 units in the last place.
#include "flat.h"
#include "math.h"
#include "tile.h"

#include <algorithm>

namespace {

// --- products

constexpr long DEPTH = 128;   // of a part of a panel that stays in the first-level cache
constexpr long SAMPLES = 64;  // that go through all steps together, so that their states stay there too

// out (rows, V vectors) = x (rows, count) times a panel (count, V vectors), added to what is there, or not.
void multiply(const float* x, long stride, long rows, long count, const float* panel, int vectors, float* out,
              long out_stride, bool add) {
    long tiles = (rows + rows_for(vectors) - 1) / rows_for(vectors), width = vectors * WIDTH;
    for (long k = 0; k < count; k += DEPTH)
        for (long i = 0; i < tiles; i++) {
            long first = rows * i / tiles, height = rows * (i + 1) / tiles - first;
            tile_for<Product>(vectors, height)({x + first * stride + k, stride, 1}, std::min(DEPTH, count - k),
                                               panel + k * width, width, {out + first * out_stride, out_stride},
                                               add || k > 0, nullptr);
        }
}

// How many vectors across panels for the gradient of `units` are: the most that waste nothing.
int vectors_for(long units) {
    long vectors = (units + WIDTH - 1) / WIDTH;
    for (int v : {4, 3, 2})
        if (vectors % v == 0) return v;
    return 1;
}

long rounded(long units) { return (units + WIDTH - 1) / WIDTH * WIDTH; }

// --- steps

struct Shape {
    long length, batch, units, start, stop;
    bool reverse;

    Shape(const Array* states, long reverse, long start, long stop)
        : length(states->shape[0]), batch(states->shape[1]), units(states->shape[2]), start(start), stop(stop),
          reverse(reverse) {}

    // The n-th step that is taken.
    long step(long n) const { return reverse ? length - 1 - n : n; }

    // A sample's row of `states` as the n-th step finds it; before the first, of `first`, which may be nullptr.
    const float* before(const float* states, const float* first, long n, long sample) const {
        if (n) return states + (step(n - 1) * batch + sample) * units;
        return first ? first + sample * units : nullptr;
    }
};

// Where the vectors of a sample's gates begin at a step.
template <int GATES> struct Gates {
    float* start;
    long units;

    Gates(float* array, const Shape& s, long t, long sample)
        : start(array + (t * s.batch + sample) * GATES * s.units), units(s.units) {}
    Vector get(int gate, long unit, long lanes) const { return load_some(start + gate * units + unit, lanes); }
    void set(int gate, long unit, long lanes, Vector v) const { store_some(start + gate * units + unit, v, lanes); }
};

// Forward: at each step, for each vector of units, the products of all samples' states with the weight's columns for
// its GATES gates, and then cell(n, sample, unit, lanes, products) for every sample, which puts the state into `hs`.
template <int GATES, class Cell>
void forward(const Shape& s, const float* h, const float* packed, const float* hs, Cell cell) {
    constexpr long across = GATES * WIDTH;
    for (long start = s.start; start < s.stop; start += SAMPLES) {
        long samples = std::min(SAMPLES, s.stop - start);
        float* sums = scratch(0, samples * across);
        memset(sums, 0, samples * across * sizeof(float));
        for (long n = 0; n < s.length; n++) {
            const float* states = n ? hs + s.step(n - 1) * s.batch * s.units : h;
            for (long unit = 0; unit < s.units; unit += WIDTH) {
                if (states)
                    multiply(states + start * s.units, s.units, samples, s.units, packed + unit * s.units * GATES,
                             GATES, sums, across, false);
                long lanes = std::min(long(WIDTH), s.units - unit);
                for (long i = 0; i < samples; i++) cell(n, start + i, unit, lanes, sums + i * across);
            }
        }
    }
}

// Backward: at each step, cell(n, sample, dh, dc) for every sample. dh is the gradient of its state after the step, and
// dc that of what else the step hands on. The cell writes the gradients of the step's products to `d`, (T, B, width),
// and leaves in dh and dc what goes to the step before on other ways than through these products.
template <class Cell>
void backward(const Shape& s, const float* d, long width, const float* packed, float* dh_first, float* dc_first,
              Cell cell) {
    int vectors = vectors_for(s.units);
    long across = vectors * WIDTH, padded = rounded(s.units);
    for (long start = s.start; start < s.stop; start += SAMPLES) {
        long samples = std::min(SAMPLES, s.stop - start);
        float *dh = scratch(0, samples * padded), *dc = scratch(1, samples * padded);
        memset(dh, 0, samples * padded * sizeof(float));
        memset(dc, 0, samples * padded * sizeof(float));
        for (long n = s.length - 1; n >= 0; n--) {
            for (long i = 0; i < samples; i++) cell(n, start + i, dh + i * padded, dc + i * padded);
            const float* rows = d + (s.step(n) * s.batch + start) * width;
            for (long unit = 0; unit < padded; unit += across)
                multiply(rows, width, samples, width, packed + unit * width, vectors, dh + unit, padded, true);
        }
        for (long i = 0; i < samples; i++) {
            memcpy(dh_first + (start + i) * s.units, dh + i * padded, s.units * sizeof(float));
            if (dc_first) memcpy(dc_first + (start + i) * s.units, dc + i * padded, s.units * sizeof(float));
        }
    }
}

Vector load_if(const float* p, long at, long lanes) { return p ? load_some(p + at, lanes) : Vector{}; }

}  // namespace

// --- packing of a weight (gates * H, H)

// How many floats the packed weight needs.
KERNEL long packed_size(const Array* weight) {
    return weight->shape[0] / weight->shape[1] * rounded(weight->shape[1]) * weight->shape[1];
}

// For `forward`: panels (H, gates, WIDTH) for each vector of units. With gates == 0, for `backward`: panels
// (gates * H, vectors_for(H) * WIDTH). Units past the end are zero.
KERNEL void pack(const Array* weight, const Array* packed, long gates) {
    long units = weight->shape[1], outputs = weight->shape[0];
    const float* from = weight->floats();
    float* to = packed->floats();
    if (gates) {
        for (long unit = 0; unit < units; unit += WIDTH) {
            long lanes = std::min(long(WIDTH), units - unit);
            for (long k = 0; k < units; k++)
                for (long gate = 0; gate < gates; gate++, to += WIDTH)
                    for (long lane = 0; lane < WIDTH; lane++)
                        to[lane] = lane < lanes ? from[(gate * units + unit + lane) * units + k] : 0.0f;
        }
        return;
    }
    long across = vectors_for(units) * WIDTH;
    for (long unit = 0; unit < units; unit += across)
        for (long k = 0; k < outputs; k++)
            for (long at = unit; at < unit + across; at += WIDTH, to += WIDTH)
                store(to, load_some(from + k * units + at, std::clamp(units - at, 0L, long(WIDTH))));
}

// --- LSTM; the gates are i, f, g, o

KERNEL void lstm(const Array* inputs, const Array* h, const Array* c, const Array* bias, const Array* packed, const Array* hs, const Array* cs, const Array* gates, long reverse, long start, long stop) {
    Shape s(hs, reverse, start, stop);
    const float *first = optional(c), *shift = optional(bias);
    auto cell = [&](long n, long sample, long unit, long lanes, const float* products) {
        long t = s.step(n), at = (t * s.batch + sample) * s.units + unit;
        Gates<4> in(inputs->floats(), s, t, sample), out(gates->floats(), s, t, sample);
        auto sum = [&](int gate) {
            Vector product = load(products + gate * WIDTH) + load_if(shift, gate * s.units + unit, lanes);
            return in.get(gate, unit, lanes) + product;
        };
        const float* before = s.before(cs->floats(), first, n, sample);
        Vector i = sigmoid(sum(0)), f = sigmoid(sum(1)), g = tanh(sum(2)), o = sigmoid(sum(3));
        Vector state = f * load_if(before, unit, lanes) + i * g;
        out.set(0, unit, lanes, i);
        out.set(1, unit, lanes, f);
        out.set(2, unit, lanes, g);
        out.set(3, unit, lanes, o);
        store_some(cs->floats() + at, state, lanes);
        store_some(hs->floats() + at, o * tanh(state), lanes);
    };
    forward<4>(s, optional(h), optional(packed), hs->floats(), cell);
}

KERNEL void lstm_grad(const Array* g_hs, const Array* g_cs, const Array* cs, const Array* gates, const Array* c, const Array* packed, const Array* d, const Array* dh_first, const Array* dc_first, long reverse, long start, long stop) {
    Shape s(cs, reverse, start, stop);
    const float *from_h = optional(g_hs), *from_c = optional(g_cs), *first = optional(c);
    auto cell = [&](long n, long sample, float* dh, float* dc) {
        long t = s.step(n), row = (t * s.batch + sample) * s.units;
        const float* before = s.before(cs->floats(), first, n, sample);
        Gates<4> in(gates->floats(), s, t, sample), out(d->floats(), s, t, sample);
        by_vectors(0, s.units, [&](long unit, long lanes) {
            Vector i = in.get(0, unit, lanes), f = in.get(1, unit, lanes);
            Vector g = in.get(2, unit, lanes), o = in.get(3, unit, lanes);
            Vector tanh_c = tanh(load_some(cs->floats() + row + unit, lanes));
            Vector to_h = load(dh + unit) + load_if(from_h, row + unit, lanes);
            Vector to_c = load(dc + unit) + load_if(from_c, row + unit, lanes) + to_h * o * (1.0f - tanh_c * tanh_c);
            out.set(0, unit, lanes, to_c * g * i * (1.0f - i));
            out.set(1, unit, lanes, to_c * load_if(before, unit, lanes) * f * (1.0f - f));
            out.set(2, unit, lanes, to_c * i * (1.0f - g * g));
            out.set(3, unit, lanes, to_h * tanh_c * o * (1.0f - o));
            store(dh + unit, Vector{});
            store(dc + unit, to_c * f);
        });
    };
    backward(s, d->floats(), 4 * s.units, packed->floats(), dh_first->floats(), dc_first->floats(), cell);
}

// --- GRU; the gates are r, z, n, and beside them s, what r multiplies

KERNEL void gru(const Array* inputs, const Array* h, const Array* bias, const Array* packed, const Array* hs, const Array* gates, long reverse, long start, long stop) {
    Shape s(hs, reverse, start, stop);
    const float *first = optional(h), *shift = optional(bias);
    auto cell = [&](long n, long sample, long unit, long lanes, const float* products) {
        long t = s.step(n);
        Gates<3> in(inputs->floats(), s, t, sample);
        Gates<4> out(gates->floats(), s, t, sample);
        auto product = [&](int gate) {
            return load(products + gate * WIDTH) + load_if(shift, gate * s.units + unit, lanes);
        };
        Vector r = sigmoid(in.get(0, unit, lanes) + product(0)), z = sigmoid(in.get(1, unit, lanes) + product(1));
        Vector reset = product(2), candidate = tanh(in.get(2, unit, lanes) + r * reset);
        Vector before = load_if(s.before(hs->floats(), first, n, sample), unit, lanes);
        out.set(0, unit, lanes, r);
        out.set(1, unit, lanes, z);
        out.set(2, unit, lanes, candidate);
        out.set(3, unit, lanes, reset);
        store_some(hs->floats() + (t * s.batch + sample) * s.units + unit, candidate + z * (before - candidate), lanes);
    };
    forward<3>(s, first, optional(packed), hs->floats(), cell);
}

KERNEL void gru_grad(const Array* g, const Array* hs, const Array* gates, const Array* h, const Array* packed, const Array* d_inputs, const Array* d_products, const Array* dh_first, long reverse, long start, long stop) {
    Shape s(hs, reverse, start, stop);
    const float* first = optional(h);
    auto cell = [&](long step, long sample, float* dh, float*) {
        long t = s.step(step), row = (t * s.batch + sample) * s.units;
        const float* before = s.before(hs->floats(), first, step, sample);
        Gates<4> in(gates->floats(), s, t, sample);
        Gates<3> to_inputs(d_inputs->floats(), s, t, sample), to_products(d_products->floats(), s, t, sample);
        by_vectors(0, s.units, [&](long unit, long lanes) {
            Vector r = in.get(0, unit, lanes), z = in.get(1, unit, lanes), n = in.get(2, unit, lanes);
            Vector to_h = load(dh + unit) + load_some(g->floats() + row + unit, lanes);
            Vector dn = to_h * (1.0f - z) * (1.0f - n * n);
            Vector dr = dn * in.get(3, unit, lanes) * r * (1.0f - r);
            Vector dz = to_h * (load_if(before, unit, lanes) - n) * z * (1.0f - z);
            to_inputs.set(0, unit, lanes, dr);
            to_inputs.set(1, unit, lanes, dz);
            to_inputs.set(2, unit, lanes, dn);
            to_products.set(0, unit, lanes, dr);
            to_products.set(1, unit, lanes, dz);
            to_products.set(2, unit, lanes, dn * r);
            store(dh + unit, to_h * z);
        });
    };
    backward(s, d_products->floats(), 3 * s.units, packed->floats(), dh_first->floats(), nullptr, cell);
}

// --- the plain network: relu, or else tanh

KERNEL void rnn(const Array* inputs, const Array* h, const Array* bias, const Array* packed, const Array* hs, long relu, long reverse, long start, long stop) {
    Shape s(hs, reverse, start, stop);
    const float* shift = optional(bias);
    auto cell = [&](long n, long sample, long unit, long lanes, const float* products) {
        long at = (s.step(n) * s.batch + sample) * s.units + unit;
        Vector sum = load_some(inputs->floats() + at, lanes) + load(products) + load_if(shift, unit, lanes);
        Vector state = relu ? select(sum < 0.0f, Vector{}, sum) : tanh(sum);  // NaN stays
        store_some(hs->floats() + at, state, lanes);
    };
    forward<1>(s, optional(h), optional(packed), hs->floats(), cell);
}

KERNEL void rnn_grad(const Array* g, const Array* hs, const Array* packed, const Array* d, const Array* dh_first, long relu, long reverse, long start, long stop) {
    Shape s(hs, reverse, start, stop);
    auto cell = [&](long n, long sample, float* dh, float*) {
        long row = (s.step(n) * s.batch + sample) * s.units;
        by_vectors(0, s.units, [&](long unit, long lanes) {
            Vector y = load_some(hs->floats() + row + unit, lanes);
            Vector to_h = load(dh + unit) + load_some(g->floats() + row + unit, lanes);
            Vector slope = relu ? select(y > 0.0f, broadcast(1.0f), Vector{}) : 1.0f - y * y;
            store_some(d->floats() + row + unit, to_h * slope, lanes);
            store(dh + unit, Vector{});
        });
    };
    backward(s, d->floats(), s.units, packed->floats(), dh_first->floats(), nullptr, cell);
}
