// Convolution by 3x3 windows, one pixel apart, after Lavin and Gray, "Fast algorithms for convolutional neural
// networks" (2015): F(2x2, 3x3), which multiplies 2.25 times less.
//
// The result is made in tiles of 2x2 pixels. The 4x4 inputs of a tile are transformed to 16 numbers per channel, which
// are multiplied, for each of the 16, by the transformed weights, a product of matrices (tiles, C) x (C, O); 16 sums
// per output channel are transformed back to 2x2 results. The transforms of a block of tiles stay in the second-level
// cache. The gradient with respect to the weight is this algorithm's own derivative, and as much cheaper.
//
// The transforms only add and halve, and a sum has 9 times fewer terms: the rounding errors are no larger than those of
// the sums of `conv_forward` (tests/kernels/cpu/test_conv.py compares both with float64), so it is no trade of accuracy.
//
// C and O are multiples of the vectors' width, and activations lie channels-last.
#include "conv.h"

namespace {

// B' d B of the 4x4 pixels from `pixel` on, for one vector of channels; the 16 results lie `apart` floats apart.
void transform_input(const float* pixel, long by_row, long by_column, float* to, long apart) {
    Vector t[4][4];
    for (int r = 0; r < 4; r++) {
        const float* row = pixel + r * by_row;
        Vector a = load(row), b = load(row + by_column), c = load(row + 2 * by_column), d = load(row + 3 * by_column);
        t[r][0] = a - c;
        t[r][1] = b + c;
        t[r][2] = c - b;
        t[r][3] = b - d;
    }
    for (int i = 0; i < 4; i++) {
        store(to + i * apart, t[0][i] - t[2][i]);
        store(to + (4 + i) * apart, t[1][i] + t[2][i]);
        store(to + (8 + i) * apart, t[2][i] - t[1][i]);
        store(to + (12 + i) * apart, t[1][i] - t[3][i]);
    }
}

// A' m A of 16 vectors that lie `apart` floats apart: 2x2 results.
void transform_output(const float* from, long apart, Vector y[2][2]) {
    Vector t[2][4];
    for (int i = 0; i < 4; i++) {
        Vector a = load(from + i * apart), b = load(from + (4 + i) * apart), c = load(from + (8 + i) * apart),
               d = load(from + (12 + i) * apart);
        t[0][i] = a + b + c;
        t[1][i] = b - c - d;
    }
    for (int r = 0; r < 2; r++) {
        y[r][0] = t[r][0] + t[r][1] + t[r][2];
        y[r][1] = t[r][1] - t[r][2] - t[r][3];
    }
}

// A g A' of a 2x2 gradient.
void transform_gradient(const Vector g[2][2], float* to, long apart) {
    Vector t[4][2];
    for (int c = 0; c < 2; c++) {
        t[0][c] = g[0][c];
        t[1][c] = g[0][c] + g[1][c];
        t[2][c] = g[0][c] - g[1][c];
        t[3][c] = -g[1][c];
    }
    for (int r = 0; r < 4; r++) {
        store(to + (4 * r) * apart, t[r][0]);
        store(to + (4 * r + 1) * apart, t[r][0] + t[r][1]);
        store(to + (4 * r + 2) * apart, t[r][0] - t[r][1]);
        store(to + (4 * r + 3) * apart, -t[r][1]);
    }
}

// The tiles of all images, in order.
struct Tiles {
    const Geometry& g;
    long high, wide;
    long image = -1;  // the one that is padded at the moment
    const float* padded = nullptr;

    // pooled: results of a last odd row or column are not wanted.
    Tiles(const Geometry& geometry, bool pooled)
        : g(geometry), high((g.out_height + !pooled) / 2), wide((g.out_width + !pooled) / 2) {}

    long each() const { return high * wide; }
    long width() const { return 2 * wide + 2; }

    // The first of a tile's 4x4 inputs.
    const float* inputs(const Array* x, long tile) {
        long n = tile / each(), h = tile % each() / wide, w = tile % wide;
        if (n != image) {
            padded = padded_image(x, n, g, 2 * high + 2, width());
            image = n;
        }
        return padded + (2 * h * width() + 2 * w) * g.channels;
    }
};

// How many tiles' transforms, of so many numbers each, are kept at a time.
long tiles_at_a_time(long numbers) {
    long fitting = (512 << 10) / (16 * numbers * long(sizeof(float)));
    return std::clamp(fitting / 12 * 12, 12L, 192L);
}

// How far apart to keep the 16 numbers of a tile, blocks of so many floats each: not so that all 16 compete for the same
// few lines of a cache.
long apart_for(long floats) { return floats + WIDTH; }

}  // namespace

// How many tiles an image of the result has.
KERNEL long winograd_tiles(const Array* shape, int pooled) { return Tiles(geometry_of(shape), pooled).each(); }

// transformed (16, blocks, C, lanes): G w G' of packed (1, blocks, 9, C, lanes), of which conv.h tells.
KERNEL void winograd_weights(const Array* packed, const Array* transformed) {
    Weights weights = {packed};
    long blocks = weights.blocks(), channels = weights.channels(), lanes = weights.lanes();
    long apart = blocks * channels * lanes;
    float* to = transformed->floats();
    for (long block = 0; block < blocks; block++)
        for (long channel = 0; channel < channels; channel++)
            for (long i = 0; i < lanes; i += WIDTH, to += WIDTH) {
                const float* w = weights.block(0, block) + channel * weights.row() + i;
                Vector t[4][3];
                for (int c = 0; c < 3; c++) {
                    Vector a = load(w + c * weights.tap()), b = load(w + (3 + c) * weights.tap()),
                           d = load(w + (6 + c) * weights.tap());
                    t[0][c] = a;
                    t[1][c] = 0.5f * (a + d + b);
                    t[2][c] = 0.5f * (a + d - b);
                    t[3][c] = d;
                }
                for (int r = 0; r < 4; r++) {
                    Vector a = t[r][0], b = t[r][1], d = t[r][2];
                    store(to + 4 * r * apart, a);
                    store(to + (4 * r + 1) * apart, 0.5f * (a + d + b));
                    store(to + (4 * r + 2) * apart, 0.5f * (a + d - b));
                    store(to + (4 * r + 3) * apart, d);
                }
            }
}

// The tiles [start, stop) of y (N, OH, OW, O), or, given offsets (N, OH / 2, OW / 2, O), of y pooled by maxima of 2x2.
// bias: (blocks, lanes), always given.
KERNEL void winograd_forward(const Array* x, const Array* transformed, const Array* bias, const Array* y, const Array* offsets, const Array* shape, int relu, long start, long stop) {
    const Geometry& g = geometry_of(shape);
    bool pooled = offsets != gn_none;
    Tiles tiles_of(g, pooled);
    long channels = g.channels, outs = g.outputs, blocks = transformed->shape[1], lanes = transformed->shape[3];
    long most = tiles_at_a_time(channels + outs);
    long by_input = apart_for(most * channels), by_sum = apart_for(most * outs);
    float* inputs = scratch(4, 16 * by_input);
    float* sums = scratch(5, 16 * by_sum);
    long* from = scratch<long>(1, most);
    long* to = scratch<long>(2, most);
    for (long i = 0; i < most; i++) {
        from[i] = i * channels;
        to[i] = i * outs;
    }
    static const float zeros[4 * WIDTH] = {};
    for (long first = start; first < stop; first += most) {
        long count = std::min(most, stop - first);
        for (long i = 0; i < count; i++) {
            const float* pixel = tiles_of.inputs(x, first + i);
            for (long c = 0; c < channels; c += WIDTH)
                transform_input(pixel + c, tiles_of.width() * channels, channels, inputs + i * channels + c,
                                by_input);
        }
        for (long k = 0; k < 16; k++)
            for (long block = 0; block < blocks; block++) {
                Segment segment = {0, channels, transformed->floats() + (k * blocks + block) * channels * lanes};
                tiles(lanes / WIDTH, inputs + k * by_input, from, sums + k * by_sum + block * lanes, to,
                      count, &segment, 1, {zeros, false, lanes, lanes});
            }
        for (long i = 0; i < count; i++) {
            long tile = first + i, n = tile / tiles_of.each(), h = tile % tiles_of.each() / tiles_of.wide;
            long w = tile % tiles_of.wide;
            for (long o = 0; o < outs; o += WIDTH) {
                Vector part[2][2], start_from = load(bias->floats() + o);
                transform_output(sums + i * outs + o, by_sum, part);
                for (int r = 0; r < 2; r++)
                    for (int c = 0; c < 2; c++) {
                        part[r][c] += start_from;
                        if (relu) part[r][c] = select(part[r][c] < 0.0f, Vector{}, part[r][c]);
                    }
                if (pooled) {
                    long at = tile * outs + o;
                    store_maximum(part, y->floats() + at, offsets->data<uint8_t>() + at);
                    continue;
                }
                for (int r = 0; r < 2 && 2 * h + r < g.out_height; r++)
                    for (int c = 0; c < 2 && 2 * w + c < g.out_width; c++)
                        store(y->floats() + ((n * g.out_height + 2 * h + r) * g.out_width + 2 * w + c) * outs + o,
                              part[r][c]);
            }
        }
    }
}

namespace {

// Adds to sums (16, C, O) those of the tiles [start, stop).
void add_weight_sums(const Array* x, const Array* gradient, float* sums, const Geometry& g, long start, long stop) {
    Tiles tiles_of(g, false);
    long channels = g.channels, outs = g.outputs;
    int vectors = vectors_for(outs);
    long most = std::min(PLACES, tiles_at_a_time(channels + outs));
    long by_input = apart_for(most * channels), by_sum = apart_for(most * outs);
    float* inputs = scratch(4, 16 * by_input);
    float* gradients = scratch(5, 16 * by_sum);
    long* from = scratch<long>(1, most);
    long* to = scratch<long>(2, most);
    for (long i = 0; i < most; i++) {
        from[i] = i * channels;
        to[i] = i * outs;
    }
    Sums all(sums, 16 * channels * outs, 6);
    for (long first = start; first < stop; first += most) {
        long count = std::min(most, stop - first);
        for (long i = 0; i < count; i++) {
            long tile = first + i, n = tile / tiles_of.each(), h = tile % tiles_of.each() / tiles_of.wide;
            long w = tile % tiles_of.wide;
            const float* pixel = tiles_of.inputs(x, tile);
            for (long c = 0; c < channels; c += WIDTH)
                transform_input(pixel + c, tiles_of.width() * channels, channels, inputs + i * channels + c,
                                by_input);
            const float* corner = gradient->floats() + ((n * g.out_height + 2 * h) * g.out_width + 2 * w) * outs;
            bool below = 2 * h + 1 < g.out_height, right = 2 * w + 1 < g.out_width;
            for (long o = 0; o < outs; o += WIDTH) {
                const float* p = corner + o;
                Vector part[2][2] = {{load(p), right ? load(p + outs) : Vector{}},
                                     {below ? load(p + g.out_width * outs) : Vector{},
                                      below && right ? load(p + (g.out_width + 1) * outs) : Vector{}}};
                transform_gradient(part, gradients + i * outs + o, by_sum);
            }
        }
        for (long k = 0; k < 16; k++)
            add_products(inputs + k * by_input, from, channels, gradients + k * by_sum, to, count,
                         all.part + k * channels * outs, outs / (vectors * WIDTH), vectors);
        all.count(count);
    }
}

}  // namespace

// sums (parts, 16, C, O): the products of transformed inputs and gradients, of the parts [start, stop) of all tiles; they
// start as zeros. gradient: dense, (N, OH, OW, O).
KERNEL void winograd_weight_sums(const Array* x, const Array* gradient, const Array* sums, const Array* shape, long start, long stop) {
    const Geometry& g = geometry_of(shape);
    long tiles = gradient->shape[0] * Tiles(g, false).each();
    by_part(sums, tiles, start, stop, [&](float* own, long first, long last) {
        add_weight_sums(x, gradient, own, g, first, last);
    });
}

// grad (9, C, O): G' s G of sums (16, C, O).
KERNEL void winograd_weight_grad(const Array* sums, const Array* grad) {
    long apart = sums->shape[1] * sums->shape[2];
    for (long i = 0; i < apart; i += WIDTH) {
        const float* s = sums->floats() + i;
        Vector t[3][4];
        for (int c = 0; c < 4; c++) {
            Vector a = load(s + c * apart), b = load(s + (4 + c) * apart), d = load(s + (8 + c) * apart),
                   e = load(s + (12 + c) * apart);
            t[0][c] = a + 0.5f * (b + d);
            t[1][c] = 0.5f * (b - d);
            t[2][c] = 0.5f * (b + d) + e;
        }
        for (int r = 0; r < 3; r++) {
            Vector half = 0.5f * (t[r][1] + t[r][2]);
            store(grad->floats() + 3 * r * apart + i, t[r][0] + half);
            store(grad->floats() + (3 * r + 1) * apart + i, 0.5f * (t[r][1] - t[r][2]));
            store(grad->floats() + (3 * r + 2) * apart + i, half + t[r][3]);
        }
    }
}
