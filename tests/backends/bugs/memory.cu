// Mistakes in the use of memory. Each kernel has one when `bug` is 1, and is right when it is 0.
#include "numeric.cuh"

extern __shared__ __align__(1024) unsigned char gn_shared[];

// Reads what another thread wrote, without a barrier in between.
__global__ void __launch_bounds__(64) missing_barrier(float* y, const float* x, int bug) {
    __shared__ float tile[64];
    tile[threadIdx.x] = x[threadIdx.x];
    if (!bug) __syncthreads();
    y[threadIdx.x] = tile[63 - threadIdx.x];
}

// Overwrites a tile that others may still be reading: the barrier at the end of the loop is missing.
__global__ void __launch_bounds__(64) missing_second_barrier(float* y, const float* x, int bug) {
    __shared__ float tile[64];
    float sum = 0;
    for (int round = 0; round < 4; round++) {
        tile[threadIdx.x] = x[round * 64 + threadIdx.x];
        __syncthreads();
        sum += tile[(threadIdx.x + 1) % 64];
        if (!bug) __syncthreads();
    }
    y[threadIdx.x] = sum;
}

// Reads what another lane wrote, without a __syncwarp in between.
__global__ void __launch_bounds__(64) missing_syncwarp(float* y, const float* x, int bug) {
    __shared__ float tile[64];
    tile[threadIdx.x] = x[threadIdx.x];
    if (!bug) __syncwarp();
    y[threadIdx.x] = tile[threadIdx.x ^ 1];
}

// Threads count in one place by reading, adding and writing.
__global__ void __launch_bounds__(64) not_atomic(float* y, const float*, int bug) {
    if (threadIdx.x == 0) y[0] = 0;
    __syncthreads();
    if (bug)
        y[0] += 1.0f;
    else
        atomicAdd(&y[0], 1.0f);
}

// Two blocks write to one place, one before and the other after a barrier. That is one for each of them: nothing says
// which writes last.
__global__ void __launch_bounds__(64) two_blocks(float* y, const float* x, int bug) {
    float* const to = y + (bug ? 0 : blockIdx.x * 64);
    if (blockIdx.x == 0) to[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    if (blockIdx.x == 1) to[threadIdx.x] = x[64 + threadIdx.x];
}

// The array has 100 elements; 128 threads write.
__global__ void __launch_bounds__(64) array_bounds(float* y, const float* x, int bug) {
    const int i = blockIdx.x * 64 + threadIdx.x;
    if (bug || i < 100) y[i] = x[i % 100];
}

// The array has 100 elements; 128 threads read.
__global__ void __launch_bounds__(64) array_bounds_read(float* y, const float* x, int bug) {
    const int i = blockIdx.x * 64 + threadIdx.x;
    y[i] = bug || i < 100 ? x[i] : 0.0f;
}

// One element more of dynamic shared memory than there is.
__global__ void __launch_bounds__(64) shared_bounds(float* y, const float* x, int bug) {
    float* const tile = reinterpret_cast<float*>(gn_shared);
    tile[threadIdx.x + bug] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x + bug];
}

// One element more of a static shared variable than it has.
__global__ void __launch_bounds__(64) static_bounds(float* y, const float* x, int bug) {
    __shared__ float tile[64], behind[64];
    behind[threadIdx.x] = 0;
    tile[threadIdx.x + bug] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x + bug] + behind[threadIdx.x] * 0;
}

// Four floats at once, from an address that is no multiple of 16.
__global__ void __launch_bounds__(64) misaligned(float* y, const float* x, int bug) {
    const float4 v = *reinterpret_cast<const float4*>(x + threadIdx.x / 4 * 4 + bug);
    y[threadIdx.x] = v.x;
}

// The first element of shared memory is read, and nobody wrote it.
__global__ void __launch_bounds__(64) uninitialised(float* y, const float* x, int bug) {
    float* const tile = reinterpret_cast<float*>(gn_shared);
    if (threadIdx.x > 0 || !bug) tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x];
}

// The last block's result is never written.
__global__ void __launch_bounds__(64) not_written(float* y, const float* x, int bug) {
    const int i = blockIdx.x * 64 + threadIdx.x;
    if (i < 128 - bug) y[i] = x[i];
}
