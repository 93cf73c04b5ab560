// What the attention kernels share.
//
// Q_HEADS, KV_HEADS, HEAD_DIM; SCALE; WINDOW, how many tokens one sees, or 0 for all; CHUNK, how many tokens see each
// other, or 0; CAP, the soft cap of scores, or 0; ALIBI, or 0: the slopes of heads end at 2^(−ALIBI).
// SINKS, where each query head has a score more, without a value.
#include "common/kv.h"

#define GROUP (Q_HEADS / KV_HEADS)

// The first token that the one at `position` sees.
static inline uint first_seen(uint position) {
#if WINDOW
    return position + 1 > WINDOW ? position + 1 - WINDOW : 0;
#elif CHUNK
    return position - position % CHUNK;
#else
    return 0;
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
