// The instructions of tensor-core kernels for compute capability 7.5 and up: cp.async, ldmatrix, mma.sync, and rounding
// to TF32. Each has one wrapper, and beside it a host twin for the emulator with the same layout of registers over the
// threads of a warp. Sections of the PTX ISA manual are cited by title, as their numbers change between its versions.
#pragma once
#include "ptx/shared.cuh"

// x, by no instruction: but the compiler cannot know that it is. What depends on it is computed where that is written,
// and not before an outer loop, to be kept in registers all through the inner one.
template <class T>
DEVICE T again(T x) {
#ifndef GN_EMULATED
    if constexpr (sizeof(T) == 8)
        asm volatile("" : "+l"(x));
    else
        asm volatile("" : "+r"(x));
#endif
    return x;
}

// --- Plain accesses to shared memory, by 32-bit addresses: through pointers, some machines compute 64 bits of each ---

// Stores BYTES (2, 4, 8 or 16) at a multiple of that; 2 are the lower half of the word.
// PTX ISA, "Data Movement and Conversion Instructions: st".
template <int BYTES>
DEVICE void store_shared(unsigned to, const unsigned (&words)[(BYTES + 2) / 4]) {
    static_assert(BYTES == 2 || BYTES == 4 || BYTES == 8 || BYTES == 16, "st.shared stores 2, 4, 8 or 16 bytes");
#ifdef GN_EMULATED
    if (to % BYTES != 0) gn::trap("st.shared: an address is not a multiple of the size of the store");
    __builtin_memcpy(gn::shared_at(to), words, BYTES);
#else
    if constexpr (BYTES == 16)
        asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(words[0]), "r"(words[1]), "r"(words[2]),
                     "r"(words[3])
                     : "memory");
    else if constexpr (BYTES == 8)
        asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(to), "r"(words[0]), "r"(words[1]) : "memory");
    else if constexpr (BYTES == 4)
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(words[0]) : "memory");
    else
        asm volatile("st.shared.b16 [%0], %1;" ::"r"(to), "h"(static_cast<unsigned short>(words[0])) : "memory");
#endif
}

// Loads 16 bytes from a multiple of 16. PTX ISA, "Data Movement and Conversion Instructions: ld".
DEVICE void load_shared(unsigned (&words)[4], unsigned from) {
#ifdef GN_EMULATED
    if (from % 16 != 0) gn::trap("ld.shared: an address is not a multiple of 16");
    __builtin_memcpy(words, gn::shared_at(from), 16);
#else
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                 : "r"(from)
                 : "memory");
#endif
}

// Loads 4 bytes from a multiple of 4. PTX ISA, as above.
DEVICE unsigned load_word(unsigned from) {
    unsigned word;
#ifdef GN_EMULATED
    if (from % 4 != 0) gn::trap("ld.shared: an address is not a multiple of 4");
    __builtin_memcpy(&word, gn::shared_at(from), 4);
#else
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(word) : "r"(from) : "memory");
#endif
    return word;
}

// --- Copies from global to shared memory that run on their own ------------------------------------------------------

#ifdef GN_EMULATED
// The copies that a thread has asked for and not yet waited for, oldest first, each with the number of its group.
struct PendingCopies {
    struct Copy {
        unsigned char* to;
        const unsigned char* from;
        int bytes, valid, group;

        void run() const {
            for (int i = 0; i < bytes; i++) to[i] = i < valid ? from[i] : 0;
        }
    };

    static constexpr int MOST = 256;
    Copy copies[MOST];
    int count, groups;
};
#endif

// Copies BYTES (4, 8 or 16) to a shared address: the first `valid` of them from global memory, which is read no
// further, and zeros for the rest. Both addresses are multiples of BYTES. Nothing is known to have arrived before
// cp_async_wait; where there is no cp.async (below sm_80), it has when this returns.
// PTX ISA, "Data Movement and Conversion Instructions: cp.async". 16 bytes go around the L1 cache (.cg).
template <int BYTES>
DEVICE void cp_async(unsigned to, const void* from, int valid) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "cp.async copies 4, 8 or 16 bytes");
#ifdef GN_EMULATED
    if (to % BYTES != 0 || reinterpret_cast<unsigned long long>(from) % BYTES != 0)
        gn::trap("cp.async: an address is not a multiple of the size of the copy");
    if (valid < 0 || valid > BYTES) gn::trap("cp.async: more bytes are to be read than are copied, or fewer than none");
    auto& pending = gn::per_thread<PendingCopies>();
    const PendingCopies::Copy copy{gn::shared_at(to), static_cast<const unsigned char*>(from), BYTES, valid,
                                   pending.groups};
    if (__CUDA_ARCH__ < 800 || !gn::late()) {
        copy.run();
    } else {
        if (pending.count == PendingCopies::MOST) gn::trap("cp.async: too many copies at a time for the emulator");
        pending.copies[pending.count++] = copy;
    }
#elif __CUDA_ARCH__ >= 800
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid)
                     : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(from), "n"(BYTES), "r"(valid)
                     : "memory");
#else
    Vector<unsigned, BYTES / 4> value;
    if (valid == BYTES) {
        value = *static_cast<const Vector<unsigned, BYTES / 4>*>(from);
    } else {
#pragma unroll
        for (int i = 0; i < BYTES; i++) {
            const unsigned byte = i < valid ? static_cast<const unsigned char*>(from)[i] : 0;
            value.at[i / 4] = i % 4 == 0 ? byte : value.at[i / 4] | byte << i % 4 * 8;
        }
    }
    store_shared<BYTES>(to, value.at);
#endif
}

// Makes a group, maybe an empty one, of the copies this thread has asked for since the last group.
// PTX ISA, "Data Movement and Conversion Instructions: cp.async.commit_group".
DEVICE void cp_async_commit() {
#ifdef GN_EMULATED
    gn::per_thread<PendingCopies>().groups++;
#elif __CUDA_ARCH__ >= 800
    asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits until all but the last N groups of this thread have arrived. Other threads see them after a barrier.
// PTX ISA, "Data Movement and Conversion Instructions: cp.async.wait_group".
template <int N>
DEVICE void cp_async_wait() {
#ifdef GN_EMULATED
    auto& pending = gn::per_thread<PendingCopies>();
    int left = 0;
    for (int i = 0; i < pending.count; i++) {
        const PendingCopies::Copy copy = pending.copies[i];
        if (copy.group < pending.groups - N)
            copy.run();
        else
            pending.copies[left++] = copy;
    }
    pending.count = left;
#elif __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
#endif
}

// --- From shared memory to the registers of a warp -----------------------------------------------------------------

// Loads N (2 or 4) matrices of 8 rows of 16 bytes. Lane 8 i + r names the shared address of row r of matrix i, a
// multiple of 16. Of matrix i, lane 4 r + c gets the 32 bits in column c of row r; with TRANSPOSED, the 16 bits in
// column r of row 2 c and, above them, those of row 2 c + 1.
// PTX ISA, "Warp-level matrix load instruction: ldmatrix". sm_75 and up.
template <bool TRANSPOSED, int N>
DEVICE void ldmatrix(unsigned (&to)[N], unsigned address) {
    static_assert(N == 2 || N == 4, "ldmatrix is wrapped for 2 and 4 matrices");
#ifdef GN_EMULATED
    if (address % 16 != 0) gn::trap("ldmatrix: an address is not a multiple of 16");
    auto rows = gn::exchange(~0u, address);
    const int row = gn::lane() / 4, column = gn::lane() % 4;
    for (int i = 0; i < N; i++) {
        unsigned short low, high;
        if (TRANSPOSED) {
            __builtin_memcpy(&low, gn::shared_at(rows[8 * i + 2 * column]) + 2 * row, 2);
            __builtin_memcpy(&high, gn::shared_at(rows[8 * i + 2 * column + 1]) + 2 * row, 2);
        } else {
            __builtin_memcpy(&low, gn::shared_at(rows[8 * i + row]) + 4 * column, 2);
            __builtin_memcpy(&high, gn::shared_at(rows[8 * i + row]) + 4 * column + 2, 2);
        }
        to[i] = low | static_cast<unsigned>(high) << 16;
    }
#else
    if constexpr (N == 4 && TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(address)
                     : "memory");
    else if constexpr (N == 4)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                     : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                     : "r"(address)
                     : "memory");
    else if constexpr (TRANSPOSED)
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                     : "=r"(to[0]), "=r"(to[1])
                     : "r"(address)
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                     : "=r"(to[0]), "=r"(to[1])
                     : "r"(address)
                     : "memory");
#endif
}

// --- Products of a warp: D (16, 8) += A (16, K) B (K, 8), accumulated in float --------------------------------------
//
// Lane 4 g + t holds, in 16-bit pairs with the lower column (of B: row) in the lower half, or one TF32 each,
//
//     A, 16 bits: 0: row g, columns 2t, 2t+1   1: row g+8, the same   2, 3: rows g, g+8, columns 2t+8, 2t+9 (K = 16)
//     B, 16 bits: 0: rows 2t, 2t+1 of column g                        1: rows 2t+8, 2t+9                    (K = 16)
//     A, TF32:    0: (g, t)   1: (g+8, t)   2: (g, t+4)   3: (g+8, t+4)
//     B, TF32:    0: (t, g)   1: (t+4, g)
//     D:          0, 1: row g, columns 2t, 2t+1                       2, 3: row g+8, the same
//
// PTX ISA, "Multiply-and-Accumulate Instruction: mma", and "Matrix Fragments for" each of the three shapes.

#ifdef GN_EMULATED
// The numbers in a lane's registers, as floats: of A first those of row g, then of row g+8, each by column.
template <int K>
struct LaneOperands {
    float a[2][K / 4], b[K / 4];
};

// ADJACENT: how many adjacent columns a lane holds before the next lane's begin (16 bits: 2, TF32: 1).
template <int K, int ADJACENT>
static inline void multiply(float (&d)[4], const LaneOperands<K>& mine) {
    auto lanes = gn::exchange(~0u, mine);
    const int g = gn::lane() / 4, t = gn::lane() % 4;
    for (int i = 0; i < 4; i++) {
        const int row = g + i / 2 * 8, column = 2 * t + i % 2;
        float sum = 0;
        for (int k = 0; k < K; k++) {
            const int owner = k / ADJACENT % 4, at = k / (4 * ADJACENT) * ADJACENT + k % ADJACENT;
            sum += lanes[row % 8 * 4 + owner].a[row / 8][at] * lanes[column * 4 + owner].b[at];
        }
        d[i] += sum;
    }
}

template <class T, int I>
static inline float half_of(const unsigned (&pairs)[I], int register_, int upper) {
    return to_float(T{static_cast<unsigned short>(pairs[register_] >> 16 * upper)});
}
#endif

template <class T>
constexpr bool is_half = false;
template <>
constexpr bool is_half<half> = true;

// m16n8k16, T = half or bfloat16. sm_80 and up.
template <class T>
DEVICE void mma_m16n8k16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef GN_EMULATED
    LaneOperands<16> mine;
    for (int i = 0; i < 4; i++) {
        for (int row = 0; row < 2; row++) mine.a[row][i] = half_of<T>(a, i / 2 * 2 + row, i % 2);
        mine.b[i] = half_of<T>(b, i / 2, i % 2);
    }
    multiply<16, 2>(d, mine);
#else
    if constexpr (is_half<T>)
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    else
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
            "{%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// m16n8k8 of half. sm_75 and up.
DEVICE void mma_m16n8k8_half(float (&d)[4], const unsigned (&a)[2], unsigned b) {
#ifdef GN_EMULATED
    LaneOperands<8> mine;
    const unsigned pairs[1] = {b};
    for (int i = 0; i < 2; i++) {
        for (int row = 0; row < 2; row++) mine.a[row][i] = half_of<half>(a, row, i);
        mine.b[i] = half_of<half>(pairs, 0, i);
    }
    multiply<8, 2>(d, mine);
#else
    asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b));
#endif
}

// m16n8k8 of TF32, which are the bits of floats; their 13 last ones are ignored. sm_80 and up.
DEVICE void mma_m16n8k8_tf32(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
#ifdef GN_EMULATED
    const unsigned mask = ~0x1fffu;
    LaneOperands<8> mine;
    for (int i = 0; i < 2; i++) {
        for (int row = 0; row < 2; row++) mine.a[row][i] = __uint_as_float(a[2 * i + row] & mask);
        mine.b[i] = __uint_as_float(b[i] & mask);
    }
    multiply<8, 1>(d, mine);
#else
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// The bits of a float rounded to TF32, to nearest, ties away from zero, but for the 13 last ones, which mma ignores. It
// adds half a unit of TF32's last place, with the number's own sign and exponent. That is what cvt.rna.tf32.f32 gives
// ("Data Movement and Conversion Instructions: cvt") except below 2^-126, where bits are cut off. No machine has that
// instruction: it becomes a comparison and a conditional addition, where these are two without a predicate. A NaN stays
// a NaN, which adding the half unit as an integer would not give.
DEVICE unsigned round_to_tf32(unsigned bits) {
    const float power = __uint_as_float(bits & 0xff800000u);  // of two; infinite for a NaN
    return __float_as_uint(fmaf(power, 1.0f / 2048, __uint_as_float(bits)));
}
