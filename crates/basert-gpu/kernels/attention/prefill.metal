// Attention of tiles of consecutive tokens of a sequence: a threadgroup has HEADS query heads that share a head of keys, and one part
// of the context where that is divided.
//
// As many simdgroups have a head, each of them 16 tokens. Keys and values pass through threadgroup memory in turn, BLOCK tokens at a
// time, with room for STAGES such parts, and with an online softmax (Milakov and Gimelshein 2018, arXiv 1805.02867) over the
// scores, which never leave the simdgroup.
//
// There are at most as many parts as threadgroups one behind the other, of whole pages, and none is shorter than LEAST_SPLIT tokens. A
// result of more than one part goes to `partial` instead, where PART_ROWS rows have room.
#include "common/base.h"
#include "common/step.h"
#include "common/attention.h"
#include "attention/parts.h"
#include "common/tile.h"

#define HEAD_SETS ((GROUP + HEADS - 1) / HEADS)
#define OF_HEAD (SIMDGROUPS / HEADS)
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

// Brings what a thread copies of the keys, or the values, of the block that begins at token `begin`.
static inline void bring(thread copies &held, threadgroup half *to, device const uchar *part, uint begin, uint thread_index) {
#pragma unroll
    for (uint i = 0; i < COPIES; ++i) {
        const uint at = i * THREADS + thread_index;
        if (at >= BLOCK * CHUNKS) continue;
#if KV_BITS == 16
        // The cache has them as products read them.
        tile_bring(held[i], to + at * 8, (device const uint4 *)part + kv_at(begin % PAGE, 0) + at);
#else
        *(threadgroup uint4 *)(to + at * 8) = kv_halves(part, begin % PAGE + at / (8 * CHUNKS) * 8 + at % 8, at / 8 % CHUNKS);
#endif
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

// What lies beyond the context need not be a number: of what a thread copied, all but the first `tokens` become zeros.
static inline void clear_beyond(threadgroup half *values, uint tokens, uint thread_index) {
    for (uint at = thread_index; at < BLOCK * CHUNKS; at += THREADS) {
        if (at / (8 * CHUNKS) * 8 + at % 8 >= tokens) *(threadgroup uint4 *)(values + at * 8) = uint4(0, 0, 0, 0);
    }
    TILE_WRITTEN();
}

kernel void attention_prefill(
    device const float *q [[buffer(0)]],
    device const uchar *cache [[buffer(1)]],
    device float *out [[buffer(2)]],
    device float *partial [[buffer(3)]],
    device const uint *step [[buffer(4)]],
    device const float *sinks [[buffer(5)]],
    uint3 threadgroup_position [[threadgroup_position_in_grid]],
    uint3 threadgroups [[threadgroups_per_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]])
{
    threadgroup half stages[STAGES * PART];

    RELEASE_NEXT();
    AWAIT_INPUTS();
    if (threadgroup_position.y >= step[STEP_COUNT_TILES]) return;
    // The last tiles of a prompt see most, so they come first.
    const uint tile = STEP_TILES + (step[STEP_COUNT_TILES] - 1 - threadgroup_position.y) * TILE_WORDS;
    const uint kv_head = threadgroup_position.x / HEAD_SETS;
    const uint wanted_head = kv_head * GROUP + threadgroup_position.x % HEAD_SETS * HEADS + simdgroup / OF_HEAD;
    const uint head = min(wanted_head, (kv_head + 1) * GROUP - 1);
    const uint first_row = step[tile], rows = step[tile + 1], tokens = step[tile + 2];
    const uint first_position = step[STEP_POSITIONS + first_row];
    device const uint *pages = step + STEP_PAGES + step[STEP_TABLES + first_row];

    const uint seen_first = first_seen(first_position) / BLOCK * BLOCK, from_page = seen_first / PAGE * PAGE;
    const uint seen_end = after_seen(first_position + rows - 1, tokens);
    const uint even = (seen_end - from_page + threadgroups.z - 1) / threadgroups.z;
    const uint of_part = max(uint(LEAST_SPLIT), (even + PAGE - 1) / PAGE * PAGE);
    const uint parts = threadgroups.z == 1 ? 1 : (seen_end - from_page + of_part - 1) / of_part, part = threadgroup_position.z;
    if (part >= parts) return;
    const uint start = part == 0 ? seen_first : from_page + part * of_part;
    const uint end = part + 1 == parts ? seen_end : from_page + (part + 1) * of_part;
    uint4 held[COPIES];
#pragma unroll
    for (uint ahead = 0; ahead < AHEAD; ++ahead) {
        const uint begin = start + ahead / 2 * BLOCK;
        if (begin < end) {
            threadgroup half *to = stages + ahead * PART;
            bring(held, to, cache + kv_keys(pages[begin / PAGE], kv_head) + ahead % 2 * KV_PART, begin, thread_index);
            keep(held, to, thread_index);
        }
        TILE_SEND();
    }
    // The pages of what is brought next, during both products of a block.
    uint page[2];
#pragma unroll
    for (uint h = 0; h < 2; ++h) page[h] = pages[min(start + (AHEAD + h) / 2 * BLOCK, end - 1) / PAGE];

    // Of the two rows that a lane has, v = 0 and 1.
    const uint own = simdgroup % OF_HEAD * 16 + tile_row(lane);
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
        if (later < end) bring(held, to, cache + kv_keys(page[0], kv_head) + AHEAD % 2 * KV_PART, later, thread_index);
        page[0] = pages[min(later + BLOCK, end - 1) / PAGE];
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
        const bool all_seen =
            begin + BLOCK <= after_seen(first_position, tokens) && begin >= first_seen(first_position + rows - 1);
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
                    score = token < after_seen(position, tokens) && token >= first_seen(position) ? score : -INFINITY;
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
        if (begin + BLOCK > end) clear_beyond(stages + stage * PART, end - begin, thread_index);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        later = begin + (AHEAD + 1) / 2 * BLOCK;
        to = stages + (stage == 0 ? STAGES - 1 : stage - 1) * PART;
        if (later < end) bring(held, to, cache + kv_keys(page[1], kv_head) + (AHEAD + 1) % 2 * KV_PART, later, thread_index);
        page[1] = pages[min(later + BLOCK, end - 1) / PAGE];
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
        total[v] = tile_row_sum(total[v]);
#if SINKS
        const float sink = sinks[head] * LOG2_E, largest = max(most[v], sink), keep = power_of_two(most[v] - largest);
        shares[v] = keep / (total[v] * keep + power_of_two(sink - largest));
#else
        shares[v] = 1.0f / total[v];
#endif
        if (parts > 1) shares[v] = 1.0f;
    }
    if (wanted_head != head) return;
#pragma unroll
    for (uint v = 0; v < 2; ++v) {
        const uint r = own + 8 * v;
        if (r >= rows) continue;
        device float *to = out + ulong(first_row + r) * OUT_STRIDE + head * HEAD_VALUES;
        device float *of_part = partial + ((ulong(part) * PART_ROWS + first_row + r) * Q_HEADS + head) * PART_FLOATS;
        if (part == 0 && threadgroups.z > 1 && tile_place(lane) == 0) of_part[PART_COUNT] = float(parts);
        if (parts > 1) {
            to = of_part;
            if (tile_place(lane) == 0) {
                to[PART_LARGEST] = most[v] / LOG2_E;
                to[PART_WEIGHT] = total[v];
            }
        }
#pragma unroll
        for (uint c = 0; c < HEAD_DIM / 16; ++c) {
#pragma unroll
            for (uint i = 0; i < 4; ++i) {
                const uint e = i / 2 * 4 + 2 * v + i % 2, d = 16 * c + tile_column_of(lane, e);
                if (HEAD_VALUES == HEAD_DIM || d < HEAD_VALUES) to[d] = tile_get(sums[c], e) * shares[v];
            }
        }
    }
}
