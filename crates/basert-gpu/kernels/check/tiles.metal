// What `common/tile.h` promises, by one simdgroup, on numbers that no rounding changes.
//
// a has 16 rows of 16, b 32 rows of 16, c 16 rows of 32. out gets a · bᵀ, 16 rows of 32; then its first 16 columns · c,
// 16 rows of 32; then of each row of these columns the largest, and the sum.
#include "common/base.h"
#include "common/tile.h"

kernel void check_tiles(
    device const float *a [[buffer(0)]],
    device const float *b [[buffer(1)]],
    device const float *c [[buffer(2)]],
    device float *out [[buffer(3)]],
    uint lane [[thread_index_in_simdgroup]])
{
    threadgroup half as[16 * 16];
    threadgroup half bs[32 * 16];
    threadgroup half cs[16 * 32];

    RELEASE_NEXT();
    AWAIT_INPUTS();
    for (uint i = lane; i < 16 * 16; i += 32) as[tile_at(2, i / 16, i % 16 / 8) + i % 8] = half(a[i]);
    for (uint i = lane; i < 32 * 16; i += 32) bs[tile_at(2, i / 16, i % 16 / 8) + i % 8] = half(b[i]);
    for (uint i = lane; i < 16 * 32; i += 32) cs[tile_at(4, i / 32, i % 32 / 8) + i % 8] = half(c[i]);
    threadgroup_barrier(mem_flags::mem_threadgroup);

    const tile_operand left = tile_load_rows(as, 2, 0, 0, lane);
    tile_sums first, second, third, fourth;
    tile_clear(first);
    tile_clear(second);
    tile_clear(third);
    tile_clear(fourth);
    tile_multiply(first, left, tile_load_columns(bs, 2, 0, 0, lane));
    tile_multiply(second, left, tile_load_columns(bs, 2, 16, 0, lane));
    tile_multiply_two(
        third, fourth, tile_round(first), tile_load_straight(cs, 4, 0, 0, lane), tile_load_straight(cs, 4, 0, 2, lane));

    float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {0.0f, 0.0f};
#pragma unroll
    for (uint e = 0; e < 8; ++e) {
        const uint v = e / 2 % 2, row = tile_row(lane) + 8 * v, column = tile_column_of(lane, e);
        out[row * 32 + column] = tile_get(first, e);
        out[row * 32 + column + 16] = tile_get(second, e);
        out[16 * 32 + row * 32 + column] = tile_get(third, e);
        out[16 * 32 + row * 32 + column + 16] = tile_get(fourth, e);
        largest[v] = max(largest[v], tile_get(first, e));
        sum[v] += tile_get(first, e);
    }
#pragma unroll
    for (uint v = 0; v < 2; ++v) {
        const float row_max = tile_row_max(largest[v]), row_sum = tile_row_sum(sum[v]);
        out[2 * 16 * 32 + tile_row(lane) + 8 * v] = row_max;
        out[2 * 16 * 32 + 16 + tile_row(lane) + 8 * v] = row_sum;
    }
}
