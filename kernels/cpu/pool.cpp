// Pooling: the maximum or the sum of each window, and the way back.
//
// Arrays (N, C, H, W) of one call lie either channels-last, where vectors are of channels, or as planes, where they are
// of neighbours in a row; other than that, strides are as they may be. Results have no gaps: channels-last they are
// (N, H, W, C) in memory. What is not there, beyond the edges, is left out instead of padded.
//
// On the way back, each row (or plane) of the result gathers what reaches it from the windows that contain it, in an
// order that depends on nothing else; where they do not overlap, each element is written once. A unit of work, for the
// caller to divide, is a row of pixels of the result; of planes a row of elements, and on the way back a plane.
#include "flat.h"

namespace {

// One axis of the input, and its windows. With a stride of 0 these are adaptive: window i is from i * size / out,
// rounded down, to (i + 1) * size / out, rounded up, and `kernel` the length of the longest.
struct Axis {
    int64_t size, out, kernel, stride, pad, dilation;

    long begin(long window) const { return stride ? window * stride - pad : window * size / out; }

    // The places of a window that are inside begin with this one, and end before that one.
    long first(long window) const { return begin(window) >= 0 ? 0 : (dilation - 1 - begin(window)) / dilation; }
    long stop(long window) const {
        if (!stride) return ((window + 1) * size + out - 1) / out - begin(window);
        long room = size - begin(window), fit = room > 0 ? (room + dilation - 1) / dilation : 0;
        return fit < kernel ? fit : kernel;
    }
    bool tiles() const { return kernel == stride && pad == 0 && dilation == 1; }
    bool is_long() const { return !stride || out < 3 || kernel >= WIDTH / 2; }  // if dilation is 1
};

struct Geometry {
    Axis rows, columns;

    explicit Geometry(const Array* about) { memcpy(this, about->bytes, sizeof *this); }
    int last() const { return rows.kernel * columns.kernel - 1; }
};

template <class T> T* element(const Array* a, long n, long c, long h, long w) {
    const intptr_t* s = a->strides;
    return reinterpret_cast<T*>(a->bytes + n * s[0] + c * s[1] + h * s[2] + w * s[3]);
}

inline IntVector load_bytes(const uint8_t* p, long lanes) {
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__)
    __m128i bytes = _mm_maskz_loadu_epi8(lanes >= WIDTH ? 0xffff : (1 << lanes) - 1, p);
    return reinterpret_cast<IntVector>(_mm512_cvtepu8_epi32(bytes));
#else
    int found[WIDTH] = {};
    for (long i = 0; i < WIDTH && i < lanes; i++) found[i] = p[i];
    return *reinterpret_cast<const IntVector*>(found);
#endif
}

inline void store_bytes(uint8_t* p, IntVector v, long lanes) {
#if defined(__AVX512F__)
    __mmask16 some = lanes >= WIDTH ? 0xffff : (1 << lanes) - 1;
    _mm512_mask_cvtepi32_storeu_epi8(p, some, reinterpret_cast<__m512i>(v));
#else
    for (long i = 0; i < WIDTH && i < lanes; i++) p[i] = v[i];
#endif
}

// The elements p[lane * stride] in the lanes from `low` to `high`, in the others `outside`; nothing before the first or
// behind the last of these is read.
template <int STRIDE> inline Vector load_apart(const float* p, long stride, long low, long high, float outside) {
    if (low >= high) return broadcast(outside);
#if defined(__AVX512F__)
    __mmask16 lanes = (1u << high) - (1u << low);
    if constexpr (STRIDE == 1) return _mm512_mask_loadu_ps(broadcast(outside), lanes, p);
    if constexpr (STRIDE == 2) {
        uint32_t span = uint32_t((1ull << (2 * high - 1)) - (1ull << (2 * low)));
        __m512 left = _mm512_maskz_loadu_ps(span, p), right = _mm512_maskz_loadu_ps(span >> 16, p + WIDTH);
        __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
        return _mm512_mask_mov_ps(broadcast(outside), lanes, _mm512_permutex2var_ps(left, even, right));
    }
#endif
    float found[WIDTH];
    for (long i = 0; i < WIDTH; i++) found[i] = i >= low && i < high ? p[i * stride] : outside;
    return load(found);
}

// --- forward

// Where the places of each window along an axis begin and end that are inside.
struct Bounds {
    long* bounds;

    Bounds(const Axis& axis, int slot) : bounds(scratch<long>(slot, 2 * axis.out)) {
        for (long window = 0; window < axis.out; window++) {
            bounds[2 * window] = axis.first(window);
            bounds[2 * window + 1] = axis.stop(window);
        }
    }
    long first(long window) const { return bounds[2 * window]; }
    long stop(long window) const { return bounds[2 * window + 1]; }
};

// The places of a window that are inside: how far they are from where it begins, their columns and their numbers.
struct Places {
    long count = 0;
    long *bytes, *columns;
    int* numbers;

    explicit Places(const Geometry& of)
        : bytes(scratch<long>(0, of.last() + 1)), columns(scratch<long>(1, of.last() + 1)),
          numbers(scratch<int>(4, of.last() + 1)) {}

    void choose(const Geometry& of, const Array* x, long top, long bottom, long left, long right) {
        if (top == top_ && bottom == bottom_ && left == left_ && right == right_) return;
        top_ = top, bottom_ = bottom, left_ = left, right_ = right;
        count = 0;
        for (long i = top; i < bottom; i++)
            for (long j = left; j < right; j++) {
                bytes[count] = i * of.rows.dilation * x->strides[2] + j * of.columns.dilation * x->strides[3];
                columns[count] = j;
                numbers[count++] = i * of.columns.kernel + j;
            }
    }

  private:
    long top_ = -1, bottom_ = -1, left_ = -1, right_ = -1;
};

// step(places, load, lanes, at, vectors) for the windows whose results are in the rows from `start` to `stop`, some
// vectors of them at once: load(place, vector) is what they have at one of the places, `at` the first one's index.
template <class Step>
void each_pixel(const Array* x, const Geometry& of, long start, long stop, Step step) {
    constexpr int MANY = 4;
    const Axis &rows = of.rows, &columns = of.columns;
    long channels = x->shape[1];
    Places places(of);
    Bounds down(rows, 2), along(columns, 3);
    for (long unit = start; unit < stop; unit++) {
        long i = unit % rows.out, top = down.first(i), bottom = down.stop(i);
        for (long j = 0; j < columns.out; j++) {
            places.choose(of, x, top, bottom, along.first(j), along.stop(j));
            const char* corner = element<char>(x, unit / rows.out, 0, rows.begin(i), columns.begin(j));
            long at = (unit * columns.out + j) * channels, c = 0;
            auto load = [&](long lanes) {
                return [=, &places](long place, int vector) {
                    const float* from = reinterpret_cast<const float*>(corner + places.bytes[place]);
                    return load_some(from + c + vector * WIDTH, lanes);
                };
            };
            for (; c + MANY * WIDTH <= channels; c += MANY * WIDTH)
                step(places, load(WIDTH), long(WIDTH), at + c, Constant<MANY>{});
            by_vectors(c, channels, [&](long first, long lanes) {
                c = first;
                step(places, load(lanes), lanes, at + c, Constant<1>{});
            });
        }
    }
}

// The same where channels are planes; what lies beyond the sides counts as `outside`.
template <int STRIDE, class Step>
void each_in_planes(const Array* x, const Geometry& of, float outside, long start, long stop, Step step) {
    const Axis &rows = of.rows, &columns = of.columns;
    long channels = x->shape[1];
    Places places(of);
    Bounds down(rows, 2);
    // for each vector of windows and each place, between which lanes it is inside
    long* bounds = scratch<long>(3, 2 * columns.kernel * (columns.out / WIDTH + 1));
    for (long j = 0; j < columns.out; j++)
        for (long place = 0; place < columns.kernel; place++) {
            long* range = bounds + 2 * (j / WIDTH * columns.kernel + place);
            long at = columns.begin(j) + place * columns.dilation, lane = j % WIDTH;
            if (!lane) range[0] = range[1] = 0;
            if (at < 0) range[0] = range[1] = lane + 1;
            if (at >= 0 && at < columns.size) range[1] = lane + 1;
        }
    for (long unit = start; unit < stop; unit++) {
        long i = unit % rows.out, plane = unit / rows.out;
        places.choose(of, x, down.first(i), down.stop(i), 0, columns.kernel);
        const char* corner = element<char>(x, plane / channels, plane % channels, rows.begin(i), -columns.pad);
        for (long j = 0; j < columns.out; j += WIDTH) {
            const char* windows = corner + j * columns.stride * sizeof(float);
            const long* ranges = bounds + 2 * (j / WIDTH * columns.kernel);
            auto load = [&](long place, int) {
                const float* from = reinterpret_cast<const float*>(windows + places.bytes[place]);
                const long* range = ranges + 2 * places.columns[place];
                return load_apart<STRIDE>(from, columns.stride, range[0], range[1], outside);
            };
            long lanes = columns.out - j < WIDTH ? columns.out - j : WIDTH;
            step(places, load, lanes, unit * columns.out + j, Constant<1>{});
        }
    }
}

template <class Step>
void each_window(const Array* x, const Geometry& of, float outside, bool last, long start, long stop, Step step) {
    if (last)
        each_pixel(x, of, start, stop, step);
    else if (of.columns.stride == 1)
        each_in_planes<1>(x, of, outside, start, stop, step);
    else if (of.columns.stride == 2)
        each_in_planes<2>(x, of, outside, start, stop, step);
    else
        each_in_planes<0>(x, of, outside, start, stop, step);
}

// Sums of long windows in planes: along the rows of each window.
void sum_long(const Array* x, float* y, const Geometry& of, float factor, long start, long stop) {
    const Axis &rows = of.rows, &columns = of.columns;
    long channels = x->shape[1];
    Bounds down(rows, 0), along(columns, 1);
    for (long unit = start; unit < stop; unit++) {
        long i = unit % rows.out, plane = unit / rows.out, top = down.first(i), height = down.stop(i) - top;
        for (long j = 0; j < columns.out; j++) {
            long left = along.first(j), width = along.stop(j) - left;
            long n = plane / channels, c = plane % channels;
            const float* from = element<float>(x, n, c, rows.begin(i) + top, columns.begin(j) + left);
            long run = width, runs = height;
            if (width * long(sizeof(float)) == x->strides[2]) run = width * height, runs = 1;  // no gaps between them
            float total = 0, sums[1];
            for (long k = 0; k < runs; k++) {
                const float* row = from + k * (x->strides[2] / long(sizeof(float)));
                auto term = [&](long at, long lanes, Vector* terms) { terms[0] = load_some(row + at, lanes); };
                sum_over<1>(run, sums, term);
                total += sums[0];
            }
            y[unit * columns.out + j] = total * (columns.stride ? factor : factor / (height * width));
        }
    }
}

// --- back

// What windows hand to their elements: row(n, c, i).window(j) is a window, and of what `load` gives for a vector
// beginning there, at(number) is for the element that has this number in the window.

// g where `offsets` has the number, and where y, if there is one, is positive.
struct Chosen {
    const Array *g, *offsets, *y;

    struct Values {
        Vector slope;
        IntVector number;
        Vector at(int place) const { return select(number == place, slope, Vector{}); }
    };
    struct Window {
        const float* g;
        const uint8_t* offsets;
        const float* y;

        Values load(long at, long lanes) const {
            Vector slope = load_some(g + at, lanes);
            if (y) slope *= select(load_some(y + at, lanes) > 0, broadcast(1), Vector{});
            return {slope, load_bytes(offsets + at, lanes)};
        }
    };
    struct Row {
        Window first;
        long g, offsets, y;  // from one window to the next

        Window window(long j) const {
            return {first.g + j * g, first.offsets + j * offsets, first.y ? first.y + j * y : nullptr};
        }
    };
    Row row(long n, long c, long i) const {
        bool masked = y != gn_none;
        Window first{element<float>(g, n, c, i, 0), element<uint8_t>(offsets, n, c, i, 0),
                     masked ? element<float>(y, n, c, i, 0) : nullptr};
        return {first, g->strides[3] / long(sizeof(float)), offsets->strides[3],
                masked ? y->strides[3] / long(sizeof(float)) : 0};
    }
};

// g times a factor; of adaptive windows, divided by their size.
struct Shared {
    const Array* g;
    float factor;
    const Geometry* of;

    struct Values {
        Vector slope;
        Vector at(int) const { return slope; }
    };
    struct Window {
        const float* g;
        float share;

        Values load(long at, long lanes) const { return {load_some(g + at, lanes) * share}; }
    };
    struct Row {
        const float* first;
        long g;
        float factor;
        const Axis* adaptive;

        Window window(long j) const { return {first + j * g, adaptive ? factor / adaptive->stop(j) : factor}; }
    };
    Row row(long n, long c, long i) const {
        bool adaptive = !of->columns.stride;
        return {element<float>(g, n, c, i, 0), g->strides[3] / long(sizeof(float)),
                adaptive ? factor / of->rows.stop(i) : factor, adaptive ? &of->columns : nullptr};
    }
};

// The windows that contain each position of an axis, and the place it has in them.
struct Containing {
    long *ends, *windows, *places;

    Containing(const Axis& axis, int slot)
        : ends(scratch<long>(slot, axis.size + 1)), windows(scratch<long>(slot + 1, axis.size * axis.kernel)),
          places(scratch<long>(slot + 2, axis.size * axis.kernel)) {
        long found = 0, oldest = 0;
        for (long position = 0; position < axis.size; position++) {
            auto end = [&](long window) { return axis.begin(window) + (axis.stop(window) - 1) * axis.dilation; };
            while (oldest < axis.out && end(oldest) < position) oldest++;
            for (long window = oldest; window < axis.out && axis.begin(window) <= position; window++) {
                long place = (position - axis.begin(window)) / axis.dilation;
                if (place * axis.dilation != position - axis.begin(window) || place >= axis.stop(window)) continue;
                windows[found] = window;
                places[found++] = place;
            }
            ends[position] = found;
        }
    }
    long begin(long position) const { return position ? ends[position - 1] : 0; }
    long end(long position) const { return ends[position]; }
};

// A row of pixels gets what `count` rows of windows hand to it, where these are side by side and have WIDE columns:
// sums are held in registers until no further window adds to them. `numbers` are those of the first places in the row.
template <int WIDE, class Row>
void roll(const Row* windows, const long* numbers, long count, float* out, long channels, const Axis& columns) {
    by_vectors(0, channels, [&](long c, long lanes) {
        Vector held[WIDE] = {};
        long pixel = -columns.pad;  // which the first of these is for
        auto put = [&](Vector value) {
            if (pixel >= 0 && pixel < columns.size) store_some(out + pixel * channels + c, value, lanes);
            pixel++;
        };
        for (long j = 0; j < columns.out; j++) {
            for (long k = 0; k < count; k++) {
                auto values = windows[k].window(j).load(c, lanes);
                for (int place = 0; place < WIDE; place++) held[place] += values.at(numbers[k] + place);
            }
            put(held[0]);
            for (int i = 1; i < WIDE; i++) held[i - 1] = held[i];
            held[WIDE - 1] = Vector{};
        }
        for (int i = 0; i < WIDE - 1; i++) put(held[i]);
        while (pixel < columns.size) put(Vector{});
    });
}

template <class Source>
void gather_pixels(Source source, float* to, long channels, const Geometry& of, long start, long stop) {
    const Axis &rows = of.rows, &columns = of.columns;
    Containing above(rows, 0);
    Bounds inside(columns, 3);
    long apart = columns.dilation * channels;
    auto* sides = scratch<typename Source::Row>(4, rows.kernel);
    long* numbers = scratch<long>(5, rows.kernel);
    for (long unit = start; unit < stop; unit++) {
        long n = unit / rows.size, row = unit % rows.size, from = above.begin(row), until = above.end(row);
        float* out = to + unit * columns.size * channels;
        bool once = columns.tiles() && until - from == 1;
        if (columns.dilation == 1 && columns.kernel == 3 && columns.stride == 1) {
            for (long k = from; k < until; k++) {
                sides[k - from] = source.row(n, 0, above.windows[k]);
                numbers[k - from] = above.places[k] * 3;
            }
            roll<3>(sides, numbers, until - from, out, channels, columns);
            continue;
        }
        long covered = once ? columns.out * columns.stride : 0;
        if (covered < columns.size)
            memset(out + covered * channels, 0, (columns.size - covered) * channels * sizeof(float));
        for (long k = from; k < until; k++) {
            auto windows = source.row(n, 0, above.windows[k]);
            long number = above.places[k] * columns.kernel;
            auto hand = [&](long j, auto first, auto end, auto add) {
                auto window = windows.window(j);
                float* pixels = out + columns.begin(j) * channels;
                by_vectors(0, channels, [&](long c, long lanes) {
                    auto values = window.load(c, lanes);
                    for (long place = first; place < end; place++) {
                        float* pixel = pixels + place * apart + c;
                        Vector value = values.at(number + place);
                        store_some(pixel, add ? load_some(pixel, lanes) + value : value, lanes);
                    }
                });
            };
            auto all = [&](auto width, auto add) {  // the usual widths as constants
                for (long j = 0; j < columns.out; j++)
                    if (width && inside.first(j) == 0 && inside.stop(j) == width)
                        hand(j, Constant<0>{}, width, add);
                    else
                        hand(j, inside.first(j), inside.stop(j), add);
            };
            if (columns.kernel == 2)
                once ? all(Constant<2>{}, Constant<0>{}) : all(Constant<2>{}, Constant<1>{});
            else if (columns.kernel == 3)
                once ? all(Constant<3>{}, Constant<0>{}) : all(Constant<3>{}, Constant<1>{});
            else
                once ? all(Constant<0>{}, Constant<0>{}) : all(Constant<0>{}, Constant<1>{});
        }
    }
}

// Of planes, rows of which each is in one row of windows at most, and these are two columns wide.
template <class Source>
void part_pairs(Source source, float* to, long channels, const Geometry& of, long start, long stop) {
    const Axis &rows = of.rows, &columns = of.columns;
    long covered = 2 * columns.out < columns.size ? 2 * columns.out : columns.size;
    for (long plane = start; plane < stop; plane++)
        for (long row = 0; row < rows.size; row++) {
            float* out = to + (plane * rows.size + row) * columns.size;
            long i = row / rows.stride, number = row % rows.stride * 2;
            if (i >= rows.out) {
                memset(out, 0, columns.size * sizeof(float));
                continue;
            }
            auto window = source.row(plane / channels, plane % channels, i).window(0);
            by_vectors(0, columns.out, [&](long j, long lanes) {
                auto values = window.load(j, lanes);
                Vector first, second;
                interleave(values.at(number), values.at(number + 1), first, second);
                long left = covered - 2 * j;
                store_some(out + 2 * j, first, left);
                if (left > WIDTH) store_some(out + 2 * j + WIDTH, second, left - WIDTH);
            });
            for (long at = covered; at < columns.size; at++) out[at] = 0;
        }
}

// Of planes, window by window: the plane is in cache, and windows come in the order of their rows and columns.
void scatter(const Chosen& source, float* to, long channels, const Geometry& of, long start, long stop) {
    const Axis &rows = of.rows, &columns = of.columns;
    long *down = scratch<long>(0, of.last() + 1), *along = scratch<long>(1, of.last() + 1);
    for (long place = 0; place <= of.last(); place++) {
        down[place] = place / columns.kernel * rows.dilation;
        along[place] = place % columns.kernel * columns.dilation;
    }
    for (long plane = start; plane < stop; plane++) {
        float* out = to + plane * rows.size * columns.size;
        memset(out, 0, rows.size * columns.size * sizeof(float));
        for (long i = 0; i < rows.out; i++) {
            auto window = source.row(plane / channels, plane % channels, i).window(0);
            for (long j = 0; j < columns.out; j++) {
                long place = window.offsets[j];
                long row = rows.begin(i) + down[place], column = columns.begin(j) + along[place];
                bool inside = row >= 0 && row < rows.size && column >= 0 && column < columns.size;
                if (inside && (!window.y || window.y[j] > 0)) out[row * columns.size + column] += window.g[j];
            }
        }
    }
}

void scatter(const Shared& source, float* to, long channels, const Geometry& of, long start, long stop) {
    const Axis &rows = of.rows, &columns = of.columns;
    Bounds inside(columns, 0);
    float* shares = scratch(1, columns.size);  // what one row of windows adds to each of the rows that it is in
    for (long plane = start; plane < stop; plane++) {
        float* out = to + plane * rows.size * columns.size;
        memset(out, 0, rows.size * columns.size * sizeof(float));
        for (long i = 0; i < rows.out; i++) {
            auto windows = source.row(plane / channels, plane % channels, i);
            memset(shares, 0, columns.size * sizeof(float));
            for (long j = 0; j < columns.out; j++) {
                auto window = windows.window(j);
                float slope = *window.g * window.share;
                for (long place = inside.first(j); place < inside.stop(j); place++)
                    shares[columns.begin(j) + place] += slope;
            }
            for (long row = rows.begin(i) + rows.first(i); row < rows.begin(i) + rows.stop(i); row++)
                by_vectors(row * columns.size, (row + 1) * columns.size, [&](long at, long lanes) {
                    Vector share = load_some(shares + at - row * columns.size, lanes);
                    store_some(out + at, load_some(out + at, lanes) + share, lanes);
                });
        }
    }
}

template <class Source>
void hand_back(const Source& source, const Array* dx, const Geometry& of, bool last, long start, long stop) {
    long channels = dx->shape[1];
    if (last)
        gather_pixels(source, dx->floats(), channels, of, start, stop);
    else if (of.rows.tiles() && of.columns.tiles() && of.columns.kernel == 2)
        part_pairs(source, dx->floats(), channels, of, start, stop);
    else
        scatter(source, dx->floats(), channels, of, start, stop);
}

}  // namespace

// y = the maximum of each window of x, NaN if there is one; and its number within the window, unless `offsets` is None:
// the first place that has the maximum, or the last that is NaN.
KERNEL void pool_max(const Array* x, const Array* y, const Array* offsets, const Array* about, int last, long start, long stop) {
    Geometry of(about);
    float* values = y->floats();
    uint8_t* numbers = offsets == gn_none ? nullptr : offsets->data<uint8_t>();
    auto step = [&](const Places& places, auto load, long lanes, long at, auto vectors) {
        Vector most[vectors];
        IntVector number[vectors];
        for (int v = 0; v < vectors; v++) most[v] = broadcast(-INFINITY), number[v] = IntVector{};
        for (long place = 0; place < places.count; place++)
            for (int v = 0; v < vectors; v++) {
                Vector value = load(place, v);
                IntVector better = (value > most[v]) | (value != value);
                most[v] = select(better, value, most[v]);
                number[v] = better ? IntVector{} + places.numbers[place] : number[v];
            }
        for (int v = 0; v < vectors; v++) {
            store_some(values + at + v * WIDTH, most[v], lanes);
            if (numbers) store_bytes(numbers + at + v * WIDTH, number[v], lanes);
        }
    };
    each_window(x, of, -INFINITY, last, start, stop, step);
}

// y = the sum of each window of x, times a factor; of adaptive windows, divided by their size.
KERNEL void pool_sum(const Array* x, const Array* y, const Array* about, float factor, int last, long start, long stop) {
    Geometry of(about);
    float* values = y->floats();
    if (!last && of.columns.is_long()) {
        sum_long(x, values, of, factor, start, stop);
        return;
    }
    auto step = [&](const Places& places, auto load, long lanes, long at, auto vectors) {
        Vector sums[vectors] = {};
        for (long place = 0; place < places.count; place++)
            for (int v = 0; v < vectors; v++) sums[v] += load(place, v);
        float share = of.columns.stride ? factor : factor / places.count;
        for (int v = 0; v < vectors; v++) store_some(values + at + v * WIDTH, sums[v] * share, lanes);
    };
    each_window(x, of, 0, last, start, stop, step);
}

// dx = g where the maxima were that `offsets` tells of, and where y > 0 unless that is None.
KERNEL void pool_unpool(const Array* g, const Array* offsets, const Array* y, const Array* dx, const Array* about, int last, long start, long stop) {
    Geometry of(about);
    Chosen source{g, offsets, y};
    hand_back(source, dx, of, last, start, stop);
}

// dx = the sum of g over all windows that an element is in, times a factor; adaptive windows' divided by their size.
KERNEL void pool_spread(const Array* g, const Array* dx, const Array* about, float factor, int last, long start, long stop) {
    Geometry of(about);
    Shared source{g, factor, &of};
    hand_back(source, dx, of, last, start, stop);
}
