// How a matrix of weights lies in memory, and how it is decoded.
//
// A row is divided into groups of 32 values. The bits of a group's codes lie in one or two planes, each of which is an
// array of its own over all groups of the matrix, and so are the scales. A code word holds the codes of four
// consecutive values, one in each byte: word c those of values 4c … 4c + 3.
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

#if FLOAT_BITS == 0
// Code words j and j + 4 of a group, j from 0 to 3.
static inline void codes(device const uchar *w, ulong group, uint j, thread uint &low, thread uint &high) {
#if defined(BYTES_AT)
    const uint2 bytes = ((device const uint2 *)(w + BYTES_AT))[group * 4 + j];
    low = bytes.x;
    high = bytes.y;
#endif
#if defined(NIBBLES_AT)
    const uint nibbles = ((device const uint *)(w + NIBBLES_AT))[group * 4 + j];
    low = nibbles & 0x0f0f0f0fu;
    high = (nibbles >> 4) & 0x0f0f0f0fu;
#endif
#if defined(PAIRS_AT)
    const uint pairs = ((device const uint *)(w + PAIRS_AT))[group * 2 + (j & 1)] >> (2 * (j >> 1));
#if defined(NIBBLES_AT)
    low |= (pairs & 0x03030303u) << BITS_SHIFT;
    high |= ((pairs >> 4) & 0x03030303u) << BITS_SHIFT;
#else
    low = pairs & 0x03030303u;
    high = (pairs >> 4) & 0x03030303u;
#endif
#endif
#if defined(BITS_AT)
    const uint bits = ((device const uint *)(w + BITS_AT))[group] >> j;
    low |= (bits & 0x01010101u) << BITS_SHIFT;
    high |= ((bits >> 4) & 0x01010101u) << BITS_SHIFT;
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

static inline float half_at(uint word, uint shift) { return float(as_type<half>(ushort((word >> shift) & 0xffffu))); }

// Scale (x) and what is added (y) to the scaled codes of a half of a group.
static inline float2 scale_and_min(device const uchar *w, ulong group, uint half_of_group) {
#if SCALES == SCALES_F16
    const float scale = float(((device const half *)(w + SCALES_AT))[group]);
    return float2(scale, -ZERO * scale);
#elif SCALES == SCALES_F16_MIN
    return floats_of(((device const uint *)(w + SCALES_AT))[group]);
#elif SCALES == SCALES_SIX_BITS
    const uint4 all = ((device const uint4 *)(w + SCALES_AT))[group / 8];
    const uint shift = 8 * (uint(group) & 3);
    const bool first = (uint(group) & 4) == 0;
    const uint scale = first ? (all.y >> shift) & 63 : ((all.w >> shift) & 15) | (((all.y >> (shift + 6)) & 3) << 4);
    const uint min = first ? (all.z >> shift) & 63 : ((all.w >> (shift + 4)) & 15) | (((all.z >> (shift + 6)) & 3) << 4);
    const float2 base = floats_of(all.x);
    return float2(base.x * float(scale), -base.y * float(min));
#elif SCALES == SCALES_NIBBLES
    const uint both = (w + SCALES_AT)[group * 2 + half_of_group];
    const float2 base = floats_of(((device const uint *)(w + BASES_AT))[group / 8]);
    return float2(base.x * float(both & 15), -base.y * float(both >> 4));
#elif SCALES == SCALES_I8
    const float base = float(((device const half *)(w + BASES_AT))[group / 8]);
    const float scale = base * float(char((w + SCALES_AT)[group * 2 + half_of_group]));
    return float2(scale, -ZERO * scale);
#elif SCALES == SCALES_SIX_SIGNED
    const uint2 all = ((device const uint2 *)(w + SCALES_AT))[group / 8];
    const uint sub = uint(group) & 7;
    const uint scale = ((all.y >> (4 * sub)) & 15) | (((all.x >> (16 + 2 * sub)) & 3) << 4);
    return float2(half_at(all.x, 0) * (float(scale) - 32.0f), 0.0f);
#elif SCALES == SCALES_E8M0
    // Tables of E2M1 hold doubled values, hence one less in the exponent; the smallest two are not normal numbers.
    const uint exponent = (w + SCALES_AT)[group];
    return float2(as_type<float>(exponent < 2 ? 0x00200000u << exponent : (exponent - 1) << 23), 0.0f);
#endif
}
#endif

#if FLOAT_BITS
static inline float4 four_floats(device const uchar *w, ulong group, uint c) {
#if FLOAT_BITS == 32
    return ((device const float4 *)w)[group * 8 + c];
#elif FLOAT_BITS == 16
    const uint2 four = ((device const uint2 *)w)[group * 8 + c];
    const float2 a = floats_of(four.x), b = floats_of(four.y);
    return float4(a.x, a.y, b.x, b.y);
#else
    const uint2 four = ((device const uint2 *)w)[group * 8 + c];
    return float4(as_type<float>(four.x << 16), as_type<float>(four.x & 0xffff0000u), as_type<float>(four.y << 16),
                  as_type<float>(four.y & 0xffff0000u));
#endif
}
#endif

// Values 4j … 4j + 3 and 16 + 4j … 16 + 4j + 3 of a group.
static inline void decode(device const uchar *w, ulong group, uint j, thread float4 &low, thread float4 &high) {
#if FLOAT_BITS
    low = four_floats(w, group, j);
    high = four_floats(w, group, j + 4);
#else
    uint a = 0, b = 0;
    codes(w, group, j, a, b);
    const float2 first = scale_and_min(w, group, 0);
    const float2 second = HALVES == 2 ? scale_and_min(w, group, 1) : first;
    low = code_values(a) * first.x + first.y;
    high = code_values(b) * second.x + second.y;
#endif
}
