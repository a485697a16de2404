// The argument of the kernels of a call: sizes, and arrays in row-major order on the device.
//
// Every field has 8 bytes and has its line; program_source.py reads their names and order from here. An array that
// a configuration or a call does not have is null. Letters are those of SPEC.md: GH = G * H gate rows. The first axis is
// time, but for c, which has one entry more and is in the order in which the steps s = 0, 1, ... run: see `time_of`.
#pragma once

#include "storage.cuh"

struct Call {
    long long s;                 // the step
    long long T;
    long long N;
    long long I;
    long long H;
    long long P;
    long long R;
    long long reverse;           // 1: from the last step to the first
    const long long* ends;       // (N): the length of each row, null: all T
    // The switches that are numbers
    Number layer_norm_eps;
    Number zoneout_hidden;
    Number zoneout_cell;
    Number gate_clip;
    Number cell_clip;
    Number proj_clip;
    Number gate_alpha;           // of the activations
    Number gate_beta;
    Number cell_alpha;
    Number cell_beta;
    Number hidden_alpha;
    Number hidden_beta;
    // Parameters
    const real* weight_h;        // (GH, R)
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
    // Forward. A stride is the distance from one step to the next: 0 if only the newest one is kept.
    long long first;             // the time of the first row of from_x, which may have fewer than T
    real* from_x;                // (T, N, GH): W x, to which R (m_r r) was added; with layer norm W x normalised
    real* from_h;                // (N, GH): R (m_r r) of this step, with layer norm
    real* z;                     // (T, N, GH): before the gate clip; null: not kept. May be from_x but for layer norm
    real* norm_h;                // (T, N, GH): R (m_r r) normalised; null: not kept
    real* deviation_x;           // (T, N): the divisor of W x; null: not kept
    real* deviation_h;           // (T, N)
    real* r;                     // (T, N, R): m_r times the recurrent input, 0 in padding
    long long r_stride;
    long long r_turns;           // 1: r is (2, N, R), of the newest step and the one before
    real* c;                     // (T + 1, N, H), by step
    long long c_stride;
    real* h;                     // (N, P): the newest
    real* q;                     // (T, N, H): with a projection
    long long q_stride;
    real* projected;             // (T, N, P): W_proj q
    long long projected_stride;
    stored* y;                   // (T, N, P)
    // Many steps in one launch: see persistent.cuh
    long long steps;             // from step s, forward; backward all of them
    long long units;             // that a block has, fewer in the last one
    long long rows;              // of the batch that a block has, fewer in the last ones
    long long depth;             // columns that a tile has, fewer in the last one
    long long* arrived;          // for each part of the batch: blocks that came to its barrier, 0 at the launch
    long long* failed;           // (1), of the host: 1 if a launch gave up
    // Backward
    const stored* dy;            // (T, N, P)
    real* dh;                    // (N, P): of h before the steps that ran backward, without the part that goes through dr
    real* dc;                    // (N, H)
    real* dr;                    // (N, R): of m_r r of the last step that ran backward; null if all are in one launch
    real* dz;                    // (T, N, GH)
    real* dz_x;                  // (T, N, GH): of W x, with layer norm
    real* dz_h;                  // (T, N, GH): of R (m_r r), with layer norm
    real* d_projected;           // (T, N, P)
    real* dq;                    // (N, H)
    real* dn;                    // (T, N, H): of the normalised c after gain and shift
    real* norm_c;                // (T, N, H)
    // Directional derivative. The tangents of parameters are 0 if they are not given.
    const real* t_bias;          // (GH)
    const real* t_peephole;      // (2 or 3, H)
    const real* t_gain_x;        // (GH)
    const real* t_gain_h;        // (GH)
    const real* t_gain_c;        // (H)
    const real* t_shift_c;       // (H)
    real* t_from_x;              // (T, N, GH): all of z that does not go through R
    real* t_from_h;              // (N, GH): R t_r of this step
    const real* t_weight_h;      // (T, N, GH): t_R r; null: 0
    real* t_r;                   // (N, R)
    real* t_c;                   // (N, H)
    real* t_h;                   // (N, P)
    real* t_q;                   // (N, H)
    real* t_projected;           // (N, P)
    stored* t_y;                 // (T, N, P)
};

// One direction of a layer, or both.
struct Directions {
    Call of[2];
};
