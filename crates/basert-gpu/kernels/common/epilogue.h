// What happens to the output of a matrix product before it is stored.
#define EPILOGUE_STORE 0
#define EPILOGUE_ADD 1   // it is added to what is there
#define EPILOGUE_GATE 2  // columns 2i and 2i + 1 are the factors of a gate, whose result goes to column i

#if EPILOGUE == EPILOGUE_GATE
#include "common/activation.h"
#endif

// Columns `column` and `column + 1` of a row of outputs.
static inline void store_pair(device float *row, device const float *bias, uint column, uint columns, float a, float b) {
#if HAS_BIAS
    a += bias[column];
    if (column + 1 < columns) b += bias[column + 1];
#endif
#if EPILOGUE == EPILOGUE_GATE
    row[column / 2] = ACTIVATION(a) * OTHER(b);
#elif EPILOGUE == EPILOGUE_ADD
    row[column] += a;
    if (column + 1 < columns) row[column + 1] += b;
#else
    row[column] = a;
    if (column + 1 < columns) row[column + 1] = b;
#endif
}
