// Mistakes in the use of bulk copies and wgmma. Each kernel has one when `bug` is 1, and is right when it is 0.
#include "ptx/hopper.cuh"

extern __shared__ __align__(1024) unsigned char gn_shared[];

// Element i of a box of rows of 32 floats, which lie with the 128-byte swizzle.
DEVICE float element(int i) {
    const int row = i / 32, piece = i % 32 / 4;
    return reinterpret_cast<const float*>(gn_shared)[row * 32 + (piece ^ row) * 4 + i % 4];
}

// Nobody waits for the bulk copy.
__global__ void __launch_bounds__(64)
missing_bulk_wait(float* y, const float*, int bug, const __grid_constant__ TensorMap map) {
    __shared__ Barrier full;
    if (threadIdx.x == 0) {
        mbarrier_init(&full, 1);
        fence_barriers();
        mbarrier_arrive_expect(&full, 256);
        tma_load(gn_shared, map, &full, 0, 0);
    }
    __syncthreads();
    if (!bug) mbarrier_wait(&full, 0);
    y[threadIdx.x] = element(threadIdx.x);
}

// The barrier is told to expect more bytes than are copied.
__global__ void __launch_bounds__(64)
wrong_byte_count(float* y, const float*, int bug, const __grid_constant__ TensorMap map) {
    __shared__ Barrier full;
    if (threadIdx.x == 0) {
        mbarrier_init(&full, 1);
        fence_barriers();
        mbarrier_arrive_expect(&full, bug ? 512 : 256);
        tma_load(gn_shared, map, &full, 0, 0);
    }
    __syncthreads();
    mbarrier_wait(&full, 0);
    y[threadIdx.x] = element(threadIdx.x);
}

// The producer (warp 2) fills the one slot again without waiting until it has been read.
__global__ void __launch_bounds__(96)
missing_empty_wait(float* y, const float*, int bug, const __grid_constant__ TensorMap map) {
    __shared__ Barrier full, empty;
    if (threadIdx.x == 0) {
        mbarrier_init(&full, 1);
        mbarrier_init(&empty, 64);
        fence_barriers();
    }
    __syncthreads();
    if (threadIdx.x == 64)
        for (int round = 0; round < 3; round++) {
            if (!bug) mbarrier_wait(&empty, round + 1 & 1);
            mbarrier_arrive_expect(&full, 256);
            tma_load(gn_shared, map, &full, 0, 2 * round);
        }
    if (threadIdx.x < 64) {
        float sum = 0;
        for (int round = 0; round < 3; round++) {
            mbarrier_wait(&full, round & 1);
            sum += element(threadIdx.x);
            mbarrier_arrive(&empty);
        }
        y[threadIdx.x] = sum;
    }
}

// Sums are used before their products are complete. All elements of A and B are 1, so each sum is 16.
__global__ void __launch_bounds__(128)
missing_product_wait(float* y, const float*, int bug, const __grid_constant__ TensorMap) {
    half* const ones = reinterpret_cast<half*>(gn_shared);
    for (int i = threadIdx.x; i < 2 * 64 * 64; i += 128) ones[i] = to_half(1.0f);
    fence_stores();
    __syncthreads();
    float sums[32] = {};
    wgmma_fence();
    wgmma<half, 64>(sums, matrix_in_shared(gn_shared), matrix_in_shared(gn_shared + 64 * 128), false);
    wgmma_commit();
    if (!bug) wgmma_wait<0>();
    y[threadIdx.x] = sums[5];
    wgmma_wait<0>();
}
