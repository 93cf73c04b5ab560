// Heads of queries and keys: normed, rotated by their position, and kept.
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

// Puts a head's key or value into the cache, by a simdgroup.
static inline void keep_head(threadgroup const float *values, device uchar *part, uint token, uint lane) {
#if KV_BITS == 16
    for (uint i = lane; i < HEAD_DIM / 2; i += 32) {
        ((device uint *)part)[token * (HEAD_DIM / 2) + i] = two_halves(values[2 * i], values[2 * i + 1]);
    }
#else
    for (uint block = 0; block < HEAD_DIM / 32; ++block) {
        const float x = values[block * 32 + lane];
        const float largest = simd_max(abs(x));
#if KV_BITS == 8
        const float scale = largest / 127.0f;
        const int code = scale > 0.0f ? int(rint(x / scale)) : 0;
        part[token * HEAD_DIM + block * 32 + lane] = uchar(code & 255);
#else
        // The value of the largest magnitude is −8 steps; of two of one magnitude, the first.
        const float signed_largest = simd_max(abs(x) == largest ? x : -largest);
        const float scale = signed_largest / -8.0f;
        const uint code = scale != 0.0f ? uint(clamp(int(floor(x / scale + 8.5f)), 0, 15)) : 8;
        const uint other = simd_shuffle_xor(code, 16);
        if (lane < 16) part[token * (HEAD_DIM / 2) + block * 16 + lane] = uchar(code | (other << 4));
#endif
        if (lane == 0) ((device half *)(part + KV_SCALES_AT))[token * (HEAD_DIM / 32) + block] = to_half(scale);
    }
#endif
}
