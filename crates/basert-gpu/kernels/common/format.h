// How a matrix of weights lies in memory, and how it is decoded.
//
// A row is divided into groups of 32 values, the last of which may be filled up with zeros. The bits of a group's
// codes lie in one or two planes, each of which is an array of its own over all groups of the matrix, and so are
// the scales. A code word holds the codes of four consecutive values, one in each byte: word c those of values 4c
// … 4c + 3.
//
//   plane     bytes a group   word c
//   bytes     32              words j and j + 4 side by side, for j = 0 … 3
//   nibbles   16              word c % 4, low nibbles of the bytes for c < 4 and high ones for the others
//   pairs      8              word c % 2, bits 2 · (c / 2) and the next of each byte
//   bits       4              bit c of each byte
//
// Defined for each matrix: FLOAT_BITS (32, 16, or 17 for bfloat16; 0 where it is quantised); which planes there are
// and where (BYTES_AT, NIBBLES_AT, PAIRS_AT, BITS_AT), and how far up the bits of the second one belong (BITS_SHIFT);
// SCALES and where they are (SCALES_AT, BASES_AT); what is subtracted from a code (ZERO), or how it is read
// (CODE_SIGNED, CODE_TABLE_0 … 3).

// SCALES: how the scale and min of a group are found, and of each half of it where HALVES is 2.
#define SCALES_F16 1       // an f16 a group
#define SCALES_F16_MIN 2   // two f16: scale and min
#define SCALES_SIX_BITS 3  // 16 bytes for 8 groups: f16 scale and min of all, 6-bit scales and mins of each
#define SCALES_NIBBLES 4   // a byte for each half, scale in the low nibble; f16 scale and min of 8 groups in BASES
#define SCALES_I8 5        // a signed byte for each half; f16 scale of 8 groups in BASES
#define SCALES_SIX_SIGNED 6  // 8 bytes for 8 groups: f16 scale, 16 high bits and 8 low nibbles of 6-bit scales
#define SCALES_E8M0 7      // a byte a group: the exponent of a power of two

#if FLOAT_BITS
#define HALVES 1
#elif SCALES == SCALES_NIBBLES || SCALES == SCALES_I8
#define HALVES 2
#else
#define HALVES 1
#endif

// A thread takes half a group at a time, sixteen values: for q = 0 or 1 those of words 2q, 2q + 1, 2q + 4 and 2q + 5.
// What it brings from memory (`bits_of`, `scales_of`) and what it makes of that (`words_of`, `scale_and_min`, `values_of`)
// are apart, so that much can be on its way at once.

#if FLOAT_BITS == 32
struct weight_bits { float4 v[4]; };
#elif FLOAT_BITS
struct weight_bits { uint2 v[4]; };
#else
// The first plane's words, and then those of the second.
struct weight_bits { uint4 v; };
#endif

// Asks for most of what `bits_of` will bring.
static inline void ask_for_bits(device const uchar *w, ulong group, uint q) {
#if FLOAT_BITS == 32
    PREFETCH(w + group * 128);
#elif FLOAT_BITS
    PREFETCH(w + group * 64);
#elif defined(BYTES_AT)
    PREFETCH(w + BYTES_AT + group * 32 + q * 16);
#elif defined(NIBBLES_AT)
    PREFETCH(w + NIBBLES_AT + group * 16 + q * 8);
#else
    PREFETCH(w + PAIRS_AT + group * 8);
#endif
}

static inline weight_bits bits_of(device const uchar *w, ulong group, uint q) {
    weight_bits bits;
#if FLOAT_BITS == 32
    device const float4 *from = (device const float4 *)w + group * 8 + 2 * q;
    bits.v[0] = from[0];
    bits.v[1] = from[1];
    bits.v[2] = from[4];
    bits.v[3] = from[5];
#elif FLOAT_BITS
    device const uint2 *from = (device const uint2 *)w + group * 8 + 2 * q;
    bits.v[0] = from[0];
    bits.v[1] = from[1];
    bits.v[2] = from[4];
    bits.v[3] = from[5];
#elif defined(BYTES_AT)
    bits.v = ((device const uint4 *)(w + BYTES_AT))[group * 2 + q];
#else
#if defined(NIBBLES_AT)
    const uint2 first = ((device const uint2 *)(w + NIBBLES_AT))[group * 2 + q];
#else
    const uint2 first = ((device const uint2 *)(w + PAIRS_AT))[group];
#endif
    bits.v.x = first.x;
    bits.v.y = first.y;
#if defined(NIBBLES_AT) && defined(PAIRS_AT)
    const uint2 second = ((device const uint2 *)(w + PAIRS_AT))[group];
    bits.v.z = second.x;
    bits.v.w = second.y;
#elif defined(BITS_AT)
    bits.v.z = ((device const uint *)(w + BITS_AT))[group];
    bits.v.w = 0;
#else
    bits.v.z = 0;
    bits.v.w = 0;
#endif
#endif
    return bits;
}

// Those of a whole group, for q = 0 and 1.
struct group_bits { weight_bits of[2]; };

static inline group_bits bits_of_group(device const uchar *w, ulong group) {
    group_bits bits;
    bits.of[0] = bits_of(w, group, 0);
    bits.of[1] = bits_of(w, group, 1);
#if FLOAT_BITS == 0 && defined(NIBBLES_AT)
    // Side by side, so they come at once.
    const uint4 both = ((device const uint4 *)(w + NIBBLES_AT))[group];
    bits.of[0].v.x = both.x;
    bits.of[0].v.y = both.y;
    bits.of[1].v.x = both.z;
    bits.of[1].v.y = both.w;
#endif
    return bits;
}

#if FLOAT_BITS == 0
// Words 2q, 2q + 1, 2q + 4 and 2q + 5.
static inline uint4 words_of(weight_bits bits, uint q) {
#if defined(BYTES_AT)
    return uint4(bits.v.x, bits.v.z, bits.v.y, bits.v.w);
#else
    uint4 words;
#if defined(NIBBLES_AT)
    words = uint4(bits.v.x & 0x0f0f0f0fu, bits.v.y & 0x0f0f0f0fu, (bits.v.x >> 4) & 0x0f0f0f0fu,
                  (bits.v.y >> 4) & 0x0f0f0f0fu);
#if defined(PAIRS_AT)
    const uint x = bits.v.z >> (2 * q), y = bits.v.w >> (2 * q);
    words.x |= (x & 0x03030303u) << BITS_SHIFT;
    words.y |= (y & 0x03030303u) << BITS_SHIFT;
    words.z |= ((x >> 4) & 0x03030303u) << BITS_SHIFT;
    words.w |= ((y >> 4) & 0x03030303u) << BITS_SHIFT;
#endif
#else
    const uint x = bits.v.x >> (2 * q), y = bits.v.y >> (2 * q);
    words = uint4(x & 0x03030303u, y & 0x03030303u, (x >> 4) & 0x03030303u, (y >> 4) & 0x03030303u);
#endif
#if defined(BITS_AT)
    const uint b = bits.v.z >> (2 * q);
    words.x |= (b & 0x01010101u) << BITS_SHIFT;
    words.y |= ((b >> 1) & 0x01010101u) << BITS_SHIFT;
    words.z |= ((b >> 4) & 0x01010101u) << BITS_SHIFT;
    words.w |= ((b >> 5) & 0x01010101u) << BITS_SHIFT;
#endif
    return words;
#endif
}

#if defined(CODE_TABLE_0)
static inline float table_value(uint code) {
    const uint word = code < 8 ? (code < 4 ? CODE_TABLE_0 : CODE_TABLE_1) : (code < 12 ? CODE_TABLE_2 : CODE_TABLE_3);
    return float(char((word >> (8 * (code & 3))) & 0xffu));
}
#define CODE_VALUE(code) table_value(code)
#elif defined(CODE_SIGNED)
#define CODE_VALUE(code) float(char(code))
#else
#define CODE_VALUE(code) float(code)
#endif

static inline float4 code_values(uint word) {
    return float4(CODE_VALUE(word & 0xffu), CODE_VALUE((word >> 8) & 0xffu), CODE_VALUE((word >> 16) & 0xffu),
                  CODE_VALUE(word >> 24));
}

// The values of a word's codes as signed bytes, before any scale.
static inline uint code_bytes(uint word) {
#if defined(CODE_TABLE_0)
    const float4 v = code_values(word);
    return (uint(int(v.x)) & 255u) | ((uint(int(v.y)) & 255u) << 8) | ((uint(int(v.z)) & 255u) << 16) | (uint(int(v.w)) << 24);
#else
    return word;
#endif
}

// What there is of the scales of a group.
static inline uint4 scales_of(device const uchar *w, ulong group) {
#if SCALES == SCALES_F16
    return uint4(((device const ushort *)(w + SCALES_AT))[group], 0, 0, 0);
#elif SCALES == SCALES_F16_MIN
    return uint4(((device const uint *)(w + SCALES_AT))[group], 0, 0, 0);
#elif SCALES == SCALES_SIX_BITS
    return ((device const uint4 *)(w + SCALES_AT))[group / 8];
#elif SCALES == SCALES_NIBBLES
    return uint4(((device const ushort *)(w + SCALES_AT))[group], ((device const uint *)(w + BASES_AT))[group / 8], 0, 0);
#elif SCALES == SCALES_I8
    return uint4(((device const ushort *)(w + SCALES_AT))[group], ((device const ushort *)(w + BASES_AT))[group / 8], 0, 0);
#elif SCALES == SCALES_SIX_SIGNED
    const uint2 both = ((device const uint2 *)(w + SCALES_AT))[group / 8];
    return uint4(both.x, both.y, 0, 0);
#elif SCALES == SCALES_E8M0
    return uint4((w + SCALES_AT)[group], 0, 0, 0);
#endif
}

// Scale (x) and what is added (y) to the scaled codes of a half of group `sub` of eight.
static inline float2 scale_and_min(uint4 all, uint sub, uint half_of_group) {
#if SCALES == SCALES_F16
    const float scale = floats_of(all.x).x;
    return float2(scale, -ZERO * scale);
#elif SCALES == SCALES_F16_MIN
    return floats_of(all.x);
#elif SCALES == SCALES_SIX_BITS
    const uint shift = 8 * (sub & 3);
    const bool first = (sub & 4) == 0;
    const uint x = all.y >> shift, y = all.z >> shift, z = all.w >> shift;
    const uint scale = first ? x & 63 : (z & 15) | ((x >> 2) & 48);
    const uint min = first ? y & 63 : ((z >> 4) & 15) | ((y >> 2) & 48);
    const float2 base = floats_of(all.x);
    return float2(base.x * float(scale), -base.y * float(min));
#elif SCALES == SCALES_NIBBLES
    const uint both = (all.x >> (8 * half_of_group)) & 255;
    const float2 base = floats_of(all.y);
    return float2(base.x * float(both & 15), -base.y * float(both >> 4));
#elif SCALES == SCALES_I8
    const float scale = floats_of(all.y).x * float(char((all.x >> (8 * half_of_group)) & 255));
    return float2(scale, -ZERO * scale);
#elif SCALES == SCALES_SIX_SIGNED
    const uint scale = ((all.y >> (4 * sub)) & 15) | (((all.x >> (16 + 2 * sub)) & 3) << 4);
    return float2(floats_of(all.x).x * (float(scale) - 32.0f), 0.0f);
#elif SCALES == SCALES_E8M0
    // Tables of E2M1 hold doubled values, hence one less in the exponent; the smallest two are not normal numbers.
    return float2(as_type<float>(all.x < 2 ? 0x00200000u << all.x : (all.x - 1) << 23), 0.0f);
#endif
}
#else
static inline uint4 scales_of(device const uchar *w, ulong group) { return uint4(0, 0, 0, 0); }
#endif

struct sixteen { float4 v[4]; };

// The values of words 2q, 2q + 1, 2q + 4 and 2q + 5 of group `sub` of eight.
static inline sixteen values_of(weight_bits bits, uint4 scales, uint sub, uint q) {
    sixteen values;
#if FLOAT_BITS == 32
    for (uint i = 0; i < 4; ++i) values.v[i] = bits.v[i];
#elif FLOAT_BITS == 16
    for (uint i = 0; i < 4; ++i) {
        const float2 a = floats_of(bits.v[i].x), b = floats_of(bits.v[i].y);
        values.v[i] = float4(a.x, a.y, b.x, b.y);
    }
#elif FLOAT_BITS
    for (uint i = 0; i < 4; ++i) {
        values.v[i] = float4(as_type<float>(bits.v[i].x << 16), as_type<float>(bits.v[i].x & 0xffff0000u),
                             as_type<float>(bits.v[i].y << 16), as_type<float>(bits.v[i].y & 0xffff0000u));
    }
#else
    const uint4 words = words_of(bits, q);
    const float2 first = scale_and_min(scales, sub, 0);
    const float2 second = HALVES == 2 ? scale_and_min(scales, sub, 1) : first;
    values.v[0] = code_values(words.x) * first.x + first.y;
    values.v[1] = code_values(words.y) * first.x + first.y;
    values.v[2] = code_values(words.z) * second.x + second.y;
    values.v[3] = code_values(words.w) * second.x + second.y;
#endif
    return values;
}

struct sixteen_halves { uint v[8]; };

// The same as halves, for products whose operands are halves.
static inline sixteen_halves halves_of(weight_bits bits, uint4 scales, uint sub, uint q) {
    sixteen_halves halves;
#if FLOAT_BITS || defined(CODE_TABLE_0)
    const sixteen values = values_of(bits, scales, sub, q);
    for (uint i = 0; i < 4; ++i) {
        halves.v[2 * i] = two_halves(values.v[i].x, values.v[i].y);
        halves.v[2 * i + 1] = two_halves(values.v[i].z, values.v[i].w);
    }
#else
    const uint4 words = words_of(bits, q);
    const float2 first = scale_and_min(scales, sub, 0);
    const float2 second = HALVES == 2 ? scale_and_min(scales, sub, 1) : first;
    const uint scale[2] = {two_halves(first.x, first.x), two_halves(second.x, second.x)};
    const uint min[2] = {two_halves(first.y, first.y), two_halves(second.y, second.y)};
    const uint word[4] = {words.x, words.y, words.z, words.w};
    for (uint i = 0; i < 8; ++i) {
#if defined(CODE_SIGNED)
        // 128 more, and −1152.
        const uint code = fma_halves(halves_of_bytes(word[i / 2] ^ 0x80808080u, i % 2), 0x3c003c00u, 0xe480e480u);
#else
        const uint code = fma_halves(halves_of_bytes(word[i / 2], i % 2), 0x3c003c00u, 0xe400e400u);
#endif
        halves.v[i] = fma_halves(code, scale[i / 4], min[i / 4]);
    }
#endif
    return halves;
}
