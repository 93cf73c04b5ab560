// The input of each expert that a token uses: x times its weight in the route, side by side. One value of the output a thread.
//
// WIDTH of x, USED; X_STRIDE, ROUTE_STRIDE, OUT_STRIDE; COUNT, the word of the step that says how many rows there are.
#include "common/base.h"
#include "common/step.h"

kernel void weigh(
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
    if (i >= WIDTH * USED || row >= step[COUNT]) return;
    const float weight = route[ulong(row) * ROUTE_STRIDE + USED + i / WIDTH];
    out[ulong(row) * OUT_STRIDE + i] = weight * x[ulong(row) * X_STRIDE + i % WIDTH];
}
