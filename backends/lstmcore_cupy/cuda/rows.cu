// Rows (t, n) of arrays: between the formats, and sums over them. One program for each storage format.

#include "block.cuh"
#include "mma.cuh"

struct Rows {
    long long T;
    long long N;
    long long width;
    const long long* ends;       // (N): the length of each row, null: all T
    const stored* narrow;        // (T, N, width)
    real* wide;                  // (T, N, width)
    const real* wide_source;
    stored* narrow_target;
    real* upper;                 // (T, N, width)
    real* lower;                 // (T, N, width)
    // Sums over rows. Strides are distances between steps and between the rows of a step, those of b may be negative.
    long long part;              // how many rows a block sums up
    const real* a;               // (T, N, width)
    long long a_step;
    long long a_row;
    const real* b;               // (T, N, width), null: 1
    long long b_step;
    long long b_row;
    real* sums;                  // (parts, width)
};

#define PARAMETERS 128  // of a launch at most; as in packing.py

struct Packing {
    real* wide;                  // all arrays, each from its start on
    stored* narrow;              // the same numbers as they are stored; null: nobody wants them
};

struct Parameter {
    const stored* source;
    long long start;
    long long size;
};

struct Parameters {
    Packing packing;
    Parameter of[PARAMETERS];
};

// Parameters from the storage format, many in one launch. Blocks with one blockIdx.x share an array.
KERNEL(pack, Parameters) {
    const Parameter& item = a.of[blockIdx.x];
    FOR_UNITS(e, item.size) {
        const stored value = item.source[e];
        a.packing.wide[item.start + e] = loaded(value);
        if (a.packing.narrow) a.packing.narrow[item.start + e] = value;
    }
}

// From the storage format, with 0 in padding, so that a NaN there reaches no sum. One block for each (t, n).
KERNEL(widen, Rows) {
    const long long t = blockIdx.x / a.N, n = blockIdx.x % a.N;
    const bool own = !a.ends || t < a.ends[n];
    FOR_UNITS(k, a.width) a.wide[blockIdx.x * a.width + k] = own ? loaded(a.narrow[blockIdx.x * a.width + k]) : 0;
}

// To the storage format.
KERNEL(narrow, Rows) {
    FOR_UNITS(k, a.width) a.narrow_target[blockIdx.x * a.width + k] = rounded(a.wide_source[blockIdx.x * a.width + k]);
}

#if STORAGE == STORAGE_BFLOAT16 || STORAGE == STORAGE_FLOAT16
// Two numbers of TF32 for each of float32: their sum lacks 2^-22 of it at most.
KERNEL(split_rows, Rows) {
    FOR_UNITS(k, a.width) {
        unsigned upper = __float_as_uint(a.wide_source[blockIdx.x * a.width + k]), lower;
        split(upper, lower);
        a.upper[blockIdx.x * a.width + k] = __uint_as_float(upper);
        a.lower[blockIdx.x * a.width + k] = __uint_as_float(lower);
    }
}
#endif

// Sums of a b over `part` rows for each block, without padding. Rows are added in their order.
KERNEL(sum_rows, Rows) {
    const long long begin = blockIdx.x * a.part, rows = a.T * a.N;
    const long long end = begin + a.part < rows ? begin + a.part : rows;
    FOR_UNITS(k, a.width) {
        real sum = 0;
        long long t = begin / a.N, n = begin % a.N;
        for (long long row = begin; row < end; ++row) {
            if (!a.ends || t < a.ends[n]) {
                const real value = a.a[t * a.a_step + n * a.a_row + k];
                sum += a.b ? value * a.b[t * a.b_step + n * a.b_row + k] : value;
            }
            if (++n == a.N) {
                n = 0;
                ++t;
            }
        }
        a.sums[blockIdx.x * a.width + k] = sum;
    }
}
