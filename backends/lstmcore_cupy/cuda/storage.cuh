// Numbers: `real` is the compute format, `stored` the format of x, y and h.
// The 16-bit formats are converted by their bits, so that no header of the toolkit is needed.
#pragma once

#define STORAGE_FLOAT64 0
#define STORAGE_FLOAT32 1
#define STORAGE_BFLOAT16 2
#define STORAGE_FLOAT16 3

#if STORAGE == STORAGE_FLOAT64
typedef double real;
typedef double stored;
#elif STORAGE == STORAGE_FLOAT32
typedef float real;
typedef float stored;
#else
typedef float real;
typedef unsigned short stored;
#endif

// A number among the fields of a struct, all of which have 8 bytes.
union Number {
    real value;
    long long word;
};

__device__ inline float widened_bfloat16(const unsigned short bits) {
    return __uint_as_float((unsigned)bits << 16);
}

__device__ inline float widened_float16(const unsigned short bits) {
    const unsigned sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31u, fraction = bits & 0x3ffu;
    if (exponent == 0) return __uint_as_float(__float_as_uint(fraction * 5.9604644775390625e-8f) | sign);  // 2^-24
    return __uint_as_float(sign | (exponent == 31u ? 0x7f800000u : (exponent + 112u) << 23) | fraction << 13);
}

#if STORAGE == STORAGE_BFLOAT16

__device__ inline real loaded(stored bits) {
    return widened_bfloat16(bits);
}

// To the nearest, ties to even.
__device__ inline stored rounded(real value) {
    unsigned bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (stored)(bits >> 16 | 0x40u);  // NaN stays NaN
    return (stored)((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

#elif STORAGE == STORAGE_FLOAT16

__device__ inline real loaded(stored bits) {
    return widened_float16(bits);
}

// To the nearest, ties to even.
__device__ inline stored rounded(real value) {
    const unsigned bits = __float_as_uint(value), sign = bits >> 16 & 0x8000u, size = bits & 0x7fffffffu;
    if (size > 0x7f800000u) return (stored)(sign | 0x7e00u);
    if (size >= 0x477ff000u) return (stored)(sign | 0x7c00u);  // 65520 and more: infinity
    if (size < 0x38800000u)  // below 2^-14: the last place of 0.5 is the smallest number of the format
        return (stored)(sign | (__float_as_uint(__uint_as_float(size) + 0.5f) - 0x3f000000u));
    return (stored)(sign | (size + 0xfffu + (size >> 13 & 1u) - 0x38000000u) >> 13);
}

#else

__device__ inline real loaded(stored value) {
    return value;
}

__device__ inline stored rounded(real value) {
    return value;
}

#endif
