// The largest rank of each part of each row of logits; 0 where nothing is a candidate. One threadgroup could not read a
// vocabulary as fast as the memory gives it.
//
// VOCABULARY, LOGITS_STRIDE; what STEP_DRAWS says of each row.
#include "common/base.h"
#include "common/step.h"
#include "sample/candidate.h"

kernel void largest(
    device const float *all_logits [[buffer(0)]],
    device const ushort *histories [[buffer(1)]],
    device ulong *largest_ranks [[buffer(2)]],
    device const uint *step [[buffer(3)]],
    uint3 threadgroup_position [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]])
{
    threadgroup ulong partial[SIMDGROUPS];
    RELEASE_NEXT();
    AWAIT_INPUTS();
    const uint part = threadgroup_position.x, row = threadgroup_position.y;
    if (row >= step[STEP_COUNT_WANTED]) return;
    const draw d = draw_of(step, row);
    device const float *logits = all_logits + ulong(row) * LOGITS_STRIDE;
    device const ushort *history = histories + history_of(d, step, row);
    device const uint *mask = mask_of(step, row);

    ulong best = 0;
#pragma unroll 8
    for (uint token = part * THREADS + thread_index; token < VOCABULARY; token += LARGEST_PARTS * THREADS) {
        const float x = candidate(d, logits, history, mask, token);
        if (x > -INFINITY) best = max(best, rank_of(x, token));
    }
    best = threadgroup_max(best, partial, simdgroup, lane);
    if (thread_index == 0) largest_ranks[row * LARGEST_PARTS + part] = best;
}
