// What the kernels of a call are given: sizes, and arrays in row-major order on the device.
//
// Every field has 8 bytes and is on a line of its own; passes.py reads their names and order from here. An array that
// a configuration or a call does not have is null. Letters are those of SPEC.md: GH = G * H gate rows. The first axis is
// time, but for c, which has one entry more and is in the order in which the steps s = 0, 1, ... run: see `time_of`.
#pragma once

#include "storage.cuh"

struct Call {
    long long T;
    long long N;
    long long I;
    long long H;
    long long P;
    long long R;
    const long long* ends;       // (N): the length of each row, null: all T
    // Parameters
    const real* bias;            // (GH)
    const real* peephole;        // (2 or 3, H)
    const real* gain_x;          // (GH)
    const real* gain_h;          // (GH)
    const real* gain_c;          // (H)
    const real* shift_c;         // (H)
    // Masks
    const real* mask_r;          // (N, R)
    const real* mask_h;          // (T, N, P)
    const real* mask_c;          // (T, N, H)
    // Forward. A stride is the distance from one step to the next: 0 where only the newest is kept.
    const stored* x;             // (T, N, I)
    real* x_clean;               // (T, N, I): x with 0 in padding
    real* from_x;                // (T, N, GH): W x; with layer norm its normalised value
    real* from_h;                // (N, GH): R (m_r r) of this step
    real* z;                     // (T, N, GH): before the gate clip; null: not kept
    real* norm_h;                // (T, N, GH): R (m_r r) normalised; null: not kept
    real* deviation_x;           // (T, N): what W x was divided by
    real* deviation_h;           // (T, N)
    real* r;                     // (T, N, R): m_r times what the gates read, 0 in padding
    long long r_stride;
    real* c;                     // (T + 1, N, H), by step
    long long c_stride;
    real* h;                     // (N, P): the newest
    real* q;                     // (T, N, H): with a projection
    long long q_stride;
    real* projected;             // (T, N, P): W_proj q
    long long projected_stride;
    stored* y;                   // (T, N, P)
    // Backward
    const stored* dy;            // (T, N, P)
    real* dh;                    // (N, P): of h before the steps that were taken back, without what goes through dr
    real* dc;                    // (N, H)
    real* dr;                    // (N, R): of m_r r of the step taken back last
    real* dz;                    // (T, N, GH)
    real* dz_x;                  // (T, N, GH): of W x
    real* dz_h;                  // (T, N, GH): of R (m_r r)
    real* d_projected;           // (T, N, P)
    real* dq;                    // (N, H)
    real* dn;                    // (T, N, H): of the normalised c after gain and shift
    real* norm_c;                // (T, N, H)
    // Directional derivative
    const real* t_peephole;      // (2 or 3, H)
    const real* t_gain_h;        // (GH)
    const real* t_gain_c;        // (H)
    const real* t_shift_c;       // (H)
    const real* t_from_x;        // (T, N, GH): all of z that does not go through R
    real* t_from_h;              // (N, GH): R t_r of this step
    const real* t_weight_h;      // (T, N, GH): t_R r
    real* t_r;                   // (N, R)
    real* t_c;                   // (N, H)
    real* t_h;                   // (N, P)
    real* t_q;                   // (N, H)
    real* t_projected;           // (N, P)
    stored* t_y;                 // (T, N, P)
};
