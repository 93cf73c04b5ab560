// The experts with the largest softmax of each row of x, by a simdgroup: their numbers, and then their weights.
//
// EXPERTS, USED; NORMALISED, where the weights are divided by their sum; X_STRIDE, OUT_STRIDE; COUNT, the word of the step
// that says how many rows there are.
#include "common/base.h"
#include "common/rank.h"
#include "common/step.h"

kernel void route(
    device const float *x [[buffer(0)]],
    device float *out [[buffer(1)]],
    device const uint *step [[buffer(2)]],
    uint3 threadgroup_position [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]])
{
    RELEASE_NEXT();
    AWAIT_INPUTS();
    const uint row = threadgroup_position.x * SIMDGROUPS + simdgroup;
    if (row >= step[COUNT]) return;
    device const float *from = x + ulong(row) * X_STRIDE;
    device float *to = out + ulong(row) * OUT_STRIDE;

    // Each rank is the largest of those below the one before.
    ulong last = ~0ul;
    float largest = 0.0f, total = 0.0f;
    for (uint i = 0; i < USED; ++i) {
        ulong best = 0;
        for (uint e = lane; e < EXPERTS; e += 32) {
            const ulong rank = rank_of(from[e], e);
            if (rank < last) best = max(best, rank);
        }
        last = simd_max_rank(best);
        if (i == 0) largest = value_of(last);
        const float weight = exp(value_of(last) - largest);
        total += weight;
        if (lane == 0) {
            to[i] = float(~uint(last & 0xfffffffful));
            to[USED + i] = weight;
        }
    }
#if !NORMALISED
    total = 0.0f;
    for (uint e = lane; e < EXPERTS; e += 32) total += exp(from[e] - largest);
    total = simd_sum(total);
#endif
    if (lane == 0) {
        for (uint i = 0; i < USED; ++i) to[USED + i] = to[USED + i] / total;
    }
}
