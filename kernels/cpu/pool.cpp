// Pooling: the maximum or the sum of each window, and the way back.
//
// Arrays (N, C, H, W) of one call lie either channels-last, where vectors are of channels, or as planes, where they are
// of neighbours in a row; other than that, strides are as they may be. Results have no gaps: channels-last they are
// (N, H, W, C) in memory. What is not there, beyond the edges, is left out instead of padded.
//
// The way back gathers: each element of the result is written once, with what reaches it from the windows that contain
// it, added up in an order that depends on nothing else. A unit of work, for the caller to divide, is one row
// of the result: channels-last one of pixels, of planes one of elements.
#include "flat.h"

namespace {

typedef uint8_t Bytes __attribute__((vector_size(WIDTH), aligned(1), may_alias));

struct Axis {
    int64_t size, out, kernel, stride, pad, dilation;

    long begin(long window) const { return window * stride - pad; }

    // The places of a window that are inside begin with this one, and end before that one.
    long first(long window) const { return begin(window) >= 0 ? 0 : (dilation - 1 - begin(window)) / dilation; }
    long stop(long window) const {
        long room = size - begin(window), fit = room > 0 ? (room + dilation - 1) / dilation : 0;
        return fit < kernel ? fit : kernel;
    }
    bool tiles() const { return kernel == stride && pad == 0 && dilation == 1; }
};

struct Geometry {
    Axis rows, columns;

    explicit Geometry(const Array* about) { memcpy(this, about->bytes, sizeof *this); }
    int last() const { return rows.kernel * columns.kernel - 1; }
};

template <class T> T* element(const Array* a, long n, long c, long h, long w) {
    return reinterpret_cast<T*>(a->bytes + n * a->strides[0] + c * a->strides[1] + h * a->strides[2] + w * a->strides[3]);
}

inline IntVector load_bytes(const uint8_t* p, long lanes) {
    Bytes bytes = {};
    if (lanes >= WIDTH)
        bytes = *reinterpret_cast<const Bytes*>(p);
    else
        for (long i = 0; i < lanes; i++) bytes[i] = p[i];
    return __builtin_convertvector(bytes, IntVector);
}

inline void store_bytes(uint8_t* p, IntVector v, long lanes) {
    Bytes bytes = __builtin_convertvector(v, Bytes);
    if (lanes >= WIDTH)
        *reinterpret_cast<Bytes*>(p) = bytes;
    else
        for (long i = 0; i < lanes; i++) p[i] = bytes[i];
}

// Every `stride`th element, as many as there are lanes.
template <int STRIDE> inline Vector load_apart(const float* p, long stride, long lanes) {
    if constexpr (STRIDE == 1) return load_some(p, lanes);
    float found[WIDTH] = {};
    if constexpr (STRIDE == 2) {
        float pairs[2 * WIDTH];
        long count = 2 * lanes - 1;
        store(pairs, load_some(p, count));
        store(pairs + WIDTH, count > WIDTH ? load_some(p + WIDTH, count - WIDTH) : Vector{});
        for (int i = 0; i < WIDTH; i++) found[i] = pairs[2 * i];
    } else {
        for (long i = 0; i < lanes; i++) found[i] = p[i * stride];
    }
    return load(found);
}

// The places of a window that are inside: how far they are from where it begins, and their numbers.
struct Places {
    long count = 0;
    long* bytes;
    int* numbers;

    explicit Places(const Geometry& of) : bytes(scratch<long>(0, of.last() + 1)), numbers(scratch<int>(1, of.last() + 1)) {}

    void choose(const Geometry& of, const Array* x, long top, long bottom, long left, long right) {
        if (top == top_ && bottom == bottom_ && left == left_ && right == right_) return;
        top_ = top, bottom_ = bottom, left_ = left, right_ = right;
        count = 0;
        for (long i = top; i < bottom; i++)
            for (long j = left; j < right; j++) {
                bytes[count] = i * of.rows.dilation * x->strides[2] + j * of.columns.dilation * x->strides[3];
                numbers[count++] = i * of.columns.kernel + j;
            }
    }

  private:
    long top_ = -1, bottom_ = -1, left_ = -1, right_ = -1;
};

// step(places, load, lanes, at) for the windows whose results are in the rows from `start` to `stop`, by vectors:
// load(bytes) is the windows' elements so far from where they begin, `at` the index of the first result.
template <class Step>
void each_window(const Array* x, const Geometry& of, bool last, long start, long stop, Step step) {
    const Axis &rows = of.rows, &columns = of.columns;
    long channels = x->shape[1];
    Places places(of);
    long* bounds = scratch<long>(2, 2 * columns.out);
    for (long j = 0; j < columns.out; j++) bounds[2 * j] = columns.first(j), bounds[2 * j + 1] = columns.stop(j);
    auto whole = [&](long j) { return bounds[2 * j] == 0 && bounds[2 * j + 1] == columns.kernel; };
    for (long unit = start; unit < stop; unit++) {
        long i = unit % rows.out, image = unit / rows.out, top = rows.first(i), bottom = rows.stop(i);
        auto choose = [&](long j) { places.choose(of, x, top, bottom, bounds[2 * j], bounds[2 * j + 1]); };
        if (last) {
            for (long j = 0; j < columns.out; j++) {
                choose(j);
                const char* corner = element<char>(x, image, 0, rows.begin(i), columns.begin(j));
                by_vectors(0, channels, [&](long c, long lanes) {
                    auto load = [&](long bytes) {
                        return load_some(reinterpret_cast<const float*>(corner + bytes) + c, lanes);
                    };
                    step(places, load, lanes, (unit * columns.out + j) * channels + c);
                });
            }
            continue;
        }
        auto row = [&](auto apart) {
            for (long j = 0; j < columns.out;) {
                long ahead = 1;  // windows that are whole are loaded several at once
                if (whole(j))
                    while (ahead < WIDTH && j + ahead < columns.out && whole(j + ahead)) ahead++;
                choose(j);
                const char* corner = element<char>(x, image / channels, image % channels, rows.begin(i), columns.begin(j));
                auto load = [&](long bytes) {
                    return load_apart<apart>(reinterpret_cast<const float*>(corner + bytes), columns.stride, ahead);
                };
                step(places, load, ahead, unit * columns.out + j);
                j += ahead;
            }
        };
        if (columns.stride == 1)
            row(Constant<1>{});
        else if (columns.stride == 2)
            row(Constant<2>{});
        else
            row(Constant<0>{});
    }
}

// What the windows that contain an element contribute: load, then at(number of the element's place in the window).

// g where `offsets` has the place's number, and where y, if there is one, is positive.
struct Chosen {
    const Array *g, *offsets, *y;
    Vector slope;
    IntVector number;

    void load(long n, long c, long i, long j, long lanes) {
        slope = load_some(element<float>(g, n, c, i, j), lanes);
        number = load_bytes(element<uint8_t>(offsets, n, c, i, j), lanes);
        if (y != gn_none) slope *= select(load_some(element<float>(y, n, c, i, j), lanes) > 0, broadcast(1), Vector{});
    }
    Vector at(int place) const { return select(number == place, slope, Vector{}); }
};

// g times a factor.
struct Shared {
    const Array* g;
    float factor;
    Vector slope;

    void load(long n, long c, long i, long j, long lanes) {
        slope = load_some(element<float>(g, n, c, i, j), lanes) * factor;
    }
    Vector at(int) const { return slope; }
};

// The windows that contain each position of an axis, and the place it has in them, in the order of the places.
struct Containing {
    long *ends, *windows, *places;

    Containing(const Axis& axis, int slot)
        : ends(scratch<long>(slot, axis.size + 1)), windows(scratch<long>(slot + 1, axis.size * axis.kernel)),
          places(scratch<long>(slot + 2, axis.size * axis.kernel)) {
        long found = 0;
        for (long position = 0; position < axis.size; position++) {
            for (long place = 0; place < axis.kernel; place++) {
                long begin = position + axis.pad - place * axis.dilation;
                if (begin < 0 || begin % axis.stride || begin / axis.stride >= axis.out) continue;
                windows[found] = begin / axis.stride;
                places[found++] = place;
            }
            ends[position] = found;
        }
    }
    long begin(long position) const { return position ? ends[position - 1] : 0; }
    long end(long position) const { return ends[position]; }
};

template <class Source>
void gather_channels(Source source, float* to, long channels, const Geometry& of, long start, long stop) {
    const Axis &rows = of.rows, &columns = of.columns;
    Containing above(rows, 0), beside(columns, 3);
    for (long unit = start; unit < stop; unit++) {
        long n = unit / rows.size, row = unit % rows.size;
        float* out = to + unit * columns.size * channels;
        long from = above.begin(row), until = above.end(row);
        if (columns.tiles() && until - from == 1) {
            long i = above.windows[from], number = above.places[from] * columns.kernel;
            for (long j = 0; j < columns.out; j++) {
                long width = columns.stop(j);
                by_vectors(0, channels, [&](long c, long lanes) {
                    source.load(n, c, i, j, lanes);
                    for (long place = 0; place < width; place++)
                        store_some(out + (j * columns.stride + place) * channels + c, source.at(number + place), lanes);
                });
            }
            long covered = columns.out * columns.stride;
            if (covered < columns.size)
                memset(out + covered * channels, 0, (columns.size - covered) * channels * sizeof(float));
            continue;
        }
        for (long column = 0; column < columns.size; column++) {
            long left = beside.begin(column), right = beside.end(column);
            by_vectors(0, channels, [&](long c, long lanes) {
                Vector sum = {};
                for (long i = from; i < until; i++)
                    for (long j = left; j < right; j++) {
                        source.load(n, c, above.windows[i], beside.windows[j], lanes);
                        sum += source.at(above.places[i] * columns.kernel + beside.places[j]);
                    }
                store_some(out + column * channels + c, sum, lanes);
            });
        }
    }
}

template <class Source>
void gather_planes(Source source, float* to, long channels, const Geometry& of, long start, long stop) {
    const Axis &rows = of.rows, &columns = of.columns;
    Containing above(rows, 0);
    bool pairs = columns.tiles() && columns.kernel == 2;
    for (long unit = start; unit < stop; unit++) {
        long plane = unit / rows.size, n = plane / channels, c = plane % channels, row = unit % rows.size;
        float* out = to + unit * columns.size;
        memset(out, 0, columns.size * sizeof(float));
        for (long k = above.begin(row); k < above.end(row); k++)
            for (long j = 0; j < columns.out; j += WIDTH) {
                long i = above.windows[k], number = above.places[k] * columns.kernel;
                long lanes = columns.out - j < WIDTH ? columns.out - j : WIDTH;
                source.load(n, c, i, j, lanes);
                if (pairs && lanes == WIDTH && 2 * (j + WIDTH) <= columns.size) {
                    float left[WIDTH], right[WIDTH];
                    store(left, source.at(number));
                    store(right, source.at(number + 1));
                    for (int lane = 0; lane < WIDTH; lane++) {
                        out[2 * (j + lane)] += left[lane];
                        out[2 * (j + lane) + 1] += right[lane];
                    }
                    continue;
                }
                for (long place = 0; place < columns.kernel; place++) {
                    float values[WIDTH];
                    store(values, source.at(number + place));
                    for (long lane = 0; lane < lanes; lane++) {
                        long at = columns.begin(j + lane) + place * columns.dilation;
                        if (at >= 0 && at < columns.size) out[at] += values[lane];
                    }
                }
            }
    }
}

}  // namespace

// y = the maximum of each window of x, NaN if there is one; and its number within the window, unless `offsets` is None:
// the first place that has the maximum, the last of all if it is NaN.
KERNEL void pool_max(const Array* x, const Array* y, const Array* offsets, const Array* about, int last, long start, long stop) {
    Geometry of(about);
    float* values = y->floats();
    uint8_t* numbers = offsets == gn_none ? nullptr : offsets->data<uint8_t>();
    each_window(x, of, last, start, stop, [&](const Places& places, auto load, long lanes, long at) {
        Vector most = broadcast(-INFINITY);
        IntVector number = {};
        auto compare = [&](long place) {
            Vector value = load(places.bytes[place]);
            IntVector better = (value > most) | (value != value);
            most = select(better, value, most);
            number = better ? IntVector{} + places.numbers[place] : number;
        };
        for (long place = 0; place < places.count; place++) compare(place);
        store_some(values + at, most, lanes);
        if (numbers) store_bytes(numbers + at, most != most ? IntVector{} + of.last() : number, lanes);
    });
}

// y = the sum of each window of x, times a factor.
KERNEL void pool_sum(const Array* x, const Array* y, const Array* about, float factor, int last, long start, long stop) {
    Geometry of(about);
    float* values = y->floats();
    each_window(x, of, last, start, stop, [&](const Places& places, auto load, long lanes, long at) {
        Vector sum = {};
        for (long place = 0; place < places.count; place++) sum += load(places.bytes[place]);
        store_some(values + at, sum * factor, lanes);
    });
}

// dx = g where the maxima were that `offsets` tells of, and where y > 0 unless that is None.
KERNEL void pool_unpool(const Array* g, const Array* offsets, const Array* y, const Array* dx, const Array* about, int last, long start, long stop) {
    Geometry of(about);
    Chosen source{g, offsets, y, {}, {}};
    (last ? gather_channels<Chosen> : gather_planes<Chosen>)(source, dx->floats(), g->shape[1], of, start, stop);
}

// dx = the sum of g over all windows that an element is in, times a factor.
KERNEL void pool_spread(const Array* g, const Array* dx, const Array* about, float factor, int last, long start, long stop) {
    Geometry of(about);
    Shared source{g, factor, {}};
    (last ? gather_channels<Shared> : gather_planes<Shared>)(source, dx->floats(), g->shape[1], of, start, stop);
}
