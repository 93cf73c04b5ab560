// What happens to the output of a matrix product before it is stored.
#define EPILOGUE_STORE 0
#define EPILOGUE_ADD 1   // it is added to what is there
#define EPILOGUE_SILU 2  // columns 2i and 2i + 1 are a gate and what it gates: activation(gate) · up goes to column i
#define EPILOGUE_GELU 3
#define EPILOGUE_CLAMPED_SWISH 4

// Columns `column` and `column + 1` of a row of outputs.
static inline void store_pair(device float *row, device const float *bias, uint column, uint columns, float a, float b) {
#if HAS_BIAS
    a += bias[column];
    if (column + 1 < columns) b += bias[column + 1];
#endif
#if EPILOGUE == EPILOGUE_SILU
    row[column / 2] = silu(a) * b;
#elif EPILOGUE == EPILOGUE_GELU
    row[column / 2] = gelu(a) * b;
#elif EPILOGUE == EPILOGUE_CLAMPED_SWISH
    row[column / 2] = clamped_swish(a, b);
#elif EPILOGUE == EPILOGUE_ADD
    row[column] += a;
    if (column + 1 < columns) row[column + 1] += b;
#else
    row[column] = a;
    if (column + 1 < columns) row[column + 1] = b;
#endif
}
