// Mistakes in how threads meet. Each kernel has one when `bug` is 1, and is right when it is 0.
#include "ptx/hopper.cuh"

// A barrier that some threads of the block never reach: they return.
__global__ void __launch_bounds__(64) barrier_and_return(float* y, const float* x, int bug) {
    if (bug && threadIdx.x >= 40) return;
    __syncthreads();
    y[threadIdx.x] = x[threadIdx.x];
}

// Two barriers, each reached by a part of the block.
__global__ void __launch_bounds__(64) two_barriers(float* y, const float* x, int bug) {
    if (threadIdx.x < 40 || !bug)
        __syncthreads();
    else
        __syncthreads();
    y[threadIdx.x] = x[threadIdx.x];
}

// A named barrier that waits for more threads than come.
__global__ void __launch_bounds__(64) named_barrier_count(float* y, const float* x, int bug) {
    if (threadIdx.x < 32) named_barrier(1, bug ? 64 : 32);
    y[threadIdx.x] = x[threadIdx.x];
}

// A loop that waits for what nobody does.
__global__ void __launch_bounds__(64) endless_wait(float* y, const float* x, int bug) {
    __shared__ Barrier barrier;
    if (threadIdx.x == 0) {
        mbarrier_init(&barrier, 1);
        fence_barriers();
    }
    __syncthreads();
    if (threadIdx.x == 40 && !bug) mbarrier_arrive(&barrier);
    mbarrier_wait(&barrier, 0);
    y[threadIdx.x] = x[threadIdx.x];
}

// Lanes 16 to 31 take part in a shuffle whose mask does not name them.
__global__ void __launch_bounds__(64) mask_without_caller(float* y, const float* x, int bug) {
    y[threadIdx.x] = __shfl_xor_sync(bug ? 0x0000ffffu : 0xffffffffu, x[threadIdx.x], 1);
}

// Lanes of one shuffle name different masks.
__global__ void __launch_bounds__(64) different_masks(float* y, const float* x, int bug) {
    y[threadIdx.x] = __shfl_xor_sync(bug && threadIdx.x % 32 < 16 ? 0x0000ffffu : 0xffffffffu, x[threadIdx.x], 1);
}

// The two sides of a branch each shuffle, and name the whole warp.
__global__ void __launch_bounds__(64) shuffle_in_branch(float* y, const float* x, int bug) {
    if (threadIdx.x % 32 < 16 || !bug)
        y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, x[threadIdx.x], 1);
    else
        y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, x[threadIdx.x], 1);
}

// Lanes 0 to 15 shuffle, and read from lane 20.
__global__ void __launch_bounds__(64) absent_lane(float* y, const float* x, int bug) {
    float v = x[threadIdx.x];
    if (threadIdx.x % 32 < 16) v = __shfl_sync(0x0000ffffu, v, bug ? 20 : 5);
    y[threadIdx.x] = v;
}
