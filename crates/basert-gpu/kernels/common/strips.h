// Rows of halves as `linear/gemm.metal` multiplies them: an image of what it has in threadgroup memory.
//
// Columns are divided into strips of 128, the last one filled up with zeros. A strip is eight products deep, sixteen columns
// each. Lanes that have the same row of weights, four of them, hold a group of 32 columns of a strip each, and give four
// of its values to each product, those of one word (`format.h`): products 0 … 3 take words 0, 1, 4 and 5, products 4 … 7 words 2,
// 3, 6 and 7. So weights come from memory as they lie, and the columns of x stand where they meet them.
//
// Rows lie eight by eight: for each eight of them the 8 × 8 matrices of all products, two each, one after the other.
#define STRIP 128
#define STRIPS(columns) (((columns) + STRIP - 1) / STRIP)
#define STRIP_MATRICES (STRIP / 8)
#define STRIP_PRODUCTS 8

// The column of a product that value `s` of the four is in that the lanes' place `place` gives.
static inline uint strip_slot(uint place, uint s) {
#if defined(TILES_ON_TENSOR_UNITS)
    return 4 * place + s;
#else
    return 2 * place + s % 2 + 8 * (s / 2);
#endif
}

// Where a value of x lies among `strips` strips a row, in halves. An even column and the one after it lie side by side.
static inline ulong strip_at(uint row, uint column, uint strips) {
    const uint word = column / 4 % 8, product = word / 2 % 2 * 4 + word / 4 * 2 + word % 2;
    const uint k = strip_slot(column / 32 % 4, column % 4);
    const uint matrix = column / STRIP * STRIP_MATRICES + product * 2 + k / 8;
    return (ulong(row / 8) * (strips * STRIP_MATRICES) + matrix) * 64 + row % 8 * 8 + k % 8;
}
