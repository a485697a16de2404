// Macros of kernels, and sums over the threads of a block. The order of the additions is fixed, so that two calls give the
// same bits.
#pragma once

#include "storage.cuh"

#define WARP 32
#define MAX_THREADS 256

#ifndef KERNEL  // the emulator has its own
#define KERNEL(name, Struct) \
    extern "C" __global__ void __launch_bounds__(MAX_THREADS, 1) name(const __grid_constant__ Struct a)
#endif

#ifndef DYNAMIC_SHARED
#define DYNAMIC_SHARED(type, name) extern __shared__ __align__(16) type name[]
#endif

// j runs over the `width` columns of this block's row, which blockIdx.y and the threads share
#define FOR_UNITS(j, width) \
    for (long long j = blockIdx.y * blockDim.x + threadIdx.x; j < (width); j += gridDim.y * blockDim.x)

// The sum of `value` over all threads of the block, in every one of them. All threads must call it.
__device__ inline real block_sum(real value) {
    __shared__ real parts[MAX_THREADS / WARP];
    for (int distance = WARP / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
    __syncthreads();  // other threads may still read the last sum
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = value;
    __syncthreads();  // the sums of all warps
    real sum = 0;
    for (unsigned warp = 0; warp < blockDim.x / WARP; ++warp) sum += parts[warp];
    return sum;
}

struct Norm {
    real mean;
    real deviation;
};

// Mean and deviation, sqrt(variance + eps), of `count` numbers. Each thread reads the numbers of FOR_UNITS, which it wrote.
__device__ inline Norm norm_of(const real* row, const long long count, const real eps) {
    real sum = 0;
    for (long long k = threadIdx.x; k < count; k += blockDim.x) sum += row[k];
    const real mean = block_sum(sum) / count;
    sum = 0;
    for (long long k = threadIdx.x; k < count; k += blockDim.x) sum += (row[k] - mean) * (row[k] - mean);
    return {mean, sqrt(block_sum(sum) / count + eps)};
}
