// Attention of tiles of consecutive tokens of a sequence, one query head a threadgroup.
//
// Each simdgroup has 16 tokens. Keys and values pass through threadgroup memory in turn, BLOCK tokens at a time, with room for STAGES
// such parts, and with an online softmax (Milakov and Gimelshein 2018, arXiv 1805.02867) over the scores, which never leave the
// simdgroup.
#include "common/base.h"
#include "common/step.h"
#include "common/attention.h"
#include "common/tile.h"

#define TILE (SIMDGROUPS * 16)
#define CHUNKS (HEAD_DIM / 8)
// Halves of the keys, or the values, of a block.
#define PART (BLOCK * HEAD_DIM)
// Sixteen bytes each of them that a thread copies.
#define COPIES ((BLOCK * CHUNKS + THREADS - 1) / THREADS)
#define AHEAD (STAGES - 1)
// Weights are powers of two.
#define LOG2_E 1.44269504f

// What a thread copies of a block.
typedef uint4 copies[COPIES];

// Brings what a thread copies of the keys, or the values, of the block that begins at token `begin`. What lies beyond the context
// need not be a number.
static inline void bring(
    thread copies &held, threadgroup half *to, device const uchar *part, uint begin, uint end, uint thread_index)
{
#pragma unroll
    for (uint i = 0; i < COPIES; ++i) {
        const uint at = i * THREADS + thread_index;
        const uint token = begin + at / (8 * CHUNKS) * 8 + at % 8, c = at / 8 % CHUNKS;
        if (at >= BLOCK * CHUNKS) continue;
        if (token < end) {
#if KV_BITS == 16
            tile_bring(held[i], to + at * 8, (device const uint4 *)part + (token % PAGE * CHUNKS + c));
#else
            *(threadgroup uint4 *)(to + at * 8) = kv_halves(part, token % PAGE, c);
#endif
        } else {
            held[i] = uint4(0, 0, 0, 0);
            *(threadgroup uint4 *)(to + at * 8) = held[i];
        }
    }
}

static inline void keep(thread copies &held, threadgroup half *to, uint thread_index) {
#if KV_BITS == 16
#pragma unroll
    for (uint i = 0; i < COPIES; ++i) {
        const uint at = i * THREADS + thread_index;
        if (at < BLOCK * CHUNKS) tile_keep(held[i], to + at * 8);
    }
#endif
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
    threadgroup half stages[STAGES * PART];

    RELEASE_NEXT();
    AWAIT_INPUTS();
    const uint tile = threadgroup_position.y, head = threadgroup_position.x, kv_head = head / GROUP;
    if (tile >= step[STEP_COUNT_TILES]) return;
    const uint first_row = step[STEP_TILES + 2 * tile], rows = step[STEP_TILES + 2 * tile + 1];
    const uint first_position = step[STEP_POSITIONS + first_row];
    device const uint *pages = step + STEP_PAGES + step[STEP_TABLES + first_row];

    const uint end = first_position + rows, start = first_seen(first_position) / BLOCK * BLOCK;
    uint4 held[COPIES];
#pragma unroll
    for (uint ahead = 0; ahead < AHEAD; ++ahead) {
        const uint begin = start + ahead / 2 * BLOCK;
        if (begin < end) {
            threadgroup half *to = stages + ahead * PART;
            bring(held, to, cache + kv_keys(pages[begin / PAGE], kv_head) + ahead % 2 * KV_PART, begin, end, thread_index);
            keep(held, to, thread_index);
        }
        TILE_SEND();
    }

    // Of the two rows that a lane has, v = 0 and 1.
    const uint own = simdgroup * 16 + tile_row(lane);
    tile_operand query[HEAD_DIM / 16][1];
    const float scale = float(SCALE) * (CAP_SCORES ? 1.0f : LOG2_E);
#pragma unroll
    for (uint c = 0; c < HEAD_DIM / 16; ++c) {
        uint2 halves[2];
#pragma unroll
        for (uint v = 0; v < 2; ++v) {
            device const float *from = q + ulong(first_row + min(own + 8 * v, rows - 1)) * Q_STRIDE + head * HEAD_VALUES + 16 * c;
            const float2 a = two_of_head(from, strip_slot(tile_place(lane), 0), HEAD_VALUES - 16 * c);
            const float2 b = two_of_head(from, strip_slot(tile_place(lane), 2), HEAD_VALUES - 16 * c);
            halves[v] = uint2(two_halves(a.x * scale, a.y * scale), two_halves(b.x * scale, b.y * scale));
        }
        query[c][0] = tile_of_lanes(halves[0], halves[1]);
    }
    float most[2] = {-INFINITY, -INFINITY}, total[2] = {0.0f, 0.0f};
    tile_sums sums[HEAD_DIM / 16];
#pragma unroll
    for (uint c = 0; c < HEAD_DIM / 16; ++c) tile_clear(sums[c]);

    uint stage = 0;
    for (uint begin = start; begin < end; begin += BLOCK) {
        TILE_AWAIT(AHEAD - 1);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        // To where everybody has read by now.
        uint later = begin + AHEAD / 2 * BLOCK;
        threadgroup half *to = stages + (stage == 0 ? STAGES - 1 : stage - 1) * PART;
        if (later < end) {
            device const uchar *from = cache + kv_keys(pages[later / PAGE], kv_head) + AHEAD % 2 * KV_PART;
            bring(held, to, from, later, end, thread_index);
        }
        TILE_SEND();

        tile_sums scores[1][BLOCK / 16];
#pragma unroll
        for (uint b = 0; b < BLOCK / 16; ++b) tile_clear(scores[0][b]);
        tile_strips_begin();
#pragma unroll
        for (uint c = 0; c < HEAD_DIM / 16; ++c) {
            tile_multiply_strips(scores, query[c], stages + stage * PART, CHUNKS, 2 * c, lane);
        }
        tile_strips_end();
        tile_strips_finish(scores[0]);
        if (later < end) keep(held, to, thread_index);
        stage = stage + 1 == STAGES ? 0 : stage + 1;

        // Most blocks are seen as a whole, by all.
        const bool all_seen = begin + BLOCK <= first_position + 1 && begin >= first_seen(first_position + rows - 1);
        float largest[2] = {-INFINITY, -INFINITY};
#pragma unroll
        for (uint b = 0; b < BLOCK / 16; ++b) {
#pragma unroll
            for (uint e = 0; e < 8; ++e) {
                const uint v = e / 2 % 2;
                float score = tile_get(scores[0][b], e);
#if CAP_SCORES
                score = capped(score) * LOG2_E;
#endif
#if USES_ALIBI
                const uint of_query = first_position + own + 8 * v, of_key = begin + 16 * b + tile_column_of(lane, e);
                score += by_distance(head, float(of_query) - float(of_key)) * LOG2_E;
#endif
                if (!all_seen) {
                    const uint position = first_position + own + 8 * v, token = begin + 16 * b + tile_column_of(lane, e);
                    score = token <= position && token >= first_seen(position) ? score : -INFINITY;
                }
                tile_set(scores[0][b], e, score);
                largest[v] = max(largest[v], score);
            }
        }
        float keep_sums[2];
#pragma unroll
        for (uint v = 0; v < 2; ++v) {
            // A row that has seen nothing yet goes by no largest score.
            const float now = max(most[v], tile_row_max(largest[v])), by = now == -INFINITY ? 0.0f : now;
            keep_sums[v] = power_of_two(most[v] - by);
            most[v] = now;
            largest[v] = by;
            total[v] *= keep_sums[v];
        }
#pragma unroll
        for (uint b = 0; b < BLOCK / 16; ++b) {
#pragma unroll
            for (uint e = 0; e < 8; ++e) {
                const uint v = e / 2 % 2;
                const float weight = power_of_two(tile_get(scores[0][b], e) - largest[v]);
                tile_set(scores[0][b], e, weight);
                total[v] += weight;
            }
        }
        // Far into a context a larger score is rare.
        if (keep_sums[0] != 1.0f || keep_sums[1] != 1.0f) {
#pragma unroll
            for (uint c = 0; c < HEAD_DIM / 16; ++c) {
#pragma unroll
                for (uint e = 0; e < 8; ++e) tile_set(sums[c], e, tile_get(sums[c], e) * keep_sums[e / 2 % 2]);
            }
        }
        tile_operand weights[BLOCK / 16];
#pragma unroll
        for (uint b = 0; b < BLOCK / 16; ++b) weights[b] = tile_round(scores[0][b]);

        TILE_AWAIT(AHEAD - 1);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        later = begin + (AHEAD + 1) / 2 * BLOCK;
        to = stages + (stage == 0 ? STAGES - 1 : stage - 1) * PART;
        if (later < end) {
            device const uchar *from = cache + kv_keys(pages[later / PAGE], kv_head) + (AHEAD + 1) % 2 * KV_PART;
            bring(held, to, from, later, end, thread_index);
        }
        TILE_SEND();
        tile_strips_begin();
#pragma unroll
        for (uint b = 0; b < BLOCK / 16; ++b) {
            tile_multiply_straight(sums, weights[b], stages + stage * PART, CHUNKS, 16 * b, lane);
        }
        tile_strips_end();
        tile_strips_finish(sums);
        if (later < end) keep(held, to, thread_index);
        stage = stage + 1 == STAGES ? 0 : stage + 1;
    }

    // What sums are multiplied by.
    float shares[2];
#pragma unroll
    for (uint v = 0; v < 2; ++v) {
        const float all = tile_row_sum(total[v]);
#if SINKS
        const float sink = sinks[head] * LOG2_E, largest = max(most[v], sink), keep = power_of_two(most[v] - largest);
        shares[v] = keep / (all * keep + power_of_two(sink - largest));
#else
        shares[v] = 1.0f / all;
#endif
    }
#pragma unroll
    for (uint c = 0; c < HEAD_DIM / 16; ++c) {
#pragma unroll
        for (uint e = 0; e < 8; ++e) {
            const uint v = e / 2 % 2, r = own + 8 * v, d = 16 * c + tile_column_of(lane, e);
            if (HEAD_VALUES < HEAD_DIM && d >= HEAD_VALUES) continue;
            if (r < rows) out[ulong(first_row + r) * OUT_STRIDE + head * HEAD_VALUES + d] = tile_get(sums[c], e) * shares[v];
        }
    }
}
