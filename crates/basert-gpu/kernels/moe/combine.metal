// The sum of what the experts of each token computed, times the weights of its route: one value of the output a thread.
//
// WIDTH, USED; WEIGHTED, without which it is the plain sum; X_STRIDE, ROUTE_STRIDE, OUT_STRIDE; COUNT, the word of the step that says how many rows there are; ADD, where
// the sum is added to what is there.
#include "common/base.h"
#include "common/step.h"

kernel void combine(
    device const float *x [[buffer(0)]],
    device const float *route [[buffer(1)]],
    device float *out [[buffer(2)]],
    device const uint *step [[buffer(3)]],
    uint3 threadgroup_position [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]])
{
    RELEASE_NEXT();
    AWAIT_INPUTS();
    const uint i = threadgroup_position.x * THREADS + thread_index, row = threadgroup_position.y;
    if (i >= WIDTH || row >= step[COUNT]) return;
    float sum = 0.0f;
    for (uint place = 0; place < USED; ++place) {
        const float value = x[ulong(row) * X_STRIDE + place * WIDTH + i];
#if WEIGHTED
        sum = fma(route[ulong(row) * ROUTE_STRIDE + USED + place], value, sum);
#else
        sum += value;
#endif
    }
#if ADD
    out[ulong(row) * OUT_STRIDE + i] += sum;
#else
    out[ulong(row) * OUT_STRIDE + i] = sum;
#endif
}
