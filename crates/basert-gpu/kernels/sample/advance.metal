// Makes the step the next one: each row gets the token that was drawn for it, at the next position.
//
// WANTED_LIMIT and CHAIN, the size of `drawn`; PAGE; PAGE_GROUPS, whose sections lie TOKENS_LIMIT words apart.
#include "common/base.h"
#include "common/step.h"

kernel void advance(
    device const uint *drawn [[buffer(0)]],
    device uint *step [[buffer(1)]],
    uint thread_index [[thread_index_in_threadgroup]])
{
    RELEASE_NEXT();
    AWAIT_INPUTS();
    const uint chained = step[STEP_COUNT_CHAINED];
    threadgroup_barrier(mem_flags::mem_device);
    for (uint i = thread_index; i < step[STEP_COUNT_WANTED]; i += THREADS) {
        const uint row = step[STEP_WANTED + i], position = step[STEP_POSITIONS + row] + 1;
        step[STEP_TOKENS + row] = drawn[chained % CHAIN * WANTED_LIMIT + i] & ~NOT_A_NUMBER;
        step[STEP_POSITIONS + row] = position;
        for (uint of_group = row; of_group < PAGE_GROUPS * TOKENS_LIMIT; of_group += TOKENS_LIMIT) {
            const uint page = step[STEP_PAGES + step[STEP_TABLES + of_group] + position / PAGE];
            step[STEP_PLACES + of_group] = page * PAGE + position % PAGE;
        }
        step[STEP_DRAWS + i * DRAW_WORDS + 9] += 1;
    }
    if (thread_index == 0) step[STEP_COUNT_CHAINED] = chained + 1;
}
