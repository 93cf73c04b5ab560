// Heads of queries and keys: normed, and rotated by their position.
//
// HEAD_DIM, of which HEAD_VALUES are there and zeros follow; ROTATED dimensions, in pairs (i, i + ROTATED / 2), or (2i, 2i +
// 1) where INTERLEAVED, times MAGNITUDE; Q_NORM and Q_EPS, K_NORM and K_EPS, where heads are normed first.
#if !Q_NORM
#define Q_EPS 0.0f
#endif
#if !K_NORM
#define K_EPS 0.0f
#endif

// Copies a head to threadgroup memory, by a simdgroup, and norms it if it is to be.
static inline void take_head(
    device const float *from, device const float *norm, bool normed, float eps, threadgroup float *values, uint lane)
{
    float factor = 1.0f;
    if (normed) {
        float squares = 0.0f;
        for (uint i = lane; i < HEAD_VALUES; i += 32) squares = fma(from[i], from[i], squares);
        factor = rsqrt(simd_sum(squares) / HEAD_VALUES + eps);
    }
    for (uint i = lane; i < HEAD_VALUES; i += 32) values[i] = normed ? from[i] * factor * norm[i] : from[i];
    if (HEAD_VALUES < HEAD_DIM) {
        for (uint i = HEAD_VALUES + lane; i < HEAD_DIM; i += 32) values[i] = 0.0f;
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
}

static inline void rotate_head(device const float *frequencies, uint position, threadgroup float *values, uint lane) {
    for (uint pair = lane; pair < ROTATED / 2; pair += 32) {
#if INTERLEAVED
        const uint first = 2 * pair, second = 2 * pair + 1;
#else
        const uint first = pair, second = pair + ROTATED / 2;
#endif
        const float angle = float(position) * frequencies[pair];
        const float cosine = MAGNITUDE * cos(angle), sine = MAGNITUDE * sin(angle);
        const float x = values[first], y = values[second];
        values[first] = x * cosine - y * sine;
        values[second] = x * sine + y * cosine;
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
}
