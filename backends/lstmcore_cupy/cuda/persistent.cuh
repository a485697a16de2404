// All steps in one launch, if only the product with R is a sum over units: no layer norm, no projection.
//
// A block has `units` hidden units (blockIdx.x) and `rows` rows of the batch (blockIdx.y) of one direction (blockIdx.z) for
// all steps. It keeps the rows of R of its units in shared memory. In a step it reads r (backward: dz) of all units of its
// rows, TILE rows at a time, and writes its own units. A barrier lies between the two. It joins the blocks that have the
// same rows and direction, all of which have to be resident. c and h of a unit and a row need no barrier, because the same
// thread has them in every step.
//
// Shared memory holds the rows of R, a tile (TILE, depth), the sums of a tile (TILE, number of outputs) and, forward, the
// bias of each output. The product is made of scalar multiply-adds or runs on tensor cores, see mma.cuh.
#pragma once

#include "block.cuh"
#include "call.cuh"
#include "mma.cuh"

#if !LAYER_NORM && !PROJECTION

#define TILE 16        // rows of the batch in shared memory
#define BLOCK 4        // rows, and outputs, that a warp multiplies at once
#define POLLS 8388608  // of a barrier, before it counts as one that never opens: some seconds
#define LOOKS 100      // of a barrier, before a block sleeps between two: most open sooner
#define GIVEN_UP (1ll << 40)

// The work of a block.
struct Share {
    long long first_unit, first_row, last_row;
    int units;
};

__device__ inline Share share_of(const Call& a) {
    const long long unit = blockIdx.x * a.units, row = blockIdx.y * a.rows;
    return {unit, row, row + a.rows < a.N ? row + a.rows : a.N, (int)(unit + a.units < a.H ? a.units : a.H - unit)};
}

#ifndef EMULATED  // the emulator has its own

// Add to a number of all blocks. Who then reads it by `load_acquire` sees what this thread, and those that it had a barrier
// with, wrote before.
__device__ inline void add_release(long long* place, const long long value) {
    asm volatile("red.release.gpu.global.add.u64 [%0], %1;" ::"l"(place), "l"(value) : "memory");
}

__device__ inline long long load_acquire(const long long* place) {
    long long found;
    asm volatile("ld.acquire.gpu.global.s64 %0, [%1];" : "=l"(found) : "l"(place) : "memory");
    return found;
}

#endif

// Wait until all blocks of the same rows and direction have come here `times` times. All of them then see what they wrote
// before, except for earlier reads in the cache of a multiprocessor: see __ldcg. Return false if a block did not come. All
// blocks and the host learn of that.
__device__ inline bool grid_barrier(const Call& a, const long long times) {
    __shared__ bool open;
    __syncthreads();  // the block's writes
    if (threadIdx.x == 0) {
        long long* arrived = a.arrived + blockIdx.y;
        add_release(arrived, 1);
        const long long all = times * gridDim.x;
        long long now = load_acquire(arrived);
        for (int polls = 0; now < all && polls < POLLS; ++polls) {
            if (polls >= LOOKS) __nanosleep(20);
            now = load_acquire(arrived);
        }
        open = now >= all && now < GIVEN_UP;
        if (!open) {
            atomicAdd((unsigned long long*)arrived, (unsigned long long)GIVEN_UP);
            *(volatile long long*)a.failed = 1;
            __threadfence_system();
        }
    }
    __syncthreads();  // the grid
    return open;
}

// Products by scalar multiply-adds, for float64 and float32. `TensorProduct` documents the functions. The weights are
// (outputs, K).
struct ScalarProduct {
    typedef real Weight;

    __device__ static long long weights_bytes(const long long outputs, const long long K) {
        return outputs * K * sizeof(real);
    }
    __device__ static long long tile_bytes(const long long columns) {
        return TILE * columns * sizeof(real);
    }

    template <class Source>
    __device__ static void keep(
        Weight* weights, const int outputs, const long long K, const bool outputs_first, const Source weight) {
        for_weights(outputs, (int)K, outputs_first, [&](const int o, const int k) { weights[o * K + k] = weight(o, k); });
    }

    __device__ static void product(
        const Weight* weights, const int outputs, const long long K, const real* source, const int rows, real* tile,
        const long long depth, real* sums, const bool) {
        const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
        const int across = (rows + BLOCK - 1) / BLOCK, tasks = (outputs + BLOCK - 1) / BLOCK * across;
        for (long long begin = 0; begin < K; begin += depth) {
            const int columns = (int)(begin + depth < K ? depth : K - begin);
            __syncthreads();  // other threads may still read the last tile and sums
            load_tile(
                source + begin, K, rows, columns, across * BLOCK, columns,
                [&](const int row, const int k, const real value) { tile[row * columns + k] = value; });
            __syncthreads();  // the tile, and the weights
            for (int task = warp; task < tasks; task += warps) {
                const int output = task / across * BLOCK, row = task % across * BLOCK;
                const real* factors[BLOCK];
#pragma unroll
                for (int o = 0; o < BLOCK; ++o)  // outputs beyond the last one are not written
                    factors[o] = weights + (output + o < outputs ? output + o : output) * K + begin;
                // A lane has every 32nd term of the sums
                real part[BLOCK * BLOCK] = {};
                for (int k = lane; k < columns; k += WARP)
#pragma unroll
                    for (int o = 0; o < BLOCK; ++o)
#pragma unroll
                        for (int q = 0; q < BLOCK; ++q) part[o * BLOCK + q] += factors[o][k] * tile[(row + q) * columns + k];
                fold<BLOCK * BLOCK / 2>(part, lane);
                const int o = output + lane / 2 / BLOCK, n = row + lane / 2 % BLOCK;
                if (lane % 2 || o >= outputs) continue;
                sums[n * outputs + o] = begin ? sums[n * outputs + o] + part[0] : part[0];
            }
        }
        __syncthreads();  // the sums
    }
};

// After a barrier that did not open: nothing of steps from s on may look like a result.
__device__ inline void forward_failed(const Call& a, const Share& share, const long long s) {
    const real nothing = sqrt((real)-1);
#pragma unroll 1  // rarely run, so it should be short
    for (long long n = share.first_row; n < share.last_row; ++n)
#pragma unroll 1
        for (long long unit = threadIdx.x; unit < share.units; unit += blockDim.x) {
            const long long j = share.first_unit + unit;
            a.h[n * a.H + j] = nothing;
#pragma unroll 1
            for (long long step = s; step < a.T; ++step) {
                a.c[(step + 1) * a.c_stride + n * a.H + j] = nothing;
                a.y[(time_of(a, step) * a.N + n) * a.H + j] = rounded(nothing);
            }
        }
}

// What a step of a unit reads beside its sums.
struct Before {
    real from_x[GATES], c;
};

__device__ inline Before before_product(const Call& a, const long long s, const long long n, const long long j) {
    const real* from_x = a.from_x + ((time_of(a, s) - a.first) * a.N + n) * GATES * a.H;
    Before found;
#pragma unroll
    for (int gate = 0; gate < GATES; ++gate) {
        found.from_x[gate] = from_x[gate * a.H + j];
    }
    found.c = a.c[s * a.c_stride + n * a.H + j];
    return found;
}

template <class Product>
__device__ inline void forward_steps(const Call& a) {
    DYNAMIC_SHARED(char, room);
    const Share share = share_of(a);
    const int units = share.units, outputs = GATES * units;  // in the order (GATES, units)
    const bool exact = !RECURRENCE_CELL && !a.mask_r;  // r is h, as it is stored
    auto* weights = (typename Product::Weight*)room;
    auto* tile = (real*)(room + Product::weights_bytes(GATES * a.units, a.H));
    auto* bias = (real*)((char*)tile + Product::tile_bytes(a.depth));
    auto* sums = bias + GATES * a.units;
    Product::keep(weights, outputs, a.H, false, [&](const int o, const long long k) {
        return a.weight_h[(o / units * a.H + share.first_unit + o % units) * a.H + k];
    });
    for (int o = threadIdx.x; o < outputs; o += blockDim.x)
        bias[o] = a.bias ? a.bias[o / units * a.H + share.first_unit + o % units] : 0;
    const long long own_row = share.first_row + threadIdx.x / units, own_unit = share.first_unit + threadIdx.x % units;
    const bool has_own = own_row < share.last_row && threadIdx.x < TILE * units;
    for (long long step = 0; step < a.steps; ++step) {
        const long long s = a.s + step;
        // Of the first entry of a thread, mostly its only one, before the barrier: the wait hides the way to memory
        Before own = {};
        if (has_own) own = before_product(a, s, own_row, own_unit);
        if (step > 0 && !grid_barrier(a, step)) return forward_failed(a, share, s);
        for (long long first = share.first_row; first < share.last_row; first += TILE) {
            const int rows = (int)(share.last_row - first < TILE ? share.last_row - first : TILE);
            const real* r = a.r + place_of_r(a, s) + first * a.H;
            Product::product(weights, outputs, a.H, r, rows, tile, a.depth, sums, exact);
            for (int e = threadIdx.x; e < rows * units; e += blockDim.x) {
                const int row = e / units, unit = e % units;
                const long long n = first + row, j = share.first_unit + unit;
                if (!active(a, n, s)) {
                    pad_unit(a, s, n, j);
                    continue;
                }
                const bool known = first == share.first_row && e == threadIdx.x;
                const Before here = known ? own : before_product(a, s, n, j);
                real z[GATES];
#pragma unroll
                for (int gate = 0; gate < GATES; ++gate) {
                    const int output = gate * units + unit;
                    z[gate] = here.from_x[gate] + sums[row * outputs + output] + bias[output];
                }
                const real o = advance_cell(a, s, n, j, z, here.c);
                emit(a, s, n, j, o * HIDDEN_VALUE(a.c[(s + 1) * a.c_stride + n * a.H + j]));
            }
        }
    }
}

// As `forward_failed`, of steps from s down.
__device__ inline void backward_failed(const Call& a, const Share& share, const long long s) {
    const real nothing = sqrt((real)-1);
#pragma unroll 1  // rarely run, so it should be short
    for (long long n = share.first_row; n < share.last_row; ++n)
#pragma unroll 1
        for (long long unit = threadIdx.x; unit < share.units; unit += blockDim.x) {
            const long long j = share.first_unit + unit;
            a.dh[n * a.H + j] = a.dc[n * a.H + j] = nothing;
#pragma unroll 1
            for (long long step = s; step >= 0; --step)
                for (int gate = 0; gate < GATES; ++gate)
                    a.dz[((time_of(a, step) * a.N + n) * GATES + gate) * a.H + j] = nothing;
        }
}

template <class Product>
__device__ inline void backward_steps(const Call& a) {
    DYNAMIC_SHARED(char, room);
    const Share share = share_of(a);
    const int units = share.units;
    const long long columns = GATES * a.H;
    auto* weights = (typename Product::Weight*)room;  // of columns of R
    auto* tile = (real*)(room + Product::weights_bytes(a.units, columns));
    auto* sums = (real*)((char*)tile + Product::tile_bytes(a.depth));
    Product::keep(weights, units, columns, true, [&](const int o, const long long k) {
        return a.weight_h[k * a.H + share.first_unit + o];
    });
    for (long long s = a.T - 1; s >= -1; --s) {  // at -1 is the initial state
        if (s < a.T - 1 && !grid_barrier(a, a.T - 1 - s)) return backward_failed(a, share, s);
        for (long long first = share.first_row; first < share.last_row; first += TILE) {
            const int rows = (int)(share.last_row - first < TILE ? share.last_row - first : TILE);
            if (s < a.T - 1) {
                const real* dz = a.dz + (time_of(a, s + 1) * a.N + first) * columns;
                Product::product(weights, units, columns, dz, rows, tile, a.depth, sums, false);
            }
            for (int e = threadIdx.x; e < rows * units; e += blockDim.x) {
                const long long n = first + e / units, j = share.first_unit + e % units;
                const real dr = s < a.T - 1 ? sums[e] : 0;
                if (s < 0) {
                    backward_state(a, n, j, dr);
                } else if (!active(a, n, s)) {
                    pad_gradient(a, s, n, j, dr);
                } else {
                    const real dq = output_gradient(a, s, n, j, dr, true);
                    const real c = a.c[(s + 1) * a.c_stride + n * a.H + j];
                    backward_gates(a, s, n, j, backward_output_gate(a, s, n, j, dq, c), dr);
                }
            }
        }
    }
}

#if STORAGE == STORAGE_FLOAT64 || STORAGE == STORAGE_FLOAT32
typedef ScalarProduct Recurrent;
#else
typedef TensorProduct Recurrent;
#endif

KERNEL(forward_persistent, Directions) {
    forward_steps<Recurrent>(a.of[blockIdx.z]);
}

KERNEL(backward_persistent, Directions) {
    backward_steps<Recurrent>(a.of[blockIdx.z]);
}

#if STORAGE == STORAGE_FLOAT32
KERNEL(forward_persistent_tf32, Directions) {
    forward_steps<TensorProduct>(a.of[blockIdx.z]);
}

KERNEL(backward_persistent_tf32, Directions) {
    backward_steps<TensorProduct>(a.of[blockIdx.z]);
}
#endif

#endif
