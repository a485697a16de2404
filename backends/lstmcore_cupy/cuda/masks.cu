// Random masks, with the bits of lstmcore/masks.py. One program for each compute format.

#include "block.cuh"

struct Draw {
    long long key_low;           // the seed
    long long key_high;
    long long step;
    long long stream;
    long long limit;             // of words below it the mask has the first value
    Number first;
    Number second;
    long long runs;              // of the mask: all of it, or a row of a step for each
    long long width;             // words of a run, which have consecutive numbers
    const long long* rows;       // (own): the rows' numbers in the whole batch; null: one run, which begins with word 0
    long long own;
    long long whole;             // rows of the whole batch
    real* mask;                  // (runs, width)
};

// One block of Philox4x32-10.
__device__ inline void philox(unsigned counter[4], unsigned key_low, unsigned key_high) {
    for (int round = 0; round < 10; ++round) {
        const unsigned long long a = (unsigned long long)0xD2511F53u * counter[0];
        const unsigned long long b = (unsigned long long)0xCD9E8D57u * counter[2];
        counter[0] = (unsigned)(b >> 32) ^ counter[1] ^ key_low;
        counter[1] = (unsigned)b;
        counter[2] = (unsigned)(a >> 32) ^ counter[3] ^ key_high;
        counter[3] = (unsigned)a;
        key_low += 0x9E3779B9u;
        key_high += 0xBB67AE85u;
    }
}

// A thread for each block of four words that a run has a part of.
KERNEL(draw_mask, Draw) {
    const long long reach = (a.width + 2) / 4 + 1;  // blocks of a run that begins in any lane
    const long long number = (long long)blockIdx.x * blockDim.x + threadIdx.x, run = number / reach;
    if (run >= a.runs) return;
    const long long begin = a.rows ? (run / a.own * a.whole + a.rows[run % a.own]) * a.width : 0;
    const long long block = begin / 4 + number % reach;
    unsigned words[4] = {(unsigned)block, 0, (unsigned)a.step, (unsigned)a.stream};
    philox(words, (unsigned)a.key_low, (unsigned)a.key_high);
#pragma unroll
    for (int lane = 0; lane < 4; ++lane) {
        const long long k = 4 * block + lane - begin;
        if (k >= 0 && k < a.width) a.mask[run * a.width + k] = words[lane] < a.limit ? a.first.value : a.second.value;
    }
}
