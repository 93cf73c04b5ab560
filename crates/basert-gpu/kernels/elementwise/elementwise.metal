// One value of the output a thread: out = f(a, b).
//
// WIDTH, A_STRIDE, B_STRIDE, OUT_STRIDE; COUNT, the word of the step that says how many rows there are.
#include "common/base.h"
#include "common/step.h"

#define FUNCTION_ADD 0
#define FUNCTION_SILU 1      // silu(a) · b
#define FUNCTION_GELU 2      // gelu(a) · b
#define FUNCTION_SOFT_CAP 3  // CAP · tanh(a / CAP)
#define FUNCTION_SELECT 4    // row STEP_WANTED[i] of a
#define FUNCTION_CLAMPED_SWISH 5

kernel void elementwise(
    device const float *a [[buffer(0)]],
    device const float *b [[buffer(1)]],
    device float *out [[buffer(2)]],
    device const uint *step [[buffer(3)]],
    uint3 threadgroup_position [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]])
{
    RELEASE_NEXT();
    AWAIT_INPUTS();
    const uint i = threadgroup_position.x * THREADS + thread_index, row = threadgroup_position.y;
    if (i >= WIDTH || row >= step[COUNT]) return;
#if FUNCTION == FUNCTION_SELECT
    const float x = a[ulong(step[STEP_WANTED + row]) * A_STRIDE + i];
    out[ulong(row) * OUT_STRIDE + i] = x;
#else
    const float x = a[ulong(row) * A_STRIDE + i];
#if FUNCTION == FUNCTION_ADD
    out[ulong(row) * OUT_STRIDE + i] = x + b[ulong(row) * B_STRIDE + i];
#elif FUNCTION == FUNCTION_SILU
    out[ulong(row) * OUT_STRIDE + i] = silu(x) * b[ulong(row) * B_STRIDE + i];
#elif FUNCTION == FUNCTION_GELU
    out[ulong(row) * OUT_STRIDE + i] = gelu(x) * b[ulong(row) * B_STRIDE + i];
#elif FUNCTION == FUNCTION_CLAMPED_SWISH
    out[ulong(row) * OUT_STRIDE + i] = clamped_swish(x, b[ulong(row) * B_STRIDE + i]);
#else
    out[ulong(row) * OUT_STRIDE + i] = CAP * tanh(x / CAP);
#endif
#endif
}
