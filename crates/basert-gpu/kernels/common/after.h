// What becomes of values before they are stored, where ops of single values follow: AFTER(x, row, column), an expression, in which
// OTHER_A and OTHER_B stand for what else these ops read. Their buffers are `a_of_after` and `b_of_after`.
//
// AFTER_A_STRIDE and AFTER_B_STRIDE, the values from a row to the next; AFTER_A_EACH and AFTER_B_EACH, how many columns share one.
#include "common/activation.h"

#ifndef AFTER
#define AFTER(x, row, column) (x)
#endif
#define OTHER_A(row, column) a_of_after[ulong(row) * AFTER_A_STRIDE + (column) / AFTER_A_EACH]
#define OTHER_B(row, column) b_of_after[ulong(row) * AFTER_B_STRIDE + (column) / AFTER_B_EACH]
