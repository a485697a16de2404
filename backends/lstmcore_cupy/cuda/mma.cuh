// Products on tensor cores (sm_80 on): a warp multiplies small matrices of which each lane has a part, a fragment.
//
// With g = lane / 4 and t = lane % 4 the PTX ISA gives lane `lane`
//
//     of D (16 x 8), float32:   d[0], d[1]: D[g][2t], D[g][2t + 1];  d[2], d[3]: D[g + 8][2t], D[g + 8][2t + 1]
//
// and of the operands of D += A B
//
//     m16n8k16, two numbers of 16 bits a register, the first in the lower half
//       A (16 x 16)   a[0]: A[g][2t, 2t + 1]       a[1]: A[g + 8][2t, 2t + 1]
//                     a[2]: A[g][2t + 8, 2t + 9]   a[3]: A[g + 8][2t + 8, 2t + 9]
//       B (16 x 8)    b[0]: B[2t, 2t + 1][g]       b[1]: B[2t + 8, 2t + 9][g]
//     m16n8k8, one number of TF32 a register
//       A (16 x 8)    a[0]: A[g][t]   a[1]: A[g + 8][t]   a[2]: A[g][t + 4]   a[3]: A[g + 8][t + 4]
//       B (8 x 8)     b[0]: B[t][g]   b[1]: B[t + 4][g]
//
// Here A has rows of the batch and B has outputs: a row with NaN or infinity spoils no other.
#pragma once

#include "block.cuh"

#if STORAGE != STORAGE_FLOAT64

#define MMA_ROWS 16    // of A and D
#define MMA_OUTPUTS 8  // columns of B and D
#define MMA_DEPTH (32 / (int)sizeof(stored))  // columns of A that the 8 bytes of B that a lane has in `stored` multiply

#ifndef EMULATED  // the emulator has its own

// The nearest number of TF32, ties away from zero.
__device__ inline unsigned to_tf32(const float value) {
    unsigned found;
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(found) : "f"(value));
    return found;
}

__device__ inline void mma_tf32(float* d, const unsigned* a, const unsigned* b) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

#if STORAGE == STORAGE_BFLOAT16
#define MMA_STORED "bf16"
#elif STORAGE == STORAGE_FLOAT16
#define MMA_STORED "f16"
#endif

#ifdef MMA_STORED
__device__ inline void mma_stored(float* d, const unsigned* a, const unsigned* b) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32." MMA_STORED "." MMA_STORED
        ".f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Load four matrices of 8 rows of 16 bytes from shared memory. Lane 8 m + i has the address of row i of matrix m, a multiple
// of 16 bytes. a[m] becomes word `lane % 4` of row `lane / 4`.
__device__ inline void load_matrices(unsigned* a, const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
                 : "r"((unsigned)__cvta_generic_to_shared(row))
                 : "memory");
}
#endif

#endif

// Eight bytes that a lane reads at once.
struct alignas(8) Pair {
    unsigned of[2];
};

// Split a number of float32: `upper` becomes the nearest of TF32 and `lower` that of the rest.
__device__ inline void split(unsigned& upper, unsigned& lower) {
    const float value = __uint_as_float(upper);
    upper = to_tf32(value);
    const bool finite = (upper & 0x7f800000u) != 0x7f800000u;  // NaN and infinity have no rest
    lower = finite ? to_tf32(value - __uint_as_float(upper)) : 0;
}

// The product of rows of the batch with the weights of a block, which lie in shared memory in the order of fragments.
//
// Both operands may have their columns in any order as long as it is the same. That of B is the one of m16n8k16 for 16
// bits; in TF32 the two numbers of a lane are columns 2t and 2t + 1 of 8, so that it reads two adjacent numbers of A.
// The weights of the 16-bit formats are exact in TF32 and serve both.
struct TensorProduct {
    typedef stored Weight;

    // Bytes of shared memory for the weights of `outputs` outputs, K columns of each, padded by zeros to whole fragments,
    // and for a tile of `columns` columns.
    __device__ static long long weights_bytes(const long long outputs, const long long K) {
        return padded(outputs, MMA_OUTPUTS) * padded(K, MMA_DEPTH) * sizeof(Weight);
    }
    __device__ static long long tile_bytes(const long long columns) {
        return MMA_ROWS * pitch(padded(columns, MMA_DEPTH), false);
    }

    // Copy them: `weight(o, k)` is that of output o and column k. `outputs_first`: those of one column are adjacent in the
    // memory they are read from. All threads of the block call it.
    template <class Source>
    __device__ static void keep(
        Weight* weights, const int outputs, const long long K, const bool outputs_first, const Source weight) {
        const int height = (int)padded(outputs, MMA_OUTPUTS), width = (int)padded(K, MMA_DEPTH);
        for_weights(height, width, outputs_first, [&](const int o, const int k) {
            weights[place(o, k, width)] = kept(o < outputs && k < K ? weight(o, k) : 0);
        });
    }

    // Bytes from a row of a tile of `columns` columns to the next: the lanes that read at once find all banks.
    __device__ static int pitch(const long long columns, const bool exact) {
        return (int)padded(columns * (exact ? sizeof(stored) : sizeof(real)), 128) + (exact ? 16 : 32);
    }

    // sums[row * outputs + o], in shared memory, becomes the sum over k of the weight of output o and column k times
    // source[row * K + k], for `rows` <= MMA_ROWS rows of what other blocks wrote before a barrier of the grid.
    // `exact`: the source is exact in `stored` and is multiplied in that format. If not, it is two numbers of TF32 for the
    // 16-bit formats, which lose 2^-22 of it at most, and one for precision tf32. Sums are float32.
    // `tile` holds `depth` columns, a multiple of MMA_DEPTH or all of them. With fewer groups of 8 outputs than warps, the
    // columns of each are split over several warps: `sums` holds MMA_ROWS times the outputs, and times 8 numbers for each
    // warp. All threads of the block call it, and all may read the sums after it.
    __device__ static void product(
        const Weight* weights, const int outputs, const long long K, const real* source, const int rows, real* tile,
        const long long depth, real* sums, const bool exact) {
        const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
        const int groups = (outputs + MMA_OUTPUTS - 1) / MMA_OUTPUTS, parts = warps > groups ? warps / groups : 1;
        const int room = MMA_ROWS * outputs, all_steps = (int)padded(K, MMA_DEPTH) / MMA_DEPTH;
        for (long long begin = 0; begin < K; begin += depth) {
            const int columns = (int)(begin + depth < K ? depth : K - begin), width = (int)padded(columns, MMA_DEPTH);
            const int bytes = pitch(width, exact), steps = width / MMA_DEPTH;
            __syncthreads();  // other threads may still read the last fragments and sums
            load_tile(source + begin, K, rows, columns, MMA_ROWS, width, [&](const int row, const int k, const real value) {
                put(tile, row * bytes, k, value, exact);
            });
            __syncthreads();  // the fragments
            for (int task = warp; task < groups * parts; task += warps) {
                const int group = task % groups, part = task / groups;
                const int first = steps * part / parts, last = steps * (part + 1) / parts;
                const Weight* own = weights + ((group * all_steps + (int)begin / MMA_DEPTH) * WARP + lane) * PER_LANE;
                real d[4] = {};
                multiply(d, own, tile, bytes, first, last, exact);
#pragma unroll
                for (int e = 0; e < 4; ++e) {
                    const int row = lane / 4 + e / 2 * 8, o = group * MMA_OUTPUTS + lane % 4 * 2 + e % 2;
                    real* sum = sums + part * room + row * outputs + o;
                    if (o < outputs) *sum = begin ? *sum + d[e] : d[e];
                }
            }
        }
        __syncthreads();  // the sums of all parts of the columns
        if (parts == 1) return;
        for (int e = threadIdx.x; e < rows * outputs; e += blockDim.x)
            for (int part = 1; part < parts; ++part) sums[e] += sums[part * room + e];
        __syncthreads();  // the sums of all columns
    }

private:
    static constexpr int PER_LANE = 8 / (int)sizeof(stored);  // numbers of B that a lane has in a step

    __device__ static long long padded(const long long size, const long long to) {
        return (size + to - 1) / to * to;
    }

    // The index of the weight of output o and column k.
    __device__ static int place(const int o, const int k, const int width) {
        const int step = o / MMA_OUTPUTS * (width / MMA_DEPTH) + k / MMA_DEPTH, column = k % MMA_DEPTH;
        const int lane = o % MMA_OUTPUTS * 4 + column % 8 / 2;
        return (step * WARP + lane) * PER_LANE + column / 8 * 2 + column % 2;
    }

#if STORAGE == STORAGE_FLOAT32
    __device__ static Weight kept(const real value) {
        return __uint_as_float(to_tf32(value));
    }
#else
    __device__ static Weight kept(const real value) {
        return rounded(value);
    }
#endif

    __device__ static void put(real* tile, const int row, const int k, const real value, const bool exact) {
#if STORAGE == STORAGE_FLOAT32
        ((unsigned*)((char*)tile + row))[k] = to_tf32(value);
#else
        if (exact)
            ((stored*)((char*)tile + row))[k] = rounded(value);
        else
            ((real*)((char*)tile + row))[k] = value;
#endif
    }

    // d += A B over the steps from `first` to before `last`, of MMA_DEPTH columns each; `own` has this lane's B of step 0.
    __device__ static void multiply(
        real* d, const Weight* own, const real* tile, const int bytes, const int first, const int last, const bool exact) {
        const int lane = threadIdx.x % WARP;
#if STORAGE != STORAGE_FLOAT32
        if (exact) {
            // Matrices 0 and 1 are the upper and lower rows of columns 0 to 7, 2 and 3 those of columns 8 to 15
            const char* row = (const char*)tile + lane % 16 * bytes + lane / 16 * 16;
            for (int step = first; step < last; ++step) {
                unsigned a[4];
                load_matrices(a, row + step * 32);
                const Pair b = *(const Pair*)(own + step * WARP * PER_LANE);
                mma_stored(d, a, b.of);
            }
            return;
        }
#endif
        const char* row = (const char*)tile + lane / 4 * bytes + lane % 4 * 8;
        for (int step = first; step < last; ++step) {
            const Pair words = *(const Pair*)(own + step * WARP * PER_LANE);
#pragma unroll
            for (int eight = 0; eight < MMA_DEPTH / 8; ++eight) {
                const char* place = row + (step * (MMA_DEPTH / 8) + eight) * 32;
                const Pair upper = *(const Pair*)place, lower = *(const Pair*)(place + 8 * bytes);
                unsigned a[4] = {upper.of[0], lower.of[0], upper.of[1], lower.of[1]};
#if STORAGE == STORAGE_FLOAT32
                mma_tf32(d, a, words.of);
#else
                const unsigned pair = words.of[eight], b[2] = {
                    __float_as_uint(loaded((stored)pair)), __float_as_uint(loaded((stored)(pair >> 16)))};
                unsigned rest[4];
#pragma unroll
                for (int e = 0; e < 4; ++e) split(a[e], rest[e]);
                mma_tf32(d, rest, b);
                mma_tf32(d, a, b);
#endif
            }
        }
    }
};

#endif
