// Convolutions with ordinary multiply-adds: any type, any number of channels, any alignment, every GPU.
//
// matmul_simt's plan (kernels/matmul_simt.cu), with operands that are found where kernels/conv.cuh says. A thread loads
// the same channels of the same tap for several rows of A; where the rows' windows begin, the block works out once and
// keeps in shared memory. For WEIGHT_GRAD, a thread loads the same tap for window after window.
#include "conv.cuh"
#include "matmul_simt.cuh"

// A tile of a window matrix, along K through the channels of tap after tap. With ADVANCES, it is what moves `tap` on.
template <class T, int LENGTH, int BK, int VECTOR, int THREADS, bool ADVANCES>
struct Windows : TilePart<T, LENGTH, BK, K_MAJOR, VECTOR, THREADS, BK / VECTOR> {
    using Part = TilePart<T, LENGTH, BK, K_MAJOR, VECTOR, THREADS, BK / VECTOR>;
    using typename Part::Storage;
    using Part::LOADS, Part::at, Part::at_k, Part::held, Part::place, Part::to;

    const ConvArgs& args;
    const ConvClass& part;
    const Storage* image;  // that of the tile's first row
    const WindowRow* rows; // this thread's first one
    Tap& tap;              // this thread's next one
    int k;

    DEVICE Windows(const ConvArgs& args, const ConvClass& part, const Storage* image, const WindowRow* table, Tap& tap,
                   int thread)
        : args(args), part(part), image(image), rows(table + at(0, thread)), tap(tap) {
        k = at_k(0, thread);
        to = place(k, at(0, thread));
    }

    DEVICE void fetch(int left) {
        const Shift shift = shift_of(args, tap);
#pragma unroll
        for (int load = 0; load < LOADS; load++) {
            const WindowRow row = rows[at(load, 0)];
            if (k < left && is_inside(args, row, shift))
                held[load] = *reinterpret_cast<const Vector<Storage, VECTOR>*>(image + row.offset + shift.offset);
            else
                held[load] = {};
        }
        if (ADVANCES) tap.advance(args, part, BK);
    }
};

// A tile of the weight as INPUT_GRAD needs it, along K through the outputs of tap after tap.
template <class T, int LENGTH, int BK, int VECTOR, int THREADS>
struct Taps : TilePart<T, LENGTH, BK, K_MAJOR, VECTOR, THREADS, BK / VECTOR> {
    using Part = TilePart<T, LENGTH, BK, K_MAJOR, VECTOR, THREADS, BK / VECTOR>;
    using typename Part::Storage;
    using Part::LOADS, Part::at, Part::at_k, Part::held, Part::place, Part::to;

    const ConvArgs& args;
    const ConvClass& part;
    const Storage* from;  // this thread's first column
    int columns;          // how many there are from it on
    Tap& tap;             // that of this thread's rows of A, too, which are fetched before
    int k;

    DEVICE Taps(const ConvArgs& args, const ConvClass& part, const Storage* p, int length, Tap& tap, int thread)
        : args(args), part(part), tap(tap) {
        const int column = min(at(0, thread), length - 1);
        from = p + column * args.matmul.b_col;
        columns = length - column;
        k = at_k(0, thread);
        to = place(k, at(0, thread));
    }

    DEVICE void fetch(int left) {
        const Storage* p = from + tap.channel + tap.at[0] * args.weight_step[0] + tap.at[1] * args.weight_step[1] +
                           tap.at[2] * args.weight_step[2];
#pragma unroll
        for (int load = 0; load < LOADS; load++) {
            if (k < left && (at(load, 0) == 0 || at(load, 0) < columns))
                held[load] = *reinterpret_cast<const Vector<Storage, VECTOR>*>(p + at(load, 0) * args.matmul.b_col);
            else
                held[load] = {};
        }
        tap.advance(args, part, BK);
    }
};

// A tile of a window matrix turned, along K through window after window.
template <class T, int LENGTH, int BK, int VECTOR, int THREADS>
struct TurnedWindows : TilePart<T, LENGTH, BK, MN_MAJOR, VECTOR, THREADS> {
    using Part = TilePart<T, LENGTH, BK, MN_MAJOR, VECTOR, THREADS>;
    using typename Part::Storage;
    using Part::LOADS, Part::at, Part::at_k, Part::held, Part::place, Part::to;
    static_assert(THREADS % (LENGTH / VECTOR) == 0, "a thread's loads are all of one tap");

    const ConvArgs& args;
    const ConvClass& part;
    const Storage* images;
    TapPixels pixels;
    int k;

    // m_first, m_count: the tile's first tap and channel, and how many there are from there on.
    DEVICE TurnedWindows(const ConvArgs& args, const ConvClass& part, const Storage* images, int m_first, int m_count,
                         int k_first, int thread)
        : args(args), part(part), images(images),
          pixels(args, part, m_first + min(at(0, thread), m_count - VECTOR), k_first + at_k(0, thread)) {
        k = at_k(0, thread);
        to = place(k, at(0, thread));
    }

    DEVICE void fetch(int left) {
#pragma unroll
        for (int load = 0; load < LOADS; load++) {
            const long long offset = pixels.offset(args);
            if (k + at_k(load, 0) < left && offset >= 0)
                held[load] = *reinterpret_cast<const Vector<Storage, VECTOR>*>(images + offset);
            else
                held[load] = {};
            pixels.advance(args, part);
        }
    }
};

// As simt_blocks; but on sm_100 and sm_120 128 registers are a few too little.
DEVICE constexpr int conv_blocks(int itemsize, int threads) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
    return 1;
#else
    return simt_blocks(itemsize, threads);
#endif
}

// VECTOR > 1 needs the channels of a group, on both sides, to be multiples of it, and addresses of 16 bytes.
template <class T, ConvPass PASS, int BM, int BN, int BK, int WM, int WN, int VECTOR>
__global__ void __launch_bounds__(simt_threads(BM, BN, WM, WN), conv_blocks(sizeof(T), simt_threads(BM, BN, WM, WN)))
    conv_simt(const __grid_constant__ ConvArgs args) {
    using Storage = typename Number<T>::Storage;
    using F = typename Number<T>::Compute;
    constexpr int THREADS = simt_threads(BM, BN, WM, WN);
    constexpr int G = 16 / sizeof(F);
    constexpr int TM = WM / 8, TN = WN / 4;
    constexpr int PAIR = (BK * (BM + 4) + (BK - 1) / 8 * 16) + (BK * (BN + 4) + (BK - 1) / 8 * 16);
    using PlainOperand = Operand<T, BN, BK, MN_MAJOR, VECTOR, THREADS>;  // B, but for INPUT_GRAD
    __shared__ __align__(16) F tiles[2 * PAIR];
    __shared__ RowTable<PASS == WEIGHT_GRAD ? 1 : BM, THREADS> table;
    __shared__ ConvClass shared_part;

    const MatmulArgs& product = args.matmul;
    const int tiles_n = (product.n - 1) / BN + 1;
    for (int z = blockIdx.y; z < product.batch * args.classes; z += gridDim.y) {
        const int group = z / args.classes;
        // In shared memory, or its fields would be kept in registers. There is only one but for INPUT_GRAD.
        const ConvClass& part = PASS == INPUT_GRAD ? shared_part : args.each[0];
        if (PASS == INPUT_GRAD) {
            __syncthreads();  // that of the round before is no longer needed
            if (threadIdx.x == 0) shared_part = args.each[z % args.classes];
            __syncthreads();
        }
        const int m = PASS == WEIGHT_GRAD ? product.m : rows_of(args, part);
        const int tiles_m = (m + BM - 1) / BM;
        if (blockIdx.x >= static_cast<long long>(tiles_m) * tiles_n) continue;  // another class has more
        const Tile tile = tile_at(blockIdx.x, tiles_m, tiles_n);
        const Place<BM, BN, WM, WN, G> from(tile);
        const int split = opaque(blockIdx.z), k_first = first_k(product, split);
        int k_count = first_k(product, split + 1) - k_first;
        const Storage* a_from = static_cast<const Storage*>(product.a) + batch_offset(product, product.a_batch, group);
        const Storage* b_from = static_cast<const Storage*>(product.b) + batch_offset(product, product.b_batch, group);
        F sums[TM * TN] = {};
        if constexpr (PASS == WEIGHT_GRAD) {
            using A = TurnedWindows<T, BM, BK, VECTOR, THREADS>;
            A a(args, part, a_from, from.row, m - from.row, k_first, from.thread);
            b_from += from.col + k_first * product.b_row;
            PlainOperand b(b_from, product.n - from.col, 1, product.b_row, from.thread);
            multiply_tiles<BK, TM, TN, G>(a, b, tiles, k_count, from.thread_row, from.thread_col, sums);
        } else {
            __syncthreads();  // that of the round before is no longer needed
            table.fill(args, part, from.row);
            __syncthreads();
            k_count = min(k_count, length_of(args, part) - k_first);
            a_from += RowIndex(part, from.row).image * args.image;
            using A = Windows<T, BM, BK, VECTOR, THREADS, PASS == FORWARD>;
            Tap tap(args, part, k_first + A::at_k(0, from.thread));
            A a(args, part, a_from, table.windows, tap, from.thread);
            if constexpr (PASS == FORWARD) {
                b_from += from.col + k_first * product.b_row;
                PlainOperand b(b_from, product.n - from.col, 1, product.b_row, from.thread);
                multiply_tiles<BK, TM, TN, G>(a, b, tiles, k_count, from.thread_row, from.thread_col, sums);
            } else {
                b_from += part.weight + from.col * product.b_col;
                Taps<T, BN, BK, VECTOR, THREADS> b(args, part, b_from, product.n - from.col, tap, from.thread);
                multiply_tiles<BK, TM, TN, G>(a, b, tiles, k_count, from.thread_row, from.thread_col, sums);
            }
        }
        Epilogue<T> epilogue(product, opaque(group), blockIdx.z);
        if (epilogue.bias) epilogue.bias += group * product.n;
        const Place<BM, BN, WM, WN, G> to(tile);
        const int row = to.row + to.thread_row, *targets = table.targets + (PASS == WEIGHT_GRAD ? 0 : to.thread_row);
        store_sums<TM, TN, G>(
            epilogue, [=](int i) { return PASS == WEIGHT_GRAD ? row + i : targets[i]; }, to.col + to.thread_col, sums);
    }
}
