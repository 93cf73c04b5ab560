// Attention of tiles of consecutive tokens of a sequence, one query head a threadgroup.
//
// Each simdgroup has 16 tokens. Keys and values pass through threadgroup memory BLOCK tokens at a time, with an online
// softmax (Milakov and Gimelshein 2018, arXiv 1805.02867) over the scores, which never leave the simdgroup.
#include "common/base.h"
#include "common/step.h"
#include "common/attention.h"
#include "common/tile.h"

#define TILE (SIMDGROUPS * 16)
#define BLOCK 32
#define CHUNKS (HEAD_DIM / 8)
#define TILE_VALUES (TILE > 2 * BLOCK ? TILE * HEAD_DIM : 2 * BLOCK * HEAD_DIM)

static inline uint4 eight_halves(float4 a, float4 b) {
    return uint4(two_halves(a.x, a.y), two_halves(a.z, a.w), two_halves(b.x, b.y), two_halves(b.z, b.w));
}

kernel void attention_prefill(
    device const float *q [[buffer(0)]],
    device const uchar *cache [[buffer(1)]],
    device float *out [[buffer(2)]],
    device const uint *step [[buffer(3)]],
    device const float *sinks [[buffer(4)]],
    uint3 threadgroup_position [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]])
{
    // Queries first; when each simdgroup has its own, keys and values.
    threadgroup half tiles[TILE_VALUES];

    RELEASE_NEXT();
    AWAIT_INPUTS();
    const uint tile = threadgroup_position.y, head = threadgroup_position.x, kv_head = head / GROUP;
    if (tile >= step[STEP_COUNT_TILES]) return;
    const uint first_row = step[STEP_TILES + 2 * tile], rows = step[STEP_TILES + 2 * tile + 1];
    const uint first_position = step[STEP_POSITIONS + first_row];
    device const uint *pages = step + STEP_PAGES + step[STEP_TABLES + first_row];

    for (uint i = thread_index; i < TILE * CHUNKS; i += THREADS) {
        const uint r = i / CHUNKS, c = i % CHUNKS;
        device const float4 *from = (device const float4 *)(q + ulong(first_row + min(r, rows - 1)) * Q_STRIDE + head * HEAD_DIM);
        *(threadgroup uint4 *)(tiles + tile_at(CHUNKS, r, c)) = eight_halves(from[2 * c] * float(SCALE), from[2 * c + 1] * float(SCALE));
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    tile_operand query[HEAD_DIM / 16];
#pragma unroll
    for (uint c = 0; c < HEAD_DIM / 16; ++c) query[c] = tile_load_rows(tiles, CHUNKS, simdgroup * 16, 2 * c, lane);

    // Of the two rows that a lane has, v = 0 and 1.
    float most[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f};
    tile_sums sums[HEAD_DIM / 16];
#pragma unroll
    for (uint c = 0; c < HEAD_DIM / 16; ++c) tile_clear(sums[c]);
    const uint own = simdgroup * 16 + tile_row(lane);

    const uint end = first_position + rows;
    for (uint begin = first_seen(first_position) / BLOCK * BLOCK; begin < end; begin += BLOCK) {
        device const uchar *keys = cache + kv_keys(pages[begin / PAGE], kv_head);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        for (uint i = thread_index; i < 2 * BLOCK * CHUNKS; i += THREADS) {
            const uint r = i / CHUNKS, c = i % CHUNKS;
            // Rows up to BLOCK are keys, those after it values; what lies beyond the context need not be a number.
            uint4 eight = uint4(0, 0, 0, 0);
            if (begin + r % BLOCK < end) {
                device const uchar *part = keys + (r < BLOCK ? 0 : KV_PART);
#if KV_BITS == 16
                eight = ((device const uint4 *)part)[(begin + r % BLOCK) % PAGE * CHUNKS + c];
#else
                float4 a, b;
                kv_load(part, (begin + r % BLOCK) % PAGE, c, a, b);
                eight = eight_halves(a, b);
#endif
            }
            *(threadgroup uint4 *)(tiles + tile_at(CHUNKS, r, c)) = eight;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);

        tile_sums scores[BLOCK / 16];
#pragma unroll
        for (uint b = 0; b < BLOCK / 16; b += 2) {
            tile_clear(scores[b]);
            tile_clear(scores[b + 1]);
#pragma unroll
            for (uint c = 0; c < HEAD_DIM / 16; ++c) {
                const tile_operand key = tile_load_columns(tiles, CHUNKS, 16 * b, 2 * c, lane);
                const tile_operand other = tile_load_columns(tiles, CHUNKS, 16 * (b + 1), 2 * c, lane);
                tile_multiply_two(scores[b], scores[b + 1], query[c], key, other);
            }
        }

        float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
        for (uint b = 0; b < BLOCK / 16; ++b) {
#pragma unroll
            for (uint e = 0; e < 8; ++e) {
                const uint v = e / 2 % 2, position = first_position + own + 8 * v;
                const uint token = begin + 16 * b + tile_column_of(lane, e);
                const bool seen = token <= position && token >= first_seen(position);
                const float score = seen ? capped(tile_get(scores[b], e)) : -INFINITY;
                tile_set(scores[b], e, score);
                largest[v] = max(largest[v], score);
            }
        }
        float keep[2];
#pragma unroll
        for (uint v = 0; v < 2; ++v) {
            const float now = max(most[v], tile_row_max(largest[v]));
            keep[v] = now == -INFINITY ? 1.0f : exp(most[v] - now);
            most[v] = now;
            total[v] *= keep[v];
        }
#pragma unroll
        for (uint b = 0; b < BLOCK / 16; ++b) {
#pragma unroll
            for (uint e = 0; e < 8; ++e) {
                const uint v = e / 2 % 2;
                const float weight = most[v] == -INFINITY ? 0.0f : exp(tile_get(scores[b], e) - most[v]);
                tile_set(scores[b], e, weight);
                total[v] += weight;
            }
        }
#pragma unroll
        for (uint c = 0; c < HEAD_DIM / 16; ++c) {
#pragma unroll
            for (uint e = 0; e < 8; ++e) tile_set(sums[c], e, tile_get(sums[c], e) * keep[e / 2 % 2]);
        }
#pragma unroll
        for (uint b = 0; b < BLOCK / 16; ++b) {
            const tile_operand weights = tile_round(scores[b]);
#pragma unroll
            for (uint c = 0; c + 1 < HEAD_DIM / 16; c += 2) {
                const tile_operand value = tile_load_straight(tiles, CHUNKS, BLOCK + 16 * b, 2 * c, lane);
                const tile_operand other = tile_load_straight(tiles, CHUNKS, BLOCK + 16 * b, 2 * c + 2, lane);
                tile_multiply_two(sums[c], sums[c + 1], weights, value, other);
            }
#if HEAD_DIM / 16 % 2
            const tile_operand value = tile_load_straight(tiles, CHUNKS, BLOCK + 16 * b, CHUNKS - 2, lane);
            tile_multiply(sums[HEAD_DIM / 16 - 1], weights, value);
#endif
        }
    }

    // What sums are multiplied by.
    float shares[2];
#pragma unroll
    for (uint v = 0; v < 2; ++v) {
        const float all = tile_row_sum(total[v]);
#if SINKS
        const float largest = max(most[v], sinks[head]), keep = exp(most[v] - largest);
        shares[v] = keep / (all * keep + exp(sinks[head] - largest));
#else
        shares[v] = 1.0f / all;
#endif
    }
#pragma unroll
    for (uint c = 0; c < HEAD_DIM / 16; ++c) {
#pragma unroll
        for (uint e = 0; e < 8; ++e) {
            const uint v = e / 2 % 2, r = own + 8 * v, d = 16 * c + tile_column_of(lane, e);
            if (r < rows) out[ulong(first_row + r) * OUT_STRIDE + head * HEAD_DIM + d] = tile_get(sums[c], e) * shares[v];
        }
    }
}
