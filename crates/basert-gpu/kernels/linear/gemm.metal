// out = epilogue(x · wᵀ) for many rows of x, which are halves: arithmetic-bound.
//
// A threadgroup computes TILE_M rows by TILE_N columns of the output, SIMDGROUPS_M by SIMDGROUPS_N simdgroups of it a
// part each, 32 columns of x and w at a time: the next ones are on their way while those at hand are multiplied.
//
// ROWS_OF_W, COLUMNS; COUNT, the word of the step that says how many rows of x there are; OUT_STRIDE; EPILOGUE; HAS_BIAS.
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
#define SIMDGROUPS_N (SIMDGROUPS / SIMDGROUPS_M)
#define PARTS_M (TILE_M / SIMDGROUPS_M / 16)
#define PARTS_N (TILE_N / SIMDGROUPS_N / 16)
// Eight values each of x, and sixteen of w, that a thread brings at a time.
#define LOADS_X ((TILE_M * 4 + THREADS - 1) / THREADS)
#define LOADS_W ((TILE_N * 2 + THREADS - 1) / THREADS)

struct brought {
    uint4 x[LOADS_X];
    weight_bits bits[LOADS_W];
    uint4 scales[LOADS_W];
};

static inline void bring(
    thread brought &b, device const uchar *w, ulong rows_before, device const uint4 *x, thread const uint *rows_of_x,
    uint first_n, uint g, uint thread_index)
{
#pragma unroll
    for (uint i = 0; i < LOADS_X; ++i) {
        const uint at = i * THREADS + thread_index;
        if (at < TILE_M * 4) b.x[i] = x[ulong(rows_of_x[i]) * (COLUMNS / 8) + g * 4 + at % 4];
    }
#pragma unroll
    for (uint i = 0; i < LOADS_W; ++i) {
        const uint at = i * THREADS + thread_index;
        if (at < TILE_N * 2) {
            const ulong group = (rows_before + min(first_n + at % TILE_N, uint(ROWS_OF_W - 1))) * GROUPS + g;
            b.bits[i] = bits_of(w, group, at / TILE_N);
            b.scales[i] = scales_of(w, group);
        }
    }
}

static inline void keep(thread const brought &b, threadgroup half *xs, threadgroup half *ws, uint g, uint thread_index) {
#pragma unroll
    for (uint i = 0; i < LOADS_X; ++i) {
        const uint at = i * THREADS + thread_index;
        if (at < TILE_M * 4) *(threadgroup uint4 *)(xs + tile_at(4, at / 4, at % 4)) = b.x[i];
    }
#pragma unroll
    for (uint i = 0; i < LOADS_W; ++i) {
        const uint at = i * THREADS + thread_index;
        if (at < TILE_N * 2) {
            const uint row = at % TILE_N, q = at / TILE_N;
            const sixteen_halves x = halves_of(b.bits[i], b.scales[i], g % 8, q);
            *(threadgroup uint4 *)(ws + tile_at(4, row, q)) = uint4(x.v[0], x.v[1], x.v[2], x.v[3]);
            *(threadgroup uint4 *)(ws + tile_at(4, row, q + 2)) = uint4(x.v[4], x.v[5], x.v[6], x.v[7]);
        }
    }
}

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
    threadgroup half xs[2 * TILE_M * 32];
    threadgroup half ws[2 * TILE_N * 32];

    RELEASE_NEXT();
    AWAIT_INPUTS();
    const uint first_n = threadgroup_position.y * TILE_N;
#if EXPERTS
    if (threadgroup_position.x >= uses[0]) return;
    device const uint *tile = uses + USES_TILES + 3 * threadgroup_position.x;
    const uint rows = tile[2], first_m = 0;
    device const uint *numbers = uses + USES_NUMBERS + tile[1];
    const ulong rows_before = ulong(tile[0]) * ROWS_OF_W;
    bias += rows_before;
#else
    const uint rows = step[COUNT], first_m = threadgroup_position.x * TILE_M;
    const ulong rows_before = 0;
    if (first_m >= rows) return;
#endif
    uint rows_of_x[LOADS_X];
#pragma unroll
    for (uint i = 0; i < LOADS_X; ++i) {
        const uint row = (i * THREADS + thread_index) / 4;
#if EXPERTS
        const uint number = numbers[min(row, rows - 1)];
        rows_of_x[i] = X_OF_USES ? number : number / USED;
#else
        rows_of_x[i] = first_m + row;
#endif
    }

    const uint m = simdgroup / SIMDGROUPS_N * PARTS_M * 16, n = simdgroup % SIMDGROUPS_N * PARTS_N * 16;
    tile_sums sums[PARTS_M][PARTS_N];
#pragma unroll
    for (uint i = 0; i < PARTS_M; ++i)
#pragma unroll
        for (uint k = 0; k < PARTS_N; ++k) tile_clear(sums[i][k]);

    brought next;
    bring(next, w, rows_before, x, rows_of_x, first_n, 0, thread_index);
    keep(next, xs, ws, 0, thread_index);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint g = 0; g < GROUPS; ++g) {
        const uint now = g & 1;
        if (g + 1 < GROUPS) bring(next, w, rows_before, x, rows_of_x, first_n, g + 1, thread_index);
#pragma unroll
        for (uint chunk = 0; chunk < 4; chunk += 2) {
            tile_operand a[PARTS_M];
#pragma unroll
            for (uint i = 0; i < PARTS_M; ++i) {
                a[i] = tile_load_rows(xs + now * TILE_M * 32, 4, m + 16 * i, chunk, lane);
            }
#pragma unroll
            for (uint k = 0; k + 1 < PARTS_N; k += 2) {
                const tile_operand b = tile_load_columns(ws + now * TILE_N * 32, 4, n + 16 * k, chunk, lane);
                const tile_operand c = tile_load_columns(ws + now * TILE_N * 32, 4, n + 16 * (k + 1), chunk, lane);
#pragma unroll
                for (uint i = 0; i < PARTS_M; ++i) tile_multiply_two(sums[i][k], sums[i][k + 1], a[i], b, c);
            }
#if PARTS_N % 2
            const tile_operand b = tile_load_columns(ws + now * TILE_N * 32, 4, n + 16 * (PARTS_N - 1), chunk, lane);
#pragma unroll
            for (uint i = 0; i < PARTS_M; ++i) tile_multiply(sums[i][PARTS_N - 1], a[i], b);
#endif
        }
        if (g + 1 < GROUPS) keep(next, xs + (1 - now) * TILE_M * 32, ws + (1 - now) * TILE_N * 32, g + 1, thread_index);
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }

#pragma unroll
    for (uint i = 0; i < PARTS_M; ++i) {
#pragma unroll
        for (uint k = 0; k < PARTS_N; ++k) {
#pragma unroll
            for (uint e = 0; e < 8; e += 2) {
                const uint row = first_m + m + 16 * i + tile_row(lane) + 8 * (e / 2 % 2);
                const uint column = first_n + n + 16 * k + tile_column_of(lane, e);
                if (row < rows && column < ROWS_OF_W) {
#if EXPERTS
                    device float *to = out + ulong(numbers[row]) * OUT_STRIDE;
#else
                    device float *to = out + ulong(row) * OUT_STRIDE;
#endif
                    store_pair(to, bias, column, ROWS_OF_W, tile_get(sums[i][k], e), tile_get(sums[i][k], e + 1));
                }
            }
        }
    }
}
