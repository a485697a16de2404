// The part of CUDA C++ that the kernels use, for a C++ compiler of the processor.
//
// The blocks of a grid run one after another, those of a cooperative launch in turns, see `Grid`. The threads of a block
// are fibres (ucontext) that run until a barrier or a shuffle. They are taken up in a given order, so that a missing
// barrier shows as a wrong result in one of the orders. Where a launch has neither barriers nor shuffles its threads are
// calls of a function. Two launches with the same order, seed and arguments take the same steps in the same order: no step
// depends on the clock or on the operating system. What it does not show: missing fences, what a multiprocessor keeps of
// earlier reads, blocks that wait for ones that are not resident.
#pragma once

#include <pthread.h>
#include <ucontext.h>

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#define __device__
#define __global__
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static thread_local
#define DYNAMIC_SHARED(type, name) type* const name = (type*)emulation::state.room

using std::exp;
using std::expm1;
using std::log1p;
using std::sqrt;
using std::tanh;

struct Place {
    unsigned x, y, z;
};

static thread_local Place threadIdx, blockIdx, blockDim, gridDim;

static inline float __uint_as_float(const unsigned bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

static inline unsigned __float_as_uint(const float value) {
    unsigned bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

// The flags of the compiler let no product join a sum.
static inline float __fmul_rn(const float a, const float b) {
    return a * b;
}

static inline double __dmul_rn(const double a, const double b) {
    return a * b;
}

namespace emulation {

typedef void Body(const void*);

constexpr size_t STACK = 1 << 16;
constexpr int WARP_SIZE = 32;
constexpr int MOST_THREADS = 1024;

struct Barrier {
    int arrived = 0;
    long passed = 0;
};

[[noreturn]] static void fail(const char* message) {
    std::fprintf(stderr, "emulation: %s\n", message);
    std::abort();
}

// The blocks of a cooperative launch. Each has a thread of the operating system, since its shared memory is static
// thread_local, but only the block whose turn it is runs. Turns end at switch points alone: where a block waits for
// others, around atomic operations, fences and reads with __ldcg, at barriers and shuffles, and after each fibre's part.
//
// Without a seed (below 0) a turn ends where a block waits, and the next block in order has the next one: what a block
// must not do before others have come is then done long before. With a seed a generator draws how many switch points a
// turn has, few as often as many, and whose turn is next.
class Grid {
  public:
    Grid(const int blocks, const long seed) : seed_(seed), alive_(blocks, 1), state_((std::uint64_t)seed) {
        turns_.resize(blocks);
        for (pthread_cond_t& turn : turns_) pthread_cond_init(&turn, nullptr);
        running_ = seed < 0 ? 0 : (int)(draw() % blocks);
        left_ = length();
    }

    Grid(const Grid&) = delete;

    ~Grid() {
        for (pthread_cond_t& turn : turns_) pthread_cond_destroy(&turn);
    }

    void begin(const int block) {
        pthread_mutex_lock(&lock_);
        await(block);
    }

    void end(const int block) {
        pthread_mutex_lock(&lock_);
        alive_[block] = 0;
        hand_over(block);
        pthread_mutex_unlock(&lock_);
    }

    // The running block may lose its turn; it does if it waits and another one is alive.
    void switch_point(const int block, const bool waits) {
        if (!waits && (seed_ < 0 || --left_ > 0)) return;
        pthread_mutex_lock(&lock_);
        hand_over(block);
        await(block);
    }

  private:
    // With the lock, which it gives back.
    void await(const int block) {
        while (running_ != block) pthread_cond_wait(&turns_[block], &lock_);
        pthread_mutex_unlock(&lock_);
    }

    // To another block, if one is alive.
    void hand_over(const int block) {
        const int blocks = (int)alive_.size(), first = seed_ < 0 ? 0 : (int)(draw() % blocks);
        for (int k = 0; k < blocks; ++k) {
            const int other = (block + 1 + (first + k) % blocks) % blocks;
            if (other == block || !alive_[other]) continue;
            running_ = other;
            pthread_cond_signal(&turns_[other]);
            break;
        }
        left_ = length();
    }

    long length() {
        if (seed_ < 0) return 0;
        const std::uint64_t most = 1ull << draw() % MOST_DOUBLINGS;
        return 1 + (long)(draw() % most);
    }

    // SplitMix64.
    std::uint64_t draw() {
        std::uint64_t z = state_ += 0x9e3779b97f4a7c15ull;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ z >> 27) * 0x94d049bb133111ebull;
        return z ^ z >> 31;
    }

    static constexpr int MOST_DOUBLINGS = 15;

    const long seed_;
    std::vector<char> alive_;
    std::uint64_t state_;
    std::vector<pthread_cond_t> turns_;
    pthread_mutex_t lock_ = PTHREAD_MUTEX_INITIALIZER;
    int running_ = 0;
    long left_ = 0;  // switch points of this turn
};

// The block that an operating system's thread runs.
struct Block {
    Grid* grid = nullptr;  // of a cooperative launch
    int number = 0;        // in it
    ucontext_t scheduler;
    std::vector<ucontext_t> contexts;
    std::vector<char> stacks;
    std::vector<char> done;
    int current = 0, live = 0;
    bool fibres = false;
    void* room = nullptr;  // dynamic shared memory
    Barrier block, warps[MOST_THREADS / WARP_SIZE];
    double lanes[MOST_THREADS];
    unsigned fragments[MOST_THREADS][6];  // of A, then of B
    const void* rows[MOST_THREADS];
    Body* body = nullptr;
    const void* arguments = nullptr;
};

static thread_local Block state;

static void switch_point(const bool waits = false) {
    if (state.grid) state.grid->switch_point(state.number, waits);
}

static void pause() {
    if (!state.fibres) fail("a thread waits in a program that was said to have no barriers");
    const int own = state.current;
    swapcontext(&state.contexts[own], &state.scheduler);
}

static void wait(Barrier& barrier, const int count) {
    const long passed = barrier.passed;
    if (++barrier.arrived == count) {
        barrier.arrived = 0;
        ++barrier.passed;
    } else {
        while (barrier.passed == passed) pause();
    }
}

static void fibre() {
    state.body(state.arguments);
    state.done[state.current] = 1;
    --state.live;
    swapcontext(&state.contexts[state.current], &state.scheduler);
}

// How far the threads of a warp are: more after each of their steps.
static long progress(const int warp) {
    const Barrier& own = state.warps[warp];
    return (state.block.passed + own.passed) * (MOST_THREADS + 1) + state.block.arrived + own.arrived - state.live;
}

// The threads of each warp, in the order in which they are taken up; warps in the order of their first threads.
static std::vector<std::vector<int>> warps_of(const int threads, const int* order) {
    std::vector<std::vector<int>> warps;
    int places[MOST_THREADS / WARP_SIZE];
    for (int& place : places) place = -1;
    for (int k = 0; k < threads; ++k) {
        int& place = places[order[k] / WARP_SIZE];
        if (place < 0) {
            place = (int)warps.size();
            warps.emplace_back();
        }
        warps[place].push_back(order[k]);
    }
    return warps;
}

// Let each thread of a warp run until it waits; whether any of them came further.
static bool run_warp(const std::vector<int>& warp) {
    const long before = progress(warp[0] / WARP_SIZE);
    for (const int thread : warp) {
        if (state.done[thread]) continue;
        state.current = thread;
        threadIdx = {(unsigned)thread, 0, 0};
        swapcontext(&state.scheduler, &state.contexts[thread]);
        switch_point();
    }
    return progress(warp[0] / WARP_SIZE) != before;
}

// `order` has the threads in the order in which they are taken up. A warp runs as far as it can before the next one does:
// what a barrier has to keep apart is then far apart in time.
static void run_block(const int threads, const int* order) {
    if (!state.fibres) {
        for (int k = 0; k < threads; ++k) {
            threadIdx = {(unsigned)order[k], 0, 0};
            state.body(state.arguments);
        }
        return;
    }
    state.contexts.resize(threads);
    state.stacks.resize(STACK * threads);
    state.done.assign(threads, 0);
    state.live = threads;
    for (int k = 0; k < threads; ++k) {
        getcontext(&state.contexts[k]);
        state.contexts[k].uc_stack.ss_sp = &state.stacks[STACK * k];
        state.contexts[k].uc_stack.ss_size = STACK;
        state.contexts[k].uc_link = nullptr;
        makecontext(&state.contexts[k], fibre, 0);
    }
    const std::vector<std::vector<int>> warps = warps_of(threads, order);
    while (state.live > 0) {
        bool moved = false;
        for (const std::vector<int>& warp : warps)
            while (run_warp(warp)) moved = true;
        if (!moved) fail("threads wait for others that do not come");
    }
    if (state.block.arrived) fail("a barrier that not all threads of the block reached");
}

struct Launch {
    Body* body;
    const void* arguments;
    const long* blocks;
    int threads;
    const int* order;
    int backwards, fibres;
    long shared_bytes, seed;
};

struct Part {
    const Launch* launch;
    Grid* grid;
    long first, count;
    pthread_t runs_in;
};

// Some blocks of a launch, one after another.
static void* run_part(void* given) {
    Part& part = *(Part*)given;
    const Launch& a = *part.launch;
    const long* blocks = a.blocks;
    const long all = blocks[0] * blocks[1] * blocks[2];
    state.body = a.body;
    state.arguments = a.arguments;
    state.fibres = a.fibres;
    state.grid = part.grid;
    state.number = (int)part.first;
    state.block = Barrier();
    for (Barrier& warp : state.warps) warp = Barrier();
    gridDim = {(unsigned)blocks[0], (unsigned)blocks[1], (unsigned)blocks[2]};
    blockDim = {(unsigned)a.threads, 1, 1};
    if (part.grid) part.grid->begin((int)part.first);
    for (long k = part.first; k < part.first + part.count; ++k) {
        const long block = a.backwards ? all - 1 - k : k;
        const long row = block / blocks[0];
        blockIdx = {(unsigned)(block % blocks[0]), (unsigned)(row % blocks[1]), (unsigned)(row / blocks[1])};
        state.room = std::malloc(a.shared_bytes);
        std::memset(state.room, 0xff, a.shared_bytes);  // NaN
        run_block(a.threads, a.order);
        std::free(state.room);
    }
    if (part.grid) part.grid->end((int)part.first);
    return nullptr;
}

static void run(const Launch& launch, const int cooperative) {
    if (launch.threads > MOST_THREADS) fail("more threads than a block may have");
    const long all = launch.blocks[0] * launch.blocks[1] * launch.blocks[2];
    if (!cooperative) {
        Part part = {&launch, nullptr, 0, all, {}};
        run_part(&part);
        return;
    }
    Grid grid((int)all, launch.seed);
    std::vector<Part> parts;
    for (long k = 0; k < all; ++k) parts.push_back({&launch, &grid, k, 1, {}});
    for (Part& part : parts)
        if (pthread_create(&part.runs_in, nullptr, run_part, &part)) fail("no thread for a block");
    for (Part& part : parts) pthread_join(part.runs_in, nullptr);
}

}  // namespace emulation

static inline void __syncthreads() {
    emulation::wait(emulation::state.block, blockDim.x);
}

template <class T>
static inline T __shfl_xor_sync(unsigned, const T value, const int distance) {
    emulation::Block& state = emulation::state;
    emulation::Barrier& warp = state.warps[threadIdx.x / emulation::WARP_SIZE];
    const unsigned own = threadIdx.x;
    state.lanes[own] = value;
    emulation::wait(warp, emulation::WARP_SIZE);
    const T other = (T)state.lanes[own ^ distance];
    emulation::wait(warp, emulation::WARP_SIZE);
    return other;
}

// Tensor cores: fragments are taken apart as the PTX ISA has them, entry by entry.

#define EMULATED

namespace emulation {

typedef double Decode(unsigned bits);

// Tensor cores do not look at the last 13 bits.
static double of_tf32(const unsigned bits) {
    return __uint_as_float(bits & 0xffffe000u);
}

static double of_bfloat16(const unsigned bits) {
    return __uint_as_float(bits << 16);
}

static double of_float16(const unsigned bits) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    double size = exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
    if (exponent == 31) size = fraction ? NAN : INFINITY;
    return bits & 0x8000u ? -size : size;
}

// The sum as a tensor core makes it or better: of each term what is 2^-24 of the largest or more, the sum towards zero.
static float sum(const std::vector<double>& terms) {
    double largest = 0, plain = 0;
    for (const double term : terms) {
        plain += term;
        largest = std::fmax(largest, std::fabs(term));
    }
    if (!std::isfinite(plain) || largest == 0) return (float)plain;
    const double unit = std::ldexp(1.0, std::ilogb(largest) - 24);
    double total = 0;
    for (const double term : terms) total += std::trunc(term / unit);
    total *= unit;
    const float found = (float)total;
    return std::fabs(found) > std::fabs(total) && std::isfinite(found) ? std::nextafter(found, 0.0f) : found;
}

// D (16 x 8) += A (16 x K) B (K x 8) of a warp, with K 16 and `each` 2 numbers in a register, or 8 and 1.
static void mma(float* d, const unsigned* a, const unsigned* b, Decode* decode, const int each) {
    Barrier& warp = state.warps[threadIdx.x / WARP_SIZE];
    const int first = threadIdx.x / WARP_SIZE * WARP_SIZE, lane = threadIdx.x % WARP_SIZE, bits = 32 / each;
    std::memcpy(state.fragments[threadIdx.x], a, 4 * sizeof *a);
    std::memcpy(state.fragments[threadIdx.x] + 4, b, 2 * sizeof *b);
    wait(warp, WARP_SIZE);
    // Column k is in register `half` of lane t of a group of four, and there it is number k % each
    const auto entry = [&](const int group, const int t, const int place, const int k) {
        const unsigned word = state.fragments[first + 4 * group + t][place];
        return decode(each == 1 ? word : word >> bits * (k % each) & 0xffffu);
    };
    for (int e = 0; e < 4; ++e) {
        const int row = lane / 4 + (e < 2 ? 0 : 8), column = lane % 4 * 2 + e % 2;
        std::vector<double> terms = {d[e]};
        for (int k = 0; k < 8 * each; ++k) {
            const int half = k / (4 * each), t = k / each % 4;
            terms.push_back(entry(row % 8, t, row / 8 + 2 * half, k) * entry(column, t, 4 + half, k));
        }
        d[e] = sum(terms);
    }
    wait(warp, WARP_SIZE);
}

}  // namespace emulation

static inline unsigned to_tf32(const float value) {
    const unsigned bits = __float_as_uint(value);
    return std::isfinite(value) ? bits + 0x1000u & 0xffffe000u : bits;
}

static inline void mma_tf32(float* d, const unsigned* a, const unsigned* b) {
    emulation::mma(d, a, b, emulation::of_tf32, 1);
}

#define mma_stored(d, a, b) \
    emulation::mma(d, a, b, STORAGE == STORAGE_BFLOAT16 ? emulation::of_bfloat16 : emulation::of_float16, 2)

static inline void load_matrices(unsigned* a, const void* row) {
    if ((unsigned long)row % 16) emulation::fail("a row of ldmatrix that does not begin at a multiple of 16 bytes");
    emulation::Block& state = emulation::state;
    emulation::Barrier& warp = state.warps[threadIdx.x / emulation::WARP_SIZE];
    const int lane = threadIdx.x % emulation::WARP_SIZE, first = threadIdx.x - lane;
    state.rows[threadIdx.x] = row;
    emulation::wait(warp, emulation::WARP_SIZE);
    for (int m = 0; m < 4; ++m)
        std::memcpy(a + m, (const char*)state.rows[first + 8 * m + lane / 4] + lane % 4 * 4, sizeof *a);
    emulation::wait(warp, emulation::WARP_SIZE);
}

template <class T>
static inline T __ldcg(const T* place) {
    emulation::switch_point();
    return *place;
}

static inline unsigned long long atomicAdd(unsigned long long* place, const unsigned long long value) {
    emulation::switch_point();
    const unsigned long long before = __atomic_fetch_add(place, value, __ATOMIC_SEQ_CST);
    emulation::switch_point();
    return before;
}

static inline void add_release(long long* place, const long long value) {
    atomicAdd((unsigned long long*)place, (unsigned long long)value);
}

static inline long long load_acquire(const long long* place) {
    return __atomic_load_n(place, __ATOMIC_SEQ_CST);
}

static inline void __threadfence() {
    emulation::switch_point();
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

static inline void __threadfence_system() {
    __threadfence();
}

static inline void __nanosleep(unsigned) {
    emulation::switch_point(true);
}

#define KERNEL(name, Struct)                                                                                    \
    static void name##_body(const Struct& a);                                                                   \
    static void name##_entry(const void* arguments) {                                                           \
        name##_body(*(const Struct*)arguments);                                                                 \
    }                                                                                                           \
    extern "C" void name(                                                                                       \
        const void* arguments, const long* blocks, int threads, const int* order, int backwards, int fibres,    \
        long shared_bytes, int cooperative, long seed) {                                                        \
        emulation::run(                                                                                         \
            {name##_entry, arguments, blocks, threads, order, backwards, fibres, shared_bytes, seed},           \
            cooperative);                                                                                       \
    }                                                                                                           \
    static void name##_body(const Struct& a)
