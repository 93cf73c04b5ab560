// Puts keys and values into the cache. A simdgroup has one head of one token: heads of k first, then those of v.
//
// KV_HEADS; K_STRIDE, V_STRIDE.
#include "common/base.h"
#include "common/kv.h"
#define Q_NORM 0
#define K_NORM 0
#define ROTATED 0
#define INTERLEAVED 0
#define MAGNITUDE 1.0f
#include "common/rope.h"
#include "common/step.h"

kernel void store(
    device const float *k [[buffer(0)]],
    device const float *v [[buffer(1)]],
    device uchar *cache [[buffer(2)]],
    device const uint *step [[buffer(3)]],
    uint3 threadgroup_position [[threadgroup_position_in_grid]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]])
{
    threadgroup float heads[SIMDGROUPS * HEAD_DIM];
    RELEASE_NEXT();
    AWAIT_INPUTS();
    const uint head = threadgroup_position.x * SIMDGROUPS + simdgroup, row = threadgroup_position.y;
    if (head >= 2 * KV_HEADS || row >= step[STEP_COUNT_TOKENS]) return;
    const bool is_v = head >= KV_HEADS;
    const uint of_kv = is_v ? head - KV_HEADS : head;
    device const float *from = is_v ? v + ulong(row) * V_STRIDE + of_kv * HEAD_VALUES
                                    : k + ulong(row) * K_STRIDE + of_kv * HEAD_VALUES;
    threadgroup float *values = heads + simdgroup * HEAD_DIM;
    take_head(from, from, false, 0.0f, values, lane);
    const uint place = step[STEP_PLACES + row];
    keep_head(values, cache + kv_keys(place / PAGE, of_kv) + (is_v ? KV_PART : 0), place % PAGE, lane);
}
