// What a CUDA kernel sees when the host's C++ compiler compiles it for the emulated device. It is included before the
// first line of the unmodified .cu file. Its other half, emulator.cpp, runs the threads.
//
// Every thread of a block is a fiber: a stack of its own, run on the one OS thread that launched, until it waits for
// others. Blocks run one after another. So a kernel's behaviour depends on nothing but the launch's options, and each
// wait (barrier, warp collective, spin) is a place where the emulator can see what no GPU tells: who is missing.
//
// __shared__ variables are thread_local ones. They are static, as CUDA's are, and those of a kernel's library fill its
// thread-local segment alone, which is how the emulator finds them to poison them before each block.
#pragma once
#include <math.h>
#include <stddef.h>
#include <string.h>

#include <new>
#include <tuple>
#include <type_traits>
#include <utility>

#define GN_EMULATED 1

#ifdef __SANITIZE_THREAD__
#define GN_UNCHECKED __attribute__((noinline, no_sanitize("thread")))
#else
#define GN_UNCHECKED
#endif

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ __attribute__((used)) thread_local  // used: else one that is only read would count as zero
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define __forceinline__ inline
#else
#define __forceinline__ inline __attribute__((always_inline))
#endif
#define __noinline__ __attribute__((noinline))
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __grid_constant__
#define __align__(n) __attribute__((aligned(n)))

// --- Vector types, aligned as CUDA aligns them

#define GN_VECTOR_TYPES(T, name)                                                                     \
    struct name##1 {                                                                                 \
        T x;                                                                                         \
    };                                                                                               \
    struct alignas(2 * sizeof(T)) name##2 {                                                          \
        T x, y;                                                                                      \
    };                                                                                               \
    struct name##3 {                                                                                 \
        T x, y, z;                                                                                   \
    };                                                                                               \
    struct alignas(4 * sizeof(T) > 16 ? 16 : 4 * sizeof(T)) name##4 {                                \
        T x, y, z, w;                                                                                \
    };                                                                                               \
    inline name##1 make_##name##1(T x) { return {x}; }                                               \
    inline name##2 make_##name##2(T x, T y) { return {x, y}; }                                       \
    inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                               \
    inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }

GN_VECTOR_TYPES(signed char, char)
GN_VECTOR_TYPES(unsigned char, uchar)
GN_VECTOR_TYPES(short, short)
GN_VECTOR_TYPES(unsigned short, ushort)
GN_VECTOR_TYPES(int, int)
GN_VECTOR_TYPES(unsigned, uint)
GN_VECTOR_TYPES(long long, longlong)
GN_VECTOR_TYPES(unsigned long long, ulonglong)
GN_VECTOR_TYPES(float, float)
GN_VECTOR_TYPES(double, double)
#undef GN_VECTOR_TYPES

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
};

// --- The runtime (emulator.cpp)

namespace gn {

constexpr unsigned WARP = 32;
constexpr unsigned MAX_THREADS = 1024;
constexpr unsigned MAX_SHARED = 232448;  // bytes of dynamic shared memory: what compute capability 9.0 has
constexpr unsigned GUARD = 4096;         // bytes behind it that nobody may touch
constexpr unsigned SLOT = 256;           // bytes that a lane can hand over in a warp collective

// A line of the kernel's source.
struct Place {
    const char* file;
    int line;
};

// What the launching side chooses; it packs the same fields (launcher.py).
struct Options {
    unsigned grid[3], block[3];
    unsigned shared;  // bytes of dynamic shared memory
    int order;        // of threads and blocks: 0 forward, 1 reverse, 2 random
    unsigned long long seed;
    int late;  // asynchronous operations take effect when waited for, not at once
};

// The part of a running CUDA thread that kernels read.
struct Thread {
    uint3 index;
    int linear;
};

// What each lane of a warp gave to a collective; 0xFF bytes for lanes that took no part.
template <class T>
struct Exchange {
    const unsigned char* slots;
    unsigned present;  // a bit for each lane that took part
    const T& operator[](int lane) const { return reinterpret_cast<const T*>(slots)[lane & 31]; }
};

extern Thread* current;
extern uint3 block_index;
extern dim3 block_size, grid_size;
extern int is_late;

// The kernel cannot go on: ends the launch with an error that names the block and the thread.
[[noreturn]] void trap(const char* message, const char* file = __builtin_FILE(), int line = __builtin_LINE());
// Let the block's other threads run: the body of every loop that waits for a value to change. Traps when nothing
// changes any more.
void pause(const char* file = __builtin_FILE(), int line = __builtin_LINE());
// All threads of the block; returns for how many of them `predicate` held.
int barrier(bool predicate, Place place);
// `count` threads at the barrier of that number, 1 to 15. Those that only arrive do not wait.
void named_barrier(int number, int count, bool waits, Place place);
// Hand over `size` bytes to the lanes of `mask`, and wait for theirs. `what` names the instruction.
const unsigned char* collect(unsigned mask, const void* value, unsigned size, bool orders_memory, const char* what,
                             Place place, unsigned* present);
// Called now and then by what other threads may be waiting for in a loop without `pause`.
void atomic_step(Place place);
// Happens-before edges for ThreadSanitizer; nothing otherwise.
void acquire(void* object);
void release(void* object);
// A fence of memory. ThreadSanitizer knows none: to it, all threads that fence are ordered by their fences.
void fence();
// What __cvta_generic_to_shared gives, and back: offsets in the block's dynamic shared memory; static variables follow
// at STATIC_SHARED. Trap where there is no shared memory.
unsigned shared_address(const void* pointer);
unsigned char* shared_at(unsigned address);
// Memory of `size` bytes, one piece per thread (or per block) and `tag`, until the block's end. `is_new` says that
// nothing is in it yet.
void* storage(const void* tag, unsigned size, unsigned alignment, bool per_block, bool* is_new);

template <class To, class From>
inline To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
inline float float_from_half(unsigned short half) {
    const unsigned sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31u, fraction = half & 0x3ffu;
    if (exponent == 0) return bits_as<float>(bits_as<unsigned>(float(fraction) * 0x1p-24f) | sign);
    const unsigned wide = exponent == 31 ? 255 : exponent + (127 - 15);
    return bits_as<float>(sign | wide << 23 | fraction << 13);
}
// Rounds to nearest, ties to even; every NaN becomes 0x7fff, as on a GPU.
inline unsigned short half_from_float(float value) {
    const unsigned bits = bits_as<unsigned>(value), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
    if (size > 0x7f800000u) return 0x7fff;
    if (size >= 0x47800000u) return static_cast<unsigned short>(sign | 0x7c00u);
    if (size < 0x38800000u)  // below 2^-14 the steps are those of floats in [0.5, 1)
        return static_cast<unsigned short>(sign | (bits_as<unsigned>(bits_as<float>(size) + 0.5f) - 0x3f000000u));
    const unsigned moved = size - ((127 - 15) << 23);
    return static_cast<unsigned short>(sign | (moved + 0xfffu + (moved >> 13 & 1u)) >> 13);
}

inline int lane() { return current->linear % WARP; }
inline int thread() { return current->linear; }
inline bool late() { return is_late; }

// The lanes of `mask` hand each other values: [i] is lane i's. Every one of them must come here with the same mask,
// except those that returned from the kernel.
template <class T>
inline Exchange<T> exchange(unsigned mask, const T& value, const char* what = "warp collective",
                            const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= SLOT && alignof(T) <= 64);
    Exchange<T> all;
    all.slots = collect(mask, &value, sizeof(T), false, what, {file, line}, &all.present);
    return all;
}

inline void named_barrier(int number, int count, const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    named_barrier(number, count, true, {file, line});
}
inline void named_barrier_arrive(int number, int count, const char* file = __builtin_FILE(),
                                 int line = __builtin_LINE()) {
    named_barrier(number, count, false, {file, line});
}

template <class T, bool PER_BLOCK>
inline T& stored() {
    static_assert(std::is_trivially_destructible_v<T>);
    static const char tag = 0;
    bool is_new;
    void* memory = storage(&tag, sizeof(T), alignof(T), PER_BLOCK, &is_new);
    return is_new ? *new (memory) T() : *static_cast<T*>(memory);
}
// The running thread's own T; a new one in each block.
template <class T>
inline T& per_thread() {
    return stored<T, false>();
}
// The running block's own T.
template <class T>
inline T& per_block() {
    return stored<T, true>();
}

// What a tensor map is on the emulated device. Axis 0 is that of adjacent elements.
struct EmulatedTensorMap {
    unsigned char* base;
    unsigned itemsize, rank;
    unsigned long long shape[5];   // elements
    unsigned long long stride[5];  // bytes; stride[0] is itemsize
    unsigned box[5];               // elements
    unsigned unused;
};
static_assert(sizeof(EmulatedTensorMap) == 120);

// --- Launching

// Where a library's static shared variables are, relative to one of them.
struct StaticShared {
    unsigned char* member;  // of the calling OS thread
    bool is_known;
    ptrdiff_t offset;
    size_t size;
};

int run(void (*body)(void*), void* context, const Options& options, StaticShared& variables, char* error,
        size_t error_size);

template <class... P>
struct Call {
    void (*kernel)(P...);
    std::tuple<std::remove_cv_t<P>...> parameters;
    static void body(void* self) {
        const Call& call = *static_cast<const Call*>(self);
        std::apply(call.kernel, call.parameters);
    }
};

void describe_mismatch(char* error, size_t error_size, int given, int expected, int index, size_t given_size,
                       size_t expected_size);

// Run a grid of blocks. Returns 0, or 1 and a message in `error`.
template <class... P>
int launch_kernel(void (*kernel)(P...), const Options& options, const void* const* parameters, const size_t* sizes,
                  int count, StaticShared& variables, char* error, size_t error_size) {
    constexpr size_t expected[] = {sizeof(P)..., 0};
    int wrong = -1;
    for (int i = 0; i < count && i < int(sizeof...(P)); i++)
        if (sizes[i] != expected[i] && wrong < 0) wrong = i;
    if (count != sizeof...(P) || wrong >= 0) {
        describe_mismatch(error, error_size, count, sizeof...(P), wrong, wrong < 0 ? 0 : sizes[wrong],
                          wrong < 0 ? 0 : expected[wrong]);
        return 1;
    }
    Call<P...> call{kernel, {}};
    int i = 0;
    std::apply([&](auto&... p) { ((memcpy(static_cast<void*>(&p), parameters[i], sizeof(p)), i++), ...); },
               call.parameters);
    return run(&Call<P...>::body, &call, options, variables, error, error_size);
}

}  // namespace gn

#define threadIdx (::gn::current->index)
#define blockIdx (::gn::block_index)
#define blockDim (::gn::block_size)
#define gridDim (::gn::grid_size)
constexpr int warpSize = 32;

// --- Barriers, fences

#define GN_PLACE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(GN_PLACE) { gn::barrier(false, {file, line}); }
inline int __syncthreads_count(int p, GN_PLACE) { return gn::barrier(p, {file, line}); }
inline int __syncthreads_or(int p, GN_PLACE) { return gn::barrier(p, {file, line}) > 0; }
inline int __syncthreads_and(int p, GN_PLACE) { return gn::barrier(!p, {file, line}) == 0; }

inline void __syncwarp(unsigned mask = ~0u, GN_PLACE) {
    unsigned present;
    gn::collect(mask, nullptr, 0, true, "__syncwarp", {file, line}, &present);
}

inline void __threadfence() { gn::fence(); }
inline void __threadfence_block() { gn::fence(); }
inline void __threadfence_system() { gn::fence(); }

[[noreturn]] inline void __trap(GN_PLACE) { gn::trap("__trap()", file, line); }
inline void __nanosleep(unsigned, GN_PLACE) { gn::pause(file, line); }
#undef assert
#define assert(condition) ((condition) ? (void)0 : ::gn::trap("assertion failed: " #condition))

// --- Warp shuffles and votes

template <class T>
inline T __shfl_sync(unsigned mask, T value, int source, int width = 32, GN_PLACE) {
    const int lane = gn::lane();
    return gn::exchange(mask, value, "__shfl_sync", file, line)[(lane & ~(width - 1)) | (source & (width - 1))];
}
template <class T>
inline T __shfl_xor_sync(unsigned mask, T value, int flip, int width = 32, GN_PLACE) {
    const int lane = gn::lane(), source = lane ^ flip;
    const auto all = gn::exchange(mask, value, "__shfl_xor_sync", file, line);
    return source / width <= lane / width ? all[source] : value;
}
template <class T>
inline T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, GN_PLACE) {
    const int lane = gn::lane(), source = lane + int(delta);
    const auto all = gn::exchange(mask, value, "__shfl_down_sync", file, line);
    return source / width == lane / width ? all[source] : value;
}
template <class T>
inline T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, GN_PLACE) {
    const int lane = gn::lane(), source = lane - int(delta);
    const auto all = gn::exchange(mask, value, "__shfl_up_sync", file, line);
    return source >= (lane & ~(width - 1)) ? all[source] : value;
}
inline unsigned __ballot_sync(unsigned mask, int predicate, GN_PLACE) {
    const auto all = gn::exchange(mask, predicate, "__ballot_sync", file, line);
    unsigned votes = 0;
    for (int i = 0; i < 32; i++)
        if ((all.present >> i & 1u) && all[i]) votes |= 1u << i;
    return votes;
}
inline int __any_sync(unsigned mask, int predicate, GN_PLACE) {
    return __ballot_sync(mask, predicate, file, line) != 0;
}
inline int __all_sync(unsigned mask, int predicate, GN_PLACE) {
    return __ballot_sync(mask, !predicate, file, line) == 0;
}
template <class T>
inline unsigned __match_any_sync(unsigned mask, T value, GN_PLACE) {
    const auto all = gn::exchange(mask, value, "__match_any_sync", file, line);
    unsigned same = 0;
    for (int i = 0; i < 32; i++)
        if ((all.present >> i & 1u) && memcmp(&all[i], &value, sizeof(T)) == 0) same |= 1u << i;
    return same;
}
inline unsigned __activemask() { return ~0u; }

// --- Atomic operations: relaxed, as CUDA's are

namespace gn {
template <class T, class F>
inline T atomic_update(T* p, F next, Place place) {
    atomic_step(place);
    T old, changed;
    __atomic_load(p, &old, __ATOMIC_RELAXED);
    do {
        changed = next(old);
    } while (!__atomic_compare_exchange(p, &old, &changed, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return old;
}
template <class T>
using Same = std::common_type_t<T>;  // a parameter that takes no part in deducing T
}  // namespace gn

#define GN_ATOMIC(name, next)                                                                    \
    template <class T>                                                                           \
    inline T name(T* p, gn::Same<T> v, GN_PLACE) {                                               \
        return gn::atomic_update(p, [v](T old) { return T(next); }, {file, line});               \
    }
GN_ATOMIC(atomicAdd, old + v)
GN_ATOMIC(atomicSub, old - v)
GN_ATOMIC(atomicMax, old < v ? v : old)
GN_ATOMIC(atomicMin, v < old ? v : old)
GN_ATOMIC(atomicAnd, old & v)
GN_ATOMIC(atomicOr, old | v)
GN_ATOMIC(atomicXor, old ^ v)
GN_ATOMIC(atomicExch, ((void)old, v))
GN_ATOMIC(atomicInc, old >= v ? 0 : old + 1)
GN_ATOMIC(atomicDec, old == 0 || old > v ? v : old - 1)
#undef GN_ATOMIC
template <class T>
inline T atomicCAS(T* p, gn::Same<T> expected, gn::Same<T> v, GN_PLACE) {
    gn::atomic_step({file, line});
    T old = expected;
    __atomic_compare_exchange(p, &old, &v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return old;
}

// --- Numbers

template <class A, class B>
constexpr std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>, std::common_type_t<A, B>> min(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<T>)
        return T(a) < T(b) || T(b) != T(b) ? T(a) : T(b);  // of a number and a NaN, the number
    else
        return T(b) < T(a) ? T(b) : T(a);
}
template <class A, class B>
constexpr std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>, std::common_type_t<A, B>> max(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<T>)
        return T(a) > T(b) || T(b) != T(b) ? T(a) : T(b);
    else
        return T(a) < T(b) ? T(b) : T(a);
}

inline float __uint_as_float(unsigned x) { return gn::bits_as<float>(x); }
inline unsigned __float_as_uint(float x) { return gn::bits_as<unsigned>(x); }
inline float __int_as_float(int x) { return gn::bits_as<float>(x); }
inline int __float_as_int(float x) { return gn::bits_as<int>(x); }
inline double __longlong_as_double(long long x) { return gn::bits_as<double>(x); }
inline long long __double_as_longlong(double x) { return gn::bits_as<long long>(x); }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
    unsigned y = 0;
    for (int i = 0; i < 32; i++) y |= (x >> i & 1u) << (31 - i);
    return y;
}
inline int __mulhi(int a, int b) { return int((static_cast<long long>(a) * b) >> 32); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((static_cast<unsigned long long>(a) * b) >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
    const unsigned long long both = static_cast<unsigned long long>(y) << 32 | x;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) {
        const unsigned choice = selector >> 4 * i & 0xf, byte = unsigned(both >> 8 * (choice & 7)) & 0xff;
        result |= (choice & 8 ? (byte & 0x80 ? 0xffu : 0u) : byte) << 8 * i;
    }
    return result;
}
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
    return unsigned((static_cast<unsigned long long>(high) << 32 | low) << (shift & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
    return unsigned((static_cast<unsigned long long>(high) << 32 | low) >> (shift & 31));
}

template <class T>
inline T __ldg(const T* p) {
    return *p;
}
template <class T>
inline T __ldcs(const T* p) {
    return *p;
}
template <class T>
inline T __ldcg(const T* p) {
    return *p;
}
template <class T>
inline void __stcs(T* p, T value) {
    *p = value;
}
template <class T>
inline void __stcg(T* p, T value) {
    *p = value;
}

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double rsqrt(double x) { return 1.0 / sqrt(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __saturatef(float x) { return x > 0.0f ? (x < 1.0f ? x : 1.0f) : 0.0f; }
inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
inline double __fma_rn(double x, double y, double z) { return fma(x, y, z); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __fdiv_rn(float x, float y) { return x / y; }
// Never contracted to a fused multiply-add, which is what they are for.
__attribute__((noinline)) inline float __fadd_rn(float x, float y) { return x + y; }
__attribute__((noinline)) inline float __fsub_rn(float x, float y) { return x - y; }
__attribute__((noinline)) inline float __fmul_rn(float x, float y) { return x * y; }
__attribute__((noinline)) inline double __dadd_rn(double x, double y) { return x + y; }
__attribute__((noinline)) inline double __dmul_rn(double x, double y) { return x * y; }
inline int __float2int_rn(float x) { return int(rintf(x)); }
inline int __float2int_rz(float x) { return int(x); }
inline int __float2int_rd(float x) { return int(floorf(x)); }
inline unsigned __float2uint_rn(float x) { return unsigned(rintf(x)); }
inline float __int2float_rn(int x) { return float(x); }
inline float __uint2float_rn(unsigned x) { return float(x); }

inline size_t __cvta_generic_to_shared(const void* p) { return gn::shared_address(p); }
