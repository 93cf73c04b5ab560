// Numbered values are compared by one number, their rank: the value's bits so that larger ones are larger, and after them
// the number, smaller ones first.

static inline ulong rank_of(float x, uint index) {
    const uint bits = as_type<uint>(x);
    const uint ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (ulong(ordered) << 32) | ulong(~index);
}

static inline float value_of(ulong rank) {
    const uint ordered = uint(rank >> 32);
    return as_type<float>(ordered & 0x80000000u ? ordered & 0x7fffffffu : ~ordered);
}

// The largest of the ranks of a simdgroup.
static inline ulong simd_max_rank(ulong rank) {
    const uint high = simd_max(uint(rank >> 32));
    const uint low = simd_max(uint(rank >> 32) == high ? uint(rank & 0xfffffffful) : 0u);
    return (ulong(high) << 32) | ulong(low);
}

// The largest of the ranks of a threadgroup.
static inline ulong threadgroup_max(ulong rank, threadgroup ulong *partial, uint simdgroup, uint lane) {
    const ulong own = simd_max_rank(rank);
    if (lane == 0) partial[simdgroup] = own;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    ulong most = 0;
    for (uint i = 0; i < SIMDGROUPS; ++i) most = max(most, partial[i]);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    return most;
}
