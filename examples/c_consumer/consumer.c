/* Verifies an LSTM in C99 with the golden vectors: consumer FOLDER. One layer in one direction: forward with every
 * switch, backward of the plain LSTM. README.md says what it prints, and which faults can be planted to see them
 * caught; docs/vectors.md describes the files. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MOST 128
typedef struct { char role[16], name[64], kind[8]; double budget, *data; long size; int compared; } Tensor;
typedef struct { char key[32], value[96]; } Switch;
static Tensor tensors[MOST];
static Switch switches[MOST]; /* the defaults, then those of the case, which come before them where both are there */
static int tensor_count, switch_count, default_count;

/* The index ---------------------------------------------------------------------------------------------------- */

static void die(const char *what, const char *which) { fprintf(stderr, "%s: %s\n", what, which); exit(2); }

static double *get(const char *name) {
    for (int k = 0; k < tensor_count; k++) if (!strcmp(tensors[k].name, name)) return tensors[k].data;
    return NULL;
}
static const char *text(const char *key) {
    for (int k = switch_count - 1; k >= 0; k--) if (!strcmp(switches[k].key, key)) return switches[k].value;
    die("index.txt has no switch", key);
    return NULL;
}
static int is(const char *key, const char *value) { return !strcmp(text(key), value); }
static double number(const char *key) { return is(key, "none") ? INFINITY : atof(text(key)); }

/* One array of a safetensors file as doubles. The index has its place in the data, which begin after 8 bytes with
 * the length of the header (little endian) and the header itself. */
static double *load(const char *path, const char *kind, long start, long size) {
    FILE *file = fopen(path, "rb");
    unsigned char raw[8];
    if (!file || fread(raw, 1, 8, file) != 8) die("cannot read", path);
    uint64_t header = 0;
    for (int k = 7; k >= 0; k--) header = header << 8 | raw[k];
    if (fseek(file, (long)(8 + header) + start, SEEK_SET)) die("cannot seek in", path);
    double *found = calloc((size_t)size + 1, sizeof *found);
    int width = !strcmp(kind, "F32") ? 4 : 8;
    for (long e = 0; found && e < size; e++) {
        if (fread(raw, 1, (size_t)width, file) != (size_t)width) die("too short", path);
        uint64_t bits = 0;
        for (int k = width - 1; k >= 0; k--) bits = bits << 8 | raw[k];
        if (width == 4) { uint32_t low = (uint32_t)bits; float value; memcpy(&value, &low, 4); found[e] = value; }
        else if (!strcmp(kind, "I64")) found[e] = (double)(int64_t)bits;
        else memcpy(&found[e], &bits, 8);
    }
    fclose(file);
    if (!found) die("no memory for", path);
    return found;
}

/* The LSTM ----------------------------------------------------------------------------------------------------- */

static double clip(double v, double bound) { return v > bound ? bound : v < -bound ? -bound : v; }

typedef struct { char name[32]; double alpha, beta; } Function;
static Function function(const char *key) { /* "hard_sigmoid(alpha=0.3,beta=0.45)" */
    Function f = {"", 0, 0};
    const char *given = text(key), *alpha = strstr(given, "alpha="), *beta = strstr(given, "beta=");
    size_t length = strcspn(given, "(");
    if (length >= sizeof f.name) die("unknown activation", given);
    memcpy(f.name, given, length);
    if (alpha) f.alpha = atof(alpha + 6);
    if (beta) f.beta = atof(beta + 5);
    return f;
}
static double apply(Function f, double z) {
    const char *n = f.name;
    if (!strcmp(n, "sigmoid")) return 1 / (1 + exp(-z));
    if (!strcmp(n, "tanh")) return tanh(z);
    if (!strcmp(n, "relu")) return z > 0 ? z : 0;
    if (!strcmp(n, "identity")) return z;
    if (!strcmp(n, "affine")) return f.alpha * z + f.beta;
    if (!strcmp(n, "leaky_relu")) return z >= 0 ? z : f.alpha * z;
    if (!strcmp(n, "thresholded_relu")) return z > f.alpha ? z : 0;
    if (!strcmp(n, "scaled_tanh")) return f.alpha * tanh(f.beta * z);
    if (!strcmp(n, "hard_sigmoid")) return fmin(1, fmax(0, f.alpha * z + f.beta));
    if (!strcmp(n, "elu")) return z >= 0 ? z : f.alpha * expm1(z);
    if (!strcmp(n, "softsign")) return z / (1 + fabs(z));
    if (!strcmp(n, "softplus")) return fmax(z, 0) + log1p(exp(-fabs(z)));
    die("unknown activation", n);
    return 0;
}
static void norm(double *v, int size, double eps) {
    double mean = 0, var = 0;
    for (int k = 0; k < size; k++) mean += v[k] / size;
    for (int k = 0; k < size; k++) var += (v[k] - mean) * (v[k] - mean) / size;
    for (int k = 0; k < size; k++) v[k] = (v[k] - mean) / sqrt(var + eps);
}
static double *row(const char *name, long start) { double *m = get(name); return m ? m + start : NULL; }

/* Section 2 of SPEC.md for every row and step. y (T, N, P) starts as zeros, h (N, P) and c (N, H) as the state.
 * The tape (T, N, 5 H) gets i, f, g, o and the new c. */
static void forward(int T, int N, double *y, double *h_all, double *c_all, double *tape) {
    int I = atoi(text("input_size")), H = atoi(text("hidden_size")), proj = atoi(text("proj_size")), P = proj ? proj : H;
    int cell = is("recurrence", "cell"), R = cell ? H : P, reverse = is("reverse", "1"), ln = is("layer_norm", "1");
    int from_i = is("coupling", "forget_from_input"), from_f = is("coupling", "input_from_forget");
    int at_i = from_f ? -1 : 0, at_f = from_i ? -1 : from_f ? 0 : 1; /* rows of a gate; -1: it follows the other */
    int G = from_i || from_f ? 3 : 4, at_g = G - 2, at_o = G - 1, peep = G - 1;
#ifdef PLANT_GATE_SWAP
    at_g = G - 1, at_o = G - 2;
#endif
    double gate_clip = number("gate_clip"), cell_clip = number("cell_clip"), proj_clip = number("proj_clip");
    double eps = number("layer_norm_eps"), rate_h = number("zoneout_hidden"), rate_c = number("zoneout_cell");
    Function s = function("gate_activation"), a = function("cell_activation"), u = function("hidden_activation");
    double *x = get("x"), *W = get("weight_x"), *U = get("weight_h"), *b = get("bias"), *V = get("weight_proj");
    double *p = get("peephole"), *gx = get("norm_gain_x"), *gh = get("norm_gain_h"), *gc = get("norm_gain_c");
    double *shift = get("norm_bias_c"), *lengths = get("lengths");
    double *zx = calloc(4 * (size_t)H, 8), *zh = calloc(4 * (size_t)H, 8), *q = calloc((size_t)H, 8);
    double *o = calloc((size_t)H, 8);
    if (!zx || !zh || !q || !o) die("no memory", "step");
    for (int n = 0; n < N; n++) {
        int length = lengths ? (int)lengths[n] : T;
        double *h = h_all + n * P, *c = c_all + n * H, *mr = row("mask_recurrent", (long)n * R);
        for (int k = 0; k < length; k++) {
            int t = reverse ? length - 1 - k : k;
            double *mh = row("mask_zoneout_hidden", ((long)t * N + n) * P);
            double *mc = row("mask_zoneout_cell", ((long)t * N + n) * H);
            const double *r = cell ? c : h;
            for (int j = 0; j < G * H; j++) {
                zx[j] = zh[j] = 0;
                for (int e = 0; e < I; e++) zx[j] += W[j * I + e] * x[((long)t * N + n) * I + e];
                for (int e = 0; e < R; e++) zh[j] += U[j * R + e] * (mr ? mr[e] : 1) * r[e];
            }
            if (ln) { norm(zx, G * H, eps); norm(zh, G * H, eps); }
            for (int j = 0; j < G * H; j++)
                zx[j] = (ln ? gx[j] * zx[j] + gh[j] * zh[j] : zx[j] + zh[j]) + (b ? b[j] : 0);
            for (int j = 0; j < H; j++) {
                double i = 0, f = 0, g = apply(a, clip(zx[at_g * H + j], gate_clip));
                if (at_i >= 0) i = apply(s, clip(zx[at_i * H + j] + (p ? p[at_i * H + j] * c[j] : 0), gate_clip));
                if (at_f >= 0) f = apply(s, clip(zx[at_f * H + j] + (p ? p[at_f * H + j] * c[j] : 0), gate_clip));
                if (at_i < 0) i = 1 - f;
                if (at_f < 0) f = 1 - i;
                double keep = mc ? mc[j] : rate_c, fresh = clip(f * c[j] + i * g, cell_clip);
                q[j] = c[j] = keep * c[j] + (1 - keep) * fresh;
                o[j] = apply(s, clip(zx[at_o * H + j] + (p ? p[(peep - 1) * H + j] * c[j] : 0), gate_clip));
                double *kept = tape + ((long)t * N + n) * 5 * H + j;
                kept[0] = i, kept[H] = f, kept[2 * H] = g, kept[3 * H] = o[j], kept[4 * H] = c[j];
            }
            if (ln) {
                norm(q, H, eps);
                for (int j = 0; j < H; j++) q[j] = gc[j] * q[j] + (shift ? shift[j] : 0);
            }
            for (int j = 0; j < H; j++) q[j] = o[j] * apply(u, q[j]);
            for (int j = 0; j < P; j++) {
                double fresh = V ? 0 : q[j], keep = mh ? mh[j] : rate_h;
                for (int e = 0; V && e < H; e++) fresh += V[j * H + e] * q[e];
                if (V) fresh = clip(fresh, proj_clip);
                h[j] = keep * h[j] + (1 - keep) * fresh;
                y[((long)t * N + n) * P + j] = h[j];
            }
        }
    }
    free(zx); free(zh); free(q); free(o);
}

/* Whether backward can do the case: the switch that it does not know, or NULL. */
static const char *beyond_backward(void) {
    static const char *known[] = {"input_size", "hidden_size", "bias", "reverse", "layer_norm_eps"};
    for (int k = default_count; k < switch_count; k++) {
        int found = 0;
        for (size_t e = 0; e < sizeof known / sizeof *known; e++) found |= !strcmp(switches[k].key, known[e]);
        if (!found) return switches[k].key;
    }
    return NULL;
}

/* docs/backward.md without switches, row by row from the last step to the first. dx (T, N, I) and the gradients of
 * the parameters start as zeros, dh (N, H) and dc (N, H) as dh_n and dc_n; they end as dh0 and dc0. */
static void backward(int T, int N, const double *y, const double *tape, double *dx, double *dh_all, double *dc_all,
                     double *dW, double *dR, double *db) {
    int I = atoi(text("input_size")), H = atoi(text("hidden_size")), reverse = is("reverse", "1");
    double *x = get("x"), *W = get("weight_x"), *R = get("weight_h"), *dy = get("dy"), *lengths = get("lengths");
    double *zero = calloc((size_t)H, 8), *dz = calloc(4 * (size_t)H, 8);
    if (!zero || !dz) die("no memory", "step");
    for (int n = 0; n < N; n++) {
        int length = lengths ? (int)lengths[n] : T;
        double *dh = dh_all + n * H, *dc = dc_all + n * H;
        for (int k = length - 1; k >= 0; k--) {
            int t = reverse ? length - 1 - k : k, before = reverse ? t + 1 : t - 1; /* of the step before */
            long at = (long)t * N + n, last = (long)before * N + n;
            const double *i = tape + at * 5 * H, *f = i + H, *g = f + H, *o = g + H, *c = o + H;
            const double *h0 = row("h0", (long)n * H), *c0 = row("c0", (long)n * H);
            const double *h_before = k ? y + last * H : h0 ? h0 : zero;
            const double *c_before = k ? tape + last * 5 * H + 4 * H : c0 ? c0 : zero;
            for (int j = 0; j < H; j++) {
                double u = tanh(c[j]), dh_j = dh[j] + (dy ? dy[at * H + j] : 0);
                double d = dc[j] + dh_j * o[j] * (1 - u * u), carried = d;
#ifdef PLANT_STALE_DC
                carried = dc[j];
#endif
                dz[j] = d * g[j] * i[j] * (1 - i[j]);
                dz[H + j] = d * c_before[j] * f[j] * (1 - f[j]);
#ifdef PLANT_STALE_CELL
                dz[H + j] = d * c[j] * f[j] * (1 - f[j]);
#endif
                dz[2 * H + j] = d * i[j] * (1 - g[j] * g[j]);
                dz[3 * H + j] = dh_j * u * o[j] * (1 - o[j]);
                dc[j] = carried * f[j];
                dh[j] = 0;
            }
            for (int j = 0; j < 4 * H; j++) {
                db[j] += dz[j];
                for (int e = 0; e < I; e++) {
                    dW[j * I + e] += dz[j] * x[at * I + e];
                    dx[at * I + e] += W[j * I + e] * dz[j];
                }
                for (int e = 0; e < H; e++) {
                    dR[j * H + e] += dz[j] * h_before[e];
#ifdef PLANT_MISSING_TERM
                    if (j >= H && j < 2 * H) continue; /* the forget gate's share of the gradient of h */
#endif
                    dh[e] += R[j * H + e] * dz[j];
                }
            }
        }
    }
    free(zero); free(dz);
}

/* The verdict -------------------------------------------------------------------------------------------------- */

/* The largest |got - expected| / budget of an array, with `got` rounded as the precision stores it. What is equal, or
 * NaN in both, is not off at all; an array that is not expected has no share. */
static double share(const char *name, const double *got, int single) {
    double worst = 0;
    for (int k = 0; k < tensor_count; k++) {
        if (strcmp(tensors[k].name, name)) continue;
        tensors[k].compared = 1;
        for (long e = 0; e < tensors[k].size; e++) {
            double found = single ? (double)(float)got[e] : got[e], want = tensors[k].data[e];
            if (found == want || (isnan(found) && isnan(want))) continue;
            double off = fabs(found - want) / tensors[k].budget;
            worst = isnan(off) ? INFINITY : fmax(worst, off);
        }
    }
    return worst;
}
/* A copy of an array that is given, or zeros. */
static double *copy_of(const char *name, long size) {
    double *copy = calloc((size_t)size + 1, 8), *given = get(name);
    if (!copy) die("no memory for", name);
    if (given) memcpy(copy, given, (size_t)size * 8);
    return copy;
}
static const char *unsupported_because(const char *precision) {
    for (int k = default_count; k < switch_count; k++) if (!strcmp(switches[k].key, "num_layers")) return "a stack";
    return strcmp(precision, "float16") ? NULL : "float16 storage";
}

/* Runs the case, prints a line, and returns whether it passes; counts where gradients were compared. */
static int passes(const char *precision, const char *name, int T, int N, int *compared) {
    int I = atoi(text("input_size")), H = atoi(text("hidden_size")), proj = atoi(text("proj_size"));
    int P = proj ? proj : H, single = !strcmp(precision, "float32");
    double *y = copy_of("", (long)T * N * P), *h = copy_of("h0", (long)N * P), *c = copy_of("c0", (long)N * H);
    double *tape = copy_of("", (long)T * N * 5 * H);
    forward(T, N, y, h, c, tape);
    double outputs = fmax(share("y", y, single), fmax(share("h_n", h, single), share("c_n", c, single))), gradients = 0;
    const char *beyond = beyond_backward();
    if (!beyond) {
        double *dx = copy_of("", (long)T * N * I), *dh = copy_of("dh_n", (long)N * H), *dc = copy_of("dc_n", (long)N * H);
        double *dW = copy_of("", 4L * H * I), *dR = copy_of("", 4L * H * H), *db = copy_of("", 4L * H);
        backward(T, N, y, tape, dx, dh, dc, dW, dR, db);
        const char *names[] = {"dx", "dh0", "dc0", "d_weight_x", "d_weight_h", "d_bias"};
        double *arrays[] = {dx, dh, dc, dW, dR, db};
        for (int k = 0; k < 6; k++) gradients = fmax(gradients, share(names[k], arrays[k], single));
        for (int k = 0; k < 6; k++) free(arrays[k]);
        ++*compared;
    }
    for (int k = 0; k < tensor_count; k++) { /* nothing that is expected may be left out */
        const Tensor *t = &tensors[k];
        if (!t->compared && (!strcmp(t->role, "output") || (!beyond && !strcmp(t->role, "gradient"))))
            die("nothing computes", t->name);
    }
    int good = outputs <= 1 && gradients <= 1;
    printf("%s %s %s: outputs %.3g of the budget, ", good ? "ok" : "FAIL", precision, name, outputs);
    if (beyond) printf("gradients not computed with %s\n", beyond);
    else printf("gradients %.3g\n", gradients);
    free(y); free(h); free(c); free(tape);
    return good;
}

int main(int count, char **arguments) {
    if (count != 2) die("usage", "consumer FOLDER");
    char path[4096], line[512], precision[16] = "", file[64] = "", name[256] = "";
    int T = 0, N = 0, passed = 0, failed = 0, unsupported = 0, compared = 0;
    snprintf(path, sizeof path, "%s/index.txt", arguments[1]);
    FILE *index = fopen(path, "r");
    if (!index) die("cannot read", path);
    if (!fgets(line, sizeof line, index) || strcmp(line, "lstmcore-vectors 2\n")) die("another version", path);
    while (fgets(line, sizeof line, index)) {
        char word[16];
        if (sscanf(line, "%15s", word) != 1) continue;
        if (!strcmp(word, "case")) {
            switch_count = default_count;
            if (sscanf(line, "case %15s %63s %d %d %255[^\n]", precision, file, &T, &N, name) != 5) die("bad line", line);
        } else if (!strcmp(word, "default") || !strcmp(word, "model")) {
            if (switch_count == MOST) die("too many switches", line);
            Switch *s = &switches[switch_count++];
            if (sscanf(line, "%*s %31s %95s", s->key, s->value) != 2) die("bad line", line);
            if (*word == 'd') default_count = switch_count;
        } else if (strcmp(word, "end")) {
            if (tensor_count == MOST) die("too many tensors", line);
            Tensor *t = &tensors[tensor_count++];
            long start, dims;
            int used;
            if (sscanf(line, "%15s %63s %7s %ld %lf %ld%n", t->role, t->name, t->kind, &start, &t->budget, &dims,
                       &used) != 6) die("bad line", line);
            t->size = 1, t->compared = 0;
            for (char *at = line + used; dims; dims--) t->size *= strtol(at, &at, 10);
            snprintf(path, sizeof path, "%s/%s", arguments[1], file);
            t->data = strcmp(t->kind, "F16") ? load(path, t->kind, start, t->size) : NULL;
        } else {
            const char *reason = unsupported_because(precision);
            if (reason) {
                printf("unsupported %s %s: %s\n", precision, name, reason);
                unsupported++;
            } else if (passes(precision, name, T, N, &compared)) passed++;
            else failed++;
            for (int k = 0; k < tensor_count; k++) free(tensors[k].data);
            tensor_count = 0;
        }
    }
    fclose(index);
    printf("%d passed, %d failed, %d unsupported; gradients compared in %d\n", passed, failed, unsupported, compared);
    return failed || !passed;
}
