// A part of an attention over a divided context: for each head of each token the weighted sum, its largest score, its sum of
// weights, and how many parts there are, which the first one always says. Parts of the same number lie side by side.
#define PART_LARGEST HEAD_DIM
#define PART_WEIGHT (HEAD_DIM + 1)
#define PART_COUNT (HEAD_DIM + 2)
#define PART_FLOATS (HEAD_DIM + 3)
