// Right kernels that use much of what CUDA offers, each checked against NumPy.
#include "numeric.cuh"

extern __shared__ __align__(1024) unsigned char gn_shared[];

// Which thread of which block wrote each element, with blocks and grids of three axes.
__global__ void __launch_bounds__(64) indices(int* y) {
    const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    y[block * 64 + threadIdx.x] = block * 1000 + threadIdx.x + 10000 * (blockDim.x == 64 && gridDim.z == 2);
}

// The sum of each block's n numbers: dynamic and static shared memory, a barrier, shuffles.
template <int THREADS>
__global__ void __launch_bounds__(THREADS) sums(float* y, const float* x, int n) {
    __shared__ float part[THREADS / 32];
    float* const all = reinterpret_cast<float*>(gn_shared);
    all[threadIdx.x] = threadIdx.x < n ? x[blockIdx.x * n + threadIdx.x] : 0.0f;
    __syncthreads();
    float v = all[THREADS - 1 - threadIdx.x];
    for (int i = 16; i; i /= 2) v += __shfl_xor_sync(0xffffffffu, v, i);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
    __syncthreads();
    if (threadIdx.x == 0) {
        float sum = 0;
        for (int i = 0; i < THREADS / 32; i++) sum += part[i];
        y[blockIdx.x] = sum;
    }
}

// What each lane of 40 threads gets from votes and shuffles: ten rows of 40.
__global__ void __launch_bounds__(40) votes(int* y) {
    const int t = threadIdx.x, lane = t % 32;
    const unsigned all = t < 32 ? 0xffffffffu : 0xffu;
    int* to = y + t;
    to[0] = __ballot_sync(all, lane % 3 == 0);
    to[40] = __any_sync(all, lane == 5);
    to[80] = __all_sync(all, lane < 8);
    to[120] = __shfl_sync(all, t, 3);
    to[160] = __shfl_up_sync(all, t, 2);
    to[200] = __shfl_down_sync(all, t, 2, 8);
    to[240] = __match_any_sync(all, lane / 4);
    to[280] = __syncthreads_count(lane < 8);
    to[320] = __syncthreads_and(t < 40) * 2 + __syncthreads_or(t == 39);
    // the two halves of a warp, or of 8 lanes, each on its own, and one of them twice
    const int half = t < 32 ? 16 : 4;
    const unsigned mine = lane < half ? (1u << half) - 1 : all & ~((1u << half) - 1);
    int v = __shfl_xor_sync(mine, t, 1);
    if (lane < half) v = __shfl_xor_sync(mine, v, 2);
    to[360] = v;
}

// Atomic operations of all threads of all blocks on a few numbers.
__global__ void __launch_bounds__(64) atomics(int* i, float* f, unsigned long long* u) {
    const int t = blockIdx.x * 64 + threadIdx.x;
    atomicAdd(&i[0], t);
    atomicMax(&i[1], t);
    atomicMin(&i[2], -t);
    atomicOr(&i[3], 1 << t % 32);
    atomicAnd(&i[4], ~(1 << t % 5));
    atomicXor(&i[5], t);
    atomicAdd(&f[0], 0.5f);
    atomicAdd(&u[0], 1ull << 40);
    for (int old = i[6], seen; (seen = atomicCAS(&i[6], old, old + 2)) != old; old = seen) {
    }
    while (atomicExch(&i[7], 1)) {  // a lock
    }
    i[8] = i[8] + 1;
    atomicExch(&i[7], 0);
}

// Each warp's threads meet the next warp's at a named barrier: 64 threads at each of barriers 1 to 3.
__global__ void __launch_bounds__(128) chain(int* y) {
    __shared__ int last;
    const int warp = threadIdx.x / 32;
    if (threadIdx.x == 0) last = 0;
    if (warp > 0) gn::named_barrier(warp, 64);
    if (threadIdx.x % 32 == 0) last = last * 10 + warp + 1;
    if (warp < 3) gn::named_barrier_arrive(warp + 1, 64);
    __syncthreads();
    y[threadIdx.x] = last;
}

// State that stand-ins for instructions keep: it starts anew in each block.
struct Counter {
    int calls = 100;
};
__global__ void __launch_bounds__(64) state(int* y) {
    gn::per_block<Counter>().calls++;
    gn::per_thread<Counter>().calls += threadIdx.x;
    __syncthreads();
    y[blockIdx.x * 128 + threadIdx.x] = gn::per_block<Counter>().calls;
    y[blockIdx.x * 128 + 64 + threadIdx.x] = gn::per_thread<Counter>().calls;
}

// A pointer to shared memory as an instruction's operand, and back.
__global__ void __launch_bounds__(32) addresses(int* y) {
    __shared__ int fixed[32];
    int* const dynamic = reinterpret_cast<int*>(gn_shared);
    *reinterpret_cast<int*>(gn::shared_at(unsigned(__cvta_generic_to_shared(&fixed[threadIdx.x])))) = threadIdx.x;
    *reinterpret_cast<int*>(gn::shared_at(unsigned(__cvta_generic_to_shared(&dynamic[threadIdx.x])))) = threadIdx.x;
    y[threadIdx.x] = fixed[threadIdx.x] + dynamic[threadIdx.x] + unsigned(__cvta_generic_to_shared(&dynamic[1]));
    if (y[0] < 0) __cvta_generic_to_shared(y);
}

// All 16-bit numbers to float and back, and floats to half.
__global__ void __launch_bounds__(256)
conversions(float* wide, unsigned short* back, unsigned short* narrow, const float* x) {
    const unsigned i = blockIdx.x * 256 + threadIdx.x;
    wide[i] = to_float(half{static_cast<unsigned short>(i)});
    back[i] = to_half(wide[i]).bits;
    narrow[i] = to_half(x[i]).bits;
}

// Functions of CUDA that the host lacks.
__global__ void __launch_bounds__(1) functions(unsigned* y, float* f) {
    y[0] = __popc(0xf0f0u);
    y[1] = __clz(1);
    y[2] = __ffs(8);
    y[3] = __brev(1u);
    y[4] = __umulhi(0xffffffffu, 16u);
    y[5] = __byte_perm(0x03020100u, 0x07060504u, 0x7610);
    y[6] = __funnelshift_l(0x80000000u, 1u, 1);
    y[7] = __float_as_uint(1.0f);
    y[8] = sizeof(float4) * 100 + alignof(float4);
    y[9] = __CUDA_ARCH__;
    f[0] = rsqrtf(4.0f);
    f[1] = fmaf(2.0f, 3.0f, 4.0f);
    f[2] = max(1, 2.5f);
    f[3] = min(__uint_as_float(0x7fc00000u), 3.0f);
    f[4] = __saturatef(1.5f);
    const float4 v = make_float4(1, 2, 3, 4);
    f[5] = v.x + v.w;
    f[6] = fminf(-0.5f, erff(0.0f)) + expf(0.0f);
}

// The order in which blocks, and threads in them, run; and whether instructions are late.
__global__ void __launch_bounds__(4) order(int* y) {
    const int n = atomicAdd(&y[0], 1);
    y[1 + n] = blockIdx.x * 10 + threadIdx.x;
    if (n == 0) y[100] = gn::late();
}

// A stack that a kernel needs.
__global__ void __launch_bounds__(64) large_locals(float* y) {
    float values[4096];
    for (int i = 0; i < 4096; i++) values[i] = float(i + threadIdx.x);
    __syncthreads();
    float sum = 0;
    for (int i = 0; i < 4096; i++) sum += values[i ^ threadIdx.x];
    y[threadIdx.x] = sum;
}

__global__ void __launch_bounds__(1) parameters(double* y, char a, double b, short c) { y[0] = a + b + c; }

__global__ void __launch_bounds__(32) stop(float* y, int how) {
    if (threadIdx.x == 7) {
        if (how == 0) gn::trap("this is a message");
        if (how == 1) assert(how > 1);
        if (how == 2) __trap();
        if (how == 3) gn::shared_address(y);
    }
    y[threadIdx.x] = 1;
}
