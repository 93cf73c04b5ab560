// What the attention kernels share.
//
// Q_HEADS, KV_HEADS, HEAD_DIM; SCALE; WINDOW, how many tokens one sees, or 0 for all; CAP, the soft cap of scores, or 0.
// SINKS, where each query head has a score more, without a value.
#include "common/kv.h"

#define GROUP (Q_HEADS / KV_HEADS)

// The first token that the one at `position` sees.
static inline uint first_seen(uint position) {
#if WINDOW
    return position + 1 > WINDOW ? position + 1 - WINDOW : 0;
#else
    return 0;
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
