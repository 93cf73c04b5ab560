// Functions that every device computes to the same bit: sums of products are fused explicitly, and nothing else can be.
// `bit_exact.rs` of the engine has the same; the polynomials are those of Cephes (Moshier, `logf.c` and `expf.c`).

// ln x of a positive normal number.
static inline float exact_ln(float x) {
    // x = m · 2^e with m from √½ to √2.
    const uint bits = as_type<uint>(x) - 0x3f3504f3u;
    const float e = float(as_type<int>(bits) >> 23);
    const float f = as_type<float>((bits & 0x007fffffu) + 0x3f3504f3u) - 1.0f;
    float p = fma(0.0f, f, 7.0376836e-2f);
    p = fma(p, f, -1.151461e-1f);
    p = fma(p, f, 1.1676999e-1f);
    p = fma(p, f, -1.2420141e-1f);
    p = fma(p, f, 1.4249323e-1f);
    p = fma(p, f, -1.6668057e-1f);
    p = fma(p, f, 2.0000714e-1f);
    p = fma(p, f, -2.4999994e-1f);
    p = fma(p, f, 3.333333e-1f);
    const float squared = f * f;
    const float tail = squared * (p * f);
    const float low = fma(e, -2.1219444e-4f, fma(squared, -0.5f, tail));
    return fma(e, 0.6933594f, f + low);
}

// 2^23 · e^x for x ≤ 0, a whole number.
static inline uint exact_weight(float x) {
    if (!(x >= -17.0f)) return 0;
    const float n = rint(x * 1.44269504f);
    const float r = fma(n, 2.1219444e-4f, fma(n, -0.6933594f, x));
    float p = fma(0.0f, r, 1.9875691e-4f);
    p = fma(p, r, 1.3981999e-3f);
    p = fma(p, r, 8.333452e-3f);
    p = fma(p, r, 4.1665796e-2f);
    p = fma(p, r, 1.6666665e-1f);
    p = fma(p, r, 0.5f);
    const float y = fma(r * r, p, r) + 1.0f;
    return uint(y * 8388608.0f) >> uint(-n);
}

// Philox4x32-10 (Salmon et al. 2011): word `index` of the numbers of this counter.
static inline uint philox(uint a, uint b, uint k0, uint k1, uint index) {
    uint c = 0, d = 0;
    for (uint round = 0; round < 10; ++round) {
        const ulong p = ulong(a) * 0xD2511F53ul, q = ulong(c) * 0xCD9E8D57ul;
        const uint next_a = uint(q >> 32) ^ b ^ k0, next_c = uint(p >> 32) ^ d ^ k1;
        a = next_a;
        b = uint(q & 0xfffffffful);
        c = next_c;
        d = uint(p & 0xfffffffful);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return index == 0 ? a : index == 1 ? b : index == 2 ? c : d;
}

// −ln(−ln u), where u is uniform in (0, 1) and made of 23 of the random bits.
static inline float exact_gumbel(uint bits) {
    const float u = float(2 * (bits >> 9) + 1) * (1.0f / 16777216.0f);
    return -exact_ln(-exact_ln(u));
}
