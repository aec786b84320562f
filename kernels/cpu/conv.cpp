// Convolution in two dimensions, its gradients with respect to the input and the weight: no matrix of windows is made.
//
// Activations lie channels-last in memory. A tile of the result is P pixels times V vectors of output channels, held in
// registers: for each weight of a window, V vectors of weights are loaded, and P elements of the input are broadcast,
// each straight from its pixel. Weights are packed so that a tile reads them in order, and taken in blocks of channels
// that stay in the first-level cache while all pixels of an image pass. Which pixels make up a tile is a table:
// - along the pixels of one padded image, where images are large (`conv_forward`);
// - the same pixel of several images, where they are small or the convolution is the gradient of a strided one
//   (`conv_gather`): then every window leaves out what lies in the padding, or between the strides.
// The weight's gradient is the sum over pixels of outer products: R channels of the input times V vectors of channels
// of the output's gradient, again held in registers.
#include "conv.h"

namespace {

// How many input channels a block has whose weights stay in the first-level cache.
long channel_block(long channels, long taps, long lanes) {
    long fitting = std::max(8L, (40 << 10) / (taps * lanes * long(sizeof(float))));
    if (fitting >= channels) return channels;
    long blocks = (channels + fitting - 1) / fitting;
    return (channels + blocks - 1) / blocks;
}

// Where each output pixel's window starts in a padded image.
long* window_starts(const Geometry& g) {
    long* starts = scratch<long>(1, g.out_height * g.out_width);
    long row = g.padded_width() * g.channels;
    for (long h = 0; h < g.out_height; h++)
        for (long w = 0; w < g.out_width; w++)
            starts[h * g.out_width + w] = h * g.stride_height * row + w * g.stride_width * g.channels;
    return starts;
}

// The segments of a window in a padded image, for the input channels [first, last) of a group.
// weights: of a block of output channels; tap, row: how far apart those of taps and of input channels are.
int padded_segments(Segment* segments, const Geometry& g, const float* weights, long tap, long row_of_weights, long first,
                    long last) {
    long channels = g.in_group(), row = g.padded_width() * g.channels;
    bool joined = g.groups == 1 && g.dilation_width == 1 && last - first == channels;  // a window's row is adjacent
    int count = 0;
    for (long kh = 0; kh < g.kernel_height; kh++)
        for (long kw = 0; kw < (joined ? 1 : g.kernel_width); kw++) {
            long offset = kh * g.dilation_height * row + kw * g.dilation_width * g.channels + first;
            const float* own = weights + (kh * g.kernel_width + kw) * tap + first * row_of_weights;
            segments[count++] = {offset, joined ? g.kernel_width * channels : last - first, own};
        }
    return count;
}

// y and offsets (OH / 2, OW / 2, O): the maxima of 2x2 neighbours in a whole result (OH, OW, O); the rows and the
// channels of these ranges.
void pool(const float* whole, const Geometry& g, float* y, uint8_t* offsets, long row_start, long row_stop, long start,
          long stop) {
    long outs = g.outputs, row = g.out_width * outs;
    for (long h = row_start; h < row_stop; h++)
        for (long w = 0; w < g.out_width / 2; w++) {
            const float* corner = whole + 2 * h * row + 2 * w * outs;
            long at = (h * (g.out_width / 2) + w) * outs;
            for (long o = start; o < stop; o += WIDTH) {
                const float* p = corner + o;
                long lanes = stop - o;
                if (lanes >= WIDTH) {
                    Vector part[2][2] = {{load(p), load(p + outs)}, {load(p + row), load(p + row + outs)}};
                    store_maximum(part, y + at + o, offsets + at + o);
                    continue;
                }
                float parts[4][WIDTH] = {}, largest[WIDTH];
                uint8_t which[WIDTH];
                for (int i = 0; i < 4; i++)
                    memcpy(parts[i], p + i / 2 * row + i % 2 * outs, lanes * sizeof(float));
                Vector part[2][2] = {{load(parts[0]), load(parts[1])}, {load(parts[2]), load(parts[3])}};
                store_maximum(part, largest, which);
                memcpy(y + at + o, largest, lanes * sizeof(float));
                memcpy(offsets + at + o, which, lanes);
            }
        }
}

}  // namespace

// How many output channels a block of packed weights has, for a group of so many.
KERNEL long conv_lanes(long outputs) { return vectors_for(outputs) * WIDTH; }

// packed (groups, blocks, taps, I, lanes) from weight (O, I, KH, KW) in any order in memory, zeros in the lanes beyond
// the outputs of a group; with `turned`, for the gradient with respect to the input: inputs and outputs exchanged, and
// with `flip` the taps in reverse.
KERNEL void conv_pack(const Array* weight, const Array* packed, long groups, int turned, int flip) {
    long taps_wide = weight->shape[3], taps = weight->shape[2] * taps_wide;
    long outs = weight->shape[0] / groups, ins = weight->shape[1];
    long by_out = weight->strides[0], by_in = weight->strides[1];
    if (turned) std::swap(outs, ins), std::swap(by_out, by_in);
    long by_group = weight->shape[0] / groups * weight->strides[0];
    long lanes = packed->shape[4], blocks = packed->shape[1];
    float* to = packed->floats();
    for (long group = 0; group < groups; group++)
        for (long block = 0; block < blocks; block++)
            for (long t = 0; t < taps; t++) {
                long tap = flip ? taps - 1 - t : t;
                const char* from = weight->bytes + group * by_group + tap / taps_wide * weight->strides[2] +
                                   tap % taps_wide * weight->strides[3] + block * lanes * by_out;
                long n = std::min(lanes, outs - block * lanes);
                if (by_out == sizeof(float)) {
                    for (long i = 0; i < ins; i++, to += lanes) {
                        memcpy(to, from + i * by_in, n * sizeof(float));
                        memset(to + n, 0, (lanes - n) * sizeof(float));
                    }
                } else {
                    if (n < lanes) memset(to, 0, ins * lanes * sizeof(float));
                    for (long i = 0; i < ins; i += WIDTH)  // in squares, so that lines are used while they are there
                        for (long o = 0; o < n; o++)
                            for (long j = i; j < std::min(i + WIDTH, ins); j++)
                                to[j * lanes + o] = *reinterpret_cast<const float*>(from + j * by_in + o * by_out);
                    to += ins * lanes;
                }
            }
}

// y (N, OH, OW, O) of x (N, C, H, W); or, given offsets (N, OH / 2, OW / 2, O), of y pooled by maxima of 2x2.
// start, stop: of all images, the bands of rows that each is cut into, and of each of these the blocks of channels.
// bias: (groups, blocks, lanes) as packed's, always given. shape: a Geometry.
KERNEL void conv_forward(const Array* x, const Array* packed, const Array* bias, const Array* y, const Array* offsets, const Array* shape, int relu, long bands, long start, long stop) {
    const Geometry& g = geometry_of(shape);
    Weights weights = {packed};
    long lanes = weights.lanes(), blocks = weights.blocks(), channels = g.in_group();
    int vectors = lanes / WIDTH;
    long pixels = g.out_height * g.out_width, step = channel_block(channels, g.taps(), lanes);
    const long* from = window_starts(g);
    long* to = scratch<long>(2, pixels);
    for (long p = 0; p < pixels; p++) to[p] = p * g.outputs;
    Segment* segments = scratch<Segment>(3, g.taps());
    bool pooled = offsets != gn_none;
    float* apart = pooled ? scratch(4, pixels * g.outputs) : nullptr;
    long pooled_size = g.out_height / 2 * (g.out_width / 2) * g.outputs;
    long each = blocks * g.groups, rows = pooled ? g.out_height / 2 : g.out_height, padded = -1;
    const float* image = nullptr;
    for (long unit = start; unit < stop; unit++) {
        long n = unit / (bands * each), band = unit / each % bands, group = unit % each / blocks, block = unit % blocks;
        if (n != padded) {
            image = padded_image(x, n, g, g.padded_height(), g.padded_width());
            padded = n;
        }
        float* whole = pooled ? apart : y->floats() + n * pixels * g.outputs;
        long row_start = rows * band / bands, row_stop = rows * (band + 1) / bands;
        long first_pixel = (pooled ? 2 : 1) * row_start * g.out_width, last_pixel = (pooled ? 2 : 1) * row_stop * g.out_width;
        long first_output = group * g.out_group() + block * lanes, width = std::min(lanes, g.out_group() - block * lanes);
        for (long c = 0; c < channels; c += step) {
            long last = std::min(c + step, channels);
            int count = padded_segments(segments, g, weights.block(group, block), weights.tap(), weights.row(), c, last);
            const float* first = c ? nullptr : bias->floats() + (group * blocks + block) * lanes;
            Target target = {first, relu && last == channels, width, weights.row()};
            tiles(vectors, image + group * channels, from + first_pixel, whole + first_output, to + first_pixel,
                  last_pixel - first_pixel, segments, count, target);
        }
        if (pooled)
            pool(whole, g, y->floats() + n * pooled_size, offsets->data<uint8_t>() + n * pooled_size, row_start, row_stop,
                 first_output, first_output + width);
    }
}

// As conv_forward, for the images [start, stop) of a dense x (N, H, W, C), a pixel of all images at a time.
// transposed: shape is that of a convolution whose input is y (N, H, W, C) and whose output is x (N, OH, OW, O), and
// this is the gradient with respect to its input; packed is turned then, but not flipped.
KERNEL void conv_gather(const Array* x, const Array* packed, const Array* bias, const Array* y, const Array* offsets, const Array* shape, int relu, int transposed, long start, long stop) {
    const Geometry& g = geometry_of(shape);
    Weights weights = {packed};
    long lanes = weights.lanes(), blocks = weights.blocks();
    int vectors = lanes / WIDTH;
    long height = transposed ? g.out_height : g.height, width = transposed ? g.out_width : g.width;
    long to_height = transposed ? g.height : g.out_height, to_width = transposed ? g.width : g.out_width;
    long all_in = transposed ? g.outputs : g.channels, all_out = transposed ? g.channels : g.outputs;
    long ins = all_in / g.groups, outs = all_out / g.groups;
    Axis rows = rows_of(g, transposed), columns = columns_of(g, transposed);
    long step = channel_block(ins, g.taps(), lanes);
    constexpr long AT_A_TIME = 48;  // images: a multiple of every tile's length
    long from[AT_A_TIME], to[AT_A_TIME];
    for (long n = 0; n < AT_A_TIME; n++) {
        from[n] = n * height * width * all_in;
        to[n] = n * to_height * to_width * all_out;
    }
    Segment* segments = scratch<Segment>(3, g.taps());
    bool pooled = offsets != gn_none;
    long size = to_height * to_width * all_out, pooled_size = to_height / 2 * (to_width / 2) * all_out;
    float* apart = pooled ? scratch(4, AT_A_TIME * size) : nullptr;
    for (long n = start; n < stop; n += AT_A_TIME) {
        long images = std::min(AT_A_TIME, stop - n);
        float* whole = pooled ? apart : y->floats() + n * size;
        for (long group = 0; group < g.groups; group++)
            for (long block = 0; block < blocks; block++)
                for (long c = 0; c < ins; c += step) {
                    long last = std::min(c + step, ins);
                    const float* own = weights.block(group, block) + c * weights.row();
                    const float* input = x->floats() + n * height * width * all_in + group * ins;
                    float* output = whole + group * outs + block * lanes;
                    const float* first = c ? nullptr : bias->floats() + (group * blocks + block) * lanes;
                    Target target = {first, relu && last == ins, std::min(lanes, outs - block * lanes), weights.row()};
                    for (long h = 0; h < to_height; h++)
                        for (long w = 0; w < to_width; w++) {
                            int count = 0;
                            for (long kh = 0; kh < g.kernel_height; kh++) {
                                long row = rows.meets(h, kh);
                                for (long kw = 0; row >= 0 && kw < g.kernel_width; kw++) {
                                    long column = columns.meets(w, kw);
                                    if (column < 0) continue;
                                    long tap = kh * g.kernel_width + kw;
                                    segments[count++] = {(row * width + column) * all_in + c, last - c,
                                                         own + tap * weights.tap()};
                                }
                            }
                            tiles(vectors, input, from, output + (h * to_width + w) * all_out, to, images, segments,
                                  count, target);
                        }
                }
        for (long i = 0; pooled && i < images; i++)
            pool(whole + i * size, g, y->floats() + (n + i) * pooled_size,
                 offsets->data<uint8_t>() + (n + i) * pooled_size, 0, g.out_height / 2, 0, g.outputs);
    }
}

namespace {

// Adds to sums (groups, taps, I, all_lanes) the weight's gradient of the images [start, stop).
void add_weight_sums(const Array* x, const Array* gradient, float* sums, long all_lanes, const Geometry& g, bool small,
                     long start, long stop) {
    long outs = g.out_group(), ins = g.in_group();
    int vectors = vectors_for(outs);
    long lanes = vectors * WIDTH, blocks = all_lanes / lanes;
    long pixels = g.out_height * g.out_width;
    bool ragged = outs != all_lanes;  // then vectors of a group's last outputs would reach beyond them
    long from[PLACES], to[PLACES];
    Sums all(sums, g.groups * g.taps() * ins * all_lanes, 5);
    auto add = [&](const float* inputs, long tap, long length, const float* gradients, long count) {
        for (long group = 0; group < g.groups; group++) {
            const float* own = gradients + group * outs;
            long apart[PLACES];
            if (ragged) {
                float* copy = scratch(4, PLACES * all_lanes);
                for (long i = 0; i < count; i++) {
                    memcpy(copy + i * all_lanes, own + to[i], outs * sizeof(float));
                    memset(copy + i * all_lanes + outs, 0, (all_lanes - outs) * sizeof(float));
                    apart[i] = i * all_lanes;
                }
                own = copy;
            }
            add_products(inputs + group * ins, from, length, own, ragged ? apart : to, count,
                         all.part + (group * g.taps() + tap) * ins * all_lanes, blocks, vectors);
        }
    };
    if (small) {
        Axis rows = rows_of(g, false), columns = columns_of(g, false);
        for (long kh = 0; kh < g.kernel_height; kh++)
            for (long kw = 0; kw < g.kernel_width; kw++) {
                long count = 0, tap = kh * g.kernel_width + kw;
                for (long n = start; n < stop; n++)
                    for (long h = 0; h < g.out_height; h++) {
                        long row = rows.meets(h, kh);
                        for (long w = 0; row >= 0 && w < g.out_width; w++) {
                            long column = columns.meets(w, kw);
                            if (column < 0) continue;
                            from[count] = ((n * g.height + row) * g.width + column) * g.channels;
                            to[count++] = (n * pixels + h * g.out_width + w) * g.outputs;
                            if (count == PLACES) {
                                add(x->floats(), tap, ins, gradient->floats(), count);
                                count = 0;
                            }
                        }
                    }
                if (count) add(x->floats(), tap, ins, gradient->floats(), count);
            }
        return;
    }
    Segment* segments = scratch<Segment>(3, g.taps());
    const long* starts = window_starts(g);
    for (long n = start; n < stop; n++) {
        const float* image = padded_image(x, n, g, g.padded_height(), g.padded_width());
        int count = padded_segments(segments, g, nullptr, 0, 0, 0, ins);
        for (long p = 0; p < pixels; p += PLACES) {
            long places = std::min(PLACES, pixels - p);
            for (long i = 0; i < places; i++) {
                from[i] = starts[p + i];
                to[i] = (n * pixels + p + i) * g.outputs;
            }
            for (int s = 0; s < count; s++)  // a segment begins with tap s, or, joined, with the first of row s
                add(image + segments[s].offset, count == g.taps() ? s : s * g.kernel_width, segments[s].length,
                    gradient->floats(), places);
            all.count(places);
        }
    }
}

}  // namespace

// sums (parts, groups, taps, I, blocks * lanes): those of the parts [start, stop) of the images, which start as zeros.
// gradient: dense, (N, OH, OW, O).
// small: leave out what lies in the padding, for which x must be dense, (N, H, W, C); else x is (N, C, H, W).
KERNEL void conv_weight_sums(const Array* x, const Array* gradient, const Array* sums, const Array* shape, int small, long start, long stop) {
    by_part(sums, gradient->shape[0], start, stop, [&](float* own, long first, long last) {
        add_weight_sums(x, gradient, own, sums->shape[4], geometry_of(shape), small, first, last);
    });
}
