// Attention of single tokens over a part of their context.
//
// A threadgroup has one token, HEADS query heads that share a head of keys, and one part of the context. Eight lanes
// have a token of the context at a time, and keep a running softmax of their own, which are put together at the end.
// Where ON_TILES is set, all heads that share keys are taken together, 16 at most, and their products are those of matrices: a simdgroup
// has 16 tokens of the context at a time. Queries and weights are rounded to halves then.
//
// There are at most as many parts as threadgroups one behind the other, of whole pages, and none is shorter than LEAST_SPLIT
// tokens. A result of more than one part goes to `partial` instead.
//
// Where ROPE is set, each token is the only one of its sequence in the step, and what `rope_cache` does is done here: by
// whoever has the last part of the context, as far as the cache is concerned. K_STRIDE, V_STRIDE.
#include "common/base.h"
#include "common/step.h"
#include "common/attention.h"
#include "attention/parts.h"
#include "common/tile.h"
#if ROPE
#include "common/rope.h"
#endif

#define CHUNKS ((HEAD_DIM + 63) / 64)  // eight values each, of a lane
#define HAS(c) ((c) * 64 + l * 8 < HEAD_DIM)
#define STATES (SIMDGROUPS * 4)   // sets of eight lanes
#if ROPE
#define FOUR_OF(head, i) head[i]
#else
#define FOUR_OF(head, i) four_of_head(head, i)
#endif
#define HEAD_SETS ((GROUP + HEADS - 1) / HEADS)

kernel void attention_decode(
    device const float *q [[buffer(0)]],
    device uchar *cache [[buffer(1)]],
    device float *out [[buffer(2)]],
    device float *partial [[buffer(3)]],
    device const uint *step [[buffer(4)]],
    device const float *k [[buffer(5)]],
    device const float *v [[buffer(6)]],
    device const float *q_norm [[buffer(7)]],
    device const float *k_norm [[buffer(8)]],
    device const float *frequencies [[buffer(9)]],
    device const float *sinks [[buffer(10)]],
    uint3 threadgroup_position [[threadgroup_position_in_grid]],
    uint3 threadgroups [[threadgroups_per_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]])
{
    threadgroup float sums[SIMDGROUPS * HEADS * HEAD_DIM];
    threadgroup float largest[SIMDGROUPS * HEADS];
    threadgroup float weights[SIMDGROUPS * HEADS];
#if ON_TILES
    threadgroup half queries[16 * HEAD_DIM];
    threadgroup half shares[SIMDGROUPS * 16 * 16];
#endif
#if ROPE
    // The heads of the query, then the key and the value.
    threadgroup float4 own[(HEADS + 2) * HEAD_DIM / 4];
#endif

    RELEASE_NEXT();
    AWAIT_INPUTS();
    const uint row = threadgroup_position.y, part = threadgroup_position.z;
    if (row >= step[STEP_COUNT_TOKENS]) return;
    const uint kv_head = threadgroup_position.x / HEAD_SETS;
    const uint first_head = kv_head * GROUP + threadgroup_position.x % HEAD_SETS * HEADS;
    const uint position = step[STEP_POSITIONS + row];
    const uint first = first_seen(position), from_page = first / PAGE * PAGE, tokens = position + 1 - from_page;
    const uint even = (tokens + threadgroups.z - 1) / threadgroups.z;
    const uint of_part = max(uint(LEAST_SPLIT), (even + PAGE - 1) / PAGE * PAGE);
    const uint parts = (tokens + of_part - 1) / of_part;
    if (part >= parts) return;
    const uint begin = from_page + part * of_part, end = min(position + 1, begin + of_part);
    device const uint *pages = step + STEP_PAGES + step[STEP_TABLES + row];

#if ROPE
    for (uint h = simdgroup; h < HEADS + 2; h += SIMDGROUPS) {
        threadgroup float *values = (threadgroup float *)own + h * HEAD_DIM;
        if (h < HEADS) {
            const uint head = min(first_head + h, uint(Q_HEADS - 1));
            take_head(q + ulong(row) * Q_STRIDE + head * HEAD_VALUES, q_norm, Q_NORM, Q_EPS, values, lane);
            rotate_head(frequencies, position, values, lane);
            continue;
        }
        if (h == HEADS) {
            take_head(k + ulong(row) * K_STRIDE + kv_head * HEAD_VALUES, k_norm, K_NORM, K_EPS, values, lane);
            rotate_head(frequencies, position, values, lane);
        } else {
            take_head(v + ulong(row) * V_STRIDE + kv_head * HEAD_VALUES, k_norm, false, 0.0f, values, lane);
        }
        if (end == position + 1 && threadgroup_position.x % HEAD_SETS == 0) {
            const uint place = step[STEP_PLACES + row];
            keep_head(values, cache + kv_keys(place / PAGE, kv_head) + (h == HEADS ? 0 : KV_PART), place % PAGE, lane);
        }
        // What was kept was read by other lanes than those that round it here.
        simdgroup_barrier(mem_flags::mem_threadgroup);
        for (uint i = lane; i < HEAD_DIM; i += 32) values[i] = float(to_half(values[i]));
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
#endif

#if ON_TILES
    // Products with the queries of all heads: rows are tokens, columns are heads.
    for (uint i = thread_index; i < 16 * HEAD_DIM; i += THREADS) {
        const uint h = i / HEAD_DIM, d = i % HEAD_DIM, k = strip_slot(d / 8 % 4, d % 4);
#if ROPE
        const float x = h < HEADS ? ((threadgroup const float *)own)[h * HEAD_DIM + d] : 0.0f;
#else
        const uint head = min(first_head + h, uint(Q_HEADS - 1));
        const float x = h < HEADS ? q[ulong(row) * Q_STRIDE + head * HEAD_VALUES + d] : 0.0f;
#endif
        const uint product = d / 32 * 2 + d / 4 % 2;
        queries[tile_at(HEAD_DIM / 8, h, product * 2 + k / 8) + k % 8] = to_half(x * float(SCALE));
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    tile_operand query[HEAD_DIM / 16];
#pragma unroll
    for (uint t = 0; t < HEAD_DIM / 16; ++t) query[t] = tile_load_columns(queries, HEAD_DIM / 8, 0, 2 * t, lane);

    // Of the columns that a lane has, c = 2h + u of element 4h + 2v + u.
    float most[4], total[4];
    tile_sums sum[HEAD_DIM / 16];
#pragma unroll
    for (uint c = 0; c < 4; ++c) {
        most[c] = -INFINITY;
        total[c] = 0.0f;
    }
#pragma unroll
    for (uint t = 0; t < HEAD_DIM / 16; ++t) tile_clear(sum[t]);
    threadgroup half *own_shares = shares + simdgroup * 16 * 16;
    const uint place = tile_place(lane), r = tile_row(lane);

    for (uint block = begin + simdgroup * 16; block < end; block += SIMDGROUPS * 16) {
        device const uchar *keys = cache + kv_keys(pages[block / PAGE], kv_head);
        // Keys: tokens r and r + 8, eight values at a time. Values: the four tokens of the lane's place.
        uint4 key[HEAD_DIM / 32][2], value[HEAD_DIM / 64][4];
#pragma unroll
        for (uint i = 0; i < HEAD_DIM / 32; ++i) {
#pragma unroll
            for (uint v = 0; v < 2; ++v) key[i][v] = kv_halves(keys, (block + r + 8 * v) % PAGE, 4 * i + place);
        }
#pragma unroll
        for (uint i = 0; i < HEAD_DIM / 64; ++i) {
#pragma unroll
            for (uint s = 0; s < 4; ++s) {
                const uint token = block + strip_slot(place, s);
                // What is not seen need not be a number.
                value[i][s] = token >= first && token < end ? kv_halves(keys + KV_PART, token % PAGE, 8 * i + r) : uint4(0, 0, 0, 0);
            }
        }
#if ROPE
        // The token's own key and value are on their way to the cache.
        if (position >= block && position < block + 16) {
            threadgroup const float4 *from = own + HEADS * (HEAD_DIM / 4);
#pragma unroll
            for (uint v = 0; v < 2; ++v) {
                if (block + r + 8 * v != position) continue;
#pragma unroll
                for (uint i = 0; i < HEAD_DIM / 32; ++i) key[i][v] = eight_halves(from[(4 * i + place) * 2], from[(4 * i + place) * 2 + 1]);
            }
            from += HEAD_DIM / 4;
#pragma unroll
            for (uint s = 0; s < 4; ++s) {
                if (block + strip_slot(place, s) != position) continue;
#pragma unroll
                for (uint i = 0; i < HEAD_DIM / 64; ++i) value[i][s] = eight_halves(from[(8 * i + r) * 2], from[(8 * i + r) * 2 + 1]);
            }
        }
#endif
        tile_sums score;
        tile_clear(score);
#pragma unroll
        for (uint i = 0; i < HEAD_DIM / 32; ++i) {
            const tile_operand a = tile_of_lanes(uint2(key[i][0].x, key[i][0].y), uint2(key[i][1].x, key[i][1].y));
            const tile_operand b = tile_of_lanes(uint2(key[i][0].z, key[i][0].w), uint2(key[i][1].z, key[i][1].w));
            tile_multiply(score, a, query[2 * i]);
            tile_multiply(score, b, query[2 * i + 1]);
        }
        float keep[4];
#pragma unroll
        for (uint c = 0; c < 4; ++c) {
            float s[2];
#pragma unroll
            for (uint v = 0; v < 2; ++v) {
                const uint token = block + r + 8 * v;
                s[v] = token >= first && token < end ? capped(tile_get(score, c / 2 * 4 + 2 * v + c % 2)) : -INFINITY;
            }
            const float now = max(most[c], tile_column_max(max(s[0], s[1]))), by = now == -INFINITY ? 0.0f : now;
            keep[c] = exp(most[c] - by);
            most[c] = now;
            total[c] *= keep[c];
#pragma unroll
            for (uint v = 0; v < 2; ++v) {
                const float share = exp(s[v] - by);
                total[c] += share;
                tile_set(score, c / 2 * 4 + 2 * v + c % 2, share);
            }
        }
        // Shares come from sums to the second operand of products through threadgroup memory.
        simdgroup_barrier(mem_flags::mem_threadgroup);
#pragma unroll
        for (uint e = 0; e < 8; e += 2) {
            const uint h = tile_column_of(lane, e);
            *(threadgroup uint *)(own_shares + tile_at(2, r + 8 * (e / 2 % 2), h / 8) + h % 8) =
                two_halves(tile_get(score, e), tile_get(score, e + 1));
        }
        simdgroup_barrier(mem_flags::mem_threadgroup);
        const tile_operand share = tile_load_straight(own_shares, 2, 0, 0, lane);
#pragma unroll
        for (uint t = 0; t < HEAD_DIM / 16; ++t) {
            thread const uint4 *of = value[t / 4];
            uint word[4];
#pragma unroll
            for (uint s = 0; s < 4; ++s) word[s] = t % 4 == 0 ? of[s].x : t % 4 == 1 ? of[s].y : t % 4 == 2 ? of[s].z : of[s].w;
            const uint2 even = uint2((word[0] & 0xffffu) | (word[1] << 16), (word[2] & 0xffffu) | (word[3] << 16));
            const uint2 odd = uint2((word[0] >> 16) | (word[1] & 0xffff0000u), (word[2] >> 16) | (word[3] & 0xffff0000u));
#pragma unroll
            for (uint e = 0; e < 8; ++e) tile_set(sum[t], e, tile_get(sum[t], e) * keep[e / 4 * 2 + e % 2]);
            tile_multiply(sum[t], tile_of_lanes(even, odd), share);
        }
    }

#pragma unroll
    for (uint c = 0; c < 4; ++c) {
        const uint h = tile_column_of(lane, c / 2 * 4 + c % 2);
        const float all = tile_column_sum(total[c]);
        if (h >= HEADS) continue;
        if (r == 0) {
            largest[simdgroup * HEADS + h] = most[c];
            weights[simdgroup * HEADS + h] = all;
        }
#pragma unroll
        for (uint t = 0; t < HEAD_DIM / 16; ++t) {
#pragma unroll
            for (uint v = 0; v < 2; ++v) {
                sums[(simdgroup * HEADS + h) * HEAD_DIM + t / 4 * 64 + 8 * r + t % 4 * 2 + v] = tile_get(sum[t], c / 2 * 4 + 2 * v + c % 2);
            }
        }
    }
#else
    // Lane l of eight has values 64c + 8l … 64c + 8l + 7.
    const uint state = simdgroup * 4 + lane / 8, l = lane & 7;
    float4 query[HEADS][CHUNKS * 2], sum[HEADS][CHUNKS * 2];
    float max_score[HEADS], weight[HEADS];
#pragma unroll
    for (uint h = 0; h < HEADS; ++h) {
#if ROPE
        threadgroup const float4 *from = own + h * (HEAD_DIM / 4);
#else
        const uint head = min(first_head + h, uint(Q_HEADS - 1));
        device const float *from = q + ulong(row) * Q_STRIDE + head * HEAD_VALUES;
#endif
#pragma unroll
        for (uint c = 0; c < CHUNKS; ++c) {
            query[h][2 * c] = HAS(c) ? FOUR_OF(from, c * 16 + l * 2) * float(SCALE) : float4(0.0f);
            query[h][2 * c + 1] = HAS(c) ? FOUR_OF(from, c * 16 + l * 2 + 1) * float(SCALE) : float4(0.0f);
            sum[h][2 * c] = float4(0.0f);
            sum[h][2 * c + 1] = float4(0.0f);
        }
        max_score[h] = -INFINITY;
        weight[h] = 0.0f;
    }

    // All sets of lanes of a simdgroup take the same number of turns, for their shuffles.
    for (uint turn = begin; turn < end; turn += STATES) {
        const uint token = turn + state;
        const bool seen = token >= first && token < end;
        device const uchar *keys = cache + kv_keys(pages[min(token, position) / PAGE], kv_head);
        float score[HEADS];
#pragma unroll
        for (uint h = 0; h < HEADS; ++h) score[h] = 0.0f;
        float4 value[CHUNKS * 2];
#pragma unroll
        for (uint c = 0; c < CHUNKS; ++c) {
            const uint chunk = HAS(c) ? c * 8 + l : 0;
            float4 a, b;
#if ROPE
            // The token's own key and value are on their way to the cache.
            if (token == position) {
                threadgroup const float4 *from = own + HEADS * (HEAD_DIM / 4) + 2 * chunk;
                a = from[0];
                b = from[1];
                value[2 * c] = from[HEAD_DIM / 4];
                value[2 * c + 1] = from[HEAD_DIM / 4 + 1];
            } else
#endif
            {
                kv_load(keys, token % PAGE, chunk, a, b);
                kv_load(keys + KV_PART, token % PAGE, chunk, value[2 * c], value[2 * c + 1]);
            }
#pragma unroll
            for (uint h = 0; h < HEADS; ++h) score[h] += dot4(query[h][2 * c], a) + dot4(query[h][2 * c + 1], b);
        }
#pragma unroll
        for (uint h = 0; h < HEADS; ++h) {
            score[h] += simd_shuffle_xor(score[h], 1);
            score[h] += simd_shuffle_xor(score[h], 2);
            score[h] += simd_shuffle_xor(score[h], 4);
            if (seen) {
                const float s = capped(score[h]) + by_distance(first_head + h, float(position - token)), most = max(max_score[h], s);
                const float keep = exp(max_score[h] - most), share = exp(s - most);
                max_score[h] = most;
                weight[h] = fma(weight[h], keep, share);
#pragma unroll
                for (uint c = 0; c < CHUNKS * 2; ++c) sum[h][c] = sum[h][c] * keep + value[c] * share;
            }
        }
    }

    // The four states of a simdgroup, then those of all simdgroups.
#pragma unroll
    for (uint h = 0; h < HEADS; ++h) {
        float most = max(max_score[h], simd_shuffle_xor(max_score[h], 8));
        most = max(most, simd_shuffle_xor(most, 16));
        const float factor = max_score[h] == -INFINITY ? 0.0f : exp(max_score[h] - most);
        float total = weight[h] * factor;
        total += simd_shuffle_xor(total, 8);
        total += simd_shuffle_xor(total, 16);
#pragma unroll
        for (uint c = 0; c < CHUNKS * 2; ++c) {
            float4 x = sum[h][c] * factor;
            x.x += simd_shuffle_xor(x.x, 8);
            x.y += simd_shuffle_xor(x.y, 8);
            x.z += simd_shuffle_xor(x.z, 8);
            x.w += simd_shuffle_xor(x.w, 8);
            x.x += simd_shuffle_xor(x.x, 16);
            x.y += simd_shuffle_xor(x.y, 16);
            x.z += simd_shuffle_xor(x.z, 16);
            x.w += simd_shuffle_xor(x.w, 16);
            if (lane < 8 && HAS(c / 2)) {
                const uint at = (simdgroup * HEADS + h) * HEAD_DIM + c / 2 * 64 + l * 8 + c % 2 * 4;
                sums[at] = x.x;
                sums[at + 1] = x.y;
                sums[at + 2] = x.z;
                sums[at + 3] = x.w;
            }
        }
        if (lane == 0) {
            largest[simdgroup * HEADS + h] = most;
            weights[simdgroup * HEADS + h] = total;
        }
    }
#endif
    threadgroup_barrier(mem_flags::mem_threadgroup);

    for (uint i = thread_index; i < HEADS * HEAD_DIM; i += THREADS) {
        const uint h = i / HEAD_DIM, d = i % HEAD_DIM, head = first_head + h;
        if (head >= (kv_head + 1) * GROUP || (HEAD_VALUES < HEAD_DIM && d >= HEAD_VALUES)) continue;
        float most = -INFINITY, x = 0.0f, total = 0.0f;
        for (uint s = 0; s < SIMDGROUPS; ++s) most = max(most, largest[s * HEADS + h]);
#if SINKS
        if (parts == 1) {
            most = max(most, sinks[head]);
            total = exp(sinks[head] - most);
        }
#endif
        for (uint s = 0; s < SIMDGROUPS; ++s) {
            const float before = largest[s * HEADS + h], factor = before == -INFINITY ? 0.0f : exp(before - most);
            x = fma(sums[(s * HEADS + h) * HEAD_DIM + d], factor, x);
            total = fma(weights[s * HEADS + h], factor, total);
        }
        device float *to = partial + ((ulong(part) * threadgroups.y + row) * Q_HEADS + head) * PART_FLOATS;
        if (parts == 1) {
            out[ulong(row) * OUT_STRIDE + head * HEAD_VALUES + d] = x / total;
        } else {
            to[d] = x;
            if (d == 0) {
                to[PART_LARGEST] = most;
                to[PART_WEIGHT] = total;
            }
        }
        if (d == 0 && part == 0 && threadgroups.z > 1) to[PART_COUNT] = float(parts);
    }
}
