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

static inline float silu(float x) { return x / (1.0f + exp(-x)); }

// The tanh approximation of x · Φ(x).
static inline float gelu(float x) {
    const float inner = 0.7978845608f * fma(0.044715f * x * x, x, x);
    return 0.5f * x * (1.0f + tanh(inner));
}
