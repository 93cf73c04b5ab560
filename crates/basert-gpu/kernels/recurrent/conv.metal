// A causal convolution over time, channel by channel: out = bias + Σ weight[k] · x of the token TAPS − 1 − k before.
//
// A thread has a channel of ROWS consecutive tokens of a sequence, z ROWS after its first one in this step. The state is the inputs
// of the last TAPS − 1 tokens, the oldest first. Only the threads of the first ROWS tokens read it, and they alone write it, all
// that is kept of the sequence: so a state may be kept where the one before was.
//
// What comes after it (`common/after.h`) is applied to out.
//
// CHANNELS, TAPS; ROWS, at least TAPS − 1; HAS_BIAS; X_STRIDE, OUT_STRIDE; SLOT_VALUES, the values of a slot, and STATE_AT, where the
// state begins in one.
#include "common/base.h"
#include "common/after.h"
#include "common/step.h"

// Inputs that are read before the first of them is needed.
#define AHEAD 8

kernel void conv(
    device const float *x [[buffer(0)]],
    device const float *weight [[buffer(1)]],
    device const float *bias [[buffer(2)]],
    device float *slots [[buffer(3)]],
    device float *out [[buffer(4)]],
    device const uint *step [[buffer(5)]],
    device const float *a_of_after [[buffer(6)]],
    device const float *b_of_after [[buffer(7)]],
    uint3 threadgroup_position [[threadgroup_position_in_grid]],
    uint3 threadgroups [[threadgroups_per_grid]],
    uint thread_index [[thread_index_in_threadgroup]])
{
    const uint channel = threadgroup_position.x * THREADS + thread_index;
    const uint of_weights = min(channel, uint(CHANNELS - 1));
    float factors[TAPS], term = 0.0f;
#pragma unroll
    for (uint k = 0; k < TAPS; ++k) factors[k] = weight[of_weights * TAPS + k];
#if HAS_BIAS
    term = bias[of_weights];
#endif
    RELEASE_NEXT();
    AWAIT_INPUTS();
    if (channel >= CHANNELS) return;
    const uint begin = threadgroup_position.z * ROWS, count = step[STEP_COUNT_SEQUENCES];
    for (uint sequence = threadgroup_position.y; sequence < count; sequence += threadgroups.y) {
        device const uint *of = step + STEP_SEQUENCES + sequence * SEQUENCE_WORDS;
        const uint first = of[0], rows = of[1], slot = of[2];
        if (begin >= rows) continue;
        device const uint *kept = step + STEP_KEPT + of[3];
        uint kept_row = begin == 0 ? kept[0] : STEP_NONE;
        device const float *in = x + ulong(first) * X_STRIDE + channel;
        // The last inputs, of which the first is not needed any more.
        float window[TAPS];
#pragma unroll
        for (uint i = 1; i < TAPS; ++i) {
            window[i] = 0.0f;
            if (begin > 0) {
                window[i] = in[ulong(begin + i - TAPS) * X_STRIDE];
            } else if (slot != STEP_NONE) {
                window[i] = slots[ulong(slot) * SLOT_VALUES + STATE_AT + (i - 1) * CHANNELS + channel];
            }
        }
        const uint end = min(begin + ROWS, rows);
        for (uint at = begin; at < end; at += AHEAD) {
            float next[AHEAD];
#pragma unroll
            for (uint i = 0; i < AHEAD; ++i) next[i] = at + i < end ? in[ulong(at + i) * X_STRIDE] : 0.0f;
#pragma unroll
            for (uint i = 0; i < AHEAD; ++i) {
                if (at + i >= end) continue;
                float y = term;
#pragma unroll
                for (uint k = 0; k < TAPS; ++k) {
                    window[k] = k + 1 < TAPS ? window[(k + 1) % TAPS] : next[i];
                    y = fma(factors[k], window[k], y);
                }
                const uint row = first + at + i;
                out[ulong(row) * OUT_STRIDE + channel] = AFTER(y, row, channel);
                if (row != kept_row) continue;
                device float *to = slots + ulong(kept[1]) * SLOT_VALUES + STATE_AT + channel;
#pragma unroll
                for (uint k = 1; k < TAPS; ++k) to[(k - 1) * CHANNELS] = window[k];
                kept += 2;
                kept_row = kept[0];
            }
        }
        // Those of the threads of later tokens.
        while (kept_row != STEP_NONE) {
            device float *to = slots + ulong(kept[1]) * SLOT_VALUES + STATE_AT + channel;
            for (uint k = 1; k < TAPS; ++k) to[(k - 1) * CHANNELS] = in[ulong(kept_row - first + k + 1 - TAPS) * X_STRIDE];
            kept += 2;
            kept_row = kept[0];
        }
    }
}
