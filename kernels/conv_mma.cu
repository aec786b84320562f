// Convolutions on tensor cores through mma.sync: half, bfloat16 and TF32, from sm_80 on.
//
// matmul_mma's plan (kernels/matmul_mma.cu): a ring of stages in shared memory, which cp.async fills. Here it gathers:
// each copy of 16 bytes finds its channels in the image, or copies zeros where a window reaches beyond it
// (kernels/conv.cuh). Of a stage, a thread copies the same channels of the same tap for several windows, so it works
// out the tap once a stage, and of each window reads from shared memory where it begins. For WEIGHT_GRAD, it copies the
// same tap and channels of window after window.
//
// So 16 bytes of channels must be of one tap: the channels of a group, on both sides, are multiples of them.
#include "conv.cuh"
#include "matmul_mma.cuh"

// What all copiers of 16 bytes share: how many lines of a stage's part a thread copies to, and where.
template <class T, Layout LAYOUT, int SPAN, int BK, int THREADS>
struct Gatherer {
    using Storage = typename Number<T>::Storage;
    using Part = StagePart<T, LAYOUT, SPAN, BK>;
    static constexpr int ELEMENTS = 16 / sizeof(T), UNITS = Part::LINE / 16;
    static constexpr int AT_ONCE = THREADS / UNITS, TIMES = Part::LINES / AT_ONCE;
    static_assert(THREADS % UNITS == 0 && Part::LINES % AT_ONCE == 0, "threads do not divide into lines");

    const ConvArgs& args;
    const ConvClass& part;
    int line, first;  // this thread's first line, and its first element in each
    int place;        // where in the stage's part its first copy goes

    DEVICE Gatherer(const ConvArgs& args, const ConvClass& part, int thread) : args(args), part(part) {
        line = thread / UNITS;
        first = thread % UNITS * ELEMENTS;
        place = line * Part::LINE + (first * int(sizeof(T)) ^ Part::twist(line));
    }

    DEVICE void copy(int to, int i, const Storage* from, bool exists) const {
        to += (place ^ Part::twist(i * AT_ONCE)) + i * AT_ONCE * Part::LINE;
        cp_async<16>(shared_address(gn_shared) + to, from, exists ? 16 : 0);
    }

    DEVICE void finish(int) {}
};

// Copies windows, along K through the channels of tap after tap. With ADVANCES, it is what moves `tap` on.
template <class T, int SPAN, int BK, int THREADS, bool ADVANCES>
struct WindowCopier : Gatherer<T, K_MAJOR, SPAN, BK, THREADS> {
    using Base = Gatherer<T, K_MAJOR, SPAN, BK, THREADS>;
    using typename Base::Storage;
    using Base::AT_ONCE, Base::TIMES, Base::args, Base::part, Base::first, Base::line;

    const Storage* image;   // that of the block's first row
    const WindowRow* rows;  // this thread's first one
    Tap& tap;               // this thread's next one

    DEVICE WindowCopier(const ConvArgs& args, const ConvClass& part, const Storage* image, const WindowRow* table,
                        Tap& tap, int thread)
        : Base(args, part, thread), image(image), rows(table + line), tap(tap) {}

    DEVICE void start(int to, int k_left) {
        const Shift shift = shift_of(args, tap);
#pragma unroll
        for (int i = 0; i < TIMES; i++) {
            const WindowRow row = rows[i * AT_ONCE];
            const bool exists = first < k_left && is_inside(args, row, shift);
            this->copy(to, i, image + (exists ? row.offset + shift.offset : 0), exists);
        }
        if (ADVANCES) tap.advance(args, part, BK);
    }
};

// Copies the weight as INPUT_GRAD needs it, along K through the outputs of tap after tap.
template <class T, int SPAN, int BK, int THREADS>
struct TapCopier : Gatherer<T, K_MAJOR, SPAN, BK, THREADS> {
    using Base = Gatherer<T, K_MAJOR, SPAN, BK, THREADS>;
    using typename Base::Storage;
    using Base::AT_ONCE, Base::TIMES, Base::args, Base::part, Base::first, Base::line;

    const Storage* from;  // the column of this thread's first line
    int columns;          // how many there are from it on
    Tap& tap;             // that of this thread's windows, too, which are copied before

    DEVICE TapCopier(const ConvArgs& args, const ConvClass& part, const Storage* p, int length, Tap& tap, int thread)
        : Base(args, part, thread), from(p + line * args.matmul.b_col), columns(length - line), tap(tap) {}

    DEVICE void start(int to, int k_left) {
        const Storage* p = from + tap.channel + tap.at[0] * args.weight_step[0] + tap.at[1] * args.weight_step[1] +
                           tap.at[2] * args.weight_step[2];
#pragma unroll
        for (int i = 0; i < TIMES; i++) {
            const bool exists = first < k_left && i * AT_ONCE < columns;
            this->copy(to, i, exists ? p + i * AT_ONCE * args.matmul.b_col : from, exists);
        }
        tap.advance(args, part, BK);
    }
};

// Copies windows turned, along K through one after the other.
template <class T, int SPAN, int BK, int THREADS>
struct TurnedWindowCopier : Gatherer<T, MN_MAJOR, SPAN, BK, THREADS> {
    using Base = Gatherer<T, MN_MAJOR, SPAN, BK, THREADS>;
    using typename Base::Storage;
    using Base::AT_ONCE, Base::TIMES, Base::args, Base::part, Base::first, Base::line;

    const Storage* images;
    TapPixels pixels;

    // m_first, m_count: the block's first tap and channel, and how many there are from there on.
    DEVICE TurnedWindowCopier(const ConvArgs& args, const ConvClass& part, const Storage* images, int m_first,
                              int m_count, int k_first, int thread)
        : Base(args, part, thread), images(images),
          pixels(args, part, m_first + min(first, m_count - Base::ELEMENTS), k_first + line) {}

    DEVICE void start(int to, int k_left) {
#pragma unroll
        for (int i = 0; i < TIMES; i++) {
            const long long offset = pixels.offset(args);
            const bool exists = line + i * AT_ONCE < k_left && offset >= 0;
            this->copy(to, i, images + (exists ? offset : 0), exists);
            pixels.advance(args, part);
        }
    }
};

// All addresses are multiples of 16 bytes, and so is what the channels of a group take; split_k is a multiple of BK.
template <class T, ConvPass PASS, int BM, int BN, int BK, int WM, int WN, int STAGES>
__global__ void
__launch_bounds__(BM / WM * (BN / WN) * 32, resident_threads(WM * WN / 32, 4) / (BM / WM * (BN / WN) * 32))
conv_mma(const __grid_constant__ ConvArgs args) {
    using Storage = typename Number<T>::Storage;
    constexpr int WARPS_N = BN / WN, THREADS = BM / WM * WARPS_N * 32;
    constexpr Layout A_LAYOUT = PASS == WEIGHT_GRAD ? MN_MAJOR : K_MAJOR;
    constexpr Layout B_LAYOUT = PASS == INPUT_GRAD ? K_MAJOR : MN_MAJOR;
    using PlainCopier = Copier<T, MN_MAJOR, BN, BK, 16, THREADS>;  // of B, but for INPUT_GRAD
    using FragmentsA = Fragments<T, A_LAYOUT, BM, BK, WM, true>;
    using FragmentsB = Fragments<T, B_LAYOUT, BN, BK, WN, false>;
    static_assert(THREADS / 32 * Slab<T, WN, FragmentsB::BY_FOURS>::FLOATS * sizeof(float) <=
                      STAGES * (FragmentsA::Part::BYTES + FragmentsB::Part::BYTES),
                  "the slabs do not fit into the ring");
    __shared__ RowTable<PASS == WEIGHT_GRAD ? 1 : BM, THREADS> table;
    __shared__ ConvClass shared_part;

    const MatmulArgs& product = args.matmul;
    const int tiles_n = (product.n - 1) / BN + 1;
    const long long k_begin = static_cast<long long>(blockIdx.z) * product.split_k;
    const int k_first = static_cast<int>(min(k_begin, static_cast<long long>(product.k)));
    for (int z = blockIdx.y; z < product.batch * args.classes; z += gridDim.y) {
        const int group = z / args.classes;
        __syncthreads();  // what is in shared memory of the round before is no longer needed
        // In shared memory, or its fields would be kept in registers. There is only one but for INPUT_GRAD.
        const ConvClass& part = PASS == INPUT_GRAD ? shared_part : args.each[0];
        if (PASS == INPUT_GRAD) {
            if (threadIdx.x == 0) shared_part = args.each[z % args.classes];
            __syncthreads();
        }
        const int m = PASS == WEIGHT_GRAD ? product.m : rows_of(args, part);
        const int tiles_m = (m + BM - 1) / BM;
        if (blockIdx.x >= static_cast<long long>(tiles_m) * tiles_n) continue;  // another class has more
        const Tile tile = tile_at(blockIdx.x, tiles_m, tiles_n);
        const int row = tile.row * BM, col = tile.col * BN;
        const int k = PASS == WEIGHT_GRAD ? product.k : length_of(args, part);
        const int k_count = max(min(k - k_first, product.split_k), 0);
        const Storage* a = static_cast<const Storage*>(product.a) + batch_offset(product, product.a_batch, group);
        const Storage* b = static_cast<const Storage*>(product.b) + batch_offset(product, product.b_batch, group);
        const int thread = again<int>(threadIdx.x), warp = thread / 32;
        const FragmentsA fragments_a(thread % 32, warp / WARPS_N * WM);
        const FragmentsB fragments_b(thread % 32, warp % WARPS_N * WN);
        float sums[WM / 16][WN / 8][4] = {};
        if constexpr (PASS == WEIGHT_GRAD) {
            TurnedWindowCopier<T, BM, BK, THREADS> copy_a(args, part, a, row, m - row, k_first, thread);
            PlainCopier copy_b(thread, b + col + k_first * product.b_row, 1, product.b_row, product.n - col);
            multiply_stages<T, BK, STAGES>(copy_a, copy_b, fragments_a, fragments_b, k_count, sums);
        } else {
            table.fill(args, part, row);
            __syncthreads();
            using CopyA = WindowCopier<T, BM, BK, THREADS, PASS == FORWARD>;
            Tap tap(args, part, k_first + thread % CopyA::UNITS * CopyA::ELEMENTS);
            a += RowIndex(part, row).image * args.image;
            CopyA copy_a(args, part, a, table.windows, tap, thread);
            if constexpr (PASS == FORWARD) {
                PlainCopier copy_b(thread, b + col + k_first * product.b_row, 1, product.b_row, product.n - col);
                multiply_stages<T, BK, STAGES>(copy_a, copy_b, fragments_a, fragments_b, k_count, sums);
            } else {
                b += part.weight + col * product.b_col;
                TapCopier<T, BN, BK, THREADS> copy_b(args, part, b, product.n - col, tap, thread);
                multiply_stages<T, BK, STAGES>(copy_a, copy_b, fragments_a, fragments_b, k_count, sums);
            }
        }
        Epilogue<T> epilogue(product, group, blockIdx.z);
        if (epilogue.bias) epilogue.bias += group * product.n;
        const int same = again(thread), same_warp = same / 32, warp_row = same_warp / WARPS_N * WM;
        const int *targets = table.targets + (PASS == WEIGHT_GRAD ? 0 : warp_row);
        store_sums<FragmentsA, FragmentsB>(
            epilogue, same, [=](int i) { return PASS == WEIGHT_GRAD ? row + warp_row + i : targets[i]; },
            col + same_warp % WARPS_N * WN, sums);
        __syncthreads();  // before the next round fills the ring
    }
}
