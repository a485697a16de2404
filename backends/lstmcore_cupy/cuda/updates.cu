// Steps of optimizers, and the norm of gradients, over many arrays in one launch. One program for each storage format.
//
// Every product is rounded by itself, as on the host: joined with a sum it would give other bits than the host's.

#include "block.cuh"

#define ARRAYS 96  // of a launch at most; as in updates.py

struct Update {
    long long arrays;            // of this launch
    long long parts;             // sums of squares, of all launches
    long long first_part;        // the first one of this launch
    double* squares;             // (parts)
    double* norm;                // (1): the root of their sum
    double bound;                // of the norm
    real* target;                // all arrays one after the other: parameters after the step, or clipped gradients
    real* first;                 // moments, in the order of `target`; null: none
    real* second;
    // The numbers of a formula: see Formula in lstmcore/updates.py
    Number lr;
    Number momentum;
    Number weight_decay;
    Number initial;
    Number nesterov;
    Number beta1;
    Number rest1;                // 1 - beta1
    Number beta2;
    Number rest2;                // 1 - beta2
    Number correction;
    Number eps;
    Number rate;
    Number shrink;
};

struct Item {
    const real* value;
    const real* gradient;
    long long start;             // of the array in `target`
    long long size;
};

struct Items {
    Update update;
    Item of[ARRAYS];
};

__device__ inline float times(const float a, const float b) {
    return __fmul_rn(a, b);
}

__device__ inline double times(const double a, const double b) {
    return __dmul_rn(a, b);
}

// A sum for each block. Its order depends on the grid alone.
KERNEL(squares, Items) {
    const long long first = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const long long stride = (long long)gridDim.x * blockDim.x;
    double sum = 0;
    for (long long k = 0; k < a.update.arrays; ++k)
        for (long long e = first; e < a.of[k].size; e += stride) {
            const double gradient = a.of[k].gradient[e];
            sum += gradient * gradient;
        }
    sum = block_sum(sum);
    if (threadIdx.x == 0) a.update.squares[a.update.first_part + blockIdx.x] = sum;
}

// In every thread. All threads of the block call it.
__device__ inline double root(const Update& a) {
    double sum = 0;
    for (long long k = threadIdx.x; k < a.parts; k += blockDim.x) sum += a.squares[k];
    return sqrt(block_sum(sum));
}

KERNEL(root_of_squares, Items) {
    const double norm = root(a.update);
    if (threadIdx.x == 0) *a.update.norm = norm;
}

KERNEL(clip, Items) {
    const double norm = root(a.update), bound = a.update.bound;
    if (blockIdx.x == 0 && blockIdx.y == 0 && threadIdx.x == 0) *a.update.norm = norm;
    const bool finite = norm - norm == 0;
    const real factor = finite && norm > bound ? (real)(bound / norm) : (real)1;
    const Item& item = a.of[blockIdx.x];
    FOR_UNITS(e, item.size) a.update.target[item.start + e] = item.gradient[e] * factor;
}

KERNEL(sgd, Items) {
    const Update& u = a.update;
    const Item& item = a.of[blockIdx.x];
    FOR_UNITS(e, item.size) {
        const long long place = item.start + e;
        const real p = item.value[e];
        real g = item.gradient[e];
        if (u.weight_decay.value != 0) g += times(u.weight_decay.value, p);
        if (u.first) {
            const real m = u.initial.value != 0 ? g : times(u.first[place], u.momentum.value) + g;
            u.first[place] = m;
            g = u.nesterov.value != 0 ? g + times(u.momentum.value, m) : m;
        }
        u.target[place] = p - times(u.lr.value, g);
    }
}

KERNEL(adam, Items) {
    const Update& u = a.update;
    const Item& item = a.of[blockIdx.x];
    FOR_UNITS(e, item.size) {
        const long long place = item.start + e;
        const real p = item.value[e];
        real g = item.gradient[e];
        if (u.weight_decay.value != 0) g += times(u.weight_decay.value, p);
        const real m = times(u.first[place], u.beta1.value) + times(u.rest1.value, g);
        const real v = times(u.second[place], u.beta2.value) + times(times(u.rest2.value, g), g);
        u.first[place] = m;
        u.second[place] = v;
        const real change = times(u.rate.value, m) / (sqrt(v) / u.correction.value + u.eps.value);
        u.target[place] = times(u.shrink.value, p) - change;
    }
}
