// Norms and rotates the heads of q and k, and puts k and v into the cache. A simdgroup has one head of one token: heads
// of q first, then those of k, then those of v.
//
// Q_HEADS, KV_HEADS; Q_STRIDE, K_STRIDE, V_STRIDE, OUT_STRIDE.
#include "common/base.h"
#include "common/kv.h"
#include "common/rope.h"
#include "common/step.h"

#define HEADS (Q_HEADS + 2 * KV_HEADS)

kernel void rope_cache(
    device const float *q [[buffer(0)]],
    device const float *k [[buffer(1)]],
    device const float *v [[buffer(2)]],
    device const float *q_norm [[buffer(3)]],
    device const float *k_norm [[buffer(4)]],
    device const float *frequencies [[buffer(5)]],
    device float *out [[buffer(6)]],
    device uchar *cache [[buffer(7)]],
    device const uint *step [[buffer(8)]],
    uint3 threadgroup_position [[threadgroup_position_in_grid]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]])
{
    threadgroup float heads[SIMDGROUPS * HEAD_DIM];
    RELEASE_NEXT();
    AWAIT_INPUTS();
    const uint head = threadgroup_position.x * SIMDGROUPS + simdgroup, row = threadgroup_position.y;
    if (head >= HEADS || row >= step[STEP_COUNT_TOKENS]) return;
    const bool is_q = head < Q_HEADS, is_v = head >= Q_HEADS + KV_HEADS;
    const uint of_kv = is_v ? head - Q_HEADS - KV_HEADS : head - Q_HEADS;
    device const float *from = is_q   ? q + ulong(row) * Q_STRIDE + head * HEAD_VALUES
                               : is_v ? v + ulong(row) * V_STRIDE + of_kv * HEAD_VALUES
                                      : k + ulong(row) * K_STRIDE + of_kv * HEAD_VALUES;
    threadgroup float *values = heads + simdgroup * HEAD_DIM;

    take_head(from, is_q ? q_norm : k_norm, is_q ? Q_NORM : !is_v && K_NORM, is_q ? Q_EPS : K_EPS, values, lane);
    if (!is_v) rotate_head(frequencies, step[STEP_POSITIONS + row], values, lane);
    if (is_q) {
        device float *to = out + ulong(row) * OUT_STRIDE + head * HEAD_VALUES;
        for (uint i = lane; i < HEAD_VALUES; i += 32) to[i] = values[i];
        return;
    }
    const uint place = step[STEP_PLACES + row];
    keep_head(values, cache + kv_keys(place / PAGE, of_kv) + (is_v ? KV_PART : 0), place % PAGE, lane);
}
