// Draws a token from each row of logits, by a threadgroup: the algorithm of the engine's sampler, to the bit.
//
// A truncation is the least rank that stays. The largest rank of each part of the vocabulary was found before: where so few
// candidates are wanted that they are among those from one of these on, and these are few, they are listed, and all else
// happens in the list. Otherwise the least rank is found by a histogram of the distance to the largest logit, and then
// among the few candidates of one bin, or, where they are many, bit by bit.
//
// VOCABULARY, LOGITS_STRIDE; what STEP_DRAWS says of each row; WANTED_LIMIT and CHAIN, the size of `drawn`.
#include "common/base.h"
#include "common/step.h"
#include "sample/candidate.h"
#include "sample/exact.h"

#define BINS 2048
#define BINS_PER_NAT 64.0f
#define LISTED 1024
// Logits that a thread brings at once.
#define AT_ONCE 8
// Noise lies between −2.9 and 16.7: what is further behind than that cannot win.
#define REACH 20.0f

static inline uint bin_of(float largest, float x) { return uint(min((largest - x) * BINS_PER_NAT, float(BINS - 1))); }

// The sum of each thread's number, which is less than 2^44 / THREADS.
static inline ulong threadgroup_total(ulong x, threadgroup ulong *partial, uint simdgroup, uint lane) {
    const uint high = simd_sum(uint(x >> 20)), low = simd_sum(uint(x & 0xffffful));
    if (lane == 0) partial[simdgroup] = (ulong(high) << 20) + ulong(low);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    ulong sum = 0;
    for (uint i = 0; i < SIMDGROUPS; ++i) sum += partial[i];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    return sum;
}

// The rank of a candidate with its noise.
static inline ulong with_noise(thread const draw &d, float x, uint token) {
    return rank_of(x + exact_gumbel(philox(token / 4, d.index, d.seed_low, d.seed_high, token % 4)), token);
}

// So many parts of 2^20 of a sum, rounded up.
static inline ulong part_of(ulong total, uint parts) { return (total * parts + ((1ul << 20) - 1)) >> 20; }

// Of the listed ranks from `least` on, that at which the sum of those from the largest on reaches what is wanted, of ones or of
// weights; `least` where there is none. What is in `weights` is lost.
static inline ulong rank_that_reaches(
    ulong wanted,
    ulong least,
    bool by_weight,
    float largest,
    uint in_list,
    threadgroup const ulong *listed,
    threadgroup atomic_uint *weights,
    threadgroup ulong *found,
    uint thread_index)
{
    for (uint i = thread_index; i < in_list; i += THREADS) {
        atomic_store_explicit(&weights[i], by_weight ? exact_weight(value_of(listed[i]) - largest) : 1, memory_order_relaxed);
    }
    if (thread_index == 0) found[0] = least;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint i = thread_index; i < in_list; i += THREADS) {
        const ulong own = listed[i];
        ulong ahead = 0;
        for (uint k = 0; k < in_list; ++k) {
            if (listed[k] > own) ahead += atomic_load_explicit(&weights[k], memory_order_relaxed);
        }
        const ulong weight = atomic_load_explicit(&weights[i], memory_order_relaxed);
        if (own >= least && ahead < wanted && wanted <= ahead + weight) found[0] = own;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    const ulong rank = found[0];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    return rank;
}

// The candidates first + thread_index, and so on at intervals of THREADS; −∞ beyond the vocabulary.
static inline void bring(
    thread float *x,
    thread const draw &d,
    device const float *logits,
    device const ushort *history,
    device const uint *mask,
    uint first,
    uint thread_index)
{
#pragma unroll
    for (uint i = 0; i < AT_ONCE; ++i) {
        const uint token = first + i * THREADS + thread_index;
        x[i] = token < VOCABULARY ? candidate(d, logits, history, mask, token) : -INFINITY;
    }
}

kernel void sample(
    device const float *all_logits [[buffer(0)]],
    device ushort *histories [[buffer(1)]],
    device uint *drawn [[buffer(2)]],
    device const ulong *largest_ranks [[buffer(3)]],
    device const uint *step [[buffer(4)]],
    uint3 threadgroup_position [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]])
{
    threadgroup ulong partial[SIMDGROUPS];
    threadgroup atomic_uint high[BINS];
    threadgroup atomic_uint low[BINS];
    threadgroup ulong listed[LISTED];
    threadgroup atomic_uint count[1];
    threadgroup ulong found[2];

    RELEASE_NEXT();
    AWAIT_INPUTS();
    const uint row = threadgroup_position.x;
    if (row >= step[STEP_COUNT_WANTED]) return;
    const draw d = draw_of(step, row);
    device const float *logits = all_logits + ulong(row) * LOGITS_STRIDE;
    device ushort *history = histories + history_of(d, step, row);
    device const uint *mask = mask_of(step, row);

    ulong best = thread_index < LARGEST_PARTS ? largest_ranks[row * LARGEST_PARTS + thread_index] : 0;
    best = threadgroup_max(best, partial, simdgroup, lane);
    const float largest = value_of(best);

    if (d.temperature > 0.0f && best != 0) {
        ulong least = 0;
        // 0 where candidates are not listed.
        uint in_list = 0;
        if (d.top_k > 0 && d.top_k <= LARGEST_PARTS) {
            if (thread_index == 0) {
                atomic_store_explicit(&count[0], 0u, memory_order_relaxed);
                found[0] = 0;
            }
            if (thread_index < LARGEST_PARTS) listed[thread_index] = largest_ranks[row * LARGEST_PARTS + thread_index];
            threadgroup_barrier(mem_flags::mem_threadgroup);
            if (thread_index < LARGEST_PARTS) {
                uint ahead = 0;
                for (uint k = 0; k < LARGEST_PARTS; ++k) ahead += listed[k] > listed[thread_index] ? 1 : 0;
                if (ahead == d.top_k - 1) found[0] = listed[thread_index];
            }
            threadgroup_barrier(mem_flags::mem_threadgroup);
            const ulong from = found[0];
            threadgroup_barrier(mem_flags::mem_threadgroup);
            if (from != 0) {
                for (uint first = 0; first < VOCABULARY; first += AT_ONCE * THREADS) {
                    float x[AT_ONCE];
                    bring(x, d, logits, history, mask, first, thread_index);
#pragma unroll
                    for (uint i = 0; i < AT_ONCE; ++i) {
                        const ulong rank = rank_of(x[i], first + i * THREADS + thread_index);
                        if (!(x[i] > -INFINITY) || rank < from) continue;
                        const uint at = atomic_fetch_add_explicit(&count[0], 1u, memory_order_relaxed);
                        if (at < LISTED) listed[at] = rank;
                    }
                }
                threadgroup_barrier(mem_flags::mem_threadgroup);
                in_list = atomic_load_explicit(&count[0], memory_order_relaxed);
                if (in_list > LISTED) in_list = 0;
                threadgroup_barrier(mem_flags::mem_threadgroup);
            }
        }
        // By their number, and then by their probability.
        for (uint pass = 0; pass < 2; ++pass) {
            const bool by_weight = pass == 1;
            if (by_weight ? d.top_p >= (1u << 20) : d.top_k == 0 || d.top_k >= VOCABULARY) continue;
            if (in_list > 0) {
                ulong wanted = d.top_k;
                if (by_weight) {
                    ulong total = 0;
                    for (uint i = thread_index; i < in_list; i += THREADS) {
                        if (listed[i] >= least) total += exact_weight(value_of(listed[i]) - largest);
                    }
                    total = threadgroup_total(total, partial, simdgroup, lane);
                    wanted = part_of(total, d.top_p);
                }
                least = rank_that_reaches(wanted, least, by_weight, largest, in_list, listed, high, found, thread_index);
                continue;
            }
            for (uint i = thread_index; i < BINS; i += THREADS) {
                atomic_store_explicit(&high[i], 0u, memory_order_relaxed);
                atomic_store_explicit(&low[i], 0u, memory_order_relaxed);
            }
            if (thread_index == 0) {
                atomic_store_explicit(&count[0], 0u, memory_order_relaxed);
                found[0] = BINS;
            }
            threadgroup_barrier(mem_flags::mem_threadgroup);
            ulong total = 0;
            for (uint first = 0; first < VOCABULARY; first += AT_ONCE * THREADS) {
                float x[AT_ONCE];
                bring(x, d, logits, history, mask, first, thread_index);
#pragma unroll
                for (uint i = 0; i < AT_ONCE; ++i) {
                    if (!(x[i] > -INFINITY) || rank_of(x[i], first + i * THREADS + thread_index) < least) continue;
                    const uint weight = by_weight ? exact_weight(x[i] - largest) : 1;
                    const uint bin = bin_of(largest, x[i]);
                    total += weight;
                    if (weight >> 12) atomic_fetch_add_explicit(&high[bin], weight >> 12, memory_order_relaxed);
                    if (weight & 0xfffu) atomic_fetch_add_explicit(&low[bin], weight & 0xfffu, memory_order_relaxed);
                }
            }
            total = threadgroup_total(total, partial, simdgroup, lane);
            const ulong wanted = by_weight ? part_of(total, d.top_p) : ulong(d.top_k);

            // The bin in which the sum reaches what is wanted.
            uint own_high = 0, own_low = 0;
            const uint each = BINS / THREADS;
            for (uint i = 0; i < each; ++i) {
                own_high += atomic_load_explicit(&high[thread_index * each + i], memory_order_relaxed);
                own_low += atomic_load_explicit(&low[thread_index * each + i], memory_order_relaxed);
            }
            const uint sum_high = simd_sum(own_high), sum_low = simd_sum(own_low);
            if (lane == 0) partial[simdgroup] = (ulong(sum_high) << 12) + ulong(sum_low);
            const uint before_high = simd_prefix_exclusive_sum(own_high), before_low = simd_prefix_exclusive_sum(own_low);
            threadgroup_barrier(mem_flags::mem_threadgroup);
            ulong before = (ulong(before_high) << 12) + ulong(before_low);
            for (uint i = 0; i < simdgroup; ++i) before += partial[i];
            for (uint i = 0; i < each; ++i) {
                const uint bin = thread_index * each + i;
                const ulong own = (ulong(atomic_load_explicit(&high[bin], memory_order_relaxed)) << 12) +
                                  ulong(atomic_load_explicit(&low[bin], memory_order_relaxed));
                if (before < wanted && wanted <= before + own) {
                    found[0] = bin;
                    found[1] = wanted - before;
                }
                before += own;
            }
            threadgroup_barrier(mem_flags::mem_threadgroup);
            const uint bin = uint(found[0]);
            const ulong needed = found[1];
            threadgroup_barrier(mem_flags::mem_threadgroup);
            // Fewer candidates than are wanted: all stay.
            if (bin == BINS) continue;

            for (uint first = 0; first < VOCABULARY; first += AT_ONCE * THREADS) {
                float x[AT_ONCE];
                bring(x, d, logits, history, mask, first, thread_index);
#pragma unroll
                for (uint i = 0; i < AT_ONCE; ++i) {
                    const ulong rank = rank_of(x[i], first + i * THREADS + thread_index);
                    if (!(x[i] > -INFINITY) || rank < least || bin_of(largest, x[i]) != bin) continue;
                    const uint at = atomic_fetch_add_explicit(&count[0], 1u, memory_order_relaxed);
                    if (at < LISTED) listed[at] = rank;
                }
            }
            threadgroup_barrier(mem_flags::mem_threadgroup);
            const uint in_bin = atomic_load_explicit(&count[0], memory_order_relaxed);
            if (in_bin <= LISTED) {
                least = rank_that_reaches(needed, least, by_weight, largest, in_bin, listed, high, found, thread_index);
            } else {
                // The largest rank that enough weight reaches.
                ulong reached = 0;
                for (uint bit = 64; bit > 0; --bit) {
                    const ulong higher = reached | (1ul << (bit - 1));
                    ulong sum = 0;
                    for (uint token = thread_index; token < VOCABULARY; token += THREADS) {
                        const float x = candidate(d, logits, history, mask, token);
                        const ulong rank = rank_of(x, token);
                        if (x > -INFINITY && rank >= least && rank >= higher && bin_of(largest, x) == bin) {
                            sum += by_weight ? exact_weight(x - largest) : 1;
                        }
                    }
                    if (threadgroup_total(sum, partial, simdgroup, lane) >= needed) reached = higher;
                }
                least = reached;
            }
        }

        const float lowest = max(largest + d.log_min_p, largest - REACH);
        ulong most = 0;
        for (uint i = thread_index; i < in_list; i += THREADS) {
            const float x = value_of(listed[i]);
            if (x >= lowest && listed[i] >= least) most = max(most, with_noise(d, x, ~uint(listed[i] & 0xfffffffful)));
        }
        for (uint first = 0; first < VOCABULARY && in_list == 0; first += AT_ONCE * THREADS) {
            float x[AT_ONCE];
            bring(x, d, logits, history, mask, first, thread_index);
#pragma unroll
            for (uint i = 0; i < AT_ONCE; ++i) {
                const uint token = first + i * THREADS + thread_index;
                if (x[i] >= lowest && rank_of(x[i], token) >= least) most = max(most, with_noise(d, x[i], token));
            }
        }
        best = threadgroup_max(most, partial, simdgroup, lane);
    }

    if (best == 0) {
        // Where nothing has a chance, the first that is allowed is as good as any.
        for (uint token = thread_index; token < VOCABULARY; token += THREADS) {
            if (is_allowed(d, mask, token)) best = max(best, rank_of(0.0f, token));
        }
        best = threadgroup_max(best, partial, simdgroup, lane);
    }

    if (thread_index == 0) {
        const uint token = best == 0 ? 0 : ~uint(best & 0xfffffffful);
        const bool is_number = (as_type<uint>(logits[token]) & 0x7fffffffu) <= 0x7f800000u;
        drawn[step[STEP_COUNT_CHAINED] % CHAIN * WANTED_LIMIT + row] = is_number ? token : token | NOT_A_NUMBER;
        if (d.has_history && (history[token] & 0x7fffu) != 0x7fffu) history[token] += 1;
    }
}
