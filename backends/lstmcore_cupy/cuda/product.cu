// Products with weights in a format: out = a W', where W is read as it is stored and widened in registers. One program for
// each format in float64 and in float32.

#include "block.cuh"

#define WEIGHTS_BFLOAT16 1
#define WEIGHTS_FLOAT16 2
#define WEIGHTS_INT8 3

#if WEIGHTS == WEIGHTS_INT8
typedef signed char Weight;
#else
typedef unsigned short Weight;
#endif

struct Product {
    long long rows;
    long long outputs;
    long long depth;             // columns of a and of W
    long long accumulate;        // 1: the product is added to out
    const real* a;               // (rows, depth)
    const Weight* weight;        // (outputs, depth)
    const float* scale;          // (outputs): of int8 weights, null for the others
    real* out;                   // (rows, outputs)
};

// The number that a weight stands for. It is exact in float32.
__device__ inline float widened(const Weight weight, const float scale) {
#if WEIGHTS == WEIGHTS_BFLOAT16
    return widened_bfloat16(weight);
#elif WEIGHTS == WEIGHTS_FLOAT16
    return widened_float16(weight);
#else
    return weight * scale;
#endif
}

// A warp has OUTPUTS outputs of ROWS rows, 16 sums, and a lane every 32nd term of each. So a sum has the same bits in both
// kernels, and no row changes another one.
template <int OUTPUTS, int ROWS>
__device__ inline void multiply(const Product& a) {
    const int lane = threadIdx.x % WARP;
    const long long row = (long long)blockIdx.x * ROWS;
    const long long output = ((long long)blockIdx.y * (blockDim.x / WARP) + threadIdx.x / WARP) * OUTPUTS;
    if (output >= a.outputs) return;  // the whole warp
    const Weight* weights = a.weight + output * a.depth;
    int places[OUTPUTS];  // of the first weight of each output
    float scales[OUTPUTS];
    const real* rows[ROWS];
#pragma unroll
    for (int o = 0; o < OUTPUTS; ++o) {  // what is beyond the last output or row is not written
        const int own = output + o < a.outputs ? o : (int)(a.outputs - 1 - output);
        places[o] = own * (int)a.depth;
        scales[o] = a.scale ? a.scale[output + own] : 1;
    }
#pragma unroll
    for (int n = 0; n < ROWS; ++n) rows[n] = a.a + (row + n < a.rows ? row + n : a.rows - 1) * a.depth;
    real part[OUTPUTS * ROWS] = {};
    for (int k = lane; k < a.depth; k += WARP) {
        real values[ROWS];
#pragma unroll
        for (int n = 0; n < ROWS; ++n) values[n] = rows[n][k];
#pragma unroll
        for (int o = 0; o < OUTPUTS; ++o) {
            const real weight = widened(weights[places[o] + k], scales[o]);
#pragma unroll
            for (int n = 0; n < ROWS; ++n) part[o * ROWS + n] += weight * values[n];
        }
    }
    fold<OUTPUTS * ROWS / 2>(part, lane);
    const int o = lane / 2 / ROWS, n = lane / 2 % ROWS;
    if (lane % 2 || output + o >= a.outputs || row + n >= a.rows) return;
    real* out = a.out + (row + n) * a.outputs + output + o;
    *out = a.accumulate ? *out + part[0] : part[0];
}

// A step of one row reads each weight once, and has as many weights in flight as it can.
KERNEL(multiply_row, Product) {
    multiply<16, 1>(a);
}

KERNEL(multiply_rows, Product) {
    multiply<4, 4>(a);
}
