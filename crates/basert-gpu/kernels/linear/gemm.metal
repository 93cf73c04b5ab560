// out = epilogue(x · wᵀ) for many rows of x, which are halves in strips (`common/strips.h`).
//
// A threadgroup computes TILE_N columns of the output for TILE_M rows of x. Each of its simdgroups has some of these columns, for all
// rows: it brings its weights from memory to registers, and decodes them there to the first operand of products. Rows of x pass
// through threadgroup memory, half a strip at a time, STAGES of which there is room for.
//
// ROWS_OF_W, COLUMNS; COUNT, the word of the step that says how many rows of x there are; OUT_STRIDE; EPILOGUE; HAS_BIAS.
//
// Where SPLIT is more than 1, threadgroups one behind the other have a part of the columns of x each, and `out` gets their sums,
// SPLIT times PART_ROWS rows of OUT_STRIDE, for `linear/sum_parts.metal`; the first part's with the bias.
//
// Where there are EXPERTS, a threadgroup has a tile of sorted uses of one of them (`moe/uses.h`), whose rows follow those of
// the experts before it: rows of x are those of tokens, or of uses where X_OF_USES is set, and rows of the output those of
// uses.
#include "common/base.h"
#include "common/epilogue.h"
#include "common/format.h"
#include "common/step.h"
#include "common/tile.h"
#if EXPERTS
#include "moe/uses.h"
#endif

#define GROUPS (COLUMNS / 32)
#define PARTS (TILE_N / SIMDGROUPS / 16)
#define ROWS (TILE_M / 16)
// 8 × 8 matrices of half a strip a row of matrices, and the halves of all.
#define MATRICES (STRIP_MATRICES / 2)
#define STAGE (TILE_M * MATRICES * 8)
// Sixteen bytes each of them that a thread copies.
#define COPIES ((TILE_M * 8 + THREADS - 1) / THREADS)
// How many stages are on their way while others are multiplied.
#define AHEAD (STAGES - 1 - TILE_LAG)
// Strips whose weights are asked for ahead.
#define ASKED_AHEAD 2
#define STRIPS_OF_PART ((STRIPS(COLUMNS) + SPLIT - 1) / SPLIT)
// Where there are registers for it, a whole group of weights comes at once, and else a half of it.
#define WHOLE_GROUPS (TILE_M < 128 || THREADS < 256)

kernel void gemm(
    device const uchar *w [[buffer(0)]],
    device const uint4 *x [[buffer(1)]],
    device float *out [[buffer(2)]],
    device const float *bias [[buffer(3)]],
    device const uint *step [[buffer(4)]],
    device const uint *uses [[buffer(5)]],
    uint3 threadgroup_position [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]])
{
    threadgroup half stages[STAGES * STAGE];

    RELEASE_NEXT();
    const uint first_n = threadgroup_position.y * TILE_N;
#if EXPERTS
    AWAIT_INPUTS();
    if (threadgroup_position.x >= uses[0]) return;
    device const uint *tile = uses + USES_TILES + 3 * threadgroup_position.x;
    const uint rows = tile[2], first_m = 0;
    device const uint *numbers = uses + USES_NUMBERS + tile[1];
    const uint rows_before = tile[0] * ROWS_OF_W;
    bias += rows_before;
#else
    const uint first_m = threadgroup_position.x * TILE_M;
    const uint rows_before = 0;
#endif
    const uint first_strip = threadgroup_position.z * STRIPS_OF_PART;
    const uint end_strip = min(first_strip + STRIPS_OF_PART, uint(STRIPS(COLUMNS)));

    // Of each part two neighbouring rows of weights, in one of the four groups of a strip that are between lanes.
    const uint first_row = first_n + simdgroup * PARTS * 16 + 2 * tile_row(lane), place = tile_place(lane);
    uint groups[PARTS][2];
#if WHOLE_GROUPS
    group_bits bits[PARTS][2], next[PARTS][2];
#else
    weight_bits next[PARTS][2];
#endif
    uint4 scales[PARTS][2], next_scales[PARTS][2];
#pragma unroll
    for (uint k = 0; k < PARTS; ++k) {
#pragma unroll
        for (uint v = 0; v < 2; ++v) {
            groups[k][v] = (rows_before + min(first_row + 16 * k + v, uint(ROWS_OF_W - 1))) * GROUPS;
            const uint group = groups[k][v] + min(first_strip * 4 + place, uint(GROUPS - 1));
#if WHOLE_GROUPS
            next[k][v] = bits_of_group(w, group);
#else
            next[k][v] = bits_of(w, group, 0);
#endif
            next_scales[k][v] = scales_of(w, group);
        }
    }
#if !EXPERTS
    AWAIT_INPUTS();
    const uint rows = step[COUNT];
    if (first_m >= rows) return;
#endif

    uint4 held[COPIES];
    device const uint4 *from[COPIES];
#pragma unroll
    for (uint i = 0; i < COPIES; ++i) {
        const uint at = i * THREADS + thread_index;
#if EXPERTS
        const uint number = numbers[min(at / 64 * 8 + at % 8, rows - 1)], row = X_OF_USES ? number : number / USED;
#else
        const uint row = first_m + at / 64 * 8 + at % 8;
#endif
        from[i] = x + (ulong(row / 8) * (STRIPS(COLUMNS) * STRIP_MATRICES) + at % 64 / 8) * 8 + row % 8;
    }
    tile_sums sums[PARTS][ROWS];
#pragma unroll
    for (uint k = 0; k < PARTS; ++k)
#pragma unroll
        for (uint i = 0; i < ROWS; ++i) tile_clear(sums[k][i]);

    const uint first = 2 * first_strip, end = 2 * end_strip;
#pragma unroll
    for (uint ahead = 0; ahead < AHEAD; ++ahead) {
#pragma unroll
        for (uint i = 0; i < COPIES; ++i) {
            const uint at = i * THREADS + thread_index;
            if (at < TILE_M * 8 && first + ahead < end) {
                tile_bring(held[i], stages + ahead * STAGE + at * 8, from[i] + (first + ahead) * (MATRICES * 8));
                tile_keep(held[i], stages + ahead * STAGE + at * 8);
            }
        }
        TILE_SEND();
    }
    uint stage = 0;
    tile_operand a[2][4][PARTS];
    for (uint strip = first_strip; strip < end_strip; ++strip) {
#pragma unroll
        for (uint q = 0; q < 2; ++q) {
            TILE_AWAIT(AHEAD - 1);
            threadgroup_barrier(mem_flags::mem_threadgroup);
            // To where nobody reads any more.
            const uint later = 2 * strip + q + AHEAD;
            threadgroup half *to = stages + (stage + AHEAD < STAGES ? stage + AHEAD : stage + AHEAD - STAGES) * STAGE;
#pragma unroll
            for (uint i = 0; i < COPIES; ++i) {
                const uint at = i * THREADS + thread_index;
                if (at < TILE_M * 8 && later < end) tile_bring(held[i], to + at * 8, from[i] + later * (MATRICES * 8));
            }
            TILE_SEND();

#pragma unroll
            for (uint k = 0; k < PARTS; ++k) {
                sixteen_halves values[2];
#pragma unroll
                for (uint v = 0; v < 2; ++v) {
                    if (q == 0) scales[k][v] = next_scales[k][v];
#if WHOLE_GROUPS
                    if (q == 0) {
                        bits[k][v] = next[k][v];
                        const uint group = groups[k][v] + min((strip + 1) * 4 + place, uint(GROUPS - 1));
                        next[k][v] = bits_of_group(w, group);
                        next_scales[k][v] = scales_of(w, group);
                    }
                    values[v] = halves_of(bits[k][v].of[q], scales[k][v], (strip * 4 + place) % 8, q);
#else
                    values[v] = halves_of(next[k][v], scales[k][v], (strip * 4 + place) % 8, q);
                    // In place of what was decoded comes what is next, which has this step's time.
                    const uint group = groups[k][v] + min((strip + q) * 4 + place, uint(GROUPS - 1));
                    next[k][v] = bits_of(w, group, 1 - q);
                    if (q == 1) next_scales[k][v] = scales_of(w, group);
#endif
#if TILE_M <= 64
                    // Few rows leave little time, so memory is asked before.
                    if (q == 0) ask_for_bits(w, groups[k][v] + min((strip + ASKED_AHEAD) * 4 + place, uint(GROUPS - 1)), 0);
#endif
                }
#pragma unroll
                for (uint i = 0; i < 4; ++i) {
                    a[q][i][k] = tile_of_lanes(
                        uint2(values[0].v[2 * i], values[0].v[2 * i + 1]), uint2(values[1].v[2 * i], values[1].v[2 * i + 1]));
                }
            }
            tile_strips_begin();
#pragma unroll
            for (uint i = 0; i < 4; ++i) tile_multiply_strips(sums, a[q][i], stages + stage * STAGE, MATRICES, 2 * i, lane);
            tile_strips_end();
#pragma unroll
            for (uint i = 0; i < COPIES; ++i) {
                const uint at = i * THREADS + thread_index;
                if (at < TILE_M * 8 && later < end) tile_keep(held[i], to + at * 8);
            }
            stage = stage + 1 == STAGES ? 0 : stage + 1;
        }
    }
#pragma unroll
    for (uint k = 0; k < PARTS; ++k) tile_strips_finish(sums[k]);

#pragma unroll
    for (uint k = 0; k < PARTS; ++k) {
        const uint column = first_row + 16 * k;
        if (column >= ROWS_OF_W) continue;
#pragma unroll
        for (uint i = 0; i < ROWS; ++i) {
#pragma unroll
            for (uint h = 0; h < 4; ++h) {
                // Both rows of weights of one row of x.
                const uint e = h / 2 * 4 + h % 2, row = first_m + 16 * i + tile_column_of(lane, e);
                if (row >= rows) continue;
                float a = tile_get(sums[k][i], e), b = tile_get(sums[k][i], e + 2);
#if SPLIT > 1
#if HAS_BIAS
                if (threadgroup_position.z == 0) {
                    a += bias[column];
                    if (column + 1 < ROWS_OF_W) b += bias[column + 1];
                }
#endif
                device float *to = out + (ulong(threadgroup_position.z) * PART_ROWS + row) * OUT_STRIDE + column;
                to[0] = a;
                if (column + 1 < ROWS_OF_W) to[1] = b;
#elif EXPERTS
                store_pair(out + ulong(numbers[row]) * OUT_STRIDE, bias, column, ROWS_OF_W, a, b);
#else
                store_pair(out + ulong(row) * OUT_STRIDE, bias, column, ROWS_OF_W, a, b);
#endif
            }
        }
    }
}
