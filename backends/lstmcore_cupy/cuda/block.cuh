// Macros of kernels, and sums over the threads of a block. The order of the additions is fixed, so that two calls give the
// same bits.
#pragma once

#include "storage.cuh"

#define WARP 32
#define MAX_THREADS 256
#define FLIGHT (64 / (int)sizeof(real))  // numbers of a tile that a thread asks for at once

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
template <class Value>
__device__ inline Value block_sum(Value value) {
    __shared__ Value parts[MAX_THREADS / WARP];
    for (int distance = WARP / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
    __syncthreads();  // other threads may still read the last sum
    if (threadIdx.x % WARP == 0) parts[threadIdx.x / WARP] = value;
    __syncthreads();  // the sums of all warps
    Value sum = 0;
    for (unsigned warp = 0; warp < blockDim.x / WARP; ++warp) sum += parts[warp];
    return sum;
}

// Two lanes have parts of the same 2 HALF sums, and each takes half of the sums. This repeats until two lanes have one sum:
// lanes 2 k and 2 k + 1 get sum k in part[0].
template <int HALF>
__device__ inline void fold(real* part, const int lane) {
    const bool upper = lane & 2 * HALF;
#pragma unroll
    for (int e = 0; e < HALF; ++e) {
        const real own = upper ? part[HALF + e] : part[e], other = upper ? part[e] : part[HALF + e];
        part[e] = own + __shfl_xor_sync(0xffffffffu, other, 2 * HALF);
    }
    if constexpr (HALF > 1)
        fold<HALF / 2>(part, lane);
    else
        part[0] += __shfl_xor_sync(0xffffffffu, part[0], 1);
}

// Call `one(o, k)` for each weight of `outputs` outputs and `columns` columns: those of a column are neighbours of threads
// with `outputs_first`, else those of an output. All threads of the block call it.
template <class One>
__device__ inline void for_weights(const int outputs, const int columns, const bool outputs_first, const One one) {
    const int inner = outputs_first ? outputs : columns;
    for (int e = threadIdx.x; e < outputs * columns; e += blockDim.x) {
        const int outer = e / inner, rest = e % inner;
        one(outputs_first ? rest : outer, outputs_first ? outer : rest);
    }
}

// Copy a tile that other blocks wrote before a barrier of the grid: `store(row, k, value)` for `height` rows of `width`
// numbers, of which `rows` rows of `columns` numbers are read from `source`, `pitch` numbers apart; the others are 0. A
// thread asks for FLIGHT numbers before it stores the first one. All threads of the block call it.
template <class Store>
__device__ inline void load_tile(
    const real* source, const long long pitch, const int rows, const int columns, const int height, const int width,
    const Store store) {
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    for (int row = warp; row < height; row += warps)
        for (int first = lane; first < width; first += FLIGHT * WARP) {
            real values[FLIGHT];
#pragma unroll
            for (int e = 0; e < FLIGHT; ++e) {
                const int k = first + e * WARP;
                values[e] = row < rows && k < columns ? __ldcg(source + row * pitch + k) : 0;
            }
#pragma unroll
            for (int e = 0; e < FLIGHT; ++e)
                if (first + e * WARP < width) store(row, first + e * WARP, values[e]);
        }
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
