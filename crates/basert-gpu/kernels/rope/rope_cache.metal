// Norms and rotates the heads of q and k, and puts k and v into the cache. A simdgroup has one head of one token: heads
// of q first, then those of k, then those of v.
//
// Q_HEADS, KV_HEADS, HEAD_DIM; ROTATED dimensions, in pairs (i, i + ROTATED / 2), or (2i, 2i + 1) where INTERLEAVED;
// Q_STRIDE, K_STRIDE, V_STRIDE, OUT_STRIDE; Q_NORM and Q_EPS, K_NORM and K_EPS, where heads are normed first.
#include "common/base.h"
#include "common/kv.h"
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
    device const float *from = is_q   ? q + ulong(row) * Q_STRIDE + head * HEAD_DIM
                               : is_v ? v + ulong(row) * V_STRIDE + of_kv * HEAD_DIM
                                      : k + ulong(row) * K_STRIDE + of_kv * HEAD_DIM;
    threadgroup float *values = heads + simdgroup * HEAD_DIM;

    float squares = 0.0f;
    for (uint i = lane; i < HEAD_DIM; i += 32) squares = fma(from[i], from[i], squares);
    squares = simd_sum(squares);
    for (uint i = lane; i < HEAD_DIM; i += 32) {
        float x = from[i];
#if Q_NORM
        if (is_q) x *= rsqrt(squares / HEAD_DIM + Q_EPS) * q_norm[i];
#endif
#if K_NORM
        if (!is_q && !is_v) x *= rsqrt(squares / HEAD_DIM + K_EPS) * k_norm[i];
#endif
        values[i] = x;
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);

    if (!is_v) {
        const float position = float(step[STEP_POSITIONS + row]);
        for (uint pair = lane; pair < ROTATED / 2; pair += 32) {
#if INTERLEAVED
            const uint first = 2 * pair, second = 2 * pair + 1;
#else
            const uint first = pair, second = pair + ROTATED / 2;
#endif
            const float angle = position * frequencies[pair], cosine = cos(angle), sine = sin(angle);
            const float x = values[first], y = values[second];
            values[first] = x * cosine - y * sine;
            values[second] = x * sine + y * cosine;
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
    }

    if (is_q) {
        device float *to = out + ulong(row) * OUT_STRIDE + head * HEAD_DIM;
        for (uint i = lane; i < HEAD_DIM; i += 32) to[i] = values[i];
        return;
    }
    const uint slot = step[STEP_SLOTS + row], token = slot % PAGE;
    device uchar *part = cache + kv_keys(slot / PAGE, of_kv) + (is_v ? KV_PART : 0);
#if KV_BITS == 16
    for (uint i = lane; i < HEAD_DIM / 2; i += 32) {
        ((device uint *)part)[token * (HEAD_DIM / 2) + i] = two_halves(values[2 * i], values[2 * i + 1]);
    }
#else
    for (uint block = 0; block < HEAD_DIM / 32; ++block) {
        const float x = values[block * 32 + lane];
        const float largest = simd_max(abs(x));
#if KV_BITS == 8
        const float scale = largest / 127.0f;
        const int code = scale > 0.0f ? int(rint(x / scale)) : 0;
        part[token * HEAD_DIM + block * 32 + lane] = uchar(code & 255);
#else
        // The value of the largest magnitude is −8 steps; of two of one magnitude, the first.
        const float signed_largest = simd_max(abs(x) == largest ? x : -largest);
        const float scale = signed_largest / -8.0f;
        const uint code = scale != 0.0f ? uint(clamp(int(floor(x / scale + 8.5f)), 0, 15)) : 8;
        const uint other = simd_shuffle_xor(code, 16);
        if (lane < 16) part[token * (HEAD_DIM / 2) + block * 16 + lane] = uchar(code | (other << 4));
#endif
        if (lane == 0) ((device half *)(part + KV_SCALES_AT))[token * (HEAD_DIM / 32) + block] = to_half(scale);
    }
#endif
}
