// The buffer that holds all that varies from step to step, as words. The macros say where each section begins.
#define STEP_COUNT_TOKENS 0
#define STEP_COUNT_WANTED 1
#define STEP_COUNT_TILES 2
#define STEP_COUNT_CHAINED 3  // steps that followed on the device since the buffer was written
#define STEP_COUNT_SEQUENCES 4
// STEP_TOKENS      token of each row
// STEP_POSITIONS   its position in its sequence
// STEP_PLACES      where its key and value go: page · PAGE + place in the page. Each page group has a section of its own, as of
//                  the next one; a kernel gets that of its layer.
// STEP_TABLES      where its sequence's pages begin, in words from STEP_PAGES. Pages before what the step sees do not exist.
// STEP_SEQUENCES   for each sequence SEQUENCE_WORDS words: its first row, its number of rows, the slot with the running states
//                  before them, and where the slots begin in which states after its rows are kept, in words from STEP_KEPT
// STEP_KEPT        for each row after which states are kept the row and the slot, in order, and STEP_NONE after those of a sequence
// STEP_WANTED      rows whose logits are wanted
// STEP_DRAWS       how a token is drawn from the logits of each of them, DRAW_WORDS words: see `sample/candidate.h`
// STEP_TILES       for each tile of queries TILE_WORDS words: its first row, its number of rows, the tokens of its sequence so far
// STEP_PAGES       the pages of all sequences, of each group
// The masks come last, to which draws point: the tokens that may be drawn, a bit for each of the vocabulary.
// Models without running states have no STEP_SEQUENCES and STEP_KEPT.
#define DRAW_WORDS 12
#define SEQUENCE_WORDS 4
#define TILE_WORDS 3
#define STEP_NONE 0xffffffffu
// Added to a drawn token whose logit is NaN.
#define NOT_A_NUMBER 0x80000000u
