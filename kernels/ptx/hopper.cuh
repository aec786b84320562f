// Instructions of compute capability 9.0 (sm_90a): barriers in shared memory, bulk copies of boxes of an array (TMA),
// and products of matrices in shared memory by a group of 128 threads (wgmma). Sections of the PTX ISA manual are cited
// by title, as their numbers change between its versions.
//
// Each function is one instruction, with the code that stands in for it on the host beside it (GN_EMULATED). What the
// hardware does in its own time, a copy or a product, the stand-ins do either at once or as late as possible
// (gn::late): a wait that is missing gives wrong numbers in at least one of the two, and thread sanitizer names it.
#pragma once
#include "ptx/shared.cuh"

// An array as the copy engine knows it: opaque, made by Launcher.tensor_map, passed as a __grid_constant__ parameter.
// Elements of 4 bytes are floats that are rounded to TF32 (to nearest, ties to even) as they are copied.
struct __align__(64) TensorMap {
#ifdef GN_EMULATED
    gn::EmulatedTensorMap array;
#else
    unsigned long long words[16];
#endif
};
static_assert(sizeof(TensorMap) == 128, "the size that the driver's cuTensorMapEncodeTiled fills");

// A barrier object: one phase after the other completes, each when as many threads have arrived, and as many bytes have
// landed, as it expects.
struct Barrier {
    unsigned long long word;
};

#ifdef GN_EMULATED
namespace gn {

// What the 8 bytes of a Barrier hold on the host.
struct Phase {
    static constexpr unsigned VALID = 0x2d;  // not what fresh shared memory is filled with
    unsigned count : 12, pending : 12, parity : 1, valid : 7;
    int bytes;  // expected and not yet landed

    GN_UNCHECKED void advance() {
        if (pending || bytes) return;
        parity ^= 1;
        pending = count;
    }
};

// The 128-byte swizzle: bits 4 to 6 of an address in shared memory are combined with bits 7 to 9.
inline unsigned swizzled(unsigned address) { return address ^ (address >> 7 & 7) << 4; }

// To nearest, ties to even, as the copy engine rounds.
inline unsigned rounded_to_tf32(unsigned bits) {
    const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
    return finite ? (bits + 0xfffu + (bits >> 13 & 1u)) & ~0x1fffu : bits;
}

// A bulk copy of a box. Its rows are counted along three axes, which may have length 1.
struct Copy {
    Barrier* barrier;
    const unsigned char* from;  // the box's first element, which may lie outside of the array
    long long stride[3];        // bytes from row to row
    unsigned to;
    int itemsize, width, rows[3];
    int left, right, first[3], last[3];  // the part of the box that lies inside of the array

    int bytes() const { return width * rows[0] * rows[1] * rows[2] * itemsize; }

    void run() const {
        for (int row = 0; row < rows[0] * rows[1] * rows[2]; row++) {
            const int at[3] = {row % rows[0], row / rows[0] % rows[1], row / rows[0] / rows[1]};
            const unsigned char* line = from;
            bool exists = true;
            for (int axis = 0; axis < 3; axis++) {
                line += at[axis] * stride[axis];
                exists = exists && at[axis] >= first[axis] && at[axis] < last[axis];
            }
            for (int i = 0; i < width; i++) {
                const bool inside = exists && i >= left && i < right;
                const unsigned char* const source = line + i * itemsize;
                unsigned char* const target = shared_at(swizzled(to + row * 128 + i * itemsize));
                if (itemsize == 2)
                    *reinterpret_cast<unsigned short*>(target) =
                        inside ? *reinterpret_cast<const unsigned short*>(source) : 0;
                else
                    *reinterpret_cast<unsigned*>(target) =
                        inside ? rounded_to_tf32(*reinterpret_cast<const unsigned*>(source)) : 0;
            }
        }
    }
};

// Those that were issued and have not happened yet.
struct Copies {
    Copy waiting[256];
    int count, issued;
};

GN_UNCHECKED inline Phase& phase_of(Barrier* barrier) {
    Phase& phase = *reinterpret_cast<Phase*>(barrier);
    if (phase.valid != Phase::VALID) trap("an mbarrier is used before mbarrier_init");
    return phase;
}

GN_UNCHECKED inline void start(Barrier* barrier, unsigned count) {
    if (gn::shared_address(barrier) % 8) trap("an mbarrier is not aligned to 8 bytes");
    if (count == 0 || count > 1024) trap("an mbarrier expects a count of 1 to 1024 here");
    *reinterpret_cast<Phase*>(barrier) = {count, count, 0, Phase::VALID, 0};
}

GN_UNCHECKED inline void arrive(Barrier* barrier, int bytes) {
    Phase& phase = phase_of(barrier);
    if (phase.pending == 0) trap("more threads arrive at an mbarrier than it expects");
    release(barrier);
    phase.bytes += bytes;
    phase.pending--;
    phase.advance();
}

GN_UNCHECKED inline void landed(Barrier* barrier, int bytes) {
    Phase& phase = phase_of(barrier);
    release(barrier);
    phase.bytes -= bytes;
    phase.advance();
}

GN_UNCHECKED inline void land(const Copy& copy) {
    acquire(copy.barrier);
    copy.run();
    landed(copy.barrier, copy.bytes());
}

GN_UNCHECKED inline void land_all(Copies& copies, Barrier* barrier) {
    for (int i = 0; i < copies.count;) {
        if (copies.waiting[i].barrier != barrier) {
            i++;
            continue;
        }
        const Copy copy = copies.waiting[i];
        copies.waiting[i] = copies.waiting[--copies.count];
        land(copy);
    }
}

GN_UNCHECKED inline void wait(Barrier* barrier, unsigned parity) {
    Copies& copies = per_block<Copies>();
    int unmatched = 0;
    for (;;) {
        land_all(copies, barrier);
        const Phase& phase = phase_of(barrier);
        if (phase.parity != parity) break;
        if (phase.pending == 0 && ++unmatched == 100)
            trap("an mbarrier waits in vain: other than the expected number of bytes landed");
        pause();
    }
    acquire(barrier);
}

GN_UNCHECKED inline void copy(void* to, const EmulatedTensorMap& array, Barrier* barrier, int rank,
                              const int (&at)[4]) {
    phase_of(barrier);
    Copy copy;
    copy.to = gn::shared_address(to);
    if (copy.to % 128) trap("a bulk copy's destination is not aligned to 128 bytes");
    if (array.rank != unsigned(rank)) trap("a bulk copy has more or fewer coordinates than its array has axes");
    if (array.itemsize != 2 && array.itemsize != 4) trap("only elements of 2 and 4 bytes are emulated");
    if (array.box[0] * array.itemsize != 128) trap("a box with 128-byte swizzle must be 128 bytes wide");
    copy.barrier = barrier;
    copy.from = array.base + at[0] * static_cast<long long>(array.stride[0]);
    copy.itemsize = array.itemsize;
    copy.width = array.box[0];
    copy.left = max(-at[0], 0);
    copy.right = min(static_cast<long long>(array.shape[0]) - at[0], 128);
    for (int axis = 1; axis < 4; axis++) {
        const bool exists = axis < rank;
        if (exists && (array.box[axis] < 1 || array.box[axis] > 256)) trap("a box has 1 to 256 rows along an axis");
        copy.stride[axis - 1] = exists ? array.stride[axis] : 0;
        copy.rows[axis - 1] = exists ? array.box[axis] : 1;
        copy.first[axis - 1] = exists ? max(-at[axis], 0) : 0;
        copy.last[axis - 1] = exists ? min(static_cast<long long>(array.shape[axis]) - at[axis], 256) : 1;
        if (exists) copy.from += at[axis] * static_cast<long long>(array.stride[axis]);
    }
    release(barrier);
    Copies& copies = per_block<Copies>();
    // Half of the late ones land at once, too: what they overwrite, a late product may not have read yet.
    if (!late() || copies.issued++ % 2) return land(copy);
    if (copies.count == 256) trap("more bulk copies are under way than are emulated");
    copies.waiting[copies.count++] = copy;
}

}  // namespace gn
#endif

// --- barriers ("mbarrier") -------------------------------------------------------------------------------------------

// Called by one thread, before any other uses the barrier; then fence_barriers and __syncthreads. A phase completes
// after `count` arrivals.
DEVICE void mbarrier_init(Barrier* barrier, unsigned count) {
#ifdef GN_EMULATED
    gn::start(barrier, count);
#else
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(count) : "memory");
#endif
}

// Makes the barriers that this thread initialised known to the copy engine. ("membar/fence")
DEVICE void fence_barriers() {
#ifndef GN_EMULATED
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}

// Makes what this thread stored in shared memory known to the copy engine and to wgmma. ("membar/fence")
DEVICE void fence_stores() {
#ifndef GN_EMULATED
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

DEVICE void mbarrier_arrive(Barrier* barrier) {
#ifdef GN_EMULATED
    gn::arrive(barrier, 0);
#else
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
#endif
}

// Arrives, and has the phase expect `bytes` more to land.
DEVICE void mbarrier_arrive_expect(Barrier* barrier, int bytes) {
#ifdef GN_EMULATED
    gn::arrive(barrier, bytes);
#else
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
                 : "memory");
#endif
}

// Waits until the phase of this parity has completed: 0 for the first, third ... phase, 1 for the others. A barrier on
// which no phase has completed yet counts as having just completed one of parity 1.
DEVICE void mbarrier_wait(Barrier* barrier, unsigned parity) {
#ifdef GN_EMULATED
    gn::wait(barrier, parity);
#else
    unsigned done;
    do {
        asm volatile(
            "{\n"
            ".reg .pred p;\n"
            "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
            "selp.u32 %0, 1, 0, p;\n"
            "}"
            : "=r"(done)
            : "r"(shared_address(barrier)), "r"(parity)
            : "memory");
    } while (!done);
#endif
}

// Meets `count` threads, a multiple of 32, at hardware barrier `id`, 1 to 15. ("barrier")
DEVICE void named_barrier(int id, int count) {
#ifdef GN_EMULATED
    gn::named_barrier(id, count);
#else
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(count) : "memory");
#endif
}

// --- bulk copies ("cp.async.bulk.tensor") ----------------------------------------------------------------------------

// Fetches the description itself, ahead of the first copy ("prefetch").
DEVICE void prefetch(const TensorMap& map) {
#ifndef GN_EMULATED
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
#endif
}

// Copies the box of the array whose first element is at the coordinates given, counted in elements, the axis of
// adjacent elements first. The box's rows, of 128 bytes, land one behind the other; the 16-byte pieces of each group of
// eight are permuted (128-byte swizzle, by the bits of their addresses), so `to` is best a multiple of 1024. Elements
// outside of the array arrive as zeros. When the copy has landed, the barrier gets its number of bytes. Called by one
// thread.
DEVICE void tma_load(void* to, const TensorMap& map, Barrier* barrier, int c0, int c1) {
#ifdef GN_EMULATED
    gn::copy(to, map.array, barrier, 2, {c0, c1, 0, 0});
#else
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4}], [%2];" ::"r"(shared_address(to)),
        "l"(&map), "r"(shared_address(barrier)), "r"(c0), "r"(c1)
        : "memory");
#endif
}

DEVICE void tma_load(void* to, const TensorMap& map, Barrier* barrier, int c0, int c1, int c2) {
#ifdef GN_EMULATED
    gn::copy(to, map.array, barrier, 3, {c0, c1, c2, 0});
#else
    asm volatile(
        "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5}], [%2];" ::"r"(shared_address(to)),
        "l"(&map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2)
        : "memory");
#endif
}

DEVICE void tma_load(void* to, const TensorMap& map, Barrier* barrier, int c0, int c1, int c2, int c3) {
#ifdef GN_EMULATED
    gn::copy(to, map.array, barrier, 4, {c0, c1, c2, c3});
#else
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(shared_address(to)),
        "l"(&map), "r"(shared_address(barrier)), "r"(c0), "r"(c1), "r"(c2), "r"(c3)
        : "memory");
#endif
}

// --- roles -----------------------------------------------------------------------------------------------------------

// True for one thread of the warp, always the same ("elect.sync"). All 32 call it together.
DEVICE bool elect() {
#ifdef GN_EMULATED
    return gn::lane() == 0;
#else
    unsigned chosen;
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "elect.sync _|p, 0xffffffff;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}"
        : "=r"(chosen));
    return chosen;
#endif
}

// Gives registers back, or waits for as many as each of a warpgroup's threads may then use ("setmaxnreg"). All
// of them call it together. What the warpgroups of a block hold cannot exceed what it was launched with.
template <int REGISTERS>
DEVICE void release_registers() {
    static_assert(REGISTERS >= 24 && REGISTERS <= 256 && REGISTERS % 8 == 0, "a multiple of 8 from 24 to 256");
#ifndef GN_EMULATED
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
#endif
}

template <int REGISTERS>
DEVICE void claim_registers() {
    static_assert(REGISTERS >= 24 && REGISTERS <= 256 && REGISTERS % 8 == 0, "a multiple of 8 from 24 to 256");
#ifndef GN_EMULATED
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
#endif
}

// --- products by a warpgroup: four warps, the first one's number a multiple of four ("wgmma.mma_async") --------------
//
// D (64, N) += A (64, K) B (K, N), where a row of K is 32 bytes: K = 16 for half and bfloat16, 8 for TF32. A and B lie
// in shared memory with the 128-byte swizzle that tma_load makes. Thread t of the warpgroup holds of D, for each group
// j of eight columns,
//
//     d[4j], d[4j + 1]       row 16 (t / 32) + t % 32 / 4,      columns 8j + 2 (t % 4), and the next
//     d[4j + 2], d[4j + 3]   the row eight below that
//
// In memory an operand is K_MAJOR, rows of 128 bytes along K, or MN_MAJOR, rows of 128 bytes along M or N, 64 elements:
//
//     K_MAJOR     row i of M or N at i * 128 bytes; the next instruction's part of K is 32 bytes further on
//     MN_MAJOR    row k at k * 128 bytes, the next 64 of M or N `block` bytes further on; the next instruction's part
//                 of K is 16 rows, 2048 bytes further on

// Says where an operand is and how it lies ("Matrix Descriptor Format"): its address, the distance of its blocks of
// 64 along M or N (K_MAJOR has none), that of its groups of eight rows, and the 128-byte swizzle. Distances are in
// units of 16 bytes. To move on by some bytes, add a sixteenth of them.
DEVICE unsigned long long matrix_in_shared(const void* p, int block = 16) {
    const unsigned long long address = (shared_address(p) & 0x3ffff) >> 4, rows = 8 * 128 >> 4;
    return address | static_cast<unsigned long long>(block >> 4) << 16 | rows << 32 | 1ull << 62;
}

#ifdef GN_EMULATED
namespace gn {

template <class T>
float element(unsigned long long matrix, bool mn_major, int mn, int k) {
    constexpr int SIZE = sizeof(T);
    const unsigned start = (matrix & 0x3fff) << 4, block = (matrix >> 16 & 0x3fff) << 4;
    const unsigned eight_rows = (matrix >> 32 & 0x3fff) << 4;
    const unsigned offset = mn_major ? mn / 64 * block + k / 8 * eight_rows + k % 8 * 128 + mn % 64 * SIZE
                                     : mn / 8 * eight_rows + mn % 8 * 128 + k * SIZE;
    const unsigned char* const p = shared_at(swizzled(start + offset));
    if constexpr (sizeof(T) == 4)
        return __uint_as_float(*reinterpret_cast<const unsigned*>(p) & ~0x1fffu);  // the hardware reads no more bits
    else
        return to_float(*reinterpret_cast<const T*>(p));
}

// This thread's part of one product.
template <class T, int N, bool A_MN_MAJOR, bool B_MN_MAJOR>
void multiply(float* d, unsigned long long a, unsigned long long b, bool accumulate) {
    constexpr int K = 32 / sizeof(T);
    const int row = thread() % 128 / 32 * 16 + lane() / 4;
    float left[2][K], right[K];
    for (int k = 0; k < K; k++)
        for (int i = 0; i < 2; i++) left[i][k] = element<T>(a, A_MN_MAJOR, row + 8 * i, k);
    for (int j = 0; j < N / 8; j++)
        for (int c = 0; c < 2; c++) {
            for (int k = 0; k < K; k++) right[k] = element<T>(b, B_MN_MAJOR, 8 * j + lane() % 4 * 2 + c, k);
            for (int i = 0; i < 2; i++) {
                float& sum = d[4 * j + 2 * i + c];
                if (!accumulate) sum = 0;
                for (int k = 0; k < K; k++) sum += left[i][k] * right[k];
            }
        }
}

struct Product {
    void (*run)(float*, unsigned long long, unsigned long long, bool);
    float* d;
    unsigned long long a, b;
    bool accumulate;
};

// The products of a thread that it has not yet waited for, in their order.
struct Products {
    Product waiting[64];
    int count;
    int groups[64];  // `count` at each commit
    int committed;
    bool fenced;
};

inline void issue(const Product& product) {
    Products& products = per_thread<Products>();
    if (!products.fenced) trap("wgmma without wgmma_fence before it");
    for (unsigned long long matrix : {product.a, product.b}) {
        if (matrix >> 62 != 1) trap("only the 128-byte swizzle of wgmma is emulated");
        if ((matrix & 0x3fff) << 4 & 0x380) trap("a wgmma operand must begin in the first of its eight rows");
    }
    if (products.count == 64) trap("more products are under way than are emulated");
    products.waiting[products.count++] = product;
    if (!late()) product.run(product.d, product.a, product.b, product.accumulate);
}

inline void commit() {
    Products& products = per_thread<Products>();
    if (products.committed == 64) trap("more groups of products are under way than are emulated");
    products.groups[products.committed++] = products.count;
}

inline void complete(int but) {
    Products& products = per_thread<Products>();
    const int groups = products.committed - but;
    if (groups > 0) {
        const int done = products.groups[groups - 1];
        for (int i = 0; i < done && late(); i++) {
            const Product& product = products.waiting[i];
            product.run(product.d, product.a, product.b, product.accumulate);
        }
        for (int i = done; i < products.count; i++) products.waiting[i - done] = products.waiting[i];
        products.count -= done;
        for (int i = groups; i < products.committed; i++) products.groups[i - groups] = products.groups[i] - done;
        products.committed -= groups;
    }
    products.fenced = false;
    __syncwarp();  // the instruction is one of all the warp's threads
}

}  // namespace gn
#endif

// Orders the products that follow after what was done to the registers of D before. ("wgmma.fence")
DEVICE void wgmma_fence() {
#ifdef GN_EMULATED
    gn::per_thread<gn::Products>().fenced = true;
#else
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}

// Makes a group of the products since the last commit. ("wgmma.commit_group")
DEVICE void wgmma_commit() {
#ifdef GN_EMULATED
    gn::commit();
#else
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}

// Waits until all groups but the last `BUT` are complete: until then D must not be touched, and A and B must stay.
// ("wgmma.wait_group")
template <int BUT>
DEVICE void wgmma_wait() {
#ifdef GN_EMULATED
    gn::complete(BUT);
#else
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(BUT) : "memory");
#endif
}

// Lists of 32, 64 and 128 registers: their numbers in the assembler's text, and what they are bound to.
#define GN_TEN(t) "%" t "0, %" t "1, %" t "2, %" t "3, %" t "4, %" t "5, %" t "6, %" t "7, %" t "8, %" t "9, "
#define GN_TEXT_32 GN_TEN("") GN_TEN("1") GN_TEN("2") "%30, %31"
#define GN_TEXT_64 GN_TEN("") GN_TEN("1") GN_TEN("2") GN_TEN("3") GN_TEN("4") GN_TEN("5") "%60, %61, %62, %63"
#define GN_TEXT_128                                                                                                 \
    GN_TEN("") GN_TEN("1") GN_TEN("2") GN_TEN("3") GN_TEN("4") GN_TEN("5") GN_TEN("6") GN_TEN("7") GN_TEN("8")      \
    GN_TEN("9") GN_TEN("10") GN_TEN("11") "%120, %121, %122, %123, %124, %125, %126, %127"
#define GN_BIND_4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define GN_BIND_16(i) GN_BIND_4(i), GN_BIND_4(i + 4), GN_BIND_4(i + 8), GN_BIND_4(i + 12)
#define GN_BIND_32 GN_BIND_16(0), GN_BIND_16(16)
#define GN_BIND_64 GN_BIND_32, GN_BIND_16(32), GN_BIND_16(48)
#define GN_BIND_128 GN_BIND_64, GN_BIND_16(64), GN_BIND_16(80), GN_BIND_16(96), GN_BIND_16(112)

// One instruction. `registers` is N / 2; the numbers of the operands behind D follow from it: of A, of B, of whether to
// accumulate, and, for 16-bit types, of whether A and B are MN_MAJOR.
#define GN_WGMMA(shape, types, registers, a, b, add, majors, ...)                                             \
    asm volatile(                                                                                             \
        "{\n"                                                                                                 \
        ".reg .pred p;\n"                                                                                     \
        "setp.ne.b32 p, %" add ", 0;\n"                                                                       \
        "wgmma.mma_async.sync.aligned." shape ".f32." types " {" GN_TEXT_##registers "}, %" a ", %" b         \
        ", p, 1, 1" majors ";\n"                                                                              \
        "}"                                                                                                   \
        : GN_BIND_##registers                                                                                 \
        : "l"(matrix_a), "l"(matrix_b), "r"(static_cast<int>(accumulate)) __VA_ARGS__)
#define GN_WGMMA_SIZES(k, types, majors_64, majors_128, majors_256, ...)                                      \
    if constexpr (N == 64)                                                                                    \
        GN_WGMMA("m64n64" k, types, 32, "32", "33", "34", majors_64, __VA_ARGS__);                            \
    else if constexpr (N == 128)                                                                              \
        GN_WGMMA("m64n128" k, types, 64, "64", "65", "66", majors_128, __VA_ARGS__);                          \
    else                                                                                                      \
        GN_WGMMA("m64n256" k, types, 128, "128", "129", "130", majors_256, __VA_ARGS__)
#define GN_WGMMA_16(types)                                                                                    \
    GN_WGMMA_SIZES("k16", types, ", %35, %36", ", %67, %68", ", %131, %132", , "n"(int(A_MN_MAJOR)),            \
                   "n"(int(B_MN_MAJOR)))
#define GN_WGMMA_TF32 GN_WGMMA_SIZES("k8", "tf32.tf32", "", "", "", )

template <class T, class U>
constexpr bool IS_SAME = false;
template <class T>
constexpr bool IS_SAME<T, T> = true;

// Issues a product; wgmma_fence comes before the first, wgmma_commit and wgmma_wait after the last. ("wgmma.mma_async")
// T is half, bfloat16 or tf32, of which the hardware reads the upper 19 bits.
template <class T, int N, bool A_MN_MAJOR = false, bool B_MN_MAJOR = false>
DEVICE void wgmma(float (&d)[N / 2], unsigned long long matrix_a, unsigned long long matrix_b, bool accumulate) {
    static_assert(N == 64 || N == 128 || N == 256, "N is one of 64, 128, 256");
    static_assert(IS_SAME<T, half> || IS_SAME<T, bfloat16> || IS_SAME<T, tf32>, "T is half, bfloat16 or tf32");
    static_assert(!IS_SAME<T, tf32> || !(A_MN_MAJOR || B_MN_MAJOR), "TF32 operands are K_MAJOR");
#ifdef GN_EMULATED
    gn::issue({gn::multiply<T, N, A_MN_MAJOR, B_MN_MAJOR>, d, matrix_a, matrix_b, accumulate});
#else
    if constexpr (IS_SAME<T, half>) {
        GN_WGMMA_16("f16.f16");
    } else if constexpr (IS_SAME<T, bfloat16>) {
        GN_WGMMA_16("bf16.bf16");
    } else {
        GN_WGMMA_TF32;
    }
#endif
}
