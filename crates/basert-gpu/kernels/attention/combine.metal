// Puts the parts of an attention over a divided context together, of which there are at most MOST_PARTS: a threadgroup for
// each head of each token.
//
// Q_HEADS, HEAD_DIM, HEAD_VALUES, OUT_STRIDE; SINKS.
#include "common/base.h"
#include "common/step.h"
#include "attention/parts.h"

kernel void attention_combine(
    device const float *partial [[buffer(0)]],
    device float *out [[buffer(1)]],
    device const uint *step [[buffer(2)]],
    device const float *sinks [[buffer(3)]],
    uint3 threadgroup_position [[threadgroup_position_in_grid]],
    uint3 threadgroups [[threadgroups_per_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]])
{
    threadgroup float factors[MOST_PARTS];
    RELEASE_NEXT();
    AWAIT_INPUTS();
    const uint head = threadgroup_position.x, row = threadgroup_position.y;
    if (row >= step[STEP_COUNT_TOKENS]) return;
    device const float *from = partial + (ulong(row) * Q_HEADS + head) * PART_FLOATS;
    const ulong next = ulong(threadgroups.y) * Q_HEADS * PART_FLOATS;
    const uint parts = uint(from[PART_COUNT]);
    if (parts == 1) return;

    // Each lane looks at some parts, in every simdgroup.
    float most = -INFINITY, total = 0.0f;
    for (uint p = lane; p < parts; p += 32) most = max(most, from[p * next + PART_LARGEST]);
    most = simd_max(most);
#if SINKS
    most = max(most, sinks[head]);
#endif
    for (uint p = lane; p < parts; p += 32) {
        const float factor = exp(from[p * next + PART_LARGEST] - most);
        total = fma(from[p * next + PART_WEIGHT], factor, total);
        if (simdgroup == 0) factors[p] = factor;
    }
    total = simd_sum(total);
#if SINKS
    total += exp(sinks[head] - most);
#endif
    threadgroup_barrier(mem_flags::mem_threadgroup);

    for (uint d = thread_index; d < HEAD_VALUES; d += THREADS) {
        float x = 0.0f;
#pragma unroll 8
        for (uint p = 0; p < parts; ++p) x = fma(from[p * next + d], factors[p], x);
        out[ulong(row) * OUT_STRIDE + head * HEAD_VALUES + d] = x / total;
    }
}
