// The candidates of a draw.
//
// VOCABULARY, LOGITS_STRIDE; LARGEST_PARTS, how many threadgroups look for a row's largest rank; what STEP_DRAWS says of
// each row.
#include "common/rank.h"

struct draw {
    float temperature;
    uint top_k;
    uint top_p;       // in steps of 2^−20
    float log_min_p;
    float repeat;
    float presence;
    float frequency;
    uint seed_low;
    uint seed_high;
    uint index;
    bool has_history;
    bool has_mask;
};

static inline draw draw_of(device const uint *step, uint row) {
    device const uint *at = step + STEP_DRAWS + row * DRAW_WORDS;
    draw d;
    d.temperature = as_type<float>(at[0]);
    d.top_k = at[1];
    d.top_p = at[2];
    d.log_min_p = as_type<float>(at[3]);
    d.repeat = as_type<float>(at[4]);
    d.presence = as_type<float>(at[5]);
    d.frequency = as_type<float>(at[6]);
    d.seed_low = at[7];
    d.seed_high = at[8];
    d.index = at[9];
    d.has_history = at[10] != 0;
    d.has_mask = at[11] != 0;
    return d;
}

// Whether a token may be drawn.
static inline bool is_allowed(thread const draw &d, device const uint *mask, uint token) {
    return !d.has_mask || ((mask[token / 32] >> (token % 32)) & 1u) != 0;
}

// The logit with its penalties, divided by the temperature where there is one; −∞ for what may not be drawn. History: how
// often a token is in the answer, and 2^15 more where it is in the prompt.
static inline float candidate(
    thread const draw &d,
    device const float *logits,
    device const ushort *history,
    device const uint *mask,
    uint token)
{
    float x = logits[token];
    if (!is_allowed(d, mask, token)) x = -INFINITY;
    if (d.has_history) {
        const uint seen = history[token];
        if (seen) {
            x = x > 0.0f ? x / d.repeat : x * d.repeat;
            if (seen & 0x7fffu) x = fma(-d.frequency, float(seen & 0x7fffu), x - d.presence);
        }
    }
    if (d.temperature > 0.0f) x = x / d.temperature;
    return x + 0.0f;
}

// What penalties of a row look at.
static inline ulong history_of(thread const draw &d, device const uint *step, uint row) {
    return d.has_history ? ulong(step[STEP_DRAWS + row * DRAW_WORDS + 10] - 1) * VOCABULARY : 0;
}

// The mask of a row that has one.
static inline device const uint *mask_of(device const uint *step, uint row) {
    return step + step[STEP_DRAWS + row * DRAW_WORDS + 11];
}
