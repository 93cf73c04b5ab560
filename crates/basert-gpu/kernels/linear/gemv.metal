// out = epilogue(norm(x) · wᵀ) for up to TOKENS rows of x: memory-bound, every weight is read once.
//
// A simdgroup computes ROWS rows of w for all tokens, over its share of the columns where SPLIT simdgroups divide them.
// In each step it takes eight groups of 32 columns; four lanes have a group, eight columns each.
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
    // The first halves of all groups, then the second ones: so that lanes read side by side.
    threadgroup float4 normed[TOKENS * GROUPS * 8];
#endif
    const uint first_row = (threadgroup_position.x * ROW_SETS + simdgroup / SPLIT) * ROWS;
    const uint slice = simdgroup % SPLIT;

    RELEASE_NEXT();
    AWAIT_INPUTS();
    const uint tokens = TOKENS == 1 ? 1 : min(uint(TOKENS), step[COUNT]);
#if NORM
    for (uint t = 0; t < tokens; ++t) {
        device const float4 *row = (device const float4 *)(x + t * X_STRIDE);
        float squares = 0.0f;
        for (uint i = thread_index; i < GROUPS * 8; i += THREADS) squares += dot4(row[i], row[i]);
        const float factor = rsqrt(threadgroup_sum(squares, results, simdgroup, lane) / COLUMNS + NORM_EPS);
        for (uint i = thread_index; i < GROUPS * 8; i += THREADS) {
            const uint to = (i & 4 ? GROUPS * 4 : 0) + (i / 8) * 4 + (i & 3);
            normed[t * GROUPS * 8 + to] = row[i] * factor * ((device const float4 *)norm)[i];
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
#endif

    float sums[ROWS][TOKENS];
#pragma unroll
    for (uint r = 0; r < ROWS; ++r)
#pragma unroll
        for (uint t = 0; t < TOKENS; ++t) sums[r][t] = 0.0f;

    const uint j = lane & 3;
#pragma unroll 2
    for (uint g = slice * 8 + lane / 4; g < GROUPS; g += 8 * SPLIT) {
#if FLOAT_BITS
        float4 low[ROWS], high[ROWS];
#pragma unroll
        for (uint r = 0; r < ROWS; ++r) {
            const ulong group = ulong(min(first_row + r, uint(ROWS_OF_W - 1))) * GROUPS + g;
            low[r] = four_floats(w, group, j);
            high[r] = four_floats(w, group, j + 4);
        }
#else
        uint low[ROWS], high[ROWS];
        float2 scale[ROWS];
#if HALVES == 2
        float2 second[ROWS];
#endif
#pragma unroll
        for (uint r = 0; r < ROWS; ++r) {
            const ulong group = ulong(min(first_row + r, uint(ROWS_OF_W - 1))) * GROUPS + g;
            codes(w, group, j, low[r], high[r]);
            scale[r] = scale_and_min(w, group, 0);
#if HALVES == 2
            second[r] = scale_and_min(w, group, 1);
#endif
        }
#endif
#pragma unroll
        for (uint t = 0; t < TOKENS; ++t) {
#if NORM
            const float4 a = normed[t * GROUPS * 8 + g * 4 + j], b = normed[t * GROUPS * 8 + GROUPS * 4 + g * 4 + j];
#else
            device const float4 *row = (device const float4 *)(x + min(t, tokens - 1) * X_STRIDE);
            const float4 a = row[g * 8 + j], b = row[g * 8 + j + 4];
#endif
#if FLOAT_BITS
#pragma unroll
            for (uint r = 0; r < ROWS; ++r) sums[r][t] += dot4(low[r], a) + dot4(high[r], b);
#else
            const float sum_a = sum4(a), sum_b = sum4(b);
#pragma unroll
            for (uint r = 0; r < ROWS; ++r) {
                const float dot_a = dot4(code_values(low[r]), a), dot_b = dot4(code_values(high[r]), b);
#if HALVES == 2
                sums[r][t] += fma(scale[r].x, dot_a, fma(second[r].x, dot_b, fma(scale[r].y, sum_a, second[r].y * sum_b)));
#else
                sums[r][t] += fma(scale[r].x, dot_a + dot_b, scale[r].y * (sum_a + sum_b));
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
