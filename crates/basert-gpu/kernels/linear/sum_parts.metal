// The sums of products whose columns were divided (`linear/gemm.metal`), with their epilogue. The matrices of an op have their columns
// side by side.
//
// WIDTH, the columns of all parts; SPLIT, PART_ROWS; COUNT, the word of the step that says how many rows there are; OUT_STRIDE;
// EPILOGUE.
#include "common/base.h"
#define HAS_BIAS 0
#include "common/epilogue.h"
#include "common/step.h"

kernel void sum_parts(
    device const float *parts [[buffer(0)]],
    device float *out [[buffer(1)]],
    device const uint *step [[buffer(2)]],
    uint3 threadgroup_position [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]])
{
    RELEASE_NEXT();
    AWAIT_INPUTS();
    const uint column = 2 * (threadgroup_position.x * THREADS + thread_index), row = threadgroup_position.y;
    if (row >= step[COUNT] || column >= WIDTH) return;
    float a = 0.0f, b = 0.0f;
#pragma unroll
    for (uint part = 0; part < SPLIT; ++part) {
        device const float *from = parts + (ulong(part) * PART_ROWS + row) * WIDTH + column;
        a += from[0];
        if (column + 1 < WIDTH) b += from[1];
    }
    store_pair(out + ulong(row) * OUT_STRIDE, parts, column, WIDTH, a, b);
}
