// Mistakes in the use of cp.async. Each kernel has one when `bug` is 1, and is right when it is 0.
#include "ptx/mma.cuh"

// Nobody waits for the copies.
__global__ void __launch_bounds__(64) missing_copy_wait(float* y, const float* x, int bug) {
    __shared__ float tile[64];
    cp_async<4>(shared_address(&tile[threadIdx.x]), &x[threadIdx.x], 4);
    cp_async_commit();
    if (!bug) cp_async_wait<0>();
    __syncthreads();
    y[threadIdx.x] = tile[63 - threadIdx.x];
}

// All but the last group are waited for, and the last one is used.
__global__ void __launch_bounds__(64) wait_for_one_group_less(float* y, const float* x, int bug) {
    __shared__ float tile[2][64];
    for (int i = 0; i < 2; i++) {
        cp_async<4>(shared_address(&tile[i][threadIdx.x]), &x[i * 64 + threadIdx.x], 4);
        cp_async_commit();
    }
    if (bug)
        cp_async_wait<1>();
    else
        cp_async_wait<0>();
    __syncthreads();
    y[threadIdx.x] = tile[0][63 - threadIdx.x] + tile[1][63 - threadIdx.x];
}

// Each thread waits for its own copies, but not for the other threads.
__global__ void __launch_bounds__(64) copy_without_barrier(float* y, const float* x, int bug) {
    __shared__ float tile[64];
    cp_async<4>(shared_address(&tile[threadIdx.x]), &x[threadIdx.x], 4);
    cp_async_commit();
    cp_async_wait<0>();
    if (!bug) __syncthreads();
    y[threadIdx.x] = tile[63 - threadIdx.x];
}
