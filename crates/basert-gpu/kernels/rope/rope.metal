// Rotates heads by the positions of their tokens, a simdgroup one head of one token.
//
// HEADS of HEAD_DIM, as many as HEAD_VALUES; X_STRIDE, OUT_STRIDE.
#include "common/base.h"
#define Q_NORM 0
#define K_NORM 0
#include "common/rope.h"
#include "common/step.h"

kernel void rope(
    device const float *x [[buffer(0)]],
    device const float *frequencies [[buffer(1)]],
    device float *out [[buffer(2)]],
    device const uint *step [[buffer(3)]],
    uint3 threadgroup_position [[threadgroup_position_in_grid]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]])
{
    threadgroup float heads[SIMDGROUPS * HEAD_DIM];
    RELEASE_NEXT();
    AWAIT_INPUTS();
    const uint head = threadgroup_position.x * SIMDGROUPS + simdgroup, row = threadgroup_position.y;
    if (head >= HEADS || row >= step[STEP_COUNT_TOKENS]) return;
    threadgroup float *values = heads + simdgroup * HEAD_DIM;
    take_head(x + ulong(row) * X_STRIDE + head * HEAD_VALUES, x, false, 0.0f, values, lane);
    rotate_head(frequencies, step[STEP_POSITIONS + row], values, lane);
    device float *to = out + ulong(row) * OUT_STRIDE + head * HEAD_VALUES;
    for (uint i = lane; i < HEAD_VALUES; i += 32) to[i] = values[i];
}
