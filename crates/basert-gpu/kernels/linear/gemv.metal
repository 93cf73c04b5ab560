// out = epilogue(norm(x) · wᵀ) for up to TOKENS rows of x: memory-bound, every weight is read once.
//
// A simdgroup computes ROWS rows of w for all tokens, over its share of the columns where SPLIT simdgroups divide them.
// In each step it takes sixteen groups of 32 columns, two lanes each; what the next step needs of w is on its way by then.
//
// ROWS_OF_W, COLUMNS, ROWS (2, 4, 8 or 16), SPLIT, TOKENS (a power of two); COUNT, the word of the step that says how many rows of x there are;
// X_STRIDE, OUT_STRIDE; EPILOGUE; HAS_BIAS; INPUT; NORM and NORM_EPS, where x is normed first.
//
// Where there are EXPERTS, a threadgroup has one use of an expert (`moe/uses.h`), whose rows follow those of the experts
// before it: TOKENS is 1, rows of x are those of tokens, or of uses where X_OF_USES is set, and rows of the output those of
// uses.
#include "common/base.h"
#include "common/epilogue.h"
#include "common/format.h"
#include "common/quantise.h"
#include "common/step.h"
#if EXPERTS
#include "moe/uses.h"
#endif

// What the input is: floats; floats, which each threadgroup quantises for itself; or quantised, with scales that begin
// SCALES_OF_X_AT bytes in.
#define INPUT_FLOATS 0
#define INPUT_QUANTISED_HERE 1
#define INPUT_QUANTISED 2

#define GROUPS (COLUMNS / 32)
#define ROW_SETS (SIMDGROUPS / SPLIT)
#define OUTPUTS (ROWS * TOKENS)
// Steps whose weights are asked for before the input is there.
#define ASKED_AHEAD 4
// Four columns each of the input that a thread quantises.
#define HELD ((GROUPS * 8 + THREADS - 1) / THREADS)

struct brought {
    weight_bits bits[ROWS];
    uint4 scales[ROWS];
};

// The groups of one of the rows that a simdgroup has.
static inline ulong groups_of(ulong rows_before, uint row) {
    return (rows_before + min(row, uint(ROWS_OF_W - 1))) * GROUPS;
}

static inline void bring(thread brought &b, device const uchar *w, ulong rows_before, uint first_row, uint g, uint q) {
#pragma unroll
    for (uint r = 0; r < ROWS; ++r) {
        const ulong group = groups_of(rows_before, first_row + r) + g;
        b.bits[r] = bits_of(w, group, q);
        b.scales[r] = scales_of(w, group);
    }
}

// Where four columns of a row of x lie among those that are normed: those that lanes read at once side by side.
static inline uint place(uint four) {
    const uint g = four / 8, word = four % 8;
    return (word / 4 * 2 + word % 2) * (GROUPS * 2) + g * 2 + word / 2 % 2;
}

kernel void gemv(
    device const uchar *w [[buffer(0)]],
    device const uchar *input [[buffer(1)]],
    device float *out [[buffer(2)]],
    device const float *bias [[buffer(3)]],
    device const float *norm [[buffer(4)]],
    device const uint *step [[buffer(5)]],
    device const float *route [[buffer(6)]],
    uint3 threadgroup_position [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]])
{
    threadgroup float results[SIMDGROUPS * OUTPUTS];
#if INPUT == INPUT_QUANTISED_HERE
    threadgroup uint4 bytes[GROUPS * 2];
    threadgroup float scales[GROUPS];
#elif NORM
    threadgroup float4 normed[TOKENS * GROUPS * 8];
#endif
    const uint first_row = (threadgroup_position.x * ROW_SETS + simdgroup / SPLIT) * ROWS;
    const uint q = lane & 1, first_group = simdgroup % SPLIT * 16 + lane / 2, sub = first_group % 8;

    RELEASE_NEXT();
#if EXPERTS
    AWAIT_INPUTS();
    const uint number = threadgroup_position.y;
    if (number / USED >= step[COUNT]) return;
    const ulong rows_before = ulong(expert_of(route, number)) * ROWS_OF_W;
    input += ulong(X_OF_USES ? number : number / USED) * (X_STRIDE * 4);
    out += ulong(number) * OUT_STRIDE;
    bias += rows_before;
#else
    const ulong rows_before = 0;
#endif
    // Weights are there before any input is.
    brought next;
    if (first_group < GROUPS) bring(next, w, rows_before, first_row, first_group, q);
#pragma unroll
    for (uint ahead = 1; ahead <= ASKED_AHEAD; ++ahead) {
        const uint g = first_group + ahead * 16 * SPLIT;
        if (g >= GROUPS) break;
        for (uint r = 0; r < ROWS; ++r) ask_for_bits(w, groups_of(rows_before, first_row + r) + g, q);
    }
#if INPUT == INPUT_QUANTISED_HERE && NORM
    float4 gain[HELD];
#pragma unroll
    for (uint i = 0; i < HELD; ++i) {
        const uint at = i * THREADS + thread_index;
        gain[i] = at < GROUPS * 8 ? ((device const float4 *)norm)[at] : float4(0.0f);
    }
#endif
#if !EXPERTS
    AWAIT_INPUTS();
#endif
    const uint tokens = TOKENS == 1 ? 1 : min(uint(TOKENS), step[COUNT]);
#if INPUT == INPUT_QUANTISED_HERE
    // Whole groups of lanes take part, all of them in the shuffles.
    float4 held[HELD];
#pragma unroll
    for (uint i = 0; i < HELD; ++i) {
        const uint at = i * THREADS + thread_index;
        held[i] = at < GROUPS * 8 ? ((device const float4 *)input)[at] : float4(0.0f);
    }
#if NORM
    float squares = 0.0f;
#pragma unroll
    for (uint i = 0; i < HELD; ++i) squares += dot4(held[i], held[i]);
    squares = simd_sum(squares);
    if (lane == 0) results[simdgroup] = squares;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    squares = 0.0f;
#pragma unroll
    for (uint i = 0; i < SIMDGROUPS; ++i) squares += results[i];
    const float factor = rsqrt(squares / COLUMNS + NORM_EPS);
#endif
#pragma unroll
    for (uint i = 0; i < HELD; ++i) {
        const uint at = i * THREADS + thread_index;
#if NORM
        held[i] = held[i] * factor * gain[i];
#endif
        float scale;
        const uint word = quantise(held[i], scale);
        if (at < GROUPS * 8) {
            ((threadgroup uint *)bytes)[at / 8 * 8 + place_of_word(at % 8)] = word;
            if (at % 8 == 0) scales[at / 8] = scale;
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
#elif INPUT == INPUT_QUANTISED
    device const uint4 *bytes = (device const uint4 *)input;
    device const float *scales = (device const float *)(input + SCALES_OF_X_AT);
#else
    device const float *x = (device const float *)input;
#if NORM
    for (uint t = 0; t < tokens; ++t) {
        device const float4 *row = (device const float4 *)(x + t * X_STRIDE);
        float squares = 0.0f;
        for (uint i = thread_index; i < GROUPS * 8; i += THREADS) squares += dot4(row[i], row[i]);
        const float factor = rsqrt(threadgroup_sum(squares, results, simdgroup, lane) / COLUMNS + NORM_EPS);
        for (uint i = thread_index; i < GROUPS * 8; i += THREADS) {
            normed[t * GROUPS * 8 + place(i)] = row[i] * factor * ((device const float4 *)norm)[i];
        }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
#endif
#endif

    float sums[ROWS][TOKENS];
#pragma unroll
    for (uint r = 0; r < ROWS; ++r)
#pragma unroll
        for (uint t = 0; t < TOKENS; ++t) sums[r][t] = 0.0f;

    for (uint at = first_group; at < GROUPS; at += 16 * SPLIT) {
        const brought now = next;
        if (at + 16 * SPLIT < GROUPS) bring(next, w, rows_before, first_row, at + 16 * SPLIT, q);
#if INPUT != INPUT_FLOATS
        uint4 words[ROWS];
        float2 scale[ROWS];
#if HALVES == 2
        float2 second[ROWS];
#endif
#pragma unroll
        for (uint r = 0; r < ROWS; ++r) {
            words[r] = words_of(now.bits[r], q);
            words[r] = uint4(code_bytes(words[r].x), code_bytes(words[r].y), code_bytes(words[r].z), code_bytes(words[r].w));
            scale[r] = scale_and_min(now.scales[r], sub, 0);
#if HALVES == 2
            second[r] = scale_and_min(now.scales[r], sub, 1);
#endif
        }
#pragma unroll
        for (uint t = 0; t < TOKENS; ++t) {
            const uint row = min(t, tokens - 1) * GROUPS + at;
            const uint4 x = bytes[row * 2 + q];
            const float scale_x = scales[row];
            const float sum_a = float(dot_bytes(x.x, 0x01010101u, dot_bytes(x.y, 0x01010101u, 0)));
            const float sum_b = float(dot_bytes(x.z, 0x01010101u, dot_bytes(x.w, 0x01010101u, 0)));
#pragma unroll
            for (uint r = 0; r < ROWS; ++r) {
                const int dot_a = dot_bytes(words[r].x, x.x, dot_bytes(words[r].y, x.y, 0));
#if HALVES == 2
                const float dot_b = float(dot_bytes(words[r].z, x.z, dot_bytes(words[r].w, x.w, 0)));
                const float dot = fma(scale[r].x, float(dot_a), second[r].x * dot_b);
                sums[r][t] = fma(scale_x, fma(scale[r].y, sum_a, fma(second[r].y, sum_b, dot)), sums[r][t]);
#else
                const float dot = float(dot_bytes(words[r].z, x.z, dot_bytes(words[r].w, x.w, dot_a)));
                sums[r][t] = fma(scale_x, fma(scale[r].y, sum_a + sum_b, scale[r].x * dot), sums[r][t]);
#endif
            }
        }
#else
#pragma unroll
        for (uint t = 0; t < TOKENS; ++t) {
            float4 v[4];
#pragma unroll
            for (uint i = 0; i < 4; ++i) {
#if NORM
                v[i] = normed[t * GROUPS * 8 + i * (GROUPS * 2) + at * 2 + q];
#else
                v[i] = ((device const float4 *)(x + min(t, tokens - 1) * X_STRIDE))[at * 8 + 2 * q + i % 2 + i / 2 * 4];
#endif
            }
#if FLOAT_BITS
#pragma unroll
            for (uint r = 0; r < ROWS; ++r) {
                const sixteen values = values_of(now.bits[r], now.scales[r], sub, q);
#pragma unroll
                for (uint i = 0; i < 4; ++i) sums[r][t] += dot4(values.v[i], v[i]);
            }
#else
            const float sum_a = sum4(v[0]) + sum4(v[1]), sum_b = sum4(v[2]) + sum4(v[3]);
#pragma unroll
            for (uint r = 0; r < ROWS; ++r) {
                const uint4 words = words_of(now.bits[r], q);
                const float2 scale = scale_and_min(now.scales[r], sub, 0);
                const float dot_a = dot4(code_values(words.x), v[0]) + dot4(code_values(words.y), v[1]);
                const float dot_b = dot4(code_values(words.z), v[2]) + dot4(code_values(words.w), v[3]);
#if HALVES == 2
                const float2 second = scale_and_min(now.scales[r], sub, 1);
                sums[r][t] += fma(scale.x, dot_a, fma(second.x, dot_b, fma(scale.y, sum_a, second.y * sum_b)));
#else
                sums[r][t] += fma(scale.x, dot_a + dot_b, scale.y * (sum_a + sum_b));
#endif
            }
#endif
        }
#endif
    }

    // Sums over the simdgroup: at each turn a lane keeps half of what it has, and adds what another lane has of it.
    float all[OUTPUTS];
#pragma unroll
    for (uint i = 0; i < OUTPUTS; ++i) all[i] = sums[i % ROWS][i / ROWS];
#pragma unroll
    for (uint turn = 0; turn < 5; ++turn) {
        const uint other = 16 >> turn, left = OUTPUTS >> turn;
        const bool upper = (lane & other) != 0;
        if (left <= 1) all[0] += simd_shuffle_xor(all[0], other);
#pragma unroll
        for (uint i = 0; i < OUTPUTS / 2; ++i) {
            if (i >= left / 2) break;
            const float a = all[i], b = all[i + left / 2], sent = simd_shuffle_xor(upper ? a : b, other);
            all[i] = (upper ? b : a) + sent;
        }
    }
#if OUTPUTS >= 32
#pragma unroll
    for (uint i = 0; i < OUTPUTS / 32; ++i) results[simdgroup * OUTPUTS + lane * (OUTPUTS / 32) + i] = all[i];
#else
    if (lane % (32 / OUTPUTS) == 0) results[simdgroup * OUTPUTS + lane / (32 / OUTPUTS)] = all[0];
#endif
    threadgroup_barrier(mem_flags::mem_threadgroup);

    for (uint i = thread_index; i < ROW_SETS * OUTPUTS / 2; i += THREADS) {
        const uint set = i / (OUTPUTS / 2), t = i % (OUTPUTS / 2) / (ROWS / 2), r = i % (ROWS / 2) * 2;
        const uint row = (threadgroup_position.x * ROW_SETS + set) * ROWS + r;
        if (row >= ROWS_OF_W || t >= tokens) continue;
        float a = 0.0f, b = 0.0f;
        for (uint part = 0; part < SPLIT; ++part) {
            a += results[(set * SPLIT + part) * OUTPUTS + t * ROWS + r];
            b += results[(set * SPLIT + part) * OUTPUTS + t * ROWS + r + 1];
        }
        store_pair(out + t * OUT_STRIDE, bias, row, ROWS_OF_W, a, b);
    }
}
