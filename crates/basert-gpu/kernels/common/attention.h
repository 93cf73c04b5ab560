// What the attention kernels share.
//
// Q_HEADS, KV_HEADS; HEAD_DIM, the values of a head in the cache, and HEAD_VALUES, those before zeros; SCALE;
// WINDOW, how many tokens one sees, or 0 for all; CHUNK, how many tokens see each other, or 0; SKIPPED, how many first tokens no
// later one sees; BOTH_WAYS, where later tokens are seen as well as earlier ones; CAP, the soft cap of
// scores, or 0; ALIBI, or 0: the slopes of heads end at 2^(−ALIBI). SINKS, where each query head has a score more,
// without a value.
#include "common/kv.h"

#define GROUP (Q_HEADS / KV_HEADS)

// Values i and i + 1 of a head of queries, of which there are `values`, or zeros.
static inline float2 two_of_head(device const float *head, uint i, uint values) {
    if (HEAD_VALUES == HEAD_DIM) return *(device const float2 *)(head + i);
    return float2(i < values ? head[i] : 0.0f, i + 1 < values ? head[i + 1] : 0.0f);
}

// Its values 4i … 4i + 3.
static inline float4 four_of_head(device const float *head, uint i) {
    if (HEAD_VALUES == HEAD_DIM) return ((device const float4 *)head)[i];
    const float2 a = two_of_head(head, 4 * i, HEAD_VALUES), b = two_of_head(head, 4 * i + 2, HEAD_VALUES);
    return float4(a.x, a.y, b.x, b.y);
}

// The first token that the one at `position` sees.
static inline uint first_seen(uint position) {
#if WINDOW
    return position + 1 > WINDOW ? position + 1 - WINDOW : 0;
#elif CHUNK
    return position - position % CHUNK;
#else
    return min(position, uint(SKIPPED));
#endif
}

// What comes after the last token that the one at `position` sees, where there are so many.
static inline uint after_seen(uint position, uint tokens) {
#if !BOTH_WAYS
    return position + 1;
#elif WINDOW
    return min(tokens, position + WINDOW);
#else
    return tokens;
#endif
}

// What is added to the score of a head for a token at this distance from the query.
static inline float by_distance(uint head, float distance) {
#if USES_ALIBI
    const uint whole = ALIBI_HEADS, further = head - whole;
    const float exponent = head < whole ? float(head + 1) / whole : float(2 * further + 1) / (2 * whole);
    return -exp2(-ALIBI * exponent) * distance;
#else
    return 0.0f;
#endif
}

// The score of a product of query and key, the query having been scaled.
static inline float capped(float score) {
#if CAP_SCORES
    return CAP * tanh(score / CAP);
#else
    return score;
#endif
}
