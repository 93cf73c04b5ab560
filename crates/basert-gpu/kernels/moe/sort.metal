// Sorts the uses of experts by expert, in one threadgroup, and cuts them into tiles for `linear/gemm.metal`.
//
// See `moe/uses.h`; COUNT, the word of the step that says how many tokens there are.
#include "common/base.h"
#include "common/step.h"
#include "moe/uses.h"

kernel void sort_uses(
    device const float *route [[buffer(0)]],
    device uint *uses [[buffer(1)]],
    device const uint *step [[buffer(2)]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]])
{
    threadgroup atomic_uint count[EXPERTS];
    threadgroup uint first[EXPERTS];
    RELEASE_NEXT();
    AWAIT_INPUTS();
    const uint all = step[COUNT] * USED;
    for (uint e = thread_index; e < EXPERTS; e += THREADS) atomic_store_explicit(&count[e], 0u, memory_order_relaxed);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint number = thread_index; number < all; number += THREADS) {
        atomic_fetch_add_explicit(&count[expert_of(route, number)], 1u, memory_order_relaxed);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (simdgroup == 0) {
        uint before = 0, tiles = 0;
        for (uint begin = 0; begin < EXPERTS; begin += 32) {
            const uint e = begin + lane;
            const uint own = e < EXPERTS ? atomic_load_explicit(&count[e], memory_order_relaxed) : 0;
            const uint cut = (own + TILE_M - 1) / TILE_M;
            const uint at = before + simd_prefix_exclusive_sum(own);
            device uint *tile = uses + USES_TILES + 3 * (tiles + simd_prefix_exclusive_sum(cut));
            if (e < EXPERTS) first[e] = at;
            for (uint done = 0; done < own; done += TILE_M, tile += 3) {
                tile[0] = e;
                tile[1] = at + done;
                tile[2] = min(own - done, uint(TILE_M));
            }
            before += simd_sum(own);
            tiles += simd_sum(cut);
        }
        if (lane == 0) uses[0] = tiles;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint e = thread_index; e < EXPERTS; e += THREADS) atomic_store_explicit(&count[e], first[e], memory_order_relaxed);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint number = thread_index; number < all; number += THREADS) {
        const uint at = atomic_fetch_add_explicit(&count[expert_of(route, number)], 1u, memory_order_relaxed);
        uses[USES_NUMBERS + at] = number;
    }
}
