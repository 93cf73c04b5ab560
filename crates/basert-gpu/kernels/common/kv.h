// The paged cache of keys and values.
//
// A page holds PAGE tokens of all layers, and takes PAGE_BYTES. A kernel's `cache` begins at what its layer has of the
// first page: for each head the keys of its tokens, and then the values. They are halves (KV_BITS 16), those of eight tokens together
// as 8 × 8 matrices, a row a token, as products read them (`tile.h`). Or they are blocks of 32 codes of 8 or 4 bits, token by token,
// with the blocks' scales, halves, after all of them. The codes of 4 bits are those of Q4_0: value i of a block in the low nibble of
// byte i, value i + 16 in the high one, 8 subtracted.
#if KV_BITS == 16
#define KV_PART (PAGE * HEAD_DIM * 2)
#else
#define KV_SCALES_AT (PAGE * HEAD_DIM * KV_BITS / 8)
#define KV_PART (KV_SCALES_AT + PAGE * (HEAD_DIM / 32) * 2)
#endif

// Where the keys of a head in a page begin; its values follow KV_PART bytes later.
static inline ulong kv_keys(uint page, uint head) { return ulong(page) * PAGE_BYTES + ulong(head) * 2 * KV_PART; }

// Where values 8c … 8c + 7 of a token are, in sixteen bytes.
static inline uint kv_at(uint token, uint c) { return (token / 8 * (HEAD_DIM / 8) + c) * 8 + token % 8; }

// Values 8c … 8c + 7 of a token.
static inline void kv_load(device const uchar *part, uint token, uint c, thread float4 &a, thread float4 &b) {
#if KV_BITS == 16
    const uint4 eight = ((device const uint4 *)part)[kv_at(token, c)];
    const float2 p = floats_of(eight.x), q = floats_of(eight.y), r = floats_of(eight.z), s = floats_of(eight.w);
    a = float4(p.x, p.y, q.x, q.y);
    b = float4(r.x, r.y, s.x, s.y);
#else
    const float scale = float(((device const half *)(part + KV_SCALES_AT))[token * (HEAD_DIM / 32) + c / 4]);
#if KV_BITS == 8
    const uint2 eight = ((device const uint2 *)part)[token * (HEAD_DIM / 8) + c];
    a = scale * float4(float(char(eight.x & 255)), float(char((eight.x >> 8) & 255)), float(char((eight.x >> 16) & 255)), float(char(eight.x >> 24)));
    b = scale * float4(float(char(eight.y & 255)), float(char((eight.y >> 8) & 255)), float(char((eight.y >> 16) & 255)), float(char(eight.y >> 24)));
#else
    const uint2 bytes = ((device const uint2 *)part)[token * (HEAD_DIM / 16) + (c / 4) * 2 + (c & 1)];
    const uint shift = (c & 2) * 2, p = bytes.x >> shift, q = bytes.y >> shift;
    a = scale * (float4(float(p & 15), float((p >> 8) & 15), float((p >> 16) & 15), float((p >> 24) & 15)) - 8.0f);
    b = scale * (float4(float(q & 15), float((q >> 8) & 15), float((q >> 16) & 15), float((q >> 24) & 15)) - 8.0f);
#endif
#endif
}

static inline uint4 eight_halves(float4 a, float4 b) {
    return uint4(two_halves(a.x, a.y), two_halves(a.z, a.w), two_halves(b.x, b.y), two_halves(b.z, b.w));
}

// The same as halves.
static inline uint4 kv_halves(device const uchar *part, uint token, uint c) {
#if KV_BITS == 16
    return ((device const uint4 *)part)[kv_at(token, c)];
#else
    float4 a, b;
    kv_load(part, token, c, a, b);
    return eight_halves(a, b);
#endif
}

// Puts a head's key or value into the cache, by a simdgroup.
static inline void keep_head(threadgroup const float *values, device uchar *part, uint token, uint lane) {
#if KV_BITS == 16
    for (uint i = lane; i < HEAD_DIM / 2; i += 32) {
        ((device uint *)part)[kv_at(token, i / 4) * 4 + i % 4] = two_halves(values[2 * i], values[2 * i + 1]);
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
