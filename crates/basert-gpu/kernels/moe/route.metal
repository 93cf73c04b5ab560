// The experts with the largest scores of each row of x, by a simdgroup: their numbers, and then their weights.
//
// EXPERTS, USED; SIGMOID, where scores are sigmoids and not a softmax; HAS_BIAS, where numbers are added to scores that choose;
// GROUPS of experts, of which those of the GROUPS_USED best are chosen; NORMALISED, where the weights are divided by their sum;
// FACTOR of all weights; X_STRIDE, OUT_STRIDE; COUNT, the word of the step that says how many rows there are.
#include "common/base.h"
#include "common/rank.h"
#include "common/step.h"

#define GROUP (EXPERTS / GROUPS)
// Without biases and groups, logits are in the order of scores.
#define BY_SCORE (HAS_BIAS || GROUPS > 1)

// The score of an expert.
static inline float score_of(float x, float largest, float total) {
#if SIGMOID
    return 1.0f / (1.0f + exp(-x));
#else
    return exp(x - largest) / total;
#endif
}

// What experts are chosen by.
static inline float chosen_by(device const float *x, device const float *bias, uint expert, float largest, float total) {
#if BY_SCORE && HAS_BIAS
    return score_of(x[expert], largest, total) + bias[expert];
#elif BY_SCORE
    return score_of(x[expert], largest, total);
#else
    return x[expert];
#endif
}

kernel void route(
    device const float *x [[buffer(0)]],
    device const float *bias [[buffer(1)]],
    device float *out [[buffer(2)]],
    device const uint *step [[buffer(3)]],
    uint3 threadgroup_position [[threadgroup_position_in_grid]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]])
{
    RELEASE_NEXT();
    AWAIT_INPUTS();
    const uint row = threadgroup_position.x * SIMDGROUPS + simdgroup;
    if (row >= step[COUNT]) return;
    device const float *from = x + ulong(row) * X_STRIDE;
    device float *to = out + ulong(row) * OUT_STRIDE;

    float largest = 0.0f, all = 1.0f;
#if !SIGMOID
    largest = -INFINITY;
    for (uint e = lane; e < EXPERTS; e += 32) largest = max(largest, from[e]);
    largest = simd_max(largest);
#if BY_SCORE || !NORMALISED
    all = 0.0f;
    for (uint e = lane; e < EXPERTS; e += 32) all += exp(from[e] - largest);
    all = simd_sum(all);
#endif
#endif

    // Which groups are open: a bit for each of up to 64.
    ulong open = ~0ul;
#if GROUPS_USED < GROUPS
    open = 0;
    ulong last_group = ~0ul;
    for (uint n = 0; n < GROUPS_USED; ++n) {
        ulong best_group = 0;
        for (uint g = lane; g < GROUPS; g += 32) {
            float best = -INFINITY, second = -INFINITY;
            for (uint e = g * GROUP; e < (g + 1) * GROUP; ++e) {
                const float s = chosen_by(from, bias, e, largest, all);
                second = max(second, min(s, best));
                best = max(best, s);
            }
            const ulong rank = rank_of(GROUP > 1 ? best + second : best, g);
            if (rank < last_group) best_group = max(best_group, rank);
        }
        last_group = simd_max_rank(best_group);
        open |= 1ul << ulong(~uint(last_group & 0xfffffffful));
    }
#endif

    // Each rank is the largest of those below the one before.
    ulong last = ~0ul;
    float total = 0.0f;
    for (uint i = 0; i < USED; ++i) {
        ulong best = 0;
        for (uint e = lane; e < EXPERTS; e += 32) {
            if ((open >> ulong(e / GROUP) & 1ul) == 0ul) continue;
            const ulong rank = rank_of(chosen_by(from, bias, e, largest, all), e);
            if (rank < last) best = max(best, rank);
        }
        last = simd_max_rank(best);
        const uint expert = min(~uint(last & 0xfffffffful), uint(EXPERTS - 1));
#if SIGMOID
        const float weight = score_of(from[expert], largest, all);
#else
        const float weight = exp(from[expert] - largest);
#endif
        total += weight;
        if (lane == 0) {
            to[i] = float(expert);
            to[USED + i] = weight;
        }
    }
#if !NORMALISED
    total = all;
#endif
    if (lane == 0) {
        for (uint i = 0; i < USED; ++i) to[USED + i] = to[USED + i] / total * FACTOR;
    }
}
