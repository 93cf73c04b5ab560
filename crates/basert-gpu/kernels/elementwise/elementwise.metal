// One value of the output a thread: out = f(a, b), and what comes after it (`common/after.h`).
//
// WIDTH, A_STRIDE, B_STRIDE, OUT_STRIDE; B_TIMES, the columns of a that share one of b; COUNT, the word of the step that says how many rows there are; FUNCTION, and what it needs.
#include "common/base.h"
#include "common/after.h"
#include "common/step.h"

#define FUNCTION_SLICE 0     // column FIRST + i of a
#define FUNCTION_SELECT 1    // row STEP_WANTED[i] of a
#define FUNCTION_ADD 2
#define FUNCTION_MUL 3
#define FUNCTION_SCALE 4     // FACTOR · a
#define FUNCTION_SOFT_CAP 5  // CAP · tanh(a / CAP)
#define FUNCTION_ACTIVATE 6  // ACTIVATION(a)
#define FUNCTION_GATE 7      // ACTIVATION(a) · OTHER(b)
#define FUNCTION_TEMPER 8    // a · (1 + FACTOR · ln(1 + ⌊(position + OFFSET) / EVERY⌋))

kernel void elementwise(
    device const float *a [[buffer(0)]],
    device const float *b [[buffer(1)]],
    device float *out [[buffer(2)]],
    device const uint *step [[buffer(3)]],
    device const float *a_of_after [[buffer(4)]],
    device const float *b_of_after [[buffer(5)]],
    uint3 threadgroup_position [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]])
{
    RELEASE_NEXT();
    AWAIT_INPUTS();
    const uint i = threadgroup_position.x * THREADS + thread_index, row = threadgroup_position.y;
    if (i >= WIDTH || row >= step[COUNT]) return;
#if FUNCTION == FUNCTION_SELECT
    const float x = a[ulong(step[STEP_WANTED + row]) * A_STRIDE + i];
#elif FUNCTION == FUNCTION_SLICE
    const float x = a[ulong(row) * A_STRIDE + FIRST + i];
#else
    const float x = a[ulong(row) * A_STRIDE + i];
#endif
#if FUNCTION == FUNCTION_ADD
    const float y = x + b[ulong(row) * B_STRIDE + i];
#elif FUNCTION == FUNCTION_MUL
    const float y = x * b[ulong(row) * B_STRIDE + i / B_TIMES];
#elif FUNCTION == FUNCTION_SCALE
    const float y = FACTOR * x;
#elif FUNCTION == FUNCTION_TEMPER
    const uint steps = (step[STEP_POSITIONS + row] + OFFSET) / EVERY;
    const float y = x * (1.0f + FACTOR * log(1.0f + float(steps)));
#elif FUNCTION == FUNCTION_SOFT_CAP
    const float y = CAP * tanh(x / CAP);
#elif FUNCTION == FUNCTION_ACTIVATE
    const float y = ACTIVATION(x);
#elif FUNCTION == FUNCTION_GATE
    const float y = ACTIVATION(x) * OTHER(b[ulong(row) * B_STRIDE + i]);
#else
    const float y = x;
#endif
    out[ulong(row) * OUT_STRIDE + i] = AFTER(y, row, i);
}
