// Each group of values of x through RMSNorm, by a threadgroup: x / √(mean(x²) + eps) · weight. Or through LayerNorm: the same of
// x − mean(x), and a bias added. To floats what comes after it (`common/after.h`) is applied.
//
// WIDTH of a group; GROUPS of a row, and OF_GROUPS, where each has weights of its own; X_STRIDE, OUT_STRIDE; COUNT, the word of the step that says how many rows there are; NORM, without which x is
// stored as it is; NORM_EPS; CENTRED, where the mean is subtracted; HAS_WEIGHT; HAS_BIAS; ADD, where the result is added to what is there; OUTPUT, what it is stored as, and for bytes
// SCALES_OF_X_AT, where their scales begin; EACH, the rows for each that is counted, where there may be several; PADDED, where zeros
// follow a row of floats up to OUT_STRIDE.
#include "common/base.h"
#include "common/after.h"
#include "common/quantise.h"
#include "common/step.h"
#include "common/strips.h"

#define OUTPUT_FLOATS 0
#define OUTPUT_HALVES 1
#define OUTPUT_BYTES 2

kernel void row_norm(
    device const float *x [[buffer(0)]],
    device const float *weight [[buffer(1)]],
    device uchar *out [[buffer(2)]],
    device const float *bias [[buffer(3)]],
    device const uint *step [[buffer(4)]],
    device const float *a_of_after [[buffer(5)]],
    device const float *b_of_after [[buffer(6)]],
    uint3 threadgroup_position [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]])
{
    threadgroup float partial[SIMDGROUPS];
    RELEASE_NEXT();
    AWAIT_INPUTS();
    const uint row = threadgroup_position.x / GROUPS, group = threadgroup_position.x % GROUPS;
#ifdef EACH
    if (row / EACH >= step[COUNT]) return;
#else
    if (row >= step[COUNT]) return;
#endif
    device const float *from = x + ulong(row) * X_STRIDE + group * WIDTH;
    const uint of_group = OF_GROUPS ? group * WIDTH : 0;
    float factor = 1.0f, mean = 0.0f;
#if NORM && CENTRED
    float sum = 0.0f;
    for (uint i = thread_index; i < WIDTH; i += THREADS) sum += from[i];
    mean = threadgroup_sum(sum, partial, simdgroup, lane) / WIDTH;
#endif
#if NORM
    float squares = 0.0f;
    for (uint i = thread_index; i < WIDTH; i += THREADS) {
        const float x = from[i] - mean;
        squares = fma(x, x, squares);
    }
    factor = rsqrt(threadgroup_sum(squares, partial, simdgroup, lane) / WIDTH + NORM_EPS);
#endif
#if OUTPUT == OUTPUT_BYTES
    for (uint first = 0; first < WIDTH / 4; first += THREADS) {
        // Whole groups of lanes take part, all of them in the shuffles.
        const uint i = first + thread_index;
        float4 four = float4(0.0f);
        if (i < WIDTH / 4) {
            four = (((device const float4 *)from)[i] - float4(mean)) * factor;
#if HAS_WEIGHT
            four = four * ((device const float4 *)weight)[i];
#endif
#if HAS_BIAS
            four = four + ((device const float4 *)bias)[i];
#endif
        }
        float scale;
        const uint word = quantise(four, scale);
        if (i < WIDTH / 4) {
            ((device uint *)out)[ulong(row) * (WIDTH / 4) + i / 8 * 8 + place_of_word(i % 8)] = word;
            if (i % 8 == 0) ((device float *)(out + SCALES_OF_X_AT))[ulong(row) * (WIDTH / 32) + i / 8] = scale;
        }
    }
#else
    for (uint i = thread_index; i < (WIDTH + 1) / 2; i += THREADS) {
        // The last value of an odd number has nothing beside it.
        const uint second = WIDTH % 2 == 0 || 2 * i + 1 < WIDTH ? 1 : 0;
        float a = from[2 * i] - mean, b = from[2 * i + second] - mean;
#if HAS_WEIGHT
        a *= factor * weight[of_group + 2 * i];
        b *= factor * weight[of_group + 2 * i + second];
#elif NORM
        a *= factor;
        b *= factor;
#endif
#if HAS_BIAS
        a += bias[of_group + 2 * i];
        b += bias[of_group + 2 * i + second];
#endif
#if OUTPUT == OUTPUT_HALVES
        ((device uint *)out)[strip_at(row, 2 * i, STRIPS(WIDTH)) / 2] = two_halves(a, second ? b : 0.0f);
#else
        device float *to = (device float *)out + ulong(row) * OUT_STRIDE + group * WIDTH + 2 * i;
#if ADD
        to[0] += a;
        if (second) to[1] += b;
#else
        to[0] = AFTER(a, row, group * WIDTH + 2 * i);
        if (second) to[1] = AFTER(b, row, group * WIDTH + 2 * i + 1);
#endif
#endif
    }
#if OUTPUT == OUTPUT_HALVES
    for (uint i = (WIDTH + 1) / 2 + thread_index; i < STRIPS(WIDTH) * STRIP / 2; i += THREADS) {
        ((device uint *)out)[strip_at(row, 2 * i, STRIPS(WIDTH)) / 2] = 0;
    }
#endif
#ifdef PADDED
    for (uint i = WIDTH + thread_index; i < OUT_STRIDE; i += THREADS) ((device float *)out)[ulong(row) * OUT_STRIDE + i] = 0.0f;
#endif
#endif
}
