// Puts the parts of an attention over a divided context together: a threadgroup for each head of each token.
#include "common/base.h"
#include "common/step.h"
#include "common/attention.h"

kernel void attention_combine(
    device const float *partial [[buffer(0)]],
    device float *out [[buffer(1)]],
    device const uint *step [[buffer(2)]],
    device const float *sinks [[buffer(3)]],
    uint3 threadgroup_position [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]])
{
    threadgroup float factors[SPLITS];
    RELEASE_NEXT();
    AWAIT_INPUTS();
    const uint head = threadgroup_position.x, row = threadgroup_position.y;
    if (row >= step[STEP_COUNT_TOKENS]) return;
    const uint parts = parts_of_context(step[STEP_POSITIONS + row]);
    if (parts == 1) return;
    device const float *from = partial + (ulong(row) * Q_HEADS + head) * SPLITS * (HEAD_DIM + 2);

    // Each lane looks at some parts, in every simdgroup.
    float most = -INFINITY, total = 0.0f;
    for (uint p = lane; p < parts; p += 32) most = max(most, from[p * (HEAD_DIM + 2) + HEAD_DIM]);
    most = simd_max(most);
#if SINKS
    most = max(most, sinks[head]);
#endif
    for (uint p = lane; p < parts; p += 32) {
        device const float *of_part = from + p * (HEAD_DIM + 2) + HEAD_DIM;
        const float factor = exp(of_part[0] - most);
        total = fma(of_part[1], factor, total);
        if (simdgroup == 0) factors[p] = factor;
    }
    total = simd_sum(total);
#if SINKS
    total += exp(sinks[head] - most);
#endif
    threadgroup_barrier(mem_flags::mem_threadgroup);

    for (uint d = thread_index; d < HEAD_DIM; d += THREADS) {
        float x = 0.0f;
#pragma unroll 8
        for (uint p = 0; p < parts; ++p) x = fma(from[p * (HEAD_DIM + 2) + d], factors[p], x);
        out[ulong(row) * OUT_STRIDE + head * HEAD_DIM + d] = x / total;
    }
}
