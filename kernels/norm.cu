// Normalization: elements that belong together shifted to mean 0 and scaled to variance 1, then by weight and bias; and the
// way back. Statistics and sums are found in float (of doubles, in double), in an order that depends on nothing but the
// shapes and the number of multiprocessors: the same bits every time.
//
// Rows (layer norm, RMS norm): the elements that belong together are adjacent.
//
//   rows_normalize    LANES threads hold a row in their registers, 16 elements each: it is read once, its mean and then
//                     its variance are found without reading it again.
//   rows_grad         the same for the gradient of x. What each block found about the gradients of weight and bias goes
//                     to `partial`; a block has so many rows that this is little.
//   rows_kept,        the same for rows that are too long for that, but not for shared memory. What they come to along
//   rows_kept_grad    columns, for weight and bias, needs a second read: rows_columns.
//   rows_moments,     for longer rows: the statistics of each row by one block (Welford's method, joined as Chan, Golub
//   rows_apply,       and LeVeque do), then a second read. On the way back the sums that a row's gradient needs, then the
//   rows_sums         gradient, then rows_columns.
//
// Channels (batch, instance and group norm): the memory is (images, rows, columns), columns adjacent, and what belongs
// together is `group` adjacent columns of all rows of an image. Batch norm has one image, whose rows are all pixels, and
// groups of one column.
//
//   channel_moments   each block the mean and sum of squares of each column of some rows, one read.
//   channel_combine   joins these, in order, for all columns of a group.
//   channel_apply     the result, and on top of it a residual and ReLU: the second read. It goes from the end to the start,
//                     so it begins with what the caches still hold.
//   channel_grad_sums, channel_grad_combine, channel_grad_apply    the same on the way back. Where ReLU was positive is
//                     computed again, or, with a residual, read from the output.
//   tile_normalize,   for instance and group norm where a block's shared memory has room for one group of an image (or a
//   tile_grad         few, of so many columns that whole sectors of 32 bytes are read): all of the above in one launch,
//                     which reads everything once. On the way back g may find no room beside x, and is read twice. Batch
//                     norm's channel is one of all images: no multiprocessor has room for it.
//   running           moves running statistics towards a batch's.
//
// columns_sum adds up what blocks, or images, found about weight and bias.
//
// Bytes over the least (each input once, each output once): rows that fit registers 1.0, on the way back 1 + 4/3 / (rows
// of a block), 1.04 with 32; rows in shared memory 1.0 and, back, (3 + 2) / 3; longer ones 1.5 and (1 + 2 + 3 + 2) / 3.
// Channels: 3 / 2 forward and 5 / 3 back, as nothing can be normalized before all of it was seen, and 6 / 3 back where
// statistics are found again; less where tensors fit the L2 cache. Tiles: 1.0 forward and 1 + 4 / (3 * rows of an image)
// back, of floats, for what each image adds to weight and bias (1.03 with 7 x 7 pixels); 4 / 3 where g is read twice, less
// what of it is still in the L2 cache.
#include "array.cuh"
#include "ptx/mma.cuh"

extern __shared__ __align__(1024) unsigned char gn_shared[];

// The number, mean and sum of squared distances from it of some elements.
template <class F>
struct Moments {
    F count, mean, squares;

    DEVICE void join(const Moments& other) {
        const F both = count + other.count;
        if (both == F(0)) return;
        const F away = other.mean - mean, share = other.count / both;
        squares += other.squares + away * away * count * share;
        mean += away * share;
        count = both;
    }
};

// --- rows -----------------------------------------------------------------------------------------------------------

struct RowArgs {
    const void* x;
    const void* g;
    const void* weight;   // or null, as the next
    const void* bias;
    void* to;             // the result, or the gradient of x
    void* partial;        // (blocks, 2, columns): sums for weight and bias
    void* moments;        // (rows, 2) of long rows: mean and one by the deviation
    void* sums;           // (rows, 2) of long rows: of g * weight and of g * weight * normalized x, by their length
    long long rows;
    int columns;
    int height;  // rows of a block on the way back
    double eps;
};

// An element, or a vector of them, to shared memory, without waiting for it.
template <int BYTES, class S>
DEVICE void copy_to_shared(S* to, const S* from) {
    if constexpr (BYTES < 4)
        *to = *from;
    else
        cp_async<BYTES>(shared_address(to), from, BYTES);
}

constexpr int HELD = 16;  // elements of a row that a thread has

template <int LANES>
constexpr int ROW_THREADS = LANES > 256 ? LANES : 256;

// The sum over the LANES threads of a row, which each of them gets. All threads of the block take part.
template <int LANES, class F>
DEVICE F row_sum(F x, F* slots) {
    x = reduce_lanes<Add, 32>(x);
    if (LANES == 32) return x;
    __syncthreads();
    if (threadIdx.x % 32 == 0) slots[threadIdx.x / 32] = x;
    __syncthreads();
    const int first = threadIdx.x / LANES * (LANES / 32);
    x = slots[first];
#pragma unroll
    for (int i = 1; i < LANES / 32; i++) x += slots[first + i];
    return x;
}

// The part of a row that one of LANES threads has: ITEMS times VECTOR adjacent elements.
template <class T, int VECTOR, int LANES>
struct RowPart {
    using F = Computed<T>;
    static constexpr int ITEMS = HELD / VECTOR;
    F x[ITEMS][VECTOR];

    static DEVICE int column(int item) { return (item * LANES + threadIdx.x % LANES) * VECTOR; }
    DEVICE void load(const void* from, long long row, int columns, bool inside) {
        const Stored<T>* p = static_cast<const Stored<T>*>(from) + row * columns;
#pragma unroll
        for (int i = 0; i < ITEMS; i++) {
            const int c = column(i);
            if (inside && c < columns) {
                load_vector<T, VECTOR>(p + c, true, VECTOR, x[i]);
            } else {
#pragma unroll
                for (int j = 0; j < VECTOR; j++) x[i][j] = F(0);
            }
        }
    }
    // Make it the normalized row, and give one by its deviation.
    template <bool RMS>
    DEVICE F normalize(int columns, double eps, F* slots) {
        F sum = F(0);
        if (!RMS) {
#pragma unroll
            for (int i = 0; i < ITEMS; i++)
#pragma unroll
                for (int j = 0; j < VECTOR; j++) sum += x[i][j];
            const F mean = row_sum<LANES>(sum, slots) / F(columns);
            sum = F(0);
#pragma unroll
            for (int i = 0; i < ITEMS; i++)
#pragma unroll
                for (int j = 0; j < VECTOR; j++)
                    if (column(i) < columns) x[i][j] -= mean;
        }
#pragma unroll
        for (int i = 0; i < ITEMS; i++)
#pragma unroll
            for (int j = 0; j < VECTOR; j++) sum += x[i][j] * x[i][j];
        const F scale = F(1) / sqrt(row_sum<LANES>(sum, slots) / F(columns) + F(eps));
#pragma unroll
        for (int i = 0; i < ITEMS; i++)
#pragma unroll
            for (int j = 0; j < VECTOR; j++) x[i][j] *= scale;
        return scale;
    }
};

// VECTOR elements of a weight, or `otherwise` if there is none.
template <class W, int VECTOR, class F>
DEVICE void load_parameter(const void* from, int column, F otherwise, F (&p)[VECTOR]) {
    if (from == nullptr) {
#pragma unroll
        for (int j = 0; j < VECTOR; j++) p[j] = otherwise;
    } else {
        // Halves go with vectors of 8, as floats that is two loads.
        constexpr int MOST = 16 / sizeof(Stored<W>), STEP = VECTOR < MOST ? VECTOR : MOST;
#pragma unroll
        for (int i = 0; i < VECTOR; i += STEP) {
            Computed<W> some[STEP];
            load_vector<W, STEP>(static_cast<const Stored<W>*>(from) + column + i, true, STEP, some);
#pragma unroll
            for (int j = 0; j < STEP; j++) p[i + j] = some[j];
        }
    }
}

template <class T, class W, int VECTOR, int LANES, bool RMS>
__global__ void __launch_bounds__(ROW_THREADS<LANES>) rows_normalize(const __grid_constant__ RowArgs args) {
    using F = Computed<T>;
    using Part = RowPart<T, VECTOR, LANES>;
    constexpr int ROWS = ROW_THREADS<LANES> / LANES;
    __shared__ F slots[32];
    for (long long first = 1ll * blockIdx.x * ROWS; first < args.rows; first += 1ll * gridDim.x * ROWS) {
        const long long row = first + threadIdx.x / LANES;
        const bool inside = row < args.rows;
        Part part;
        part.load(args.x, row, args.columns, inside);
        part.template normalize<RMS>(args.columns, args.eps, slots);
        Stored<T>* to = static_cast<Stored<T>*>(args.to) + row * args.columns;
#pragma unroll
        for (int i = 0; i < Part::ITEMS; i++) {
            const int c = Part::column(i);
            if (!inside || c >= args.columns) continue;
            F weight[VECTOR], bias[VECTOR];
            load_parameter<W, VECTOR>(args.weight, c, F(1), weight);
            load_parameter<W, VECTOR>(args.bias, c, F(0), bias);
#pragma unroll
            for (int j = 0; j < VECTOR; j++) part.x[i][j] = part.x[i][j] * weight[j] + bias[j];
            store_vector<T, VECTOR>(to + c, true, VECTOR, part.x[i]);
        }
    }
}

template <class T, class W, int VECTOR, int LANES, bool RMS>
__global__ void __launch_bounds__(ROW_THREADS<LANES>) rows_grad(const __grid_constant__ RowArgs args) {
    using F = Computed<T>;
    using Part = RowPart<T, VECTOR, LANES>;
    constexpr int THREADS = ROW_THREADS<LANES>, ROWS = THREADS / LANES;
    __shared__ F slots[32];
    __shared__ F gathered[ROWS > 1 ? THREADS * HELD : 1];
    F to_weight[Part::ITEMS][VECTOR], to_bias[Part::ITEMS][VECTOR];
#pragma unroll
    for (int i = 0; i < Part::ITEMS; i++)
#pragma unroll
        for (int j = 0; j < VECTOR; j++) to_weight[i][j] = to_bias[i][j] = F(0);
    const long long start = 1ll * blockIdx.x * args.height, stop = min(start + args.height, args.rows);
    for (long long first = start; first < stop; first += ROWS) {
        const long long row = first + threadIdx.x / LANES;
        const bool inside = row < stop;
        Part hat, g;
        hat.load(args.x, row, args.columns, inside);
        g.load(args.g, row, args.columns, inside);
        const F scale = hat.template normalize<RMS>(args.columns, args.eps, slots);
        F sum = F(0), along = F(0);
#pragma unroll
        for (int i = 0; i < Part::ITEMS; i++) {
            F weight[VECTOR];
            const int c = Part::column(i);
            load_parameter<W, VECTOR>(c < args.columns ? args.weight : nullptr, c, F(1), weight);
#pragma unroll
            for (int j = 0; j < VECTOR; j++) {
                to_weight[i][j] += g.x[i][j] * hat.x[i][j];
                to_bias[i][j] += g.x[i][j];
                g.x[i][j] *= weight[j];
                sum += g.x[i][j];
                along += g.x[i][j] * hat.x[i][j];
            }
        }
        sum = RMS ? F(0) : row_sum<LANES>(sum, slots) / F(args.columns);
        along = row_sum<LANES>(along, slots) / F(args.columns);
        Stored<T>* to = static_cast<Stored<T>*>(args.to) + row * args.columns;
#pragma unroll
        for (int i = 0; i < Part::ITEMS; i++) {
            const int c = Part::column(i);
            if (!inside || c >= args.columns) continue;
#pragma unroll
            for (int j = 0; j < VECTOR; j++) g.x[i][j] = (g.x[i][j] - sum - hat.x[i][j] * along) * scale;
            store_vector<T, VECTOR>(to + c, true, VECTOR, g.x[i]);
        }
    }
    if (args.partial == nullptr) return;
    F* partial = static_cast<F*>(args.partial) + 2ll * blockIdx.x * args.columns;
#pragma unroll
    for (int which = 0; which < 2; which++) {
        F(&mine)[Part::ITEMS][VECTOR] = which == 0 ? to_weight : to_bias;
        if (ROWS > 1) {
            __syncthreads();
#pragma unroll
            for (int i = 0; i < Part::ITEMS; i++)
#pragma unroll
                for (int j = 0; j < VECTOR; j++) gathered[(i * VECTOR + j) * THREADS + threadIdx.x] = mine[i][j];
            __syncthreads();
        }
        if (threadIdx.x >= LANES) continue;
#pragma unroll
        for (int i = 0; i < Part::ITEMS; i++) {
            const int c = Part::column(i);
#pragma unroll
            for (int j = 0; j < VECTOR; j++)
                for (int other = 1; other < ROWS; other++)
                    mine[i][j] += gathered[(i * VECTOR + j) * THREADS + other * LANES + threadIdx.x];
            if (c >= args.columns) continue;
#pragma unroll
            for (int j = 0; j < VECTOR; j++) partial[which * args.columns + c + j] = mine[i][j];
        }
    }
}

// --- long rows ------------------------------------------------------------------------------------------------------

constexpr int LONG_THREADS = 512;

// Rows that lie in shared memory. A thread alone reads what it copied there, so that needs no barrier.
template <class T, int VECTOR>
struct KeptRow {
    using F = Computed<T>;
    int columns;

    DEVICE Stored<T>* held(int which) const { return reinterpret_cast<Stored<T>*>(gn_shared) + which * columns; }
    DEVICE void copy(int which, const void* from, long long row) const {
        const Stored<T>* source = static_cast<const Stored<T>*>(from) + row * columns;
        for (int c = threadIdx.x * VECTOR; c < columns; c += LONG_THREADS * VECTOR)
            copy_to_shared<VECTOR * sizeof(Stored<T>)>(held(which) + c, source + c);
    }
    // Call f(column, x) with each vector that the thread has.
    template <class Call>
    DEVICE void each(Call f) const {
#pragma unroll 2
        for (int c = threadIdx.x * VECTOR; c < columns; c += LONG_THREADS * VECTOR) {
            F x[VECTOR];
            load_vector<T, VECTOR>(held(0) + c, true, VECTOR, x);
            f(c, x);
        }
    }
    // The same with the gradient, which lies behind x, times the weight, and with x normalized.
    template <class W, class Call>
    DEVICE void each_with_gradient(const void* weights, F mean, F scale, Call f) const {
        each([&](int c, F(&x)[VECTOR]) {
            F g[VECTOR], weight[VECTOR];
            load_vector<T, VECTOR>(held(1) + c, true, VECTOR, g);
            load_parameter<W, VECTOR>(weights, c, F(1), weight);
#pragma unroll
            for (int j = 0; j < VECTOR; j++) {
                g[j] *= weight[j];
                x[j] = (x[j] - mean) * scale;
            }
            f(c, g, x);
        });
    }
    template <bool RMS>
    DEVICE void statistics(F start, double eps, F* slots, F& mean, F& scale) const {
        F sum = F(0);
        if (!RMS) {
            each([&](int, const F(&x)[VECTOR]) {
#pragma unroll
                for (int j = 0; j < VECTOR; j++) sum += x[j] - start;
            });
            sum = row_sum<LONG_THREADS>(sum, slots) / F(columns);
        }
        const F from_start = sum;
        sum = F(0);
        each([&](int, const F(&x)[VECTOR]) {
#pragma unroll
            for (int j = 0; j < VECTOR; j++) {
                const F away = RMS ? x[j] : x[j] - start - from_start;
                sum += away * away;
            }
        });
        mean = RMS ? F(0) : start + from_start;
        scale = F(1) / sqrt(row_sum<LONG_THREADS>(sum, slots) / F(columns) + F(eps));
    }
};

template <class T, class W, int VECTOR, bool RMS>
__global__ void __launch_bounds__(LONG_THREADS) rows_kept(const __grid_constant__ RowArgs args) {
    using F = Computed<T>;
    __shared__ F slots[32];
    const KeptRow<T, VECTOR> kept{args.columns};
    for (long long row = blockIdx.x; row < args.rows; row += gridDim.x) {
        kept.copy(0, args.x, row);
        cp_async_commit();
        cp_async_wait<0>();
        F mean, scale;
        const F start = Number<T>::load(static_cast<const Stored<T>*>(args.x)[row * args.columns]);
        kept.template statistics<RMS>(start, args.eps, slots, mean, scale);
        Stored<T>* to = static_cast<Stored<T>*>(args.to) + row * args.columns;
        kept.each([&](int c, F(&x)[VECTOR]) {
            F weight[VECTOR], bias[VECTOR];
            load_parameter<W, VECTOR>(args.weight, c, F(1), weight);
            load_parameter<W, VECTOR>(args.bias, c, F(0), bias);
#pragma unroll
            for (int j = 0; j < VECTOR; j++) x[j] = (x[j] - mean) * scale * weight[j] + bias[j];
            store_vector<T, VECTOR>(to + c, true, VECTOR, x);
        });
    }
}

// The gradient of x, and what rows_columns needs.
template <class T, class W, int VECTOR, bool RMS>
__global__ void __launch_bounds__(LONG_THREADS) rows_kept_grad(const __grid_constant__ RowArgs args) {
    using F = Computed<T>;
    __shared__ F slots[32];
    const KeptRow<T, VECTOR> kept{args.columns};
    for (long long row = blockIdx.x; row < args.rows; row += gridDim.x) {
        kept.copy(0, args.x, row);
        cp_async_commit();
        kept.copy(1, args.g, row);
        cp_async_commit();
        cp_async_wait<1>();
        F mean, scale;
        const F start = Number<T>::load(static_cast<const Stored<T>*>(args.x)[row * args.columns]);
        kept.template statistics<RMS>(start, args.eps, slots, mean, scale);
        cp_async_wait<0>();
        F sum = F(0), along = F(0);
        kept.template each_with_gradient<W>(args.weight, mean, scale, [&](int, F(&g)[VECTOR], F(&hat)[VECTOR]) {
#pragma unroll
            for (int j = 0; j < VECTOR; j++) {
                sum += g[j];
                along += g[j] * hat[j];
            }
        });
        sum = RMS ? F(0) : row_sum<LONG_THREADS>(sum, slots) / F(args.columns);
        along = row_sum<LONG_THREADS>(along, slots) / F(args.columns);
        Stored<T>* to = static_cast<Stored<T>*>(args.to) + row * args.columns;
        kept.template each_with_gradient<W>(args.weight, mean, scale, [&](int c, F(&g)[VECTOR], F(&hat)[VECTOR]) {
#pragma unroll
            for (int j = 0; j < VECTOR; j++) g[j] = (g[j] - sum - hat[j] * along) * scale;
            store_vector<T, VECTOR>(to + c, true, VECTOR, g);
        });
        if (threadIdx.x == 0) {
            static_cast<F*>(args.moments)[2 * row] = mean;
            static_cast<F*>(args.moments)[2 * row + 1] = scale;
        }
    }
}

template <class T, int VECTOR, bool RMS>
__global__ void __launch_bounds__(LONG_THREADS) rows_moments(const __grid_constant__ RowArgs args) {
    using F = Computed<T>;
    __shared__ Moments<F> found[LONG_THREADS];
    for (long long row = blockIdx.x; row < args.rows; row += gridDim.x) {
        const Stored<T>* from = static_cast<const Stored<T>*>(args.x) + row * args.columns;
        const F start = RMS ? F(0) : Number<T>::load(from[0]);  // so that few digits are lost far from zero
        Moments<F> m{F(0), F(0), F(0)};
        for (int c = threadIdx.x * VECTOR; c < args.columns; c += LONG_THREADS * VECTOR) {
            F x[VECTOR];
            load_vector<T, VECTOR>(from + c, true, VECTOR, x);
            F sum = F(0), squares = F(0);
#pragma unroll
            for (int j = 0; j < VECTOR; j++) x[j] -= start, sum += x[j];
            const F mean = RMS ? F(0) : sum * (F(1) / F(VECTOR));
#pragma unroll
            for (int j = 0; j < VECTOR; j++) squares += (x[j] - mean) * (x[j] - mean);
            m.join({F(VECTOR), mean, squares});
        }
        found[threadIdx.x] = m;
        for (int step = LONG_THREADS / 2; step > 0; step /= 2) {
            __syncthreads();
            if (threadIdx.x < step) found[threadIdx.x].join(found[threadIdx.x + step]);
        }
        if (threadIdx.x == 0) {
            F* to = static_cast<F*>(args.moments) + 2 * row;
            to[0] = start + found[0].mean;
            to[1] = F(1) / sqrt(found[0].squares / F(args.columns) + F(args.eps));
        }
        __syncthreads();
    }
}

template <class T, class W, int VECTOR>
__global__ void __launch_bounds__(LONG_THREADS) rows_apply(const __grid_constant__ RowArgs args) {
    using F = Computed<T>;
    for (long long row = blockIdx.x; row < args.rows; row += gridDim.x) {
        const Stored<T>* from = static_cast<const Stored<T>*>(args.x) + row * args.columns;
        Stored<T>* to = static_cast<Stored<T>*>(args.to) + row * args.columns;
        const F mean = static_cast<const F*>(args.moments)[2 * row];
        const F scale = static_cast<const F*>(args.moments)[2 * row + 1];
        for (int c = threadIdx.x * VECTOR; c < args.columns; c += LONG_THREADS * VECTOR) {
            F x[VECTOR], weight[VECTOR], bias[VECTOR];
            load_vector<T, VECTOR>(from + c, true, VECTOR, x);
            load_parameter<W, VECTOR>(args.weight, c, F(1), weight);
            load_parameter<W, VECTOR>(args.bias, c, F(0), bias);
#pragma unroll
            for (int j = 0; j < VECTOR; j++) x[j] = (x[j] - mean) * scale * weight[j] + bias[j];
            store_vector<T, VECTOR>(to + c, true, VECTOR, x);
        }
    }
}

// Both sums of a row, or with SECOND what the gradient makes of them.
template <class T, class W, int VECTOR, bool RMS, bool SECOND>
__global__ void __launch_bounds__(LONG_THREADS) rows_sums(const __grid_constant__ RowArgs args) {
    using F = Computed<T>;
    __shared__ F slots[32];
    const F share = F(1) / F(args.columns);
    for (long long row = blockIdx.x; row < args.rows; row += gridDim.x) {
        const Stored<T>* x_row = static_cast<const Stored<T>*>(args.x) + row * args.columns;
        const Stored<T>* g_row = static_cast<const Stored<T>*>(args.g) + row * args.columns;
        Stored<T>* to = static_cast<Stored<T>*>(args.to) + row * args.columns;
        F* sums = static_cast<F*>(args.sums) + 2 * row;
        const F mean = static_cast<const F*>(args.moments)[2 * row];
        const F scale = static_cast<const F*>(args.moments)[2 * row + 1];
        F sum = SECOND && !RMS ? sums[0] : F(0), along = SECOND ? sums[1] : F(0);
        for (int c = threadIdx.x * VECTOR; c < args.columns; c += LONG_THREADS * VECTOR) {
            F x[VECTOR], g[VECTOR], weight[VECTOR];
            load_vector<T, VECTOR>(x_row + c, true, VECTOR, x);
            load_vector<T, VECTOR>(g_row + c, true, VECTOR, g);
            load_parameter<W, VECTOR>(args.weight, c, F(1), weight);
#pragma unroll
            for (int j = 0; j < VECTOR; j++) {
                const F hat = (x[j] - mean) * scale, gw = g[j] * weight[j];
                if (SECOND) {
                    x[j] = (gw - sum - hat * along) * scale;
                } else {
                    sum += gw;
                    along += gw * hat;
                }
            }
            if (SECOND) store_vector<T, VECTOR>(to + c, true, VECTOR, x);
        }
        if (SECOND) continue;
        sum = row_sum<LONG_THREADS>(sum, slots);
        along = row_sum<LONG_THREADS>(along, slots);
        if (threadIdx.x == 0) {
            sums[0] = sum * share;
            sums[1] = along * share;
        }
    }
}

// `partial` of some rows, VECTOR columns per thread: a block of 256 threads has args.height rows of 256 * VECTOR columns.
template <class T, int VECTOR>
__global__ void __launch_bounds__(256) rows_columns(const __grid_constant__ RowArgs args) {
    using F = Computed<T>;
    const int c = (blockIdx.y * 256 + threadIdx.x) * VECTOR;
    if (c >= args.columns) return;
    F to_weight[VECTOR], to_bias[VECTOR];
#pragma unroll
    for (int j = 0; j < VECTOR; j++) to_weight[j] = to_bias[j] = F(0);
    const long long start = 1ll * blockIdx.x * args.height, stop = min(start + args.height, args.rows);
    for (long long row = start; row < stop; row++) {
        const F mean = static_cast<const F*>(args.moments)[2 * row];
        const F scale = static_cast<const F*>(args.moments)[2 * row + 1];
        F x[VECTOR], g[VECTOR];
        load_vector<T, VECTOR>(static_cast<const Stored<T>*>(args.x) + row * args.columns + c, true, VECTOR, x);
        load_vector<T, VECTOR>(static_cast<const Stored<T>*>(args.g) + row * args.columns + c, true, VECTOR, g);
#pragma unroll
        for (int j = 0; j < VECTOR; j++) {
            to_weight[j] += g[j] * ((x[j] - mean) * scale);
            to_bias[j] += g[j];
        }
    }
    F* partial = static_cast<F*>(args.partial) + 2ll * blockIdx.x * args.columns + c;
#pragma unroll
    for (int j = 0; j < VECTOR; j++) partial[j] = to_weight[j], partial[args.columns + j] = to_bias[j];
}

// --- sums over blocks or images -------------------------------------------------------------------------------------

struct SumArgs {
    const void* partial;  // (count, 2, columns)
    void* weight;         // (columns,), or null, as the next
    void* bias;
    long long count;
    int columns;
};

// 32 columns by 8 threads, which have every 8th of the numbers.
template <class W>
__global__ void __launch_bounds__(256) columns_sum(const __grid_constant__ SumArgs args) {
    using F = Computed<W>;
    __shared__ F found[256];
    const int part = threadIdx.x / 32;
    for (long long first = blockIdx.x * 32ll; first < 2ll * args.columns; first += gridDim.x * 32ll) {
        const long long c = first + threadIdx.x % 32;
        F sum = F(0);
        if (c < 2ll * args.columns)
            for (long long i = part; i < args.count; i += 8)
                sum += static_cast<const F*>(args.partial)[i * 2 * args.columns + c];
        found[threadIdx.x] = sum;
        __syncthreads();
        void* to = c < args.columns ? args.weight : args.bias;
        if (part == 0 && c < 2ll * args.columns && to != nullptr) {
            for (int other = 1; other < 8; other++) sum += found[other * 32 + threadIdx.x];
            static_cast<Stored<W>*>(to)[c < args.columns ? c : c - args.columns] = Number<W>::store(sum);
        }
        __syncthreads();
    }
}

// --- channels -------------------------------------------------------------------------------------------------------

struct ChannelArgs {
    const void* x;
    const void* y;  // a residual, or on the way back the output
    const void* g;
    const void* weight;    // (columns,), or null, as the next
    const void* bias;
    const void* mean;      // (images, columns / group)
    const void* variance;
    void* to;
    void* to_y;     // the gradient of the residual
    void* partial;  // (images, chunks, 2, columns)
    void* to_weight;  // sums of g times the normalized x for each column, 2 * columns further for each image
    void* to_bias;    // the same of g
    void* terms;    // (images, columns / group, 2): of g * weight, and that times the normalized x, by their number
    long long rows;    // of an image
    long long height;  // rows of a chunk
    int images, chunks, columns, group;
    int lanes;  // of a block's threads, a power of two but for tiles: along columns, VECTOR each; the others along rows
    double eps;
};

enum Mask { ALL, AGAIN, OUTPUT };  // of the gradient, where ReLU was positive: computed again, or read from the output

// Which part of the memory a block has, and which columns of that a thread.
template <int VECTOR>
struct Chunk {
    long long image, start, stop, place;  // `place` of its `partial`
    int column, part, parts;
    bool inside;

    DEVICE Chunk(const ChannelArgs& args, unsigned block) {
        const unsigned tiles = (args.columns / VECTOR + args.lanes - 1) / args.lanes;
        const unsigned tile = block % tiles, chunk = block / tiles % args.chunks;
        image = block / tiles / args.chunks;
        start = chunk * args.height;
        stop = min(start + args.height, args.rows);
        place = image * args.chunks + chunk;
        column = (tile * args.lanes + threadIdx.x % args.lanes) * VECTOR;
        part = threadIdx.x / args.lanes;
        parts = 256 / args.lanes;
        inside = column < args.columns;
    }
    DEVICE long long offset(const ChannelArgs& args, long long row) const {
        return (image * args.rows + row) * args.columns + column;
    }
};

// What means are counted from: an element of the group, so that few digits are lost where all are far from zero.
template <class T>
DEVICE Computed<T> start_of(const ChannelArgs& args, long long image, int column) {
    const long long first = image * args.rows * args.columns + column / args.group * args.group;
    return Number<T>::load(static_cast<const Stored<T>*>(args.x)[first]);
}

template <class T, int VECTOR>
__global__ void __launch_bounds__(256) channel_moments(const __grid_constant__ ChannelArgs args) {
    using F = Computed<T>;
    __shared__ F means[256][VECTOR], squares[256][VECTOR], counts[256];
    const Chunk<VECTOR> chunk(args, blockIdx.x);
    F count = F(0), mean[VECTOR], square[VECTOR], start[VECTOR];
#pragma unroll
    for (int j = 0; j < VECTOR; j++) mean[j] = square[j] = F(0);
    if (chunk.inside) {
#pragma unroll
        for (int j = 0; j < VECTOR; j++) start[j] = start_of<T>(args, chunk.image, chunk.column + j);
#pragma unroll 4
        for (long long row = chunk.start + chunk.part; row < chunk.stop; row += chunk.parts) {
            F x[VECTOR];
            load_vector<T, VECTOR>(static_cast<const Stored<T>*>(args.x) + chunk.offset(args, row), true, VECTOR, x);
            count += F(1);
            const F share = F(1) / count;
#pragma unroll
            for (int j = 0; j < VECTOR; j++) {
                const F from_start = x[j] - start[j], away = from_start - mean[j];
                mean[j] += away * share;
                square[j] += away * (from_start - mean[j]);
            }
        }
    }
    counts[threadIdx.x] = count;
#pragma unroll
    for (int j = 0; j < VECTOR; j++) means[threadIdx.x][j] = mean[j], squares[threadIdx.x][j] = square[j];
    for (int step = chunk.parts / 2; step > 0; step /= 2) {
        __syncthreads();
        if (chunk.part >= step) continue;
        const int other = threadIdx.x + step * args.lanes;
        Moments<F> m{F(0), F(0), F(0)};
#pragma unroll
        for (int j = 0; j < VECTOR; j++) {
            m = {counts[threadIdx.x], means[threadIdx.x][j], squares[threadIdx.x][j]};
            m.join({counts[other], means[other][j], squares[other][j]});
            means[threadIdx.x][j] = m.mean;
            squares[threadIdx.x][j] = m.squares;
        }
        counts[threadIdx.x] = m.count;
    }
    if (chunk.part != 0 || !chunk.inside) return;
    F* to = static_cast<F*>(args.partial) + 2 * chunk.place * args.columns + chunk.column;
#pragma unroll
    for (int j = 0; j < VECTOR; j++)
        to[j] = means[threadIdx.x][j], to[args.columns + j] = squares[threadIdx.x][j];
}

// A block has a group of columns of an image.
template <class T>
__global__ void __launch_bounds__(128) channel_combine(const __grid_constant__ ChannelArgs args) {
    using F = Computed<T>;
    __shared__ Moments<F> found[128];
    const int groups = args.columns / args.group;
    const long long image = blockIdx.x / groups;
    const int first = blockIdx.x % groups * args.group;
    Moments<F> m{F(0), F(0), F(0)};
    for (int e = threadIdx.x; e < args.chunks * args.group; e += 128) {
        const int chunk = e / args.group;
        const F* from = static_cast<const F*>(args.partial) + 2 * (image * args.chunks + chunk) * args.columns;
        from += first + e % args.group;
        const long long count = min(args.height, args.rows - chunk * args.height);
        m.join({static_cast<F>(count), from[0], from[args.columns]});
    }
    found[threadIdx.x] = m;
    for (int step = 64; step > 0; step /= 2) {
        __syncthreads();
        if (threadIdx.x < step) found[threadIdx.x].join(found[threadIdx.x + step]);
    }
    if (threadIdx.x == 0) {
        static_cast<F*>(const_cast<void*>(args.mean))[blockIdx.x] = start_of<T>(args, image, first) + found[0].mean;
        static_cast<F*>(const_cast<void*>(args.variance))[blockIdx.x] = found[0].squares / found[0].count;
    }
}

// What a thread's columns are shifted and scaled by.
template <class W, class S, int VECTOR, class F>
struct Affine {
    F mean[VECTOR], scale[VECTOR], weight[VECTOR], bias[VECTOR];

    DEVICE Affine(const ChannelArgs& args, long long image, int column) {
#pragma unroll
        for (int j = 0; j < VECTOR; j++) {
            const long long at = image * (args.columns / args.group) + (column + j) / args.group;
            mean[j] = static_cast<F>(Number<S>::load(static_cast<const Stored<S>*>(args.mean)[at]));
            const F variance = static_cast<F>(Number<S>::load(static_cast<const Stored<S>*>(args.variance)[at]));
            scale[j] = F(1) / sqrt(variance + static_cast<F>(args.eps));
        }
        load_parameter<W, VECTOR>(args.weight, column, F(1), weight);
        load_parameter<W, VECTOR>(args.bias, column, F(0), bias);
    }
    DEVICE F hat(int j, F x) const { return (x - mean[j]) * scale[j]; }
    DEVICE F operator()(int j, F x) const { return hat(j, x) * weight[j] + bias[j]; }
};

// S: what mean and variance are stored as.
template <class T, class W, class S, int VECTOR, bool ADD, bool RELU>
__global__ void __launch_bounds__(256) channel_apply(const __grid_constant__ ChannelArgs args) {
    using F = Computed<T>;
    const Chunk<VECTOR> chunk(args, gridDim.x - 1 - blockIdx.x);
    if (!chunk.inside) return;
    const Affine<W, S, VECTOR, F> affine(args, chunk.image, chunk.column);
#pragma unroll 2
    for (long long row = chunk.start + chunk.part; row < chunk.stop; row += chunk.parts) {
        const long long at = chunk.offset(args, row);
        F x[VECTOR], residual[VECTOR];
        load_vector<T, VECTOR>(static_cast<const Stored<T>*>(args.x) + at, true, VECTOR, x);
        if (ADD) load_vector<T, VECTOR>(static_cast<const Stored<T>*>(args.y) + at, true, VECTOR, residual);
#pragma unroll
        for (int j = 0; j < VECTOR; j++) {
            x[j] = affine(j, x[j]);
            if (ADD) x[j] += residual[j];
            if (RELU && x[j] < F(0)) x[j] = F(0);  // a NaN stays one
        }
        store_vector<T, VECTOR>(static_cast<Stored<T>*>(args.to) + at, true, VECTOR, x);
    }
}

// The gradient behind ReLU, at one row.
template <class T, class W, int VECTOR, Mask MASK, class F>
DEVICE void load_gradient(const ChannelArgs& args, const Affine<W, F, VECTOR, F>& affine, long long at,
                          const F (&x)[VECTOR], F (&g)[VECTOR]) {
    F y[VECTOR];
    load_vector<T, VECTOR>(static_cast<const Stored<T>*>(args.g) + at, true, VECTOR, g);
    if (MASK == OUTPUT) load_vector<T, VECTOR>(static_cast<const Stored<T>*>(args.y) + at, true, VECTOR, y);
    if constexpr (MASK != ALL) {
#pragma unroll
        for (int j = 0; j < VECTOR; j++)
            if (!((MASK == AGAIN ? affine(j, x[j]) : y[j]) > F(0))) g[j] = F(0);
    }
}

template <class T, class W, int VECTOR, Mask MASK>
__global__ void __launch_bounds__(256, 1) channel_grad_sums(const __grid_constant__ ChannelArgs args) {
    using F = Computed<T>;
    __shared__ F found[2][256][VECTOR];
    const Chunk<VECTOR> chunk(args, blockIdx.x);
    F along[VECTOR], sum[VECTOR];
#pragma unroll
    for (int j = 0; j < VECTOR; j++) along[j] = sum[j] = F(0);
    if (chunk.inside) {
        const Affine<W, F, VECTOR, F> affine(args, chunk.image, chunk.column);
#pragma unroll 2
        for (long long row = chunk.start + chunk.part; row < chunk.stop; row += chunk.parts) {
            const long long at = chunk.offset(args, row);
            F x[VECTOR], g[VECTOR];
            load_vector<T, VECTOR>(static_cast<const Stored<T>*>(args.x) + at, true, VECTOR, x);
            load_gradient<T, W, VECTOR, MASK>(args, affine, at, x, g);
#pragma unroll
            for (int j = 0; j < VECTOR; j++) {
                along[j] += g[j] * affine.hat(j, x[j]);
                sum[j] += g[j];
            }
        }
    }
#pragma unroll
    for (int j = 0; j < VECTOR; j++) found[0][threadIdx.x][j] = along[j], found[1][threadIdx.x][j] = sum[j];
    for (int step = chunk.parts / 2; step > 0; step /= 2) {
        __syncthreads();
        if (chunk.part >= step) continue;
#pragma unroll
        for (int which = 0; which < 2; which++)
#pragma unroll
            for (int j = 0; j < VECTOR; j++)
                found[which][threadIdx.x][j] += found[which][threadIdx.x + step * args.lanes][j];
    }
    if (chunk.part != 0 || !chunk.inside) return;
    F* to = static_cast<F*>(args.partial) + 2 * chunk.place * args.columns + chunk.column;
#pragma unroll
    for (int j = 0; j < VECTOR; j++)
        to[j] = found[0][threadIdx.x][j], to[args.columns + j] = found[1][threadIdx.x][j];
}

// A block has a group of columns of an image: args.lanes threads along columns, the others along chunks.
template <class W, class F>
__global__ void __launch_bounds__(128) channel_grad_combine(const __grid_constant__ ChannelArgs args) {
    __shared__ F found[2][128];
    const int groups = args.columns / args.group, lane = threadIdx.x % args.lanes, part = threadIdx.x / args.lanes;
    const long long image = blockIdx.x / groups;
    const int first = blockIdx.x % groups * args.group;
    F along = F(0), sum = F(0);  // of this thread's columns, times the weight
    for (int start = 0; start < args.group; start += args.lanes) {
        const int column = first + start + lane;
        const bool inside = start + lane < args.group;
        F a = F(0), s = F(0);
        for (int chunk = part; inside && chunk < args.chunks; chunk += 128 / args.lanes) {
            const F* from = static_cast<const F*>(args.partial) + 2 * (image * args.chunks + chunk) * args.columns;
            a += from[column];
            s += from[args.columns + column];
        }
        found[0][threadIdx.x] = a;
        found[1][threadIdx.x] = s;
        for (int step = 64; step >= args.lanes; step /= 2) {
            __syncthreads();
            if (threadIdx.x >= step) continue;
            found[0][threadIdx.x] += found[0][threadIdx.x + step];
            found[1][threadIdx.x] += found[1][threadIdx.x + step];
        }
        if (part == 0 && inside) {
            a = found[0][threadIdx.x];
            s = found[1][threadIdx.x];
            static_cast<F*>(args.to_weight)[2 * image * args.columns + column] = a;
            static_cast<F*>(args.to_bias)[2 * image * args.columns + column] = s;
            F weight = F(1);
            if (args.weight) weight = static_cast<F>(Number<W>::load(static_cast<const Stored<W>*>(args.weight)[column]));
            along += weight * a;
            sum += weight * s;
        }
        __syncthreads();
    }
    found[0][threadIdx.x] = along;
    found[1][threadIdx.x] = sum;
    for (int step = args.lanes / 2; step > 0; step /= 2) {
        __syncthreads();
        if (threadIdx.x >= step) continue;
        found[0][threadIdx.x] += found[0][threadIdx.x + step];
        found[1][threadIdx.x] += found[1][threadIdx.x + step];
    }
    if (threadIdx.x == 0) {
        const F count = static_cast<F>(args.rows) * static_cast<F>(args.group);
        F* to = static_cast<F*>(args.terms) + 2ll * blockIdx.x;
        to[0] = found[1][0] / count;
        to[1] = found[0][0] / count;
    }
}

template <class T, class W, int VECTOR, Mask MASK>
__global__ void __launch_bounds__(256) channel_grad_apply(const __grid_constant__ ChannelArgs args) {
    using F = Computed<T>;
    const Chunk<VECTOR> chunk(args, gridDim.x - 1 - blockIdx.x);
    if (!chunk.inside) return;
    const Affine<W, F, VECTOR, F> affine(args, chunk.image, chunk.column);
    F sum[VECTOR], along[VECTOR];
#pragma unroll
    for (int j = 0; j < VECTOR; j++) {
        const long long at = chunk.image * (args.columns / args.group) + (chunk.column + j) / args.group;
        sum[j] = static_cast<const F*>(args.terms)[2 * at];
        along[j] = static_cast<const F*>(args.terms)[2 * at + 1];
    }
    for (long long row = chunk.start + chunk.part; row < chunk.stop; row += chunk.parts) {
        const long long at = chunk.offset(args, row);
        F x[VECTOR], g[VECTOR];
        load_vector<T, VECTOR>(static_cast<const Stored<T>*>(args.x) + at, true, VECTOR, x);
        load_gradient<T, W, VECTOR, MASK>(args, affine, at, x, g);
        if (MASK == OUTPUT) store_vector<T, VECTOR>(static_cast<Stored<T>*>(args.to_y) + at, true, VECTOR, g);
#pragma unroll
        for (int j = 0; j < VECTOR; j++)
            x[j] = (g[j] * affine.weight[j] - sum[j] - affine.hat(j, x[j]) * along[j]) * affine.scale[j];
        store_vector<T, VECTOR>(static_cast<Stored<T>*>(args.to) + at, true, VECTOR, x);
    }
}

// --- channels of an image, in shared memory -------------------------------------------------------------------------

// A block has args.lanes * VECTOR columns of an image, whole groups; the last block of an image may have fewer. A thread
// has VECTOR of these columns at every so-many-th row, and keeps them in shared memory: it alone reads them there, so that
// they need no barrier.
template <class T, int VECTOR, int THREADS>
struct Tile {
    using F = Computed<T>;
    static constexpr int BYTES = VECTOR * sizeof(Stored<T>);
    const ChannelArgs& args;
    long long image;
    int first, column;  // of the block, and of the thread
    int lane, part, parts;
    bool inside;

    DEVICE explicit Tile(const ChannelArgs& args) : args(args) {
        const int width = args.lanes * VECTOR, tiles = (args.columns + width - 1) / width;
        image = blockIdx.x / tiles;
        first = blockIdx.x % tiles * width;
        lane = threadIdx.x % args.lanes;
        part = threadIdx.x / args.lanes;
        parts = THREADS / args.lanes;
        column = first + lane * VECTOR;
        inside = part < parts && column < args.columns;
    }
    DEVICE long long offset(int row) const { return (image * args.rows + row) * args.columns + column; }
    // Where the thread's columns of a row are in shared memory; `which` of the arrays there.
    DEVICE Stored<T>* held(int which, int row) const {
        const int at = (which * static_cast<int>(args.rows) + row) * args.lanes + lane;
        return reinterpret_cast<Stored<T>*>(gn_shared + at * BYTES);
    }
    DEVICE void copy(int which, const void* from) const {
        for (int row = part; inside && row < args.rows; row += parts) {
            copy_to_shared<BYTES>(held(which, row), static_cast<const Stored<T>*>(from) + offset(row));
        }
    }
    // Call f(row, x) with what the thread has of each of its rows.
    template <class Call>
    DEVICE void each_row(Call f) const {
#pragma unroll 2
        for (int row = part; inside && row < args.rows; row += parts) {
            F x[VECTOR];
            load_vector<T, VECTOR>(held(0, row), true, VECTOR, x);
            f(row, x);
        }
    }
    // From what the threads found for their columns, x, to the mean over the group that each column belongs to. On the
    // way, one thread for each column calls of_column(j, sum), and what that gives is what counts.
    template <class Call>
    DEVICE void group_means(F (&x)[VECTOR], F (&found)[THREADS][VECTOR], Call of_column) const {
        __syncthreads();
#pragma unroll
        for (int j = 0; j < VECTOR; j++) found[threadIdx.x][j] = x[j];
        int step = 1;
        while (2 * step < parts) step *= 2;
        for (; step > 0; step /= 2) {
            __syncthreads();
            if (part >= step || part + step >= parts) continue;
#pragma unroll
            for (int j = 0; j < VECTOR; j++) found[threadIdx.x][j] += found[threadIdx.x + step * args.lanes][j];
        }
        if (part == 0 && inside) {
#pragma unroll
            for (int j = 0; j < VECTOR; j++) found[lane][j] = of_column(j, found[lane][j]);
        }
        __syncthreads();
        // A warp for each group. The sum takes the place of the group's first column, which no other warp reads.
        F* sums = &found[0][0];
        const int width = min(args.lanes * VECTOR, args.columns - first);
        for (int start = threadIdx.x / 32 * args.group; start < width; start += THREADS / 32 * args.group) {
            F sum = F(0);
            for (int c = threadIdx.x % 32; c < args.group; c += 32) sum += sums[start + c];
            sum = reduce_lanes<Add>(sum);
            if (threadIdx.x % 32 == 0) sums[start] = sum;
        }
        __syncthreads();
        const F share = F(1) / (static_cast<F>(args.rows) * static_cast<F>(args.group));
#pragma unroll
        for (int j = 0; j < VECTOR; j++)
            x[j] = inside ? sums[(lane * VECTOR + j) / args.group * args.group] * share : F(0);
    }
    // Of each column's group: the mean, and one by the deviation.
    DEVICE void statistics(F (&mean)[VECTOR], F (&scale)[VECTOR], F (&found)[THREADS][VECTOR]) const {
        const auto as_it_is = [](int, F sum) { return sum; };
        F start[VECTOR];
#pragma unroll
        for (int j = 0; j < VECTOR; j++) {
            start[j] = inside ? start_of<T>(args, image, column + j) : F(0);
            mean[j] = scale[j] = F(0);
        }
        each_row([&](int, const F(&x)[VECTOR]) {
#pragma unroll
            for (int j = 0; j < VECTOR; j++) mean[j] += x[j] - start[j];
        });
        group_means(mean, found, as_it_is);
        each_row([&](int, const F(&x)[VECTOR]) {
#pragma unroll
            for (int j = 0; j < VECTOR; j++) {
                const F away = x[j] - start[j] - mean[j];
                scale[j] += away * away;
            }
        });
        group_means(scale, found, as_it_is);
#pragma unroll
        for (int j = 0; j < VECTOR; j++) {
            mean[j] += start[j];
            scale[j] = F(1) / sqrt(scale[j] + static_cast<F>(args.eps));
        }
    }
    // Of the thread's columns.
    template <class W>
    DEVICE void parameter(const void* from, F otherwise, F (&p)[VECTOR]) const {
        load_parameter<W, VECTOR>(inside ? from : nullptr, column, otherwise, p);
    }
};

// 256 threads, three such blocks in a multiprocessor; or 512 where the tile is so large that no other block fits beside it.
template <int THREADS>
constexpr int TILE_BLOCKS = THREADS == 256 ? 3 : 1;

template <class T, class W, int VECTOR, int THREADS>
__global__ void __launch_bounds__(THREADS, TILE_BLOCKS<THREADS>) tile_normalize(const __grid_constant__ ChannelArgs args) {
    using F = Computed<T>;
    __shared__ F found[THREADS][VECTOR];
    const Tile<T, VECTOR, THREADS> tile(args);
    tile.copy(0, args.x);
    cp_async_commit();
    cp_async_wait<0>();
    F mean[VECTOR], scale[VECTOR], weight[VECTOR], bias[VECTOR];
    tile.statistics(mean, scale, found);
    tile.template parameter<W>(args.weight, F(1), weight);
    tile.template parameter<W>(args.bias, F(0), bias);
    tile.each_row([&](int row, F(&x)[VECTOR]) {
#pragma unroll
        for (int j = 0; j < VECTOR; j++) x[j] = (x[j] - mean[j]) * scale[j] * weight[j] + bias[j];
        store_vector<T, VECTOR>(static_cast<Stored<T>*>(args.to) + tile.offset(row), true, VECTOR, x);
    });
}

// BOTH: g is kept beside x, else it is read twice.
template <class T, class W, int VECTOR, int THREADS, bool BOTH>
__global__ void __launch_bounds__(THREADS, TILE_BLOCKS<THREADS>) tile_grad(const __grid_constant__ ChannelArgs args) {
    using F = Computed<T>;
    __shared__ F found[THREADS][VECTOR];
    const Tile<T, VECTOR, THREADS> tile(args);
    tile.copy(0, args.x);
    cp_async_commit();
    if (BOTH) tile.copy(1, args.g);
    cp_async_commit();
    cp_async_wait<1>();
    F mean[VECTOR], scale[VECTOR], weight[VECTOR], sum[VECTOR], along[VECTOR];
    tile.statistics(mean, scale, found);
    cp_async_wait<0>();
    const auto gradient = [&](int row, F(&g)[VECTOR]) {
        const Stored<T>* from = BOTH ? tile.held(1, row) : static_cast<const Stored<T>*>(args.g) + tile.offset(row);
        load_vector<T, VECTOR>(from, true, VECTOR, g);
    };
#pragma unroll
    for (int j = 0; j < VECTOR; j++) sum[j] = along[j] = F(0);
    tile.each_row([&](int row, const F(&x)[VECTOR]) {
        F g[VECTOR];
        gradient(row, g);
#pragma unroll
        for (int j = 0; j < VECTOR; j++) {
            along[j] += g[j] * ((x[j] - mean[j]) * scale[j]);
            sum[j] += g[j];
        }
    });
    tile.template parameter<W>(args.weight, F(1), weight);
    const auto of_column = [&](void* all) {
        F* to = static_cast<F*>(all) + 2 * tile.image * args.columns + tile.column;
        return [&weight, to](int j, F total) {
            to[j] = total;
            return weight[j] * total;
        };
    };
    tile.group_means(along, found, of_column(args.to_weight));
    tile.group_means(sum, found, of_column(args.to_bias));
    tile.each_row([&](int row, F(&x)[VECTOR]) {
        F g[VECTOR];
        gradient(row, g);
#pragma unroll
        for (int j = 0; j < VECTOR; j++) {
            const F hat = (x[j] - mean[j]) * scale[j];
            x[j] = (g[j] * weight[j] - sum[j] - hat * along[j]) * scale[j];
        }
        store_vector<T, VECTOR>(static_cast<Stored<T>*>(args.to) + tile.offset(row), true, VECTOR, x);
    });
}

struct RunningArgs {
    const void* mean;  // of the batch
    const void* variance;
    void* running_mean;  // or null, as the next
    void* running_variance;
    int channels;
    double momentum, unbias;
};

template <class R, class F>
__global__ void __launch_bounds__(256) running(const __grid_constant__ RunningArgs args) {
    const F momentum = static_cast<F>(args.momentum), unbias = static_cast<F>(args.unbias);
    for (int i = blockIdx.x * 256 + threadIdx.x; i < args.channels; i += gridDim.x * 256) {
        if (args.running_mean) {
            Stored<R>* to = static_cast<Stored<R>*>(args.running_mean) + i;
            const F old = Number<R>::load(*to);
            *to = Number<R>::store(old + (static_cast<const F*>(args.mean)[i] - old) * momentum);
        }
        if (args.running_variance) {
            Stored<R>* to = static_cast<Stored<R>*>(args.running_variance) + i;
            const F old = Number<R>::load(*to);
            *to = Number<R>::store(old + (static_cast<const F*>(args.variance)[i] * unbias - old) * momentum);
        }
    }
}
