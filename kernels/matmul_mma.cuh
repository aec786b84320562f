// Products on tensor cores through mma.sync: how operands reach shared memory and the registers of a warp. The plan is
// in matmul_mma.cu; conv_mma.cu has operands that are windows of images.
#pragma once
#include "matmul.cuh"
#include "ptx/mma.cuh"

extern __shared__ __align__(1024) unsigned char gn_shared[];

// How an operand's part of a stage lies in shared memory. SPAN is its extent along M or N.
template <class T, Layout LAYOUT, int SPAN, int BK>
struct StagePart {
    static constexpr int LINES = LAYOUT == K_MAJOR ? SPAN : BK;
    static constexpr int LINE = (LAYOUT == K_MAJOR ? BK : SPAN) * sizeof(T);  // bytes
    static constexpr int BYTES = LINES * LINE;
    static_assert(LINE == 64 || LINE % 128 == 0, "no swizzle for lines of this length");

    // What the byte offsets in a line are xor-ed with. Additive: twist(i + j) = twist(i) ^ twist(j) where i < 2^p and
    // j is a multiple of 2^p.
    static DEVICE constexpr int twist(int line) {
        if (LINE == 64) return line / 2 % 4 * 16;
        return LAYOUT == MN_MAJOR && sizeof(T) == 4 ? line % 4 * 32 : line % 8 * 16;
    }
};

// A thread's share in copying an operand from global memory into stage after stage.
template <class T, Layout LAYOUT, int SPAN, int BK, int BYTES, int THREADS>
struct Copier {
    using Part = StagePart<T, LAYOUT, SPAN, BK>;
#if __CUDA_ARCH__ >= 800
    static constexpr bool ASYNCHRONOUS = BYTES >= 4;
#else
    static constexpr bool ASYNCHRONOUS = false;
#endif
    static constexpr int SIZE = sizeof(T), ELEMENTS = BYTES / SIZE;
    static constexpr int UNITS = Part::LINE / BYTES;     // copies in a line, by as many threads,
    static constexpr int AT_ONCE = THREADS / UNITS;      // lines that all threads together copy at once,
    static constexpr int TIMES = Part::LINES / AT_ONCE;  // and how often they do
    static_assert(THREADS % UNITS == 0 && Part::LINES % AT_ONCE == 0, "threads do not divide into lines");
    using Words = Vector<unsigned, BYTES == 2 ? 1 : BYTES / 4>;  // 2 bytes are half of a word

    const unsigned char* source;  // of this thread's first copy for the next stage
    long long between, advance;   // bytes from there to its next copy, and to the next stage's
    int line, first, inside;      // its first line, its first element in a line; bytes of a unit that exist (MN_MAJOR)
    int lines_left;               // of the lines from its first one on, how many exist (K_MAJOR)
    int place;                    // where in the stage's part its first copy goes
    Words waiting[ASYNCHRONOUS ? 1 : TIMES];

    // matrix: at the first element of the block's part. mn_left: how many rows (or columns) there are from there on.
    DEVICE Copier(int thread, const void* matrix, long long mn_stride, long long k_stride, int mn_left) {
        line = thread / UNITS;
        first = thread % UNITS * ELEMENTS;
        const long long line_stride = LAYOUT == K_MAJOR ? mn_stride : k_stride;
        source = static_cast<const unsigned char*>(matrix) + (line * line_stride + first) * SIZE;
        between = AT_ONCE * line_stride * SIZE;
        advance = BK * k_stride * SIZE;
        inside = existing(mn_left - first);
        lines_left = mn_left - line;
        place = line * Part::LINE + (first * SIZE ^ Part::twist(line));
    }

    // Bytes of a unit that exist if `left` elements do from its first one on.
    static DEVICE int existing(int left) { return min(max(left, 0), ELEMENTS) * SIZE; }

    // Begins to copy the next BK along K, of which k_left exist (none if negative: zeros are copied), to `part`.
    DEVICE void start(int part, int k_left) {
        const int bytes = LAYOUT == K_MAJOR ? existing(k_left - first) : inside;
        const int lines = LAYOUT == K_MAJOR ? lines_left : k_left - line;
        const unsigned char* from = source;
#pragma unroll
        for (int i = 0; i < TIMES; i++) {
            const int valid = i * AT_ONCE < lines ? bytes : 0;
            if constexpr (ASYNCHRONOUS) {
                cp_async<BYTES>(shared_address(gn_shared) + target(part, i), from, valid);
                from += between;
            } else {
                waiting[i] = load(from, valid);
                from += again(between);  // or TIMES multiples of it would be kept in registers
            }
        }
        source += advance;
    }

    // Ends the copying to `part` that start began, but for the wait on cp.async.
    DEVICE void finish(int part) {
        if constexpr (!ASYNCHRONOUS) {
#pragma unroll
            for (int i = 0; i < TIMES; i++)
                store_shared<BYTES>(shared_address(gn_shared) + target(part, i), waiting[i].at);
        }
    }

    DEVICE int target(int part, int i) const {
        return part + (place ^ Part::twist(i * AT_ONCE)) + i * AT_ONCE * Part::LINE;
    }

    static DEVICE Words load(const unsigned char* from, int valid) {
        const unsigned short* halves = reinterpret_cast<const unsigned short*>(from);
        Words words = {};
        if constexpr (BYTES == 2) {
            if (valid) words.at[0] = *halves;
        } else if (valid == BYTES) {
            words = *reinterpret_cast<const Words*>(from);
        } else if (valid) {
#pragma unroll
            for (int i = 0; i < BYTES / 2 - 1; i++)
                if (2 * i < valid) words.at[i / 2] |= static_cast<unsigned>(halves[i]) << i % 2 * 16;
        }
        return words;
    }
};

// The registers that mma takes an operand from: EXTENT rows (or columns) of 32 bytes along K. Of A, each four are a
// piece of 16 rows; of B, two pieces of 8 columns.
template <class T, Layout LAYOUT, int SPAN, int BK, int EXTENT, bool IS_A>
struct Fragments {
    using Part = StagePart<T, LAYOUT, SPAN, BK>;
    static constexpr int PIECES = EXTENT / 16, LINE = Part::LINE;
    static constexpr int K = 32 / sizeof(T);  // elements along K
    static constexpr bool BY_FOURS = LAYOUT == MN_MAJOR && sizeof(T) == 4;
    static_assert(EXTENT % 32 == 0 || !BY_FOURS, "4 elements of a line are of 4 pieces");

    int at;  // where in the stage's part this lane's first load is

    // first: the warp's first row (or column) in the block.
    DEVICE Fragments(int lane, int first) {
        if (BY_FOURS) {
            at = lane % 4 * LINE + ((first + lane / 4 * 4) * 4 ^ Part::twist(lane % 4));
            return;
        }
        // Lanes 8 to 15 and 16 to 23 name the second and the third matrix of ldmatrix: for A, 8 rows further on and 16
        // bytes further along K; for B the other way round.
        const int further = 8 * (lane / (IS_A ? 8 : 16) % 2), along = lane / (IS_A ? 16 : 8) % 2;
        if (LAYOUT == K_MAJOR) {
            const int line = first + further + lane % 8;
            at = line * LINE + (along * 16 ^ Part::twist(line));
        } else {
            const int line = along * 8 + lane % 8;
            at = line * LINE + ((first + further) * int(sizeof(T)) ^ Part::twist(line));
        }
    }

    // Where this lane loads piece i from, for mma number `step` along K.
    DEVICE int place(int i, int step) const {
        if (BY_FOURS) return at + i / 2 * 128 + step * K * LINE;
        return LAYOUT == K_MAJOR ? (at ^ step * 32) + i * 16 * LINE : (at ^ i * 32) + step * K * LINE;
    }

    // Loads piece i from a stage's part, for mma number `step` along K. BY_FOURS, every odd one brings the one before.
    DEVICE void load(unsigned (&to)[PIECES][4], int i, int part, int step) const {
        if constexpr (!BY_FOURS) {
            ldmatrix<LAYOUT == MN_MAJOR>(to[i], shared_address(gn_shared) + part + place(i, step));
        } else if (i % 2) {
            const unsigned from = shared_address(gn_shared) + part + place(i, step);
            unsigned near[4], far[4];
            load_shared(near, from);
            load_shared(far, from + 4 * LINE);
#pragma unroll
            for (int j = 0; j < 4; j++) {
                to[i - 1 + j / 2][IS_A ? j % 2 : j % 2 * 2] = near[j];
                to[i - 1 + j / 2][IS_A ? j % 2 + 2 : j % 2 * 2 + 1] = far[j];
            }
        }
    }

    DEVICE void load(unsigned (&to)[PIECES][4], int part, int step) const {
#pragma unroll
        for (int i = 0; i < PIECES; i++) load(to, i, part, step);
    }

    // Makes a loaded piece what mma takes.
    static DEVICE void prepare(unsigned (&piece)[4]) {
        if constexpr (sizeof(T) == 4) {
#pragma unroll
            for (int j = 0; j < 4; j++) piece[j] = round_to_tf32(piece[j]);
        }
    }

    // The row (or column) in the warp's part of number j of the 16 of piece i.
    static DEVICE int position(int i, int j) {
        return BY_FOURS ? i / 2 * 32 + j % 8 * 4 + i % 2 * 2 + j / 8 : i * 16 + j;
    }
};

// 16 x 8 sums += 16 x 32 bytes of A times 32 bytes x 8 of B.
template <class T>
DEVICE void multiply_piece(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    if constexpr (sizeof(T) == 4) {
        mma_m16n8k8_tf32(sums, a, b);
    } else {
#if __CUDA_ARCH__ >= 800
        mma_m16n8k16<T>(sums, a, b);
#else
        mma_m16n8k8_half(sums, {a[0], a[1]}, b[0]);
        mma_m16n8k8_half(sums, {a[2], a[3]}, b[1]);
#endif
    }
}

// 16 rows of a warp's sums on their way to C, in shared memory.
template <class T, int WN, bool BY_FOURS>
struct Slab {
    // The padding keeps a warp's stores of 2 (or 4) floats free of bank conflicts.
    static constexpr int PITCH = WN + (BY_FOURS ? 4 : 8), FLOATS = 16 * PITCH;
    static constexpr int WIDTH = 16 / sizeof(T), LANES = WN / WIDTH;  // elements that a lane gets, and lanes in a line
    static constexpr int LINES_AT_ONCE = 32 / LANES;

    float* slab;
    int lane;

    DEVICE explicit Slab(int thread)
        : slab(reinterpret_cast<float*>(gn_shared) + thread / 32 * FLOATS), lane(thread % 32) {}

    // Takes the sums of a row of pieces. BY_FOURS: as in Fragments, the columns of four pieces interleave.
    DEVICE void put(const float (&sums)[WN / 8][4]) const {
        const int row = lane / 4, column = lane % 4 * 2;
#pragma unroll
        for (int lower = 0; lower < 2; lower++) {
            float* to = slab + (row + 8 * lower) * PITCH;
            if constexpr (BY_FOURS) {
#pragma unroll
                for (int i = 0; i < WN / 8; i += 4)
#pragma unroll
                    for (int j = 0; j < 2; j++)
                        *reinterpret_cast<Vector<float, 4>*>(to + 8 * i + 4 * (column + j)) = {
                            sums[i][2 * lower + j], sums[i + 1][2 * lower + j], sums[i + 2][2 * lower + j],
                            sums[i + 3][2 * lower + j]};
            } else {
#pragma unroll
                for (int i = 0; i < WN / 8; i++)
                    *reinterpret_cast<Vector<float, 2>*>(to + 8 * i + column) = {sums[i][2 * lower],
                                                                                  sums[i][2 * lower + 1]};
            }
        }
    }

    DEVICE int first_line() const { return lane / LANES; }
    DEVICE int column() const { return lane % LANES * WIDTH; }

    // This lane's part of a line, from `column` on.
    DEVICE void get(float (&values)[WIDTH], int line) const {
#pragma unroll
        for (int i = 0; i < WIDTH; i += 4) {
            const auto four = *reinterpret_cast<const Vector<float, 4>*>(slab + line * PITCH + column() + i);
#pragma unroll
            for (int j = 0; j < 4; j++) values[i + j] = four.at[j];
        }
    }
};

// How many threads are to share a multiprocessor's 65536 registers: as many as leave each what it needs. Copies of few
// bytes need more addresses.
DEVICE constexpr int resident_threads(int sums, int bytes) { return sums <= 32 && bytes == 16 ? 384 : 256; }

// sums += the products of what the copiers bring of A and B, along k_count steps of K, through a ring of STAGES stages
// at the beginning of gn_shared. All of it is free afterwards.
template <class T, int BK, int STAGES, class CopyA, class CopyB, class FragmentsA, class FragmentsB, int PIECES_M,
          int PIECES_N>
DEVICE void multiply_stages(CopyA& copy_a, CopyB& copy_b, const FragmentsA& fragments_a, const FragmentsB& fragments_b,
                            int k_count, float (&sums)[PIECES_M][PIECES_N][4]) {
    constexpr int STEPS = BK / FragmentsA::K;  // mmas along K in a stage
    constexpr int A_BYTES = CopyA::Part::BYTES, STAGE = A_BYTES + CopyB::Part::BYTES, RING = STAGES * STAGE;
    static_assert(STEPS % 2 == 0, "two sets of registers take turns");
    // Of B, the pieces being multiplied and the next ones; of A, each piece is replaced once it is used up.
    unsigned a[PIECES_M][4], b[2][PIECES_N / 2][4];

    // Stages beyond the end of K are copied too, as zeros: a branch would cost more.
    int k_left = k_count;  // from the next stage to be copied on
    int filling = 0, reading = 0;
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) {
        copy_a.start(filling, k_left);
        copy_b.start(filling + A_BYTES, k_left);
        copy_a.finish(filling);
        copy_b.finish(filling + A_BYTES);
        cp_async_commit();
        k_left -= BK;
        filling += STAGE;
    }
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    fragments_a.load(a, reading, 0);
    fragments_b.load(b[0], reading + A_BYTES, 0);

    for (int left = k_count; left > 0; left -= BK) {
#pragma unroll
        for (int step = 0; step < STEPS; step++) {
            if (step == STEPS - 1) {  // what is loaded from here on is of the next stage
                copy_a.finish(filling);
                copy_b.finish(filling + A_BYTES);
                filling = filling == RING - STAGE ? 0 : filling + STAGE;
                reading = reading == RING - STAGE ? 0 : reading + STAGE;
                cp_async_wait<STAGES - 2>();
                __syncthreads();
            }
            const int next = (step + 1) % STEPS;
            fragments_b.load(b[next % 2], reading + A_BYTES, next);
            if (step == 0) {
                copy_a.start(filling, k_left);
                copy_b.start(filling + A_BYTES, k_left);
                cp_async_commit();
                k_left -= BK;
            }
#pragma unroll
            for (int j = 0; j < PIECES_N / 2; j++) fragments_b.prepare(b[step % 2][j]);
#pragma unroll
            for (int i = 0; i < PIECES_M; i++) {
                fragments_a.prepare(a[i]);
#pragma unroll
                for (int j = 0; j < PIECES_N; j++) {
                    const unsigned(&two)[4] = b[step % 2][j / 2];
                    multiply_piece<T>(sums[i][j], a[i], {two[j % 2 * 2], two[j % 2 * 2 + 1]});
                }
                fragments_a.load(a, i, reading, next);
            }
        }
    }
    cp_async_wait<0>();
    __syncthreads();  // the ring is free
}

// Finish and store a warp's sums. row_of(i) is the row of C of row i of the warp's part; `col` is its first column.
template <class FragmentsA, class FragmentsB, class T, class Rows, int PIECES_M, int PIECES_N>
DEVICE void store_sums(const Epilogue<T>& epilogue, int thread, Rows row_of, int col,
                       const float (&sums)[PIECES_M][PIECES_N][4]) {
    using WarpSlab = Slab<T, PIECES_N * 8, FragmentsB::BY_FOURS>;
    const WarpSlab slab(thread);
#pragma unroll 1
    for (int i = 0; i < PIECES_M; i++) {
#pragma unroll
        for (int piece = 0; piece < PIECES_M; piece++)
            if (piece == i) slab.put(sums[piece]);  // registers have no index
        __syncwarp();
#pragma unroll 1
        for (int line = slab.first_line(); line < 16; line += WarpSlab::LINES_AT_ONCE) {
            float values[WarpSlab::WIDTH];
            slab.get(values, line);
            epilogue.store(row_of(FragmentsA::position(i, line)), col + slab.column(), values);
        }
        __syncwarp();
    }
}
