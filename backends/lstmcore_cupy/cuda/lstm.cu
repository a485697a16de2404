// One layer in one direction: the part of SPEC.md, section 2, that is not a product of matrices, and its derivatives.
//
// A block works on one row of the batch (blockIdx.x); blockIdx.y and the threads share its hidden units. With layer norm,
// whose sums go over the row, one block has all units. The macros come from program_source.py: the switches, GATES, the
// places of the gates (I_GATE ...; -1 if a gate has no rows) and of the peepholes, and the activations. An activation reads
// its parameters from the call.
//
// Rows past their end hold their state. The tape has 0 there, so that products over all rows and steps are right.

#include "activations.cuh"
#include "block.cuh"
#include "call.cuh"

// The places of entries ---------------------------------------------------------------------------------------------------

__device__ inline long long time_of(const Call& a, const long long s) {
    return a.reverse ? a.T - 1 - s : s;
}

// Whether step `s` is one of row `n`'s own. There is no step -1 and no step T.
__device__ inline bool active(const Call& a, const long long n, const long long s) {
    return s >= 0 && s < a.T && (!a.ends || time_of(a, s) < a.ends[n]);
}

// Parts of a step ---------------------------------------------------------------------------------------------------------

__device__ inline real gate_value(const Call& a, const int gate, real z) {
#if HAS_GATE_CLIP
    z = clipped(z, a.gate_clip.value);
#endif
    return gate == G_GATE ? CELL_VALUE(z) : GATE_VALUE(z);
}

__device__ inline real gate_slope(const Call& a, const int gate, const real z) {
    real limited = z, factor = 1;
#if HAS_GATE_CLIP
    limited = clipped(z, a.gate_clip.value);
    factor = inside(z, a.gate_clip.value);
#endif
    return factor * (gate == G_GATE ? CELL_SLOPE(limited, CELL_VALUE(limited)) : GATE_SLOPE(limited, GATE_VALUE(limited)));
}

struct Gates {
    real i, f, g;
};

// i, f and g from their pre-activations, one made from the other where they are coupled.
__device__ inline Gates early_gates(const Call& a, const real* z) {
    Gates gates;
    gates.g = gate_value(a, G_GATE, z[G_GATE]);
#if I_GATE >= 0
    gates.i = gate_value(a, I_GATE, z[I_GATE]);
#endif
#if F_GATE >= 0
    gates.f = gate_value(a, F_GATE, z[F_GATE]);
#else
    gates.f = 1 - gates.i;
#endif
#if I_GATE < 0
    gates.i = 1 - gates.f;
#endif
    return gates;
}

__device__ inline real cell_unclipped(const Gates& gates, const real c_before) {
    return gates.f * c_before + gates.i * gates.g;
}

__device__ inline real keep_cell(const Call& a, const long long s, const long long n, const long long j) {
    return a.mask_c ? a.mask_c[(time_of(a, s) * a.N + n) * a.H + j] : a.zoneout_cell.value;
}

__device__ inline real keep_hidden(const Call& a, const long long s, const long long n, const long long k) {
    return a.mask_h ? a.mask_h[(time_of(a, s) * a.N + n) * a.P + k] : a.zoneout_hidden.value;
}

__device__ inline real keep_recurrent(const Call& a, const long long n, const long long k) {
    return a.mask_r ? a.mask_r[n * a.R + k] : (real)1;
}

// Load z of all gates of unit j from the tape.
__device__ inline void read_gates(const Call& a, const long long s, const long long n, const long long j, real* z) {
    const real* row = a.z + (time_of(a, s) * a.N + n) * GATES * a.H;
    for (int gate = 0; gate < GATES; ++gate) z[gate] = row[gate * a.H + j];
}

// The normalised c after gain and shift.
__device__ inline real scaled_cell(const Call& a, const long long j, const real normalised) {
    real value = a.gain_c[j] * normalised;
    if (a.shift_c) value += a.shift_c[j];
    return value;
}

// The index of the first entry of r of step `s`.
__device__ inline long long place_of_r(const Call& a, const long long s) {
    return (a.r_turns ? s % 2 : time_of(a, s)) * a.r_stride;
}

// Input of step s + 1 from this one, times its mask; 0 if that step is past the row's end.
__device__ inline void write_recurrent(
    const Call& a, const long long s, const long long n, const long long k, const real value) {
    if (s + 1 < a.T)
        a.r[place_of_r(a, s + 1) + n * a.R + k] = active(a, n, s + 1) ? keep_recurrent(a, n, k) * value : 0;
}

// Forward -----------------------------------------------------------------------------------------------------------------

// Input of the first step.
KERNEL(begin, Call) {
    const long long n = blockIdx.x;
#if RECURRENCE_CELL
    FOR_UNITS(j, a.H) write_recurrent(a, -1, n, j, a.c[n * a.H + j]);
#else
    FOR_UNITS(k, a.P) write_recurrent(a, -1, n, k, a.h[n * a.P + k]);
#endif
}

#if LAYER_NORM
// W x normalised in its place, for one (t, n) a block.
KERNEL(normalise_input, Call) {
    const long long count = GATES * a.H;
    real* row = a.from_x + blockIdx.x * count;
    const Norm norm = norm_of(row, count, a.layer_norm_eps.value);
    for (long long k = threadIdx.x; k < count; k += blockDim.x) row[k] = (row[k] - norm.mean) / norm.deviation;
    if (a.deviation_x && threadIdx.x == 0) a.deviation_x[blockIdx.x] = norm.deviation;
}
#endif

// h of unit k from the (projected) output, and y and r from it.
__device__ inline void emit(const Call& a, const long long s, const long long n, const long long k, real h_new) {
    real* h = a.h + n * a.P + k;
#if HAS_PROJ_CLIP
    h_new = clipped(h_new, a.proj_clip.value);
#endif
#if HAS_ZONEOUT_HIDDEN
    const real keep = keep_hidden(a, s, n, k);
    h_new = keep * *h + (1 - keep) * h_new;
#endif
    const stored bits = rounded(h_new);
    *h = loaded(bits);
    a.y[(time_of(a, s) * a.N + n) * a.P + k] = bits;
#if !RECURRENCE_CELL
    write_recurrent(a, s, n, k, *h);
#endif
}

// As `emit` in padding.
__device__ inline void emit_padding(const Call& a, const long long s, const long long n, const long long k) {
    a.y[(time_of(a, s) * a.N + n) * a.P + k] = rounded(0);
#if !RECURRENCE_CELL
    write_recurrent(a, s, n, k, a.h[n * a.P + k]);
#endif
}

// Unit j of a step that is padding.
__device__ inline void pad_unit(const Call& a, const long long s, const long long n, const long long j) {
    const long long row = time_of(a, s) * a.N + n, columns = GATES * a.H;
    const real c = a.c[s * a.c_stride + n * a.H + j];
    a.c[(s + 1) * a.c_stride + n * a.H + j] = c;
#if RECURRENCE_CELL
    write_recurrent(a, s, n, j, c);
#endif
#if PROJECTION
    a.q[time_of(a, s) * a.q_stride + n * a.H + j] = 0;
#else
    emit_padding(a, s, n, j);
#endif
    for (int gate = 0; gate < GATES; ++gate) {
        if (a.z) a.z[row * columns + gate * a.H + j] = 0;
        if (a.norm_h) a.norm_h[row * columns + gate * a.H + j] = 0;
    }
}

// c and r of unit j from its z, which lacks peepholes, and the c before; to the tape goes z with them. Returns o.
__device__ inline real advance_cell(
    const Call& a, const long long s, const long long n, const long long j, real* z, const real before) {
    const long long row = time_of(a, s) * a.N + n, columns = GATES * a.H;
#if PEEPHOLE && I_GATE >= 0
    z[I_GATE] += a.peephole[I_PEEPHOLE * a.H + j] * before;
#endif
#if PEEPHOLE && F_GATE >= 0
    z[F_GATE] += a.peephole[F_PEEPHOLE * a.H + j] * before;
#endif
    // c = zoneout(clip(f c + i g))
    real c = cell_unclipped(early_gates(a, z), before);
#if HAS_CELL_CLIP
    c = clipped(c, a.cell_clip.value);
#endif
#if HAS_ZONEOUT_CELL
    const real keep = keep_cell(a, s, n, j);
    c = keep * before + (1 - keep) * c;
#endif
    a.c[(s + 1) * a.c_stride + n * a.H + j] = c;
#if PEEPHOLE
    z[O_GATE] += a.peephole[O_PEEPHOLE * a.H + j] * c;
#endif
    if (a.z)
        for (int gate = 0; gate < GATES; ++gate) a.z[row * columns + gate * a.H + j] = z[gate];
#if RECURRENCE_CELL
    write_recurrent(a, s, n, j, c);
#endif
    return gate_value(a, O_GATE, z[O_GATE]);
}

KERNEL(forward_cell, Call) {
    const long long s = a.s, n = blockIdx.x, row = time_of(a, s) * a.N + n, columns = GATES * a.H;
    if (!active(a, n, s)) {  // the whole block
        FOR_UNITS(j, a.H) pad_unit(a, s, n, j);
        if (a.deviation_h && threadIdx.x == 0) a.deviation_h[row] = 1;
        return;
    }
    const real* from_x = a.from_x + (row - a.first * a.N) * columns;
    const real* c_after = a.c + (s + 1) * a.c_stride + n * a.H;
#if LAYER_NORM
    real* from_h = a.from_h + n * columns;
    const Norm norm = norm_of(from_h, columns, a.layer_norm_eps.value);
    if (a.deviation_h && threadIdx.x == 0) a.deviation_h[row] = norm.deviation;
#endif
    FOR_UNITS(j, a.H) {
        // z = LN(W x) + LN(R (m_r r))
        real z[GATES];
        for (int gate = 0; gate < GATES; ++gate) {
            const long long k = gate * a.H + j;
#if LAYER_NORM
            const real normalised = (from_h[k] - norm.mean) / norm.deviation;
            if (a.norm_h) a.norm_h[row * columns + k] = normalised;
            z[gate] = a.gain_x[k] * from_x[k] + a.gain_h[k] * normalised;
#else
            z[gate] = from_x[k];
#endif
            if (a.bias) z[gate] += a.bias[k];
        }
        // q = o u(LN(c)); with layer norm o waits in place of R r until all c are there
        const real o = advance_cell(a, s, n, j, z, a.c[s * a.c_stride + n * a.H + j]);
#if LAYER_NORM
        from_h[O_GATE * a.H + j] = o;
    }
    const Norm norm_c = norm_of(c_after, a.H, a.layer_norm_eps.value);
    FOR_UNITS(j, a.H) {
        const real c = scaled_cell(a, j, (c_after[j] - norm_c.mean) / norm_c.deviation);
        const real o = from_h[O_GATE * a.H + j];
#else
        const real c = c_after[j];
#endif
        const real q = o * HIDDEN_VALUE(c);
#if PROJECTION
        a.q[time_of(a, s) * a.q_stride + n * a.H + j] = q;
#else
        emit(a, s, n, j, q);
#endif
    }
}

#if PROJECTION
// After W_proj q.
KERNEL(forward_output, Call) {
    const long long s = a.s, n = blockIdx.x;
    const bool own = active(a, n, s);
    FOR_UNITS(k, a.P) {
        if (own)
            emit(a, s, n, k, a.projected[time_of(a, s) * a.projected_stride + n * a.P + k]);
        else
            emit_padding(a, s, n, k);
    }
}
#endif

// Backward: d_ is the gradient of the scalar with respect to the value of that name ------------------------------------------

// dh or dc plus the part that came through the product of step s + 1, which is 0 if that step was padding.
// `dr` is the gradient of m_r r of that step.
__device__ inline real carried(
    const Call& a, const long long s, const long long n, const long long k, const real value, const real dr) {
    return active(a, n, s + 1) ? value + keep_recurrent(a, n, k) * dr : value;
}

// The gradient of the (projected) output before clip and zoneout; dh becomes that of the step before.
__device__ inline real output_gradient(
    const Call& a, const long long s, const long long n, const long long k, const real dr, const bool own) {
    const long long entry = n * a.P + k;
    real dh = a.dh[entry];
#if !RECURRENCE_CELL
    dh = carried(a, s, n, k, dh, dr);
#endif
    if (!own) {
        a.dh[entry] = dh;
        return 0;
    }
    if (a.dy) dh += loaded(a.dy[time_of(a, s) * a.N * a.P + entry]);
    real dh_before = 0;
#if HAS_ZONEOUT_HIDDEN
    const real keep = keep_hidden(a, s, n, k);
    dh_before = keep * dh;
    dh = (1 - keep) * dh;
#endif
#if HAS_PROJ_CLIP
    dh *= inside(a.projected[time_of(a, s) * a.projected_stride + entry], a.proj_clip.value);
#endif
    a.dh[entry] = dh_before;
    return dh;
}

#if PROJECTION
// Before dq = W_proj^T d_projected.
KERNEL(backward_output, Call) {
    const long long s = a.s, n = blockIdx.x;
    const bool own = active(a, n, s);
    FOR_UNITS(k, a.P) {
        const real dr = a.dr[n * a.R + k];
        a.d_projected[(time_of(a, s) * a.N + n) * a.P + k] = output_gradient(a, s, n, k, dr, own);
    }
}
#endif

// Unit j of a step that is padding.
__device__ inline void pad_gradient(
    const Call& a, const long long s, const long long n, const long long j, const real dr) {
    const long long row = time_of(a, s) * a.N + n, columns = GATES * a.H;
#if RECURRENCE_CELL
    a.dc[n * a.H + j] = carried(a, s, n, j, a.dc[n * a.H + j], dr);
#endif
#if !PROJECTION
    output_gradient(a, s, n, j, dr, false);
#endif
    for (int gate = 0; gate < GATES; ++gate) {
        a.dz[row * columns + gate * a.H + j] = 0;
        if (a.dz_h) a.dz_h[row * columns + gate * a.H + j] = 0;
    }
    if (a.dn) a.dn[row * a.H + j] = a.norm_c[row * a.H + j] = 0;
}

// The derivative of q = o u(c) and o = s(z_o): dz of the output gate, and the gradient of c (normalised with layer norm).
__device__ inline real backward_output_gate(
    const Call& a, const long long s, const long long n, const long long j, const real dq, const real c) {
    const long long place = (time_of(a, s) * a.N + n) * GATES * a.H + O_GATE * a.H + j;
    const real z_o = a.z[place], u = HIDDEN_VALUE(c);
    a.dz[place] = dq * u * gate_slope(a, O_GATE, z_o);
    return dq * gate_value(a, O_GATE, z_o) * HIDDEN_SLOPE(c, u);
}

// dz of the other gates, and dc of the step before: `dn` is the part of c's gradient that came through u.
__device__ inline void backward_gates(
    const Call& a, const long long s, const long long n, const long long j, const real dn, const real dr) {
    real* dz = a.dz + (time_of(a, s) * a.N + n) * GATES * a.H;
    const real before = a.c[s * a.c_stride + n * a.H + j];
    real dc = a.dc[n * a.H + j];
#if RECURRENCE_CELL
    dc = carried(a, s, n, j, dc, dr);
#endif
    dc += dn;
#if PEEPHOLE
    dc += dz[O_GATE * a.H + j] * a.peephole[O_PEEPHOLE * a.H + j];
#endif
    // c = keep before + (1 - keep) clip(f before + i g)
    real z[GATES];
    read_gates(a, s, n, j, z);
    const Gates gates = early_gates(a, z);
    real dc_before = 0;
#if HAS_ZONEOUT_CELL
    const real keep = keep_cell(a, s, n, j);
    dc_before = keep * dc;
    dc = (1 - keep) * dc;
#endif
#if HAS_CELL_CLIP
    dc *= inside(cell_unclipped(gates, before), a.cell_clip.value);
#endif
    dc_before += dc * gates.f;
    dz[G_GATE * a.H + j] = dc * gates.i * gate_slope(a, G_GATE, z[G_GATE]);
#if I_GATE >= 0
    const real cell_of_i = F_GATE >= 0 ? gates.g : gates.g - before;
    const real dz_i = dc * cell_of_i * gate_slope(a, I_GATE, z[I_GATE]);
    dz[I_GATE * a.H + j] = dz_i;
#if PEEPHOLE
    dc_before += dz_i * a.peephole[I_PEEPHOLE * a.H + j];
#endif
#endif
#if F_GATE >= 0
    const real cell_of_f = I_GATE >= 0 ? before : before - gates.g;
    const real dz_f = dc * cell_of_f * gate_slope(a, F_GATE, z[F_GATE]);
    dz[F_GATE * a.H + j] = dz_f;
#if PEEPHOLE
    dc_before += dz_f * a.peephole[F_PEEPHOLE * a.H + j];
#endif
#endif
    a.dc[n * a.H + j] = dc_before;
}

// dr of unit j; 0 if the gates read the output of a projection and not the units.
__device__ inline real gradient_of_r(const Call& a, const long long n, const long long j) {
#if PROJECTION && !RECURRENCE_CELL
    return 0;
#else
    return a.dr[n * a.R + j];
#endif
}

KERNEL(backward_cell, Call) {
    const long long s = a.s, n = blockIdx.x;
    if (!active(a, n, s)) {  // the whole block
        FOR_UNITS(j, a.H) pad_gradient(a, s, n, j, gradient_of_r(a, n, j));
        return;
    }
    const real* c_after = a.c + (s + 1) * a.c_stride + n * a.H;
#if LAYER_NORM
    const long long row = time_of(a, s) * a.N + n, columns = GATES * a.H;
    const Norm norm_c = norm_of(c_after, a.H, a.layer_norm_eps.value);
    real sum = 0, along = 0;
#endif
    FOR_UNITS(j, a.H) {
#if PROJECTION
        const real dq = a.dq[n * a.H + j];
#else
        const real dq = output_gradient(a, s, n, j, gradient_of_r(a, n, j), true);
#endif
#if LAYER_NORM
        const real normalised = (c_after[j] - norm_c.mean) / norm_c.deviation;
        const real dn = backward_output_gate(a, s, n, j, dq, scaled_cell(a, j, normalised));
        a.dn[row * a.H + j] = dn;
        a.norm_c[row * a.H + j] = normalised;
        sum += dn * a.gain_c[j];
        along += normalised * dn * a.gain_c[j];
    }
    sum = block_sum(sum) / a.H;
    along = block_sum(along) / a.H;
    FOR_UNITS(j, a.H) {
        const real normalised = a.norm_c[row * a.H + j];
        const real dn = (a.dn[row * a.H + j] * a.gain_c[j] - sum - normalised * along) / norm_c.deviation;
#else
        const real dn = backward_output_gate(a, s, n, j, dq, c_after[j]);
#endif
        backward_gates(a, s, n, j, dn, gradient_of_r(a, n, j));
    }
#if LAYER_NORM
    __syncthreads();  // the sums read dz of all units
    const real* dz = a.dz + row * columns;
    const real* normalised = a.norm_h + row * columns;
    real* dz_h = a.dz_h + row * columns;
    sum = along = 0;
    for (long long k = threadIdx.x; k < columns; k += blockDim.x) {
        sum += dz[k] * a.gain_h[k];
        along += normalised[k] * dz[k] * a.gain_h[k];
    }
    sum = block_sum(sum) / columns;
    along = block_sum(along) / columns;
    for (long long k = threadIdx.x; k < columns; k += blockDim.x)
        dz_h[k] = (dz[k] * a.gain_h[k] - sum - normalised[k] * along) / a.deviation_h[row];
#endif
}

#if LAYER_NORM
// The gradient of W x from that of z, for one (t, n) a block.
KERNEL(backward_normalise_input, Call) {
    const long long t = blockIdx.x / a.N, n = blockIdx.x % a.N, columns = GATES * a.H;
    const real* dz = a.dz + blockIdx.x * columns;
    const real* normalised = a.from_x + blockIdx.x * columns;
    real* dz_x = a.dz_x + blockIdx.x * columns;
    real sum = 0, along = 0;
    for (long long k = threadIdx.x; k < columns; k += blockDim.x) {
        sum += dz[k] * a.gain_x[k];
        along += normalised[k] * dz[k] * a.gain_x[k];
    }
    sum = block_sum(sum) / columns;
    along = block_sum(along) / columns;
    const bool own = !a.ends || t < a.ends[n];
    for (long long k = threadIdx.x; k < columns; k += blockDim.x)
        dz_x[k] = own ? (dz[k] * a.gain_x[k] - sum - normalised[k] * along) / a.deviation_x[blockIdx.x] : 0;
}
#endif

// Add to the gradient of the initial state the part that came through the product of the first step.
__device__ inline void backward_state(const Call& a, const long long n, const long long k, const real dr) {
#if RECURRENCE_CELL
    a.dc[n * a.H + k] = carried(a, -1, n, k, a.dc[n * a.H + k], dr);
#else
    a.dh[n * a.P + k] = carried(a, -1, n, k, a.dh[n * a.P + k], dr);
#endif
}

KERNEL(backward_last, Call) {
    const long long n = blockIdx.x;
    FOR_UNITS(k, a.R) backward_state(a, n, k, a.dr[n * a.R + k]);
}

// The directional derivative: t_ is the change of the value of that name along the tangents -----------------------------------

__device__ inline void write_recurrent_tangent(
    const Call& a, const long long s, const long long n, const long long k, const real value) {
    a.t_r[n * a.R + k] = active(a, n, s + 1) ? keep_recurrent(a, n, k) * value : 0;
}

// All of z along the tangents that does not go through R, from that of W x, for one (t, n) a block.
KERNEL(tangent_input, Call) {
    const long long columns = GATES * a.H;
    real* row = a.t_from_x + blockIdx.x * columns;
#if LAYER_NORM
    const real* normalised = a.from_x + blockIdx.x * columns;
    real sum = 0, along = 0;
    for (long long k = threadIdx.x; k < columns; k += blockDim.x) {
        sum += row[k];
        along += normalised[k] * row[k];
    }
    sum = block_sum(sum) / columns;
    along = block_sum(along) / columns;
#endif
    FOR_UNITS(k, columns) {
        real value = row[k];
#if LAYER_NORM
        value = a.gain_x[k] * (value - sum - normalised[k] * along) / a.deviation_x[blockIdx.x];
        value += a.t_gain_x[k] * normalised[k];
#endif
        if (a.t_bias) value += a.t_bias[k];
        row[k] = value;
    }
}

KERNEL(tangent_begin, Call) {
    const long long n = blockIdx.x;
#if RECURRENCE_CELL
    FOR_UNITS(j, a.H) write_recurrent_tangent(a, -1, n, j, a.t_c[n * a.H + j]);
#else
    FOR_UNITS(k, a.P) write_recurrent_tangent(a, -1, n, k, a.t_h[n * a.P + k]);
#endif
}

// As `emit`.
__device__ inline void emit_tangent(
    const Call& a, const long long s, const long long n, const long long k, real t_new, const bool own) {
    const long long entry = n * a.P + k;
    if (own) {
#if HAS_PROJ_CLIP
        t_new *= inside(a.projected[time_of(a, s) * a.projected_stride + entry], a.proj_clip.value);
#endif
#if HAS_ZONEOUT_HIDDEN
        const real keep = keep_hidden(a, s, n, k);
        t_new = keep * a.t_h[entry] + (1 - keep) * t_new;
#endif
        a.t_h[entry] = t_new;
    }
    a.t_y[time_of(a, s) * a.N * a.P + entry] = rounded(own ? t_new : 0);
#if !RECURRENCE_CELL
    write_recurrent_tangent(a, s, n, k, a.t_h[entry]);
#endif
}

KERNEL(tangent_cell, Call) {
    const long long s = a.s, n = blockIdx.x, row = time_of(a, s) * a.N + n, columns = GATES * a.H;
    const real* c_before = a.c + s * a.c_stride + n * a.H;
    const real* c_after = a.c + (s + 1) * a.c_stride + n * a.H;
    if (!active(a, n, s)) {  // the whole block
        FOR_UNITS(j, a.H) {
#if RECURRENCE_CELL
            write_recurrent_tangent(a, s, n, j, a.t_c[n * a.H + j]);
#endif
#if PROJECTION
            a.t_q[n * a.H + j] = 0;
#else
            emit_tangent(a, s, n, j, 0, false);
#endif
        }
        return;
    }
    const real* t_from_x = a.t_from_x + row * columns;
    real* t_from_h = a.t_from_h + n * columns;
#if LAYER_NORM
    const real* normalised_h = a.norm_h + row * columns;
    real sum = 0, along = 0;
    for (long long k = threadIdx.x; k < columns; k += blockDim.x) {
        if (a.t_weight_h) t_from_h[k] += a.t_weight_h[row * columns + k];
        sum += t_from_h[k];
        along += normalised_h[k] * t_from_h[k];
    }
    sum = block_sum(sum) / columns;
    along = block_sum(along) / columns;
    const Norm norm_c = norm_of(c_after, a.H, a.layer_norm_eps.value);
    real sum_c = 0, along_c = 0;
#endif
    FOR_UNITS(j, a.H) {
        real z[GATES], tz[GATES];
        read_gates(a, s, n, j, z);
        for (int gate = 0; gate < GATES; ++gate) {
            const long long k = gate * a.H + j;
            real through = t_from_h[k];
#if LAYER_NORM
            through = a.gain_h[k] * (through - sum - normalised_h[k] * along) / a.deviation_h[row];
            through += a.t_gain_h[k] * normalised_h[k];
#else
            if (a.t_weight_h) through += a.t_weight_h[row * columns + k];
#endif
            tz[gate] = t_from_x[k] + through;
        }
        const Gates gates = early_gates(a, z);
        const real before = c_before[j], t_before = a.t_c[n * a.H + j];
        Gates t;
        t.g = tz[G_GATE] * gate_slope(a, G_GATE, z[G_GATE]);
#if I_GATE >= 0
#if PEEPHOLE
        tz[I_GATE] += a.t_peephole[I_PEEPHOLE * a.H + j] * before + a.peephole[I_PEEPHOLE * a.H + j] * t_before;
#endif
        t.i = tz[I_GATE] * gate_slope(a, I_GATE, z[I_GATE]);
#endif
#if F_GATE >= 0
#if PEEPHOLE
        tz[F_GATE] += a.t_peephole[F_PEEPHOLE * a.H + j] * before + a.peephole[F_PEEPHOLE * a.H + j] * t_before;
#endif
        t.f = tz[F_GATE] * gate_slope(a, F_GATE, z[F_GATE]);
#else
        t.f = -t.i;
#endif
#if I_GATE < 0
        t.i = -t.f;
#endif
        real tc = t.f * before + gates.f * t_before + t.i * gates.g + gates.i * t.g;
#if HAS_CELL_CLIP
        tc *= inside(cell_unclipped(gates, before), a.cell_clip.value);
#endif
#if HAS_ZONEOUT_CELL
        const real keep = keep_cell(a, s, n, j);
        tc = keep * t_before + (1 - keep) * tc;
#endif
        a.t_c[n * a.H + j] = tc;
#if RECURRENCE_CELL
        write_recurrent_tangent(a, s, n, j, tc);
#endif
#if PEEPHOLE
        tz[O_GATE] += a.t_peephole[O_PEEPHOLE * a.H + j] * c_after[j] + a.peephole[O_PEEPHOLE * a.H + j] * tc;
#endif
        const real t_o = tz[O_GATE] * gate_slope(a, O_GATE, z[O_GATE]);
#if LAYER_NORM
        t_from_h[O_GATE * a.H + j] = t_o;  // waits here until the sums over c are there
        sum_c += tc;
        along_c += (c_after[j] - norm_c.mean) / norm_c.deviation * tc;
    }
    sum_c = block_sum(sum_c) / a.H;
    along_c = block_sum(along_c) / a.H;
    FOR_UNITS(j, a.H) {
        const real normalised = (c_after[j] - norm_c.mean) / norm_c.deviation, c = scaled_cell(a, j, normalised);
        const real t_o = t_from_h[O_GATE * a.H + j], z_o = a.z[row * columns + O_GATE * a.H + j];
        real tn = a.gain_c[j] * (a.t_c[n * a.H + j] - sum_c - normalised * along_c) / norm_c.deviation;
        tn += a.t_gain_c[j] * normalised;
        if (a.t_shift_c) tn += a.t_shift_c[j];
#else
        const real c = c_after[j], tn = tc, z_o = z[O_GATE];
#endif
        const real u = HIDDEN_VALUE(c);
        const real t_q = t_o * u + gate_value(a, O_GATE, z_o) * HIDDEN_SLOPE(c, u) * tn;
#if PROJECTION
        a.t_q[n * a.H + j] = t_q;
#else
        emit_tangent(a, s, n, j, t_q, true);
#endif
    }
}

#if PROJECTION
KERNEL(tangent_output, Call) {
    const long long s = a.s, n = blockIdx.x;
    const bool own = active(a, n, s);
    FOR_UNITS(k, a.P) emit_tangent(a, s, n, k, a.t_projected[n * a.P + k], own);
}
#endif

#include "persistent.cuh"
