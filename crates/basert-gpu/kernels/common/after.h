// What becomes of values before they are stored, where ops of single values follow: AFTER(x, row, column), an expression, in which
// OTHER_A and OTHER_B stand for what else these ops read. Their buffers are `a_of_after` and `b_of_after`.
//
// A_STRIDE_AFTER and B_STRIDE_AFTER, the values from a row to the next; A_EACH and B_EACH, how many columns share one.
#include "common/activation.h"

#ifndef AFTER
#define AFTER(x, row, column) (x)
#endif
#define OTHER_A(row, column) a_of_after[ulong(row) * A_STRIDE_AFTER + (column) / A_EACH]
#define OTHER_B(row, column) b_of_after[ulong(row) * B_STRIDE_AFTER + (column) / B_EACH]
