// Which tokens use which experts. A use has a number: the token times USED, plus its place among the token's.
//
// EXPERTS, USED; ROUTE_STRIDE. Of sorted uses also USES_TILES and USES_NUMBERS, where in `uses` these begin: for each tile of
// at most TILE_M uses of one expert its number, the place of the first among all, and how many they are; and all numbers,
// sorted by expert. The first word says how many tiles there are.

// The expert of a use.
static inline uint expert_of(device const float *route, uint number) {
    return min(uint(route[ulong(number / USED) * ROUTE_STRIDE + number % USED]), uint(EXPERTS - 1));
}
