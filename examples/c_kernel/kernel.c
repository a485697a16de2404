/* The plain LSTM of one layer in one direction, forward, in float32: SPEC.md, section 2.
 *
 * cc -O2 -shared -fPIC kernel.c -o kernel.so -lm
 */
#include <math.h>
#include <stddef.h>

static float sigmoid(const float z) {
    return 1 / (1 + expf(-z));
}

/* x (T, N, I), h and c (N, H), y (T, N, H), weight_x (4 H, I), weight_h (4 H, H), bias (4 H), z (4 H) for scratch; all in
 * row-major order. h and c hold the initial state before the call and the final one after it. Gates are i, f, g, o. */
void lstm_forward(
    const size_t T, const size_t N, const size_t I, const size_t H, const float* x, const float* weight_x,
    const float* weight_h, const float* bias, float* h, float* c, float* y, float* z) {
    for (size_t t = 0; t < T; ++t)
        for (size_t n = 0; n < N; ++n) {
            const float *input = x + (t * N + n) * I, *before = h + n * H;
            float *cell = c + n * H, *output = y + (t * N + n) * H;
            for (size_t row = 0; row < 4 * H; ++row) {
                float sum = 0;
                for (size_t k = 0; k < I; ++k) sum += weight_x[row * I + k] * input[k];
                for (size_t k = 0; k < H; ++k) sum += weight_h[row * H + k] * before[k];
                z[row] = sum + bias[row];
            }
            for (size_t j = 0; j < H; ++j) {
                cell[j] = sigmoid(z[H + j]) * cell[j] + sigmoid(z[j]) * tanhf(z[2 * H + j]);
                output[j] = sigmoid(z[3 * H + j]) * tanhf(cell[j]);
            }
            for (size_t j = 0; j < H; ++j) h[n * H + j] = output[j];
        }
}
