// out = weight · x + bias, and what comes after it (`common/after.h`), a column a thread; consecutive columns may share a number of x, of the weight or of the bias.
//
// WIDTH; X_EACH, WEIGHT_EACH, BIAS_EACH, how many columns share a number; HAS_WEIGHT, HAS_BIAS; X_STRIDE, OUT_STRIDE; COUNT, the word
// of the step that says how many rows there are.
#include "common/base.h"
#include "common/after.h"
#include "common/step.h"

kernel void affine(
    device const float *x [[buffer(0)]],
    device const float *weight [[buffer(1)]],
    device const float *bias [[buffer(2)]],
    device float *out [[buffer(3)]],
    device const uint *step [[buffer(4)]],
    device const float *a_of_after [[buffer(5)]],
    device const float *b_of_after [[buffer(6)]],
    uint3 threadgroup_position [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]])
{
    RELEASE_NEXT();
    AWAIT_INPUTS();
    const uint i = threadgroup_position.x * THREADS + thread_index, row = threadgroup_position.y;
    if (i >= WIDTH || row >= step[COUNT]) return;
    float y = x[ulong(row) * X_STRIDE + i / X_EACH];
#if HAS_WEIGHT && HAS_BIAS
    y = fma(weight[i / WEIGHT_EACH], y, bias[i / BIAS_EACH]);
#elif HAS_WEIGHT
    y *= weight[i / WEIGHT_EACH];
#elif HAS_BIAS
    y += bias[i / BIAS_EACH];
#endif
    out[ulong(row) * OUT_STRIDE + i] = AFTER(y, row, i);
}
