// Sums over the threads of a block. The order of the additions is fixed, so that two calls give the same bits.
#pragma once

#include "storage.cuh"

#define WARP 32
#define MAX_THREADS 256

// The sum of `value` over all threads of the block, in every one of them. All threads must call it.
__device__ inline real block_sum(real value) {
    __shared__ real parts[MAX_THREADS / WARP];
    for (int distance = WARP / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
    __syncthreads();  // whoever still reads the sum before this one
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = value;
    __syncthreads();
    real sum = 0;
    for (int warp = 0; warp < blockDim.x / WARP; ++warp) sum += parts[warp];
    return sum;
}

struct Norm {
    real mean;
    real deviation;
};

// Mean and deviation, sqrt(variance + eps), of `count` numbers that the threads of the block see alike.
__device__ inline Norm norm_of(const real* row, const long long count) {
    real sum = 0;
    for (long long k = threadIdx.x; k < count; k += blockDim.x) sum += row[k];
    const real mean = block_sum(sum) / count;
    sum = 0;
    for (long long k = threadIdx.x; k < count; k += blockDim.x) sum += (row[k] - mean) * (row[k] - mean);
    return {mean, sqrt(block_sum(sum) / count + (real)LAYER_NORM_EPS)};
}
