// out = epilogue(x · wᵀ) with the weights of experts (`moe/uses.h`) that have few uses each, where rows of x are halves in strips
// (`common/strips.h`): every weight is read once for eight uses.
//
// A threadgroup computes PARTS · 16 columns of the output a simdgroup for all uses of an expert, eight at a time. Their rows of x
// are in threadgroup memory, at most DEPTH strips of them; each simdgroup brings its weights to registers by itself, and decodes
// them there to the first operand of products. So none has to wait for another.
//
// ROWS_OF_W, those of an expert, which follow those of the experts before it; COLUMNS; COUNT, the word of the step that says how
// many tokens there are; OUT_STRIDE; EPILOGUE; HAS_BIAS. Rows of x are those of tokens, or of uses where X_OF_USES is set, and
// rows of the output those of uses, of which an expert has at most MOST_USES.
#include "common/base.h"
#include "common/epilogue.h"
#include "common/format.h"
#include "common/step.h"
#include "common/tile.h"
#include "moe/uses.h"

#define GROUPS (COLUMNS / 32)
#define AT_ONCE 8

kernel void experts(
    device const uchar *w [[buffer(0)]],
    device const uint4 *x [[buffer(1)]],
    device float *out [[buffer(2)]],
    device const float *bias [[buffer(3)]],
    device const uint *step [[buffer(4)]],
    device const float *route [[buffer(5)]],
    uint3 threadgroup_position [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]])
{
    threadgroup half rows[AT_ONCE * DEPTH * STRIP];
    threadgroup uint numbers[MOST_USES];
    threadgroup atomic_uint found[1];

    RELEASE_NEXT();
    AWAIT_INPUTS();
    const uint expert = threadgroup_position.y, all = step[COUNT] * USED;
    if (thread_index == 0) atomic_store_explicit(&found[0], 0u, memory_order_relaxed);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint number = thread_index; number < all; number += THREADS) {
        if (expert_of(route, number) != expert) continue;
        const uint at = atomic_fetch_add_explicit(&found[0], 1u, memory_order_relaxed);
        if (at < MOST_USES) numbers[at] = number;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const uint uses = min(atomic_load_explicit(&found[0], memory_order_relaxed), uint(MOST_USES));
    if (uses == 0) return;
    const uint rows_before = expert * ROWS_OF_W;
    bias += rows_before;

    // Of each part two neighbouring rows of weights, in one of the four groups of a strip that are between lanes.
    const uint first_row = (threadgroup_position.x * SIMDGROUPS + simdgroup) * PARTS * 16 + 2 * tile_row(lane);
    const uint place = tile_place(lane);
    uint groups[PARTS][2];
#pragma unroll
    for (uint k = 0; k < PARTS; ++k) {
#pragma unroll
        for (uint v = 0; v < 2; ++v) groups[k][v] = (rows_before + min(first_row + 16 * k + v, uint(ROWS_OF_W - 1))) * GROUPS;
    }

    for (uint done = 0; done < uses; done += AT_ONCE) {
        const uint last = min(uses - done, uint(AT_ONCE)) - 1;
        group_bits next[PARTS][2];
        uint4 next_scales[PARTS][2];
        tile_sums sums[PARTS];
#pragma unroll
        for (uint k = 0; k < PARTS; ++k) {
#pragma unroll
            for (uint v = 0; v < 2; ++v) {
                const uint group = groups[k][v] + min(place, uint(GROUPS - 1));
                next[k][v] = bits_of_group(w, group);
                next_scales[k][v] = scales_of(w, group);
            }
            tile_clear(sums[k]);
        }
        for (uint begin = 0; begin < STRIPS(COLUMNS); begin += DEPTH) {
            const uint end = min(begin + DEPTH, uint(STRIPS(COLUMNS)));
            // To where nobody reads any more.
            threadgroup_barrier(mem_flags::mem_threadgroup);
            for (uint at = thread_index; at < (end - begin) * (STRIP_MATRICES * 8); at += THREADS) {
                const uint number = numbers[done + min(at % 8, last)], row = X_OF_USES ? number : number / USED;
                const uint matrix = begin * STRIP_MATRICES + at / 8;
                device const uint4 *from = x + (ulong(row / 8) * (STRIPS(COLUMNS) * STRIP_MATRICES) + matrix) * 8 + row % 8;
                uint4 held;
                tile_bring(held, rows + at * 8, from);
                tile_keep(held, rows + at * 8);
            }
            TILE_SEND();
            TILE_AWAIT(0);
            threadgroup_barrier(mem_flags::mem_threadgroup);
            for (uint strip = begin; strip < end; ++strip) {
                threadgroup const half *of_strip = rows + (strip - begin) * (AT_ONCE * STRIP);
                group_bits bits[PARTS][2];
                uint4 scales[PARTS][2];
                tile_eight b[4];
#pragma unroll
                for (uint i = 0; i < 4; ++i) b[i] = tile_load_eight(of_strip, 4 * i, lane);
#pragma unroll
                for (uint k = 0; k < PARTS; ++k) {
#pragma unroll
                    for (uint v = 0; v < 2; ++v) {
                        bits[k][v] = next[k][v];
                        scales[k][v] = next_scales[k][v];
                        const uint group = groups[k][v] + min((strip + 1) * 4 + place, uint(GROUPS - 1));
                        next[k][v] = bits_of_group(w, group);
                        next_scales[k][v] = scales_of(w, group);
                    }
                }
#pragma unroll
                for (uint q = 0; q < 2; ++q) {
                    tile_operand a[PARTS][4];
#pragma unroll
                    for (uint k = 0; k < PARTS; ++k) {
                        sixteen_halves values[2];
#pragma unroll
                        for (uint v = 0; v < 2; ++v) {
                            values[v] = halves_of(bits[k][v].of[q], scales[k][v], (strip * 4 + place) % 8, q);
                        }
#pragma unroll
                        for (uint i = 0; i < 4; ++i) {
                            a[k][i] = tile_of_lanes(
                                uint2(values[0].v[2 * i], values[0].v[2 * i + 1]), uint2(values[1].v[2 * i], values[1].v[2 * i + 1]));
                        }
                    }
#pragma unroll
                    for (uint i = 0; i < 2; ++i) {
#pragma unroll
                        for (uint k = 0; k < PARTS; ++k) {
                            tile_multiply_eight(sums[k], a[k][2 * i], a[k][2 * i + 1], b[2 * q + i]);
                        }
                    }
                }
            }
        }
#pragma unroll
        for (uint k = 0; k < PARTS; ++k) {
            const uint column = first_row + 16 * k;
            if (column >= ROWS_OF_W) continue;
#pragma unroll
            for (uint h = 0; h < 4; ++h) {
                // Both rows of weights of one use.
                const uint e = h / 2 * 4 + h % 2, use = tile_column_of(lane, e);
                if (use > last) continue;
                device float *to = out + ulong(numbers[done + use]) * OUT_STRIDE;
                store_pair(to, bias, column, ROWS_OF_W, tile_get(sums[k], e), tile_get(sums[k], e + 2));
            }
        }
    }
}
