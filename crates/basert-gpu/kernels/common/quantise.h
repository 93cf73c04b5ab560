// Inputs of products as signed bytes: a group of 32 values has one scale, largest magnitude / 127, and eight words.

// The word of four values, and the scale of the group that eight neighbouring lanes have.
static inline uint quantise(float4 x, thread float &scale) {
    float largest = max(max(abs(x.x), abs(x.y)), max(abs(x.z), abs(x.w)));
    largest = max(largest, simd_shuffle_xor(largest, 1));
    largest = max(largest, simd_shuffle_xor(largest, 2));
    largest = max(largest, simd_shuffle_xor(largest, 4));
    scale = largest * (1.0f / 127.0f);
    const float factor = largest > 0.0f ? 127.0f / largest : 0.0f;
    // The sum's last bits are the nearest whole number.
    const float round = 12582912.0f;
    const uint a = as_type<uint>(fma(x.x, factor, round)), b = as_type<uint>(fma(x.y, factor, round));
    const uint c = as_type<uint>(fma(x.z, factor, round)), d = as_type<uint>(fma(x.w, factor, round));
    return (a & 255u) | ((b & 255u) << 8) | ((c & 255u) << 16) | (d << 24);
}

// Where the words of a group lie: words 2q, 2q + 1, 2q + 4 and 2q + 5 side by side, for q = 0 and 1.
static inline uint place_of_word(uint word) { return word / 2 % 2 * 4 + word / 4 * 2 + word % 2; }
