// What every kernel begins with.
#include <metal_stdlib>
using namespace metal;

#define SIMDGROUPS (THREADS / 32)

// A device that begins a dispatch before those it depends on are complete says here how to wait for them, how to let
// the next one begin, and how to ask for memory ahead. On all others a barrier between dispatches does the first.
#ifndef AWAIT_INPUTS
#define AWAIT_INPUTS()
#define RELEASE_NEXT()
#define PREFETCH(address)
#endif

static inline float sum4(float4 v) { return (v.x + v.y) + (v.z + v.w); }

static inline float dot4(float4 a, float4 b) {
    return fma(a.x, b.x, fma(a.y, b.y, fma(a.z, b.z, a.w * b.w)));
}

// The sum of `value` over the threadgroup, the same for every thread. `partial` has room for each simdgroup.
static inline float threadgroup_sum(float value, threadgroup float *partial, uint simdgroup, uint lane) {
    const float own = simd_sum(value);
    if (lane == 0) partial[simdgroup] = own;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    float sum = 0.0f;
    for (uint i = 0; i < SIMDGROUPS; ++i) sum += partial[i];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    return sum;
}

// The largest finite f16 is 65504: what lies beyond is stored as that.
static inline half to_half(float x) { return half(clamp(x, -65504.0f, 65504.0f)); }

static inline uint two_halves(float x, float y) {
    return uint(as_type<ushort>(to_half(x))) | (uint(as_type<ushort>(to_half(y))) << 16);
}

static inline float2 floats_of(uint halves) {
    return float2(float(as_type<half>(ushort(halves & 0xffffu))), float(as_type<half>(ushort(halves >> 16))));
}

// As good as the device's own instruction; what is too small to be normal may be 0.
static inline float power_of_two(float x) {
#if defined(METAL_ON_CUDA)
    float power;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
    return power;
#else
    return exp2(x);
#endif
}

// The sum of c and of the products of four signed bytes each.
static inline int dot_bytes(uint a, uint b, int c) {
#if defined(METAL_ON_CUDA)
    int sum;
    asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
    return sum;
#else
    for (uint i = 0; i < 32; i += 8) c += int(char((a >> i) & 0xffu)) * int(char((b >> i) & 0xffu));
    return c;
#endif
}

// a · b + c of two halves each, rounded once.
static inline uint fma_halves(uint a, uint b, uint c) {
#if defined(METAL_ON_CUDA)
    uint d;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
#elif defined(METAL_ON_CPU)
    const float2 x = floats_of(a), y = floats_of(b), z = floats_of(c);
    return two_halves(fma(x.x, y.x, z.x), fma(x.y, y.y, z.y));
#else
    return as_type<uint>(fma(as_type<half2>(a), as_type<half2>(b), as_type<half2>(c)));
#endif
}

// The first or second two bytes of a word, each with 1024 added, as halves.
static inline uint halves_of_bytes(uint word, uint second) {
#if defined(METAL_ON_CUDA)
    uint pair;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(pair) : "r"(word), "r"(0x64646464u), "r"(second ? 0x4342u : 0x4140u));
    return pair;
#else
    word >>= 16 * second;
    return (word & 0xffu) | ((word & 0xff00u) << 8) | 0x64006400u;
#endif
}
