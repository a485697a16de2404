// The activations of SPEC.md, section 3: NAME_value(z) and NAME_slope(z, y) with y = NAME_value(z).
#pragma once

#include "storage.cuh"

__device__ inline real sigmoid_value(const real z, const real, const real) {
    const real decay = exp(z >= 0 ? -z : z);  // never overflows
    return (z >= 0 ? (real)1 : decay) / (1 + decay);
}
__device__ inline real sigmoid_slope(const real, const real y, const real, const real) {
    return y * (1 - y);
}

__device__ inline real tanh_value(const real z, const real, const real) {
    return tanh(z);
}
__device__ inline real tanh_slope(const real, const real y, const real, const real) {
    return 1 - y * y;
}

__device__ inline real relu_value(const real z, const real, const real) {
    return z <= 0 ? 0 : z;  // this way round NaN stays NaN
}
__device__ inline real relu_slope(const real z, const real, const real, const real) {
    return z > 0 ? 1 : 0;
}

__device__ inline real identity_value(const real z, const real, const real) {
    return z;
}
__device__ inline real identity_slope(const real, const real, const real, const real) {
    return 1;
}

__device__ inline real affine_value(const real z, const real alpha, const real beta) {
    return alpha * z + beta;
}
__device__ inline real affine_slope(const real, const real, const real alpha, const real) {
    return alpha;
}

__device__ inline real leaky_relu_value(const real z, const real alpha, const real) {
    return z >= 0 ? z : alpha * z;
}
__device__ inline real leaky_relu_slope(const real z, const real, const real alpha, const real) {
    return z >= 0 ? 1 : alpha;
}

__device__ inline real thresholded_relu_value(const real z, const real alpha, const real) {
    return z <= alpha ? 0 : z;
}
__device__ inline real thresholded_relu_slope(const real z, const real, const real alpha, const real) {
    return z > alpha ? 1 : 0;
}

__device__ inline real scaled_tanh_value(const real z, const real alpha, const real beta) {
    return alpha * tanh(beta * z);
}
__device__ inline real scaled_tanh_slope(const real z, const real, const real alpha, const real beta) {
    const real y = tanh(beta * z);
    return alpha * beta * (1 - y * y);
}

__device__ inline real hard_sigmoid_value(const real z, const real alpha, const real beta) {
    const real line = alpha * z + beta;
    return line >= 1 ? 1 : line <= 0 ? 0 : line;
}
__device__ inline real hard_sigmoid_slope(const real z, const real, const real alpha, const real beta) {
    const real line = alpha * z + beta;
    return line > 0 && line < 1 ? alpha : 0;
}

__device__ inline real elu_value(const real z, const real alpha, const real) {
    return z >= 0 ? z : alpha * expm1(z);
}
__device__ inline real elu_slope(const real z, const real y, const real alpha, const real) {
    return z >= 0 ? 1 : y + alpha;
}

__device__ inline real softsign_value(const real z, const real, const real) {
    const real size = z >= 0 ? z : -z;
    if (size > 0 && size - size != 0) return z > 0 ? 1 : -1;  // infinite
    return z / (1 + size);
}
__device__ inline real softsign_slope(const real z, const real, const real, const real) {
    const real inverse = 1 / (1 + (z >= 0 ? z : -z));
    return inverse * inverse;
}

__device__ inline real softplus_value(const real z, const real, const real) {
    return (z >= 0 ? z : 0) + log1p(exp(z >= 0 ? -z : z));  // max(z, 0) + log(1 + e^-|z|)
}
__device__ inline real softplus_slope(const real z, const real, const real, const real) {
    return sigmoid_value(z, 0, 0);
}

// `value` limited to +-bound; NaN stays NaN.
__device__ inline real clipped(const real value, const real bound) {
    return value > bound ? bound : value < -bound ? -bound : value;
}

// The derivative of `clipped`: 1 on the bound and inside.
__device__ inline real inside(const real value, const real bound) {
    return value <= bound && value >= -bound ? 1 : 0;
}
