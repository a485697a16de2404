// All steps in one launch, where nothing but the product with R is a sum over units: no layer norm, no projection.
//
// A block has `units` hidden units for all rows of the batch and all steps, and keeps their rows of R in shared memory.
// Of a step it reads all of r, TILE rows of the batch at a time, and writes its own units of the next one: between the
// two is a barrier of the grid, so that all blocks have to be resident. What a thread alone writes and reads, c and h of
// a unit and a row of the batch, needs none: the same thread has them in every step.
#pragma once

#include "block.cuh"
#include "call.cuh"

#if !LAYER_NORM && !PROJECTION

#define TILE 16        // rows of the batch in shared memory
#define QUAD 4         // of them that a warp multiplies at once
#define POLLS 8388608  // of a barrier, until it counts as one that never opens: some seconds

// Wait until all blocks have come here `times` times. What threads wrote before is then there for the whole grid, but for
// what a multiprocessor keeps of earlier reads: see __ldcg. A barrier that does not open ends the launch with an error.
__device__ inline void grid_barrier(const Call& a, const long long times) {
    __threadfence();
    __syncthreads();  // the block's writes
    if (threadIdx.x == 0) {
        atomicAdd((unsigned long long*)a.arrived, 1ull);
        const long long all = times * gridDim.x;
        for (int polls = 0; *(volatile long long*)a.arrived < all; ++polls) {
            if (polls == POLLS) __trap();
            __nanosleep(20);
        }
        __threadfence();
    }
    __syncthreads();  // the grid
}

// Room in shared memory: R (units, GATES, R) of the block's units, and r (TILE, R).
KERNEL(forward_persistent, Call) {
    DYNAMIC_SHARED(real, room);
    const long long K = a.R, begin = blockIdx.x * a.units;
    const int units = (int)(begin + a.units <= a.H ? a.units : a.H - begin);
    real* rows_of_r = room + a.units * GATES * K;
    for (long long e = threadIdx.x; e < units * GATES * K; e += blockDim.x) {
        const long long j = begin + e / (GATES * K), gate = e / K % GATES;
        room[e] = a.weight_h[(gate * a.H + j) * K + e % K];
    }
    const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    for (long long step = 0; step < a.steps; ++step) {
        const long long s = a.s + step;
        if (step > 0) grid_barrier(a, step);
        const real* r = a.r + place_of_r(a, s);
        for (long long first = 0; first < a.N; first += TILE) {
            const int rows = (int)(a.N - first < TILE ? a.N - first : TILE);
            __syncthreads();  // whoever still reads the tile before this one
            for (long long e = threadIdx.x; e < TILE * K; e += blockDim.x)
                rows_of_r[e] = e < rows * K ? __ldcg(r + first * K + e) : 0;
            __syncthreads();  // the tile, and R
            const int quads = (rows + QUAD - 1) / QUAD;
            for (int task = warp; task < units * quads; task += warps) {
                const int unit = task / quads, row = task % quads * QUAD;
                const real* weights = room + unit * GATES * K;
                // A lane has every 32nd term of the sums
                real sums[GATES][QUAD] = {};
                for (long long k = lane; k < K; k += WARP)
#pragma unroll
                    for (int gate = 0; gate < GATES; ++gate)
#pragma unroll
                        for (int q = 0; q < QUAD; ++q)
                            sums[gate][q] += weights[gate * K + k] * rows_of_r[(row + q) * K + k];
#pragma unroll
                for (int distance = WARP / 2; distance > 0; distance /= 2)
#pragma unroll
                    for (int gate = 0; gate < GATES; ++gate)
#pragma unroll
                        for (int q = 0; q < QUAD; ++q)
                            sums[gate][q] += __shfl_xor_sync(0xffffffffu, sums[gate][q], distance);
                if (lane >= QUAD || row + lane >= rows) continue;
                const long long n = first + row + lane, j = begin + unit;
                if (!active(a, n, s)) {
                    pad_unit(a, s, n, j);
                    continue;
                }
                const real* from_x = a.from_x + ((time_of(a, s) - a.first) * a.N + n) * GATES * a.H;
                real z[GATES];
#pragma unroll
                for (int gate = 0; gate < GATES; ++gate) {
                    z[gate] = from_x[gate * a.H + j];
#pragma unroll
                    for (int q = 0; q < QUAD; ++q) z[gate] += q == lane ? sums[gate][q] : 0;
                }
                const real o = advance_cell(a, s, n, j, z);
                emit(a, s, n, j, o * HIDDEN_VALUE(a.c[(s + 1) * a.c_stride + n * a.H + j]));
            }
        }
    }
}

#endif
