// What every kernel for the CPU includes: arrays as Python hands them over, and vectors as wide as the CPU has them.
//
// A kernel is a function declared with KERNEL. Its parameters are `const Array*`, which takes a NumPy array (or None),
// `const Arrays*`, which takes a tuple of arrays, `long`, `int`, `float` and `double`. It runs without the GIL, so it
// must not call into Python; it allocates what it needs with `scratch`, and divides no work: one that takes a range
// `long start, long stop` at last is called for parts of it, by the caller's threads or by the crew's (crew.cpp).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#define KERNEL extern "C" __attribute__((visibility("default")))

// The head of a NumPy array, as NumPy's C API fixes it, behind Python's own (GN_OBJECT_HEAD bytes).
struct Array {
    char head[GN_OBJECT_HEAD];
    char* bytes;
    int ndim;
    const intptr_t* shape;
    const intptr_t* strides;  // in bytes
    const void* base;
    const void* dtype;

    template <class T> T* data() const { return reinterpret_cast<T*>(bytes); }
    float* floats() const { return data<float>(); }
};

// A tuple of arrays; its items begin GN_TUPLE_HEAD bytes after its own beginning.
struct Arrays {
    char head[GN_OBJECT_HEAD];
    intptr_t size;

    const Array* operator[](long i) const {
        return reinterpret_cast<const Array* const*>(reinterpret_cast<const char*>(this) + GN_TUPLE_HEAD)[i];
    }
};

inline const Array* gn_none;
KERNEL void gn_set_none(const Array* none) { gn_none = none; }
KERNEL long gn_probe(const Array* array) { return array->ndim + array->shape[1] + array->strides[0] + long(*array->floats()); }

KERNEL long gn_probe_tuple(const Arrays* arrays) { return arrays->size + gn_probe((*arrays)[1]) + ((*arrays)[0]->dtype == (*arrays)[1]->dtype); }

// What gpunet/backends/native.py makes of each kernel that takes a range: the kernel called for all parts of range(n).
using Call = void (*)(void* context, long start, long stop);
inline void (*gn_crew)(Call, void* context, long n, long parts, int wake);
KERNEL void gn_set_crew(long address) { gn_crew = reinterpret_cast<decltype(gn_crew)>(address); }

template <class Work> void gn_divide(long n, long parts, int wake, Work work) {
    Call call = [](void* context, long start, long stop) { (*static_cast<Work*>(context))(start, stop); };
    gn_crew(call, &work, n, parts, wake);
}

// The array's elements, or nullptr if it is None.
inline float* optional(const Array* array) { return array == gn_none ? nullptr : array->floats(); }

// --- vectors of floats: GCC's and Clang's vector extension, of which the compiler makes what the CPU has

#if defined(__AVX512F__)
constexpr int WIDTH = 16;
#elif defined(__AVX__)
constexpr int WIDTH = 8;
#else
constexpr int WIDTH = 4;
#endif
typedef float Vector __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef int32_t IntVector __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));

inline Vector load(const float* p) { return *reinterpret_cast<const Vector*>(p); }
inline void store(float* p, Vector v) { *reinterpret_cast<Vector*>(p) = v; }
inline Vector broadcast(float x) { return x - Vector{}; }  // not Vector{} + x, which would make 0 of -0
inline Vector select(IntVector mask, Vector a, Vector b) { return mask ? a : b; }
inline Vector larger(Vector a, Vector b) { return select(a > b, a, b); }

// Half of the lanes added to the other half, again and again.
template <int N, class Lanes> inline float sum_of_lanes(Lanes v) {
    if constexpr (N == 1) {
        return v[0];
    } else {
        typedef float Half __attribute__((vector_size(2 * N)));
        Half low, high;
        memcpy(&low, &v, sizeof low);
        memcpy(&high, reinterpret_cast<const char*>(&v) + sizeof low, sizeof high);
        return sum_of_lanes<N / 2>(low + high);
    }
}

inline float sum_of(Vector v) { return sum_of_lanes<WIDTH>(v); }

// Memory for `count` floats, aligned to a cache line, that this thread's kernels use again and again. `slot` tells
// apart what a kernel needs at the same time. It is freed when the thread ends.
template <class T = float> T* scratch(int slot, size_t count) {
    struct Block {
        void* memory = nullptr;
        size_t size = 0;
        ~Block() { free(memory); }
    };
    static thread_local Block blocks[8];
    Block& block = blocks[slot];
    size_t wanted = (count * sizeof(T) + 127) / 64 * 64;
    if (block.size < wanted) {
        free(block.memory);
        block.memory = aligned_alloc(64, wanted);
        block.size = wanted;
    }
    return static_cast<T*>(block.memory);
}
