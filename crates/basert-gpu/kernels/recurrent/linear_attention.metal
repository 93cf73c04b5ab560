// Linear attention with decay. Each head has a matrix of KEY_DIM rows and VALUE_DIM columns, its state, which every token changes:
// S = e^decay · S, u = beta · (v − Sᵀk), or beta · v without DELTA, S += k uᵀ; out = SCALE · Sᵀq.
//
// SPLIT lanes of a simdgroup share WIDE columns of one head: each lane has four of 4 · SPLIT consecutive rows, QUADS times. They keep
// them in registers and go through the tokens of a sequence in order, so a sum has the same order whatever tokens are in a step.
// Other lanes have other columns, of the same head or of others. A lane reads its part of a state before it writes it, and no other
// does: so a state may be kept where the one before was.
//
// HEADS, KEY_HEADS, KEY_DIM, VALUE_DIM; TILED, where head h has the queries and keys of head h % KEY_HEADS; BY_ROW, where each row has
// its decay; DELTA; SCALE; HAS_BETA; Q_STRIDE, K_STRIDE, V_STRIDE, DECAY_STRIDE, BETA_STRIDE, OUT_STRIDE; ALIGNED, where fours of
// queries, keys and decays lie at multiples of 16 bytes; SLOT_VALUES, the values of a slot, and STATE_AT, where the state begins in
// one.
#include "common/base.h"
#include "common/step.h"

#define QUADS ((KEY_DIM + 4 * SPLIT - 1) / (4 * SPLIT))
#define IS_WHOLE (KEY_DIM == 4 * SPLIT * QUADS)

// Numbers of the rows that a lane has: of all its columns, and of one.
typedef float4 state_of_lane[WIDE * QUADS];
typedef float4 rows_of_lane[QUADS];
// Sums of its rows for each of its columns, in four parts, and as a whole.
typedef float4 sums_of_lane[WIDE];
typedef float numbers[WIDE];
// A number of each of its columns as it lies in memory.
#if WIDE == 2
typedef float2 columns;
#else
typedef float columns;
#endif

// What is read of tokens: from where this lane's heads begin.
struct inputs {
    device const float *q;
    device const float *k;
    device const float *v;
    device const float *decay;
    device const float *beta;
};

struct token {
    rows_of_lane q, k;
#if BY_ROW
    rows_of_lane decay;
#else
    float decay;
#endif
    numbers v;
    float beta;
};

// The first of the four rows of a quad.
static inline uint row_of(uint quad, uint part) { return 4 * (quad * SPLIT + part); }

static inline float4 fma4(float4 a, float b, float4 c) {
    return float4(fma(a.x, b, c.x), fma(a.y, b, c.y), fma(a.z, b, c.z), fma(a.w, b, c.w));
}

static inline float4 fma4(float4 a, float4 b, float4 c) {
    return float4(fma(a.x, b.x, c.x), fma(a.y, b.y, c.y), fma(a.z, b.z, c.z), fma(a.w, b.w, c.w));
}

// The numbers of four rows, or zeros for rows that there are not.
static inline float4 four(device const float *from, uint row) {
    if (!IS_WHOLE && row >= KEY_DIM) return float4(0.0f);
#if ALIGNED
    return *(device const float4 *)(from + row);
#else
    const uint last = KEY_DIM - 1;
    return float4(
        from[row], row + 1 > last ? 0.0f : from[row + 1], row + 2 > last ? 0.0f : from[row + 2],
        row + 3 > last ? 0.0f : from[row + 3]);
#endif
}

static inline columns columns_of(device const float *state, uint row) {
    if (!IS_WHOLE && row >= KEY_DIM) return columns(0.0f);
    return *(device const columns *)(state + row * VALUE_DIM);
}

static inline void keep_columns(device float *state, uint row, columns x) {
    if (IS_WHOLE || row < KEY_DIM) *(device columns *)(state + row * VALUE_DIM) = x;
}

static inline void load_state(device const float *from, uint part, thread state_of_lane &s) {
#pragma unroll
    for (uint i = 0; i < QUADS; ++i) {
        const uint row = row_of(i, part);
        const columns a = columns_of(from, row), b = columns_of(from, row + 1);
        const columns c = columns_of(from, row + 2), d = columns_of(from, row + 3);
#if WIDE == 2
        s[2 * i] = float4(a.x, b.x, c.x, d.x);
        s[2 * i + 1] = float4(a.y, b.y, c.y, d.y);
#else
        s[i] = float4(a, b, c, d);
#endif
    }
}

static inline void keep_state(device float *to, uint part, thread const state_of_lane &s) {
#pragma unroll
    for (uint i = 0; i < QUADS; ++i) {
        const uint row = row_of(i, part);
#if WIDE == 2
        const float4 x = s[2 * i], y = s[2 * i + 1];
        keep_columns(to, row, float2(x.x, y.x));
        keep_columns(to, row + 1, float2(x.y, y.y));
        keep_columns(to, row + 2, float2(x.z, y.z));
        keep_columns(to, row + 3, float2(x.w, y.w));
#else
        keep_columns(to, row, s[i].x);
        keep_columns(to, row + 1, s[i].y);
        keep_columns(to, row + 2, s[i].z);
        keep_columns(to, row + 3, s[i].w);
#endif
    }
}

static inline void read_token(inputs from, uint row, uint part, thread token &t) {
    device const float *q = from.q + ulong(row) * Q_STRIDE;
    device const float *k = from.k + ulong(row) * K_STRIDE;
    device const float *v = from.v + ulong(row) * V_STRIDE;
    device const float *decay = from.decay + ulong(row) * DECAY_STRIDE;
#pragma unroll
    for (uint i = 0; i < QUADS; ++i) {
        t.q[i] = four(q, row_of(i, part));
        t.k[i] = four(k, row_of(i, part));
#if BY_ROW
        t.decay[i] = four(decay, row_of(i, part));
#endif
    }
#if !BY_ROW
    t.decay = decay[0];
#endif
#pragma unroll
    for (uint w = 0; w < WIDE; ++w) t.v[w] = v[w];
#if HAS_BETA
    t.beta = from.beta[ulong(row) * BETA_STRIDE];
#else
    t.beta = 1.0f;
#endif
}

// The sums of columns over the lanes that share them, the same for each of these.
static inline void sum_rows(thread const sums_of_lane &of_lane, thread numbers &sums) {
#pragma unroll
    for (uint w = 0; w < WIDE; ++w) sums[w] = sum4(of_lane[w]);
#pragma unroll
    for (uint mask = 1; mask < SPLIT; mask *= 2) {
#pragma unroll
        for (uint w = 0; w < WIDE; ++w) sums[w] += simd_shuffle_xor(sums[w], mask);
    }
}

// Changes the state by a token, and computes the results y of its query.
static inline void attend(thread const token &t, thread state_of_lane &s, thread numbers &y) {
    sums_of_lane sums;
    numbers u;
#pragma unroll
    for (uint w = 0; w < WIDE; ++w) sums[w] = float4(0.0f);
#if !BY_ROW
    const float4 decay = float4(exp(t.decay));
#endif
#pragma unroll
    for (uint i = 0; i < QUADS; ++i) {
#if BY_ROW
        const float4 decay = float4(exp(t.decay[i].x), exp(t.decay[i].y), exp(t.decay[i].z), exp(t.decay[i].w));
#endif
#pragma unroll
        for (uint w = 0; w < WIDE; ++w) {
            s[WIDE * i + w] = s[WIDE * i + w] * decay;
            if (DELTA) sums[w] = fma4(t.k[i], s[WIDE * i + w], sums[w]);
        }
    }
    if (DELTA) {
        sum_rows(sums, u);
#pragma unroll
        for (uint w = 0; w < WIDE; ++w) u[w] = t.beta * (t.v[w] - u[w]);
    } else {
#pragma unroll
        for (uint w = 0; w < WIDE; ++w) u[w] = t.beta * t.v[w];
    }
#pragma unroll
    for (uint w = 0; w < WIDE; ++w) {
        sums[w] = float4(0.0f);
#pragma unroll
        for (uint i = 0; i < QUADS; ++i) {
            s[WIDE * i + w] = fma4(t.k[i], u[w], s[WIDE * i + w]);
            sums[w] = fma4(t.q[i], s[WIDE * i + w], sums[w]);
        }
    }
    sum_rows(sums, y);
}

kernel void linear_attention(
    device const float *q [[buffer(0)]],
    device const float *k [[buffer(1)]],
    device const float *v [[buffer(2)]],
    device const float *decay [[buffer(3)]],
    device const float *beta [[buffer(4)]],
    device float *slots [[buffer(5)]],
    device float *out [[buffer(6)]],
    device const uint *step [[buffer(7)]],
    uint3 threadgroup_position [[threadgroup_position_in_grid]],
    uint3 threadgroups [[threadgroups_per_grid]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane [[thread_index_in_simdgroup]])
{
    RELEASE_NEXT();
    AWAIT_INPUTS();
    const uint part = lane % SPLIT;
    const uint chosen = ((threadgroup_position.x * SIMDGROUPS + simdgroup) * (32 / SPLIT) + lane / SPLIT) * WIDE;
    // Lanes without columns take part in the sums of others.
    const bool has_columns = chosen < HEADS * VALUE_DIM;
    const uint column = has_columns ? chosen : 0, head = column / VALUE_DIM;
    const uint key_head = TILED ? head % KEY_HEADS : head / (HEADS / KEY_HEADS);
    const uint in_slot = STATE_AT + head * (KEY_DIM * VALUE_DIM) + column % VALUE_DIM;
    const inputs from = {
        q + key_head * KEY_DIM, k + key_head * KEY_DIM, v + column, decay + (BY_ROW ? head * KEY_DIM : head), beta + head};

    const uint count = step[STEP_COUNT_SEQUENCES];
    for (uint sequence = threadgroup_position.y; sequence < count; sequence += threadgroups.y) {
        device const uint *of = step + STEP_SEQUENCES + sequence * SEQUENCE_WORDS;
        const uint first = of[0], end = first + of[1], slot = of[2];
        device const uint *kept = step + STEP_KEPT + of[3];
        uint kept_row = kept[0];
        // The next token is read while one is computed.
        token next;
        read_token(from, first, part, next);
        state_of_lane s;
        if (slot == STEP_NONE) {
#pragma unroll
            for (uint i = 0; i < WIDE * QUADS; ++i) s[i] = float4(0.0f);
        } else {
            load_state(slots + ulong(slot) * SLOT_VALUES + in_slot, part, s);
        }
        for (uint row = first; row < end; ++row) {
            const token now = next;
            if (row + 1 < end) read_token(from, row + 1, part, next);
            numbers y;
            attend(now, s, y);
            if (has_columns && part == 0) {
#pragma unroll
                for (uint w = 0; w < WIDE; ++w) out[ulong(row) * OUT_STRIDE + column + w] = SCALE * y[w];
            }
            if (row == kept_row) {
                if (has_columns) keep_state(slots + ulong(kept[1]) * SLOT_VALUES + in_slot, part, s);
                kept += 2;
                kept_row = kept[0];
            }
        }
    }
}
