// Metal's standard library in CUDA, as much of it as the kernels use, without any of CUDA's headers. The kernel follows,
// in the namespace that is opened here: names declared in it hide those that CUDA has for other things, such as float4.
namespace msl {

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;  // so that 1ul is one
static_assert(sizeof(ulong) == 8, "ulong has 64 bits");
typedef signed char signed_char;  // what Metal calls char: on some machines, CUDA's has no sign

namespace metal {

template <class To, class From> inline To as_type(From from) {
    static_assert(sizeof(To) == sizeof(From), "as_type between types of one size");
    To to;
    memcpy(&to, &from, sizeof(To));
    return to;
}

// Sums and products of halves are computed as floats and rounded when they are stored.
struct half {
    ushort bits;
    half() = default;
    half(float x) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x)); }
    operator float() const {
        float x;
        asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
        return x;
    }
};

template <class T> struct alignas(2 * sizeof(T)) vector2 {
    T x, y;
    vector2() = default;
    vector2(T s) : x(s), y(s) {}
    vector2(T x, T y) : x(x), y(y) {}
    template <class U> explicit vector2(vector2<U> v) : x(T(v.x)), y(T(v.y)) {}
};

template <class T> struct alignas(4 * sizeof(T)) vector3 {
    T x, y, z;
    vector3() = default;
    vector3(T s) : x(s), y(s), z(s) {}
    vector3(T x, T y, T z) : x(x), y(y), z(z) {}
    template <class U> explicit vector3(vector3<U> v) : x(T(v.x)), y(T(v.y)), z(T(v.z)) {}
};

template <class T> struct alignas(4 * sizeof(T)) vector4 {
    T x, y, z, w;
    vector4() = default;
    vector4(T s) : x(s), y(s), z(s), w(s) {}
    vector4(T x, T y, T z, T w) : x(x), y(y), z(z), w(w) {}
    vector4(vector2<T> a, vector2<T> b) : x(a.x), y(a.y), z(b.x), w(b.y) {}
    template <class U> explicit vector4(vector4<U> v) : x(T(v.x)), y(T(v.y)), z(T(v.z)), w(T(v.w)) {}
};

typedef vector2<float> float2;
typedef vector3<float> float3;
typedef vector4<float> float4;
typedef vector2<half> half2;
typedef vector4<half> half4;
typedef vector2<int> int2;
typedef vector4<int> int4;
typedef vector2<uint> uint2;
typedef vector3<uint> uint3;
typedef vector4<uint> uint4;
typedef vector2<ulong> ulong2;
typedef vector2<ushort> ushort2;
typedef vector4<ushort> ushort4;
typedef vector4<uchar> uchar4;

// A number in the place of either operand becomes a vector of it.
#define METAL_OPERATOR(op)                                                                                         \
    inline float2 operator op(float2 a, float2 b) { return float2(a.x op b.x, a.y op b.y); }                       \
    inline float3 operator op(float3 a, float3 b) { return float3(a.x op b.x, a.y op b.y, a.z op b.z); }           \
    inline float4 operator op(float4 a, float4 b) { return float4(a.x op b.x, a.y op b.y, a.z op b.z, a.w op b.w); } \
    inline float2 &operator op##=(float2 &a, float2 b) { return a = a op b; }                                      \
    inline float3 &operator op##=(float3 &a, float3 b) { return a = a op b; }                                      \
    inline float4 &operator op##=(float4 &a, float4 b) { return a = a op b; }
METAL_OPERATOR(+)
METAL_OPERATOR(-)
METAL_OPERATOR(*)
METAL_OPERATOR(/)
#undef METAL_OPERATOR

inline float fma(float a, float b, float c) { return ::fmaf(a, b, c); }
inline float exp(float x) { return ::expf(x); }
inline float log(float x) { return ::logf(x); }
inline float tanh(float x) { return ::tanhf(x); }
inline float sin(float x) { return ::sinf(x); }
inline float cos(float x) { return ::cosf(x); }
inline float sqrt(float x) { return ::sqrtf(x); }
inline float rsqrt(float x) { return ::rsqrtf(x); }
inline float rint(float x) { return ::rintf(x); }
inline float floor(float x) { return ::floorf(x); }
inline float ceil(float x) { return ::ceilf(x); }
inline float abs(float x) { return ::fabsf(x); }
inline int abs(int x) { return x < 0 ? -x : x; }

template <class T> inline T min(T a, T b) { return b < a ? b : a; }
template <class T> inline T max(T a, T b) { return a < b ? b : a; }
inline float min(float a, float b) { return ::fminf(a, b); }
inline float max(float a, float b) { return ::fmaxf(a, b); }
template <class T> inline T clamp(T x, T low, T high) { return min(max(x, low), high); }

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };
inline void threadgroup_barrier(mem_flags) { ::__syncthreads(); }
inline void simdgroup_barrier(mem_flags) { ::__syncwarp(); }

template <class T> inline T simd_shuffle(T x, ushort lane) { return ::__shfl_sync(0xffffffffu, x, lane); }
template <class T> inline T simd_shuffle_xor(T x, ushort mask) { return ::__shfl_xor_sync(0xffffffffu, x, mask); }

template <class T> inline T simd_sum(T x) {
#pragma unroll
    for (ushort mask = 16; mask > 0; mask /= 2) x += simd_shuffle_xor(x, mask);
    return x;
}

template <class T> inline T simd_max(T x) {
#pragma unroll
    for (ushort mask = 16; mask > 0; mask /= 2) x = max(x, simd_shuffle_xor(x, mask));
    return x;
}

template <class T> inline T simd_min(T x) {
#pragma unroll
    for (ushort mask = 16; mask > 0; mask /= 2) x = min(x, simd_shuffle_xor(x, mask));
    return x;
}

// The sum over the lanes before this one.
template <class T> inline T simd_prefix_exclusive_sum(T x) {
    const uint lane = threadIdx.x % 32;
    T sum = x;
#pragma unroll
    for (uint distance = 1; distance < 32; distance *= 2) {
        const T before = ::__shfl_up_sync(0xffffffffu, sum, distance);
        if (lane >= distance) sum += before;
    }
    return sum - x;
}

enum memory_order { memory_order_relaxed };
struct atomic_uint { uint value; };
inline uint atomic_load_explicit(const atomic_uint *from, memory_order) { return *(const volatile uint *)&from->value; }
inline void atomic_store_explicit(atomic_uint *to, uint x, memory_order) { *(volatile uint *)&to->value = x; }
inline uint atomic_fetch_add_explicit(atomic_uint *to, uint x, memory_order) { return ::atomicAdd(&to->value, x); }

}  // namespace metal

#define METAL_ON_CUDA
#define INFINITY (::__int_as_float(0x7f800000))

#define char signed_char
#define device
#define thread
#define threadgroup
#define constant const
// A threadgroup's memory: its variables, which the rewriting of the source finds.
#define THREADGROUP_MEMORY __shared__ alignas(16)

// From compute capability 9.0 on, a kernel that was launched as a programmatic dependent begins when every block of the
// one before has released it, and waits for that one's end itself.
#if __CUDA_ARCH__ >= 900
#define AWAIT_INPUTS() asm volatile("griddepcontrol.wait;" ::: "memory")
#define RELEASE_NEXT() asm volatile("griddepcontrol.launch_dependents;")
#else
#define AWAIT_INPUTS()
#define RELEASE_NEXT()
#endif
#define PREFETCH(address) asm volatile("prefetch.global.L2 [%0];" ::"l"(address))
