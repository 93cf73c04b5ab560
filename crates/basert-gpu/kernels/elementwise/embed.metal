// out = SCALE · row of w for each token, by a threadgroup.
//
// COLUMNS, OUT_STRIDE, SCALE, ROWS_OF_W; BY_POSITION, where positions choose the rows and not tokens; BY_SEGMENT, where the
// text does that a token belongs to; VOCABULARY, what is added to tokens of a second text, or 0 if there are none.
#include "common/base.h"
#include "common/format.h"
#include "common/step.h"

#define GROUPS ((COLUMNS + 31) / 32)

kernel void embed(
    device const uchar *w [[buffer(0)]],
    device float *out [[buffer(1)]],
    device const uint *step [[buffer(2)]],
    uint3 threadgroup_position [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]])
{
    RELEASE_NEXT();
    AWAIT_INPUTS();
    const uint row = threadgroup_position.x;
    if (row >= step[STEP_COUNT_TOKENS]) return;
#if BY_POSITION
    const uint chosen = step[STEP_POSITIONS + row];
#elif BY_SEGMENT
    const uint chosen = step[STEP_TOKENS + row] / uint(VOCABULARY);
#elif VOCABULARY > 0
    const uint chosen = step[STEP_TOKENS + row] % uint(VOCABULARY);
#else
    const uint chosen = step[STEP_TOKENS + row];
#endif
    const uint index = min(chosen, uint(ROWS_OF_W - 1));
    device float *to = out + ulong(row) * OUT_STRIDE;
    for (uint i = thread_index; i < GROUPS * 2; i += THREADS) {
        const uint g = i / 2, q = i % 2;
        const ulong group = ulong(index) * GROUPS + g;
        const sixteen values = values_of(bits_of(w, group, q), scales_of(w, group), g % 8, q);
        for (uint k = 0; k < 4; ++k) {
            const uint four = g * 8 + 2 * q + k % 2 + k / 2 * 4;
            const float4 v = values.v[k] * float(SCALE);
            if (COLUMNS % 32 == 0) {
                ((device float4 *)to)[four] = v;
            } else {
                // Neither whole groups nor aligned.
                if (four * 4 < COLUMNS) to[four * 4] = v.x;
                if (four * 4 + 1 < COLUMNS) to[four * 4 + 1] = v.y;
                if (four * 4 + 2 < COLUMNS) to[four * 4 + 2] = v.z;
                if (four * 4 + 3 < COLUMNS) to[four * 4 + 3] = v.w;
            }
        }
    }
}
