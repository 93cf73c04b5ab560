// out = epilogue(norm(x) · wᵀ) for up to TOKENS rows of x: memory-bound, every weight is read once.
//
// A simdgroup computes ROWS rows of w for all tokens, over its share of the columns where SPLIT simdgroups divide them.
// In each step it takes sixteen groups of 32 columns, two lanes each; what the next step needs of w is on its way by then.
//
// ROWS_OF_W, COLUMNS, ROWS (an even number), SPLIT, TOKENS; COUNT, the word of the step that says how many rows of x there are;
// X_STRIDE, OUT_STRIDE; EPILOGUE; HAS_BIAS; NORM and NORM_EPS, where x is normed first.
#include "common/base.h"
#include "common/epilogue.h"
#include "common/format.h"
#include "common/step.h"

#define GROUPS (COLUMNS / 32)
#define ROW_SETS (SIMDGROUPS / SPLIT)
#define OUTPUTS (ROWS * TOKENS)

struct brought {
    weight_bits bits[ROWS];
    uint4 scales[ROWS];
};

static inline void bring(thread brought &b, device const uchar *w, uint first_row, uint g, uint q) {
#pragma unroll
    for (uint r = 0; r < ROWS; ++r) {
        const ulong group = ulong(min(first_row + r, uint(ROWS_OF_W - 1))) * GROUPS + g;
        b.bits[r] = bits_of(w, group, q);
        b.scales[r] = scales_of(w, group);
    }
}

// Where four columns of a row of x lie among those that are normed: those that lanes read at once side by side.
static inline uint place(uint four) {
    const uint g = four / 8, word = four % 8;
    return (word / 4 * 2 + word % 2) * (GROUPS * 2) + g * 2 + word / 2 % 2;
}

kernel void gemv(
    device const uchar *w [[buffer(0)]],
    device const float *x [[buffer(1)]],
    device float *out [[buffer(2)]],
    device const float *bias [[buffer(3)]],
    device const float *norm [[buffer(4)]],
    device const uint *step [[buffer(5)]],
    uint3 threadgroup_position [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]])
{
    threadgroup float results[SIMDGROUPS * OUTPUTS];
#if NORM
    threadgroup float4 normed[TOKENS * GROUPS * 8];
#endif
    const uint first_row = (threadgroup_position.x * ROW_SETS + simdgroup / SPLIT) * ROWS;
    const uint q = lane & 1;
    uint g = simdgroup % SPLIT * 16 + lane / 2;
    const uint sub = g % 8;

    RELEASE_NEXT();
    // Weights are there before any input is.
    brought next;
    if (g < GROUPS) bring(next, w, first_row, g, q);
    AWAIT_INPUTS();
    const uint tokens = TOKENS == 1 ? 1 : min(uint(TOKENS), step[COUNT]);
#if NORM
    for (uint t = 0; t < tokens; ++t) {
        device const float4 *row = (device const float4 *)(x + t * X_STRIDE);
        float squares = 0.0f;
        for (uint i = thread_index; i < GROUPS * 8; i += THREADS) squares += dot4(row[i], row[i]);
        const float factor = rsqrt(threadgroup_sum(squares, results, simdgroup, lane) / COLUMNS + NORM_EPS);
        for (uint i = thread_index; i < GROUPS * 8; i += THREADS) {
            normed[t * GROUPS * 8 + place(i)] = row[i] * factor * ((device const float4 *)norm)[i];
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
#endif

    float sums[ROWS][TOKENS];
#pragma unroll
    for (uint r = 0; r < ROWS; ++r)
#pragma unroll
        for (uint t = 0; t < TOKENS; ++t) sums[r][t] = 0.0f;

    while (g < GROUPS) {
        const brought now = next;
        const uint at = g;
        g += 16 * SPLIT;
        if (g < GROUPS) bring(next, w, first_row, g, q);
#pragma unroll
        for (uint t = 0; t < TOKENS; ++t) {
            float4 v[4];
#pragma unroll
            for (uint i = 0; i < 4; ++i) {
#if NORM
                v[i] = normed[t * GROUPS * 8 + i * (GROUPS * 2) + at * 2 + q];
#else
                v[i] = ((device const float4 *)(x + min(t, tokens - 1) * X_STRIDE))[at * 8 + 2 * q + i % 2 + i / 2 * 4];
#endif
            }
#if FLOAT_BITS
#pragma unroll
            for (uint r = 0; r < ROWS; ++r) {
                const sixteen values = values_of(now.bits[r], now.scales[r], sub, q);
#pragma unroll
                for (uint i = 0; i < 4; ++i) sums[r][t] += dot4(values.v[i], v[i]);
            }
#else
            const float sum_a = sum4(v[0]) + sum4(v[1]), sum_b = sum4(v[2]) + sum4(v[3]);
#pragma unroll
            for (uint r = 0; r < ROWS; ++r) {
                const uint4 words = words_of(now.bits[r], q);
                const float2 scale = scale_and_min(now.scales[r], sub, 0);
                const float dot_a = dot4(code_values(words.x), v[0]) + dot4(code_values(words.y), v[1]);
                const float dot_b = dot4(code_values(words.z), v[2]) + dot4(code_values(words.w), v[3]);
#if HALVES == 2
                const float2 second = scale_and_min(now.scales[r], sub, 1);
                sums[r][t] += fma(scale.x, dot_a, fma(second.x, dot_b, fma(scale.y, sum_a, second.y * sum_b)));
#else
                sums[r][t] += fma(scale.x, dot_a + dot_b, scale.y * (sum_a + sum_b));
#endif
            }
#endif
        }
    }

#pragma unroll
    for (uint r = 0; r < ROWS; ++r) {
#pragma unroll
        for (uint t = 0; t < TOKENS; ++t) {
            const float sum = simd_sum(sums[r][t]);
            if (lane == 0) results[simdgroup * OUTPUTS + t * ROWS + r] = sum;
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);

    for (uint i = thread_index; i < ROW_SETS * OUTPUTS / 2; i += THREADS) {
        const uint set = i / (OUTPUTS / 2), t = i % (OUTPUTS / 2) / (ROWS / 2), r = i % (ROWS / 2) * 2;
        const uint row = (threadgroup_position.x * ROW_SETS + set) * ROWS + r;
        if (row >= ROWS_OF_W || t >= tokens) continue;
        float a = 0.0f, b = 0.0f;
        for (uint part = 0; part < SPLIT; ++part) {
            a += results[(set * SPLIT + part) * OUTPUTS + t * ROWS + r];
            b += results[(set * SPLIT + part) * OUTPUTS + t * ROWS + r + 1];
        }
        store_pair(out + t * OUT_STRIDE, bias, row, ROWS_OF_W, a, b);
    }
}
