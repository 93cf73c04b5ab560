// Metal's standard library for the host's compiler, as much of it as kernels use, and what takes the place of pointers.
// No header of the host is included: that would take longer to compile than a kernel.
#define METAL_ON_CPU 1
#define __METAL_VERSION__ 320

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef signed char int8_t;
typedef uchar uint8_t;
typedef short int16_t;
typedef ushort uint16_t;
typedef int int32_t;
typedef uint uint32_t;
typedef long int64_t;
typedef ulong uint64_t;
static_assert(sizeof(long) == 8 && sizeof(void *) == 8, "kernels count on 64-bit addresses");

#define INFINITY __builtin_inff()
#define NAN __builtin_nanf("")
#define FLT_MAX __FLT_MAX__
#define FLT_EPSILON __FLT_EPSILON__
#define M_PI_F 3.14159265358979323846f
#define INLINE inline __attribute__((always_inline))

// A number in binary16: what is computed is rounded after each operation.
struct half {
    ushort bits;
    half() = default;
    INLINE half(float x) : bits(of_float(x)) {}
    INLINE operator float() const { return to_float(bits); }
    INLINE half operator-() const { return of_bits(bits ^ 0x8000); }
    INLINE half &operator+=(float x) { return *this = half(float(*this) + x); }
    INLINE half &operator-=(float x) { return *this = half(float(*this) - x); }
    INLINE half &operator*=(float x) { return *this = half(float(*this) * x); }
    INLINE half &operator/=(float x) { return *this = half(float(*this) / x); }
    static INLINE half of_bits(uint bits) {
        half h;
        h.bits = ushort(bits);
        return h;
    }

private:
#if defined(__F16C__)
    typedef float floats __attribute__((vector_size(16)));
    typedef short shorts __attribute__((vector_size(16)));
    static INLINE ushort of_float(float x) { return ushort(__builtin_ia32_vcvtps2ph(floats{x}, 0)[0]); }
    static INLINE float to_float(ushort bits) { return __builtin_ia32_vcvtph2ps(shorts{short(bits)})[0]; }
#elif defined(__aarch64__)
    static INLINE ushort of_float(float x) {
        const __fp16 h = x;
        ushort bits;
        __builtin_memcpy(&bits, &h, 2);
        return bits;
    }
    static INLINE float to_float(ushort bits) {
        __fp16 h;
        __builtin_memcpy(&h, &bits, 2);
        return h;
    }
#else
    static inline ushort of_float(float x) {
        uint word;
        __builtin_memcpy(&word, &x, 4);
        const uint sign = (word >> 16) & 0x8000, magnitude = word & 0x7fffffff;
        if (magnitude > 0x7f800000) return ushort(sign | 0x7e00);
        if (magnitude >= 0x477ff000) return ushort(sign | 0x7c00);
        // Below the smallest normal number, adding a half makes the unit of the last place that of the smallest one.
        if (magnitude < 0x38800000) {
            float positive;
            __builtin_memcpy(&positive, &magnitude, 4);
            positive += 0.5f;
            __builtin_memcpy(&word, &positive, 4);
            return ushort(sign | (word - 0x3f000000));
        }
        return ushort(sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13));
    }
    static inline float to_float(ushort bits) {
        const uint sign = uint(bits & 0x8000) << 16, exponent = (bits >> 10) & 31, fraction = bits & 1023;
        if (exponent == 0) return (sign ? -1.0f : 1.0f) * float(fraction) * 0x1p-24f;
        const uint word = sign | ((exponent == 31 ? 255 : exponent + 112) << 23) | (fraction << 13);
        float x;
        __builtin_memcpy(&x, &word, 4);
        return x;
    }
#endif
};

namespace simt {

template <class A, class B> struct same { static constexpr bool value = false; };
template <class A> struct same<A, A> { static constexpr bool value = true; };
template <bool, class T> struct only_if {};
template <class T> struct only_if<true, T> { typedef T type; };

// The second operand of a vector's operator that is not a vector.
template <class S> struct scalar { static constexpr bool value = __is_enum(S); };
#define SCALAR(S) template <> struct scalar<S> { static constexpr bool value = true; };
SCALAR(bool) SCALAR(char) SCALAR(signed char) SCALAR(uchar) SCALAR(short) SCALAR(ushort) SCALAR(int) SCALAR(uint)
SCALAR(long) SCALAR(ulong) SCALAR(long long) SCALAR(unsigned long long) SCALAR(float) SCALAR(double) SCALAR(half)
#undef SCALAR

}  // namespace simt

// Both operands are halves: one of another type makes it an operation of that type.
#define HALF_OPERATOR(op) \
    template <class A, class = typename simt::only_if<simt::same<A, half>::value, A>::type> \
    INLINE half operator op(A a, A b) { return half(float(a) op float(b)); }
HALF_OPERATOR(+) HALF_OPERATOR(-) HALF_OPERATOR(*) HALF_OPERATOR(/)
#undef HALF_OPERATOR

template <class T, int N> struct vec;

template <class T> struct alignas(2 * sizeof(T)) vec<T, 2> {
    T x, y;
    vec() = default;
    INLINE vec(T a) : x(a), y(a) {}
    INLINE vec(T a, T b) : x(a), y(b) {}
    template <class U> explicit INLINE vec(vec<U, 2> v) : x(T(v.x)), y(T(v.y)) {}
    INLINE T &operator[](uint i) { return i == 0 ? x : y; }
    INLINE T operator[](uint i) const { return i == 0 ? x : y; }
};

template <class T> struct alignas(4 * sizeof(T)) vec<T, 3> {
    T x, y, z;
    vec() = default;
    INLINE vec(T a) : x(a), y(a), z(a) {}
    INLINE vec(T a, T b, T c) : x(a), y(b), z(c) {}
    INLINE vec(vec<T, 2> a, T c) : x(a.x), y(a.y), z(c) {}
    INLINE vec(T a, vec<T, 2> b) : x(a), y(b.x), z(b.y) {}
    template <class U> explicit INLINE vec(vec<U, 3> v) : x(T(v.x)), y(T(v.y)), z(T(v.z)) {}
    INLINE T &operator[](uint i) { return i == 0 ? x : i == 1 ? y : z; }
    INLINE T operator[](uint i) const { return i == 0 ? x : i == 1 ? y : z; }
};

template <class T> struct alignas(4 * sizeof(T)) vec<T, 4> {
    T x, y, z, w;
    vec() = default;
    INLINE vec(T a) : x(a), y(a), z(a), w(a) {}
    INLINE vec(T a, T b, T c, T d) : x(a), y(b), z(c), w(d) {}
    INLINE vec(vec<T, 2> a, vec<T, 2> b) : x(a.x), y(a.y), z(b.x), w(b.y) {}
    INLINE vec(vec<T, 2> a, T c, T d) : x(a.x), y(a.y), z(c), w(d) {}
    INLINE vec(T a, vec<T, 2> b, T d) : x(a), y(b.x), z(b.y), w(d) {}
    INLINE vec(T a, T b, vec<T, 2> c) : x(a), y(b), z(c.x), w(c.y) {}
    INLINE vec(vec<T, 3> a, T d) : x(a.x), y(a.y), z(a.z), w(d) {}
    INLINE vec(T a, vec<T, 3> b) : x(a), y(b.x), z(b.y), w(b.z) {}
    template <class U> explicit INLINE vec(vec<U, 4> v) : x(T(v.x)), y(T(v.y)), z(T(v.z)), w(T(v.w)) {}
    INLINE T &operator[](uint i) { return i == 0 ? x : i == 1 ? y : i == 2 ? z : w; }
    INLINE T operator[](uint i) const { return i == 0 ? x : i == 1 ? y : i == 2 ? z : w; }
};

#define VECTORS(T, name) typedef vec<T, 2> name##2; typedef vec<T, 3> name##3; typedef vec<T, 4> name##4;
VECTORS(bool, bool) VECTORS(char, char) VECTORS(uchar, uchar) VECTORS(short, short) VECTORS(ushort, ushort)
VECTORS(int, int) VECTORS(uint, uint) VECTORS(long, long) VECTORS(ulong, ulong) VECTORS(half, half) VECTORS(float, float)
#undef VECTORS

namespace simt {

// A function of the elements, one by one.
template <class R, class F, class... V> INLINE vec<R, 2> each(F f, vec<V, 2>... v) { return vec<R, 2>(R(f(v.x...)), R(f(v.y...))); }
template <class R, class F, class... V> INLINE vec<R, 3> each(F f, vec<V, 3>... v) {
    return vec<R, 3>(R(f(v.x...)), R(f(v.y...)), R(f(v.z...)));
}
template <class R, class F, class... V> INLINE vec<R, 4> each(F f, vec<V, 4>... v) {
    return vec<R, 4>(R(f(v.x...)), R(f(v.y...)), R(f(v.z...)), R(f(v.w...)));
}

}  // namespace simt

#define VECTOR_OPERATOR(R, op) \
    template <class T, int N> INLINE vec<R, N> operator op(vec<T, N> a, vec<T, N> b) { \
        return simt::each<R>([](T p, T q) INLINE_LAMBDA { return p op q; }, a, b); \
    } \
    template <class T, int N, class S, class = typename simt::only_if<simt::scalar<S>::value, S>::type> \
    INLINE vec<R, N> operator op(vec<T, N> a, S b) { return a op vec<T, N>(T(b)); } \
    template <class T, int N, class S, class = typename simt::only_if<simt::scalar<S>::value, S>::type> \
    INLINE vec<R, N> operator op(S a, vec<T, N> b) { return vec<T, N>(T(a)) op b; }
#define VECTOR_ASSIGNMENT(op) \
    VECTOR_OPERATOR(T, op) \
    template <class T, int N, class B> INLINE vec<T, N> &operator op##=(vec<T, N> &a, B b) { return a = a op b; }
#define INLINE_LAMBDA __attribute__((always_inline))
VECTOR_ASSIGNMENT(+) VECTOR_ASSIGNMENT(-) VECTOR_ASSIGNMENT(*) VECTOR_ASSIGNMENT(/) VECTOR_ASSIGNMENT(%)
VECTOR_ASSIGNMENT(&) VECTOR_ASSIGNMENT(|) VECTOR_ASSIGNMENT(^) VECTOR_ASSIGNMENT(<<) VECTOR_ASSIGNMENT(>>)
VECTOR_OPERATOR(bool, ==) VECTOR_OPERATOR(bool, !=) VECTOR_OPERATOR(bool, <) VECTOR_OPERATOR(bool, <=)
VECTOR_OPERATOR(bool, >) VECTOR_OPERATOR(bool, >=) VECTOR_OPERATOR(bool, &&) VECTOR_OPERATOR(bool, ||)
#undef VECTOR_ASSIGNMENT
#undef VECTOR_OPERATOR
template <class T, int N> INLINE vec<T, N> operator-(vec<T, N> a) {
    return simt::each<T>([](T p) INLINE_LAMBDA { return -p; }, a);
}
template <class T, int N> INLINE vec<T, N> operator~(vec<T, N> a) {
    return simt::each<T>([](T p) INLINE_LAMBDA { return ~p; }, a);
}

// What the host knows of a threadgroup, and of the thread of it that runs. Its twin is `Shared` in `threadgroup.rs`.
namespace simt {

struct memory {
    uchar *begin;
    ulong bytes;
    const char *name;
};

enum fault : uint { out_of_range, misaligned, too_much, no_such_lane };
enum scope : uint { whole_threadgroup, whole_simdgroup };

struct group {
    // Returns when all threads of the scope are there.
    void (*wait)(const group *, scope, const char *operation, uint line);
    // Does not return.
    void (*fail)(const group *, fault, const memory *, ulong offset, ulong bytes, uint line);
    const memory *arguments;
    memory threadgroup_memory;
    // Two turns of 32 slots for each simdgroup, and how many turns it has taken.
    uchar *slots;
    const uint *turns;
    uint position[3];
    uint groups[3];
    uint threads;
    uint running;
};

constexpr ulong bytes_of_slot = 64;

static thread_local const group *self;

// An index, and the line it is used in.
struct place {
    long index;
    uint line;
    template <class I> INLINE place(I i, uint line = __builtin_LINE()) : index(long(i)), line(line) {}
};

// A pointer that knows what it points into.
template <class Space, class T> struct pointer {
    const memory *of;
    ulong at;

    INLINE pointer() : of(nullptr), at(0) {}
    INLINE pointer(const memory &of) : of(&of), at(ulong(of.begin)) {}
    INLINE pointer(const memory *of, ulong at) : of(of), at(at) {}
    INLINE operator pointer<Space, const T>() const { return pointer<Space, const T>(of, at); }
    template <class U> explicit INLINE operator pointer<Space, U>() const { return pointer<Space, U>(of, at); }
    explicit INLINE operator bool() const { return at != 0; }

    INLINE T &operator[](place i) const { return checked(at + ulong(i.index) * sizeof(T), i.line); }
    INLINE T &operator*() const { return checked(at, 0); }
    INLINE T *operator->() const { return &checked(at, 0); }
    template <class I> INLINE pointer operator+(I i) const { return pointer(of, at + ulong(long(i)) * sizeof(T)); }
    template <class I> INLINE pointer operator-(I i) const { return pointer(of, at - ulong(long(i)) * sizeof(T)); }
    template <class I> INLINE pointer &operator+=(I i) { return *this = *this + i; }
    template <class I> INLINE pointer &operator-=(I i) { return *this = *this - i; }
    INLINE pointer &operator++() { return *this += 1; }
    INLINE long operator-(pointer other) const { return long(at - other.at) / long(sizeof(T)); }
    INLINE bool operator==(pointer other) const { return at == other.at; }
    INLINE bool operator!=(pointer other) const { return at != other.at; }
    INLINE bool operator<(pointer other) const { return at < other.at; }

private:
    INLINE T &checked(ulong address, uint line) const {
        const ulong bytes = of ? of->bytes : 0, offset = of ? address - ulong(of->begin) : 0;
        if (__builtin_expect(offset >= bytes || bytes - offset < sizeof(T), 0)) {
            self->fail(self, out_of_range, of, offset, sizeof(T), line);
            __builtin_unreachable();
        }
        if (__builtin_expect(address % alignof(T) != 0, 0)) {
            self->fail(self, misaligned, of, offset, alignof(T), line);
            __builtin_unreachable();
        }
        return *(T *)address;
    }
};

struct device_space;
struct threadgroup_space;

// The next array of the threadgroup's memory.
static INLINE memory declare(ulong &used, ulong bytes, const char *name) {
    const memory &all = self->threadgroup_memory;
    const ulong at = used;
    used += (bytes + 15) / 16 * 16;
    if (__builtin_expect(used > all.bytes, 0)) {
        self->fail(self, too_much, &all, at, bytes, 0);
        __builtin_unreachable();
    }
    return memory{all.begin + at, bytes, name};
}
#define THREADGROUP_ARRAY(T, name, ...) \
    const simt::memory name##_memory = simt::declare(threadgroup_memory_used, sizeof(T) * (__VA_ARGS__), #name); \
    const simt::pointer<simt::threadgroup_space, T> name(name##_memory)

// A value of each dimension, as many as the kernel asks for.
template <class T> struct index_of {
    static INLINE T get(const uint *all) { return T(all[0]); }
    static INLINE T line(uint along, uint) { return T(along); }
};
template <class T> struct index_of<vec<T, 2>> {
    static INLINE vec<T, 2> get(const uint *all) { return vec<T, 2>(T(all[0]), T(all[1])); }
    static INLINE vec<T, 2> line(uint along, uint across) { return vec<T, 2>(T(along), T(across)); }
};
template <class T> struct index_of<vec<T, 3>> {
    static INLINE vec<T, 3> get(const uint *all) { return vec<T, 3>(T(all[0]), T(all[1]), T(all[2])); }
    static INLINE vec<T, 3> line(uint along, uint across) { return vec<T, 3>(T(along), T(across), T(across)); }
};

// Every lane's value, when all lanes of the simdgroup have come to this operation. They are there until the next but one.
template <class T> INLINE const T *exchange(const T &mine, const char *operation, uint line) {
    static_assert(sizeof(T) <= bytes_of_slot, "lanes exchange no more than 64 bytes at a time");
    const group *const g = self;
    const uint simdgroup = g->running / 32, lane = g->running % 32;
    T *const all = (T *)(g->slots + (simdgroup * 2 + g->turns[simdgroup] % 2) * 32 * bytes_of_slot);
    all[lane] = mine;
    g->wait(g, whole_simdgroup, operation, line);
    return all;
}

static INLINE uint lane() { return self->running % 32; }

// The lanes' values put together, in the order of a butterfly.
template <class T, class F> INLINE T reduce(const T *all, F f) {
    T v[32];
    for (uint i = 0; i < 32; ++i) v[i] = all[i];
    for (uint width = 16; width != 0; width /= 2)
        for (uint i = 0; i < width; ++i) v[i] = f(v[i], v[i + width]);
    return v[0];
}

template <class T> INLINE T of_lane(const T *all, uint lane, uint line) {
    if (__builtin_expect(lane >= 32, 0)) {
        self->fail(self, no_such_lane, nullptr, lane, 0, line);
        __builtin_unreachable();
    }
    return all[lane];
}

}  // namespace simt

namespace metal {

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2 };
enum memory_order { memory_order_relaxed };

INLINE void threadgroup_barrier(mem_flags, uint line = __builtin_LINE()) {
    simt::self->wait(simt::self, simt::whole_threadgroup, "threadgroup_barrier", line);
}
INLINE void simdgroup_barrier(mem_flags, uint line = __builtin_LINE()) {
    simt::self->wait(simt::self, simt::whole_simdgroup, "simdgroup_barrier", line);
}

template <class T, class U> INLINE T as_type(U from) {
    static_assert(sizeof(T) == sizeof(U), "as_type is between types of one size");
    T to;
    __builtin_memcpy(&to, &from, sizeof(T));
    return to;
}

// Functions of numbers, and of vectors element by element.
#define OF_VECTORS_1(f) \
    template <class T, int N> INLINE vec<T, N> f(vec<T, N> a) { \
        return simt::each<T>([](T p) INLINE_LAMBDA { return f(p); }, a); \
    }
#define OF_VECTORS_2(f) \
    template <class T, int N> INLINE vec<T, N> f(vec<T, N> a, vec<T, N> b) { \
        return simt::each<T>([](T p, T q) INLINE_LAMBDA { return f(p, q); }, a, b); \
    }
#define OF_VECTORS_3(f) \
    template <class T, int N> INLINE vec<T, N> f(vec<T, N> a, vec<T, N> b, vec<T, N> c) { \
        return simt::each<T>([](T p, T q, T r) INLINE_LAMBDA { return f(p, q, r); }, a, b, c); \
    }
#define FLOAT_1(f, value) INLINE float f(float x) { return value; } OF_VECTORS_1(f)
FLOAT_1(exp, __builtin_expf(x)) FLOAT_1(exp2, __builtin_exp2f(x)) FLOAT_1(log, __builtin_logf(x))
FLOAT_1(log2, __builtin_log2f(x)) FLOAT_1(sqrt, __builtin_sqrtf(x)) FLOAT_1(rsqrt, 1.0f / __builtin_sqrtf(x))
FLOAT_1(sin, __builtin_sinf(x)) FLOAT_1(cos, __builtin_cosf(x)) FLOAT_1(tan, __builtin_tanf(x))
FLOAT_1(tanh, __builtin_tanhf(x)) FLOAT_1(erf, __builtin_erff(x)) FLOAT_1(floor, __builtin_floorf(x))
FLOAT_1(ceil, __builtin_ceilf(x)) FLOAT_1(trunc, __builtin_truncf(x)) FLOAT_1(round, __builtin_roundf(x))
FLOAT_1(rint, __builtin_rintf(x)) FLOAT_1(fabs, __builtin_fabsf(x))
FLOAT_1(sign, x > 0.0f ? 1.0f : x < 0.0f ? -1.0f : x) FLOAT_1(fract, x - __builtin_floorf(x))
INLINE float pow(float x, float y) { return __builtin_powf(x, y); }
INLINE float fmod(float x, float y) { return __builtin_fmodf(x, y); }
INLINE float fma(float x, float y, float z) { return __builtin_fmaf(x, y, z); }
INLINE float mix(float x, float y, float a) { return x + (y - x) * a; }
OF_VECTORS_2(pow) OF_VECTORS_2(fmod) OF_VECTORS_3(fma) OF_VECTORS_3(mix)
INLINE bool isnan(float x) { return x != x; }
INLINE bool isinf(float x) { return __builtin_fabsf(x) == INFINITY; }
INLINE bool isfinite(float x) { return __builtin_fabsf(x) < INFINITY; }

#define ORDERED(T) \
    INLINE T min(T x, T y) { return y < x ? y : x; } \
    INLINE T max(T x, T y) { return x < y ? y : x; } \
    INLINE T clamp(T x, T low, T high) { return min(max(x, low), high); }
ORDERED(char) ORDERED(uchar) ORDERED(short) ORDERED(ushort) ORDERED(int) ORDERED(uint) ORDERED(long) ORDERED(ulong)
#undef ORDERED
// Of a number and one that is not, the number.
#define ORDERED_FLOAT(T) \
    INLINE T min(T x, T y) { return isnan(x) || y < x ? y : x; } \
    INLINE T max(T x, T y) { return isnan(x) || x < y ? y : x; } \
    INLINE T clamp(T x, T low, T high) { return min(max(x, low), high); }
ORDERED_FLOAT(half) ORDERED_FLOAT(float)
#undef ORDERED_FLOAT
OF_VECTORS_2(min) OF_VECTORS_2(max) OF_VECTORS_3(clamp)
template <class T, int N> INLINE vec<T, N> clamp(vec<T, N> x, T low, T high) { return clamp(x, vec<T, N>(low), vec<T, N>(high)); }
INLINE float fmin(float x, float y) { return min(x, y); }
INLINE float fmax(float x, float y) { return max(x, y); }
INLINE float saturate(float x) { return clamp(x, 0.0f, 1.0f); }
OF_VECTORS_2(fmin) OF_VECTORS_2(fmax) OF_VECTORS_1(saturate)

INLINE float abs(float x) { return fabs(x); }
INLINE half abs(half x) { return half::of_bits(x.bits & 0x7fff); }
INLINE uint abs(int x) { return x < 0 ? 0u - uint(x) : uint(x); }
OF_VECTORS_1(abs)
INLINE uint popcount(uint x) { return uint(__builtin_popcount(x)); }
INLINE uint clz(uint x) { return x ? uint(__builtin_clz(x)) : 32; }
INLINE uint ctz(uint x) { return x ? uint(__builtin_ctz(x)) : 32; }
INLINE uint mulhi(uint x, uint y) { return uint((ulong(x) * y) >> 32); }
template <class T> INLINE T select(T no, T yes, bool which) { return which ? yes : no; }

template <class T> INLINE T dot(vec<T, 2> a, vec<T, 2> b) { return a.x * b.x + a.y * b.y; }
template <class T> INLINE T dot(vec<T, 3> a, vec<T, 3> b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
template <class T> INLINE T dot(vec<T, 4> a, vec<T, 4> b) { return (a.x * b.x + a.y * b.y) + (a.z * b.z + a.w * b.w); }
INLINE bool any(bool2 v) { return v.x || v.y; }
INLINE bool any(bool3 v) { return v.x || v.y || v.z; }
INLINE bool any(bool4 v) { return v.x || v.y || v.z || v.w; }
INLINE bool all(bool2 v) { return v.x && v.y; }
INLINE bool all(bool3 v) { return v.x && v.y && v.z; }
INLINE bool all(bool4 v) { return v.x && v.y && v.z && v.w; }

#undef OF_VECTORS_1
#undef OF_VECTORS_2
#undef OF_VECTORS_3
#undef FLOAT_1

// Operations of a simdgroup, in which all of its lanes have to take part.
#define REDUCTION(f, value) \
    template <class T> inline T f(T x, uint line = __builtin_LINE()) { \
        return simt::reduce(simt::exchange(x, #f, line), [](T a, T b) INLINE_LAMBDA { return T(value); }); \
    }
REDUCTION(simd_sum, a + b) REDUCTION(simd_product, a * b) REDUCTION(simd_min, min(a, b)) REDUCTION(simd_max, max(a, b))
REDUCTION(simd_and, a & b) REDUCTION(simd_or, a | b) REDUCTION(simd_xor, a ^ b)
#undef REDUCTION

template <class T> inline T simd_shuffle(T x, uint lane, uint line = __builtin_LINE()) {
    return simt::of_lane(simt::exchange(x, "simd_shuffle", line), lane, line);
}
template <class T> inline T simd_broadcast(T x, uint lane, uint line = __builtin_LINE()) {
    return simt::of_lane(simt::exchange(x, "simd_broadcast", line), lane, line);
}
template <class T> inline T simd_broadcast_first(T x, uint line = __builtin_LINE()) {
    return simt::exchange(x, "simd_broadcast_first", line)[0];
}
template <class T> inline T simd_shuffle_xor(T x, uint mask, uint line = __builtin_LINE()) {
    return simt::of_lane(simt::exchange(x, "simd_shuffle_xor", line), simt::lane() ^ mask, line);
}
// The lanes for which there is no other one keep what they have.
template <class T> inline T simd_shuffle_down(T x, uint by, uint line = __builtin_LINE()) {
    const T *all = simt::exchange(x, "simd_shuffle_down", line);
    return simt::lane() + by < 32 ? all[simt::lane() + by] : x;
}
template <class T> inline T simd_shuffle_up(T x, uint by, uint line = __builtin_LINE()) {
    const T *all = simt::exchange(x, "simd_shuffle_up", line);
    return simt::lane() >= by ? all[simt::lane() - by] : x;
}
template <class T> inline T simd_prefix_exclusive_sum(T x, uint line = __builtin_LINE()) {
    const T *all = simt::exchange(x, "simd_prefix_exclusive_sum", line);
    T sum = T(0);
    for (uint i = 0; i < simt::lane(); ++i) sum = T(sum + all[i]);
    return sum;
}
template <class T> inline T simd_prefix_inclusive_sum(T x, uint line = __builtin_LINE()) {
    const T *all = simt::exchange(x, "simd_prefix_inclusive_sum", line);
    T sum = T(0);
    for (uint i = 0; i <= simt::lane(); ++i) sum = T(sum + all[i]);
    return sum;
}
inline bool simd_all(bool x, uint line = __builtin_LINE()) {
    return simt::reduce(simt::exchange(x, "simd_all", line), [](bool a, bool b) { return a && b; });
}
inline bool simd_any(bool x, uint line = __builtin_LINE()) {
    return simt::reduce(simt::exchange(x, "simd_any", line), [](bool a, bool b) { return a || b; });
}
// Not Metal's: what all 32 lanes have, until the next operation of the simdgroup.
template <class T> inline const T *simd_gather(const T &mine, uint line = __builtin_LINE()) {
    return simt::exchange(mine, "simd_gather", line);
}

template <class T> struct atomic { T value; };
template <class P> INLINE auto atomic_load_explicit(P p, memory_order) { return __atomic_load_n(&p->value, __ATOMIC_RELAXED); }
template <class P, class T> INLINE void atomic_store_explicit(P p, T x, memory_order) {
    __atomic_store_n(&p->value, decltype(p->value)(x), __ATOMIC_RELAXED);
}
#define ATOMIC(name, result) \
    template <class P, class V> INLINE auto atomic_fetch_##name##_explicit(P p, V by, memory_order) { \
        typedef decltype(p->value) T; \
        const T b = T(by); \
        T a = __atomic_load_n(&p->value, __ATOMIC_RELAXED), to; \
        do to = T(result); \
        while (!__atomic_compare_exchange_n(&p->value, &a, to, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)); \
        return a; \
    }
ATOMIC(add, a + b) ATOMIC(sub, a - b) ATOMIC(and, a & b) ATOMIC(or, a | b) ATOMIC(xor, a ^ b) ATOMIC(min, min(a, b)) ATOMIC(max, max(a, b))
#undef ATOMIC

}  // namespace metal

typedef metal::atomic<int> atomic_int;
typedef metal::atomic<uint> atomic_uint;

#undef INLINE
#undef INLINE_LAMBDA

// Pointers are rewritten before this is compiled; what is left of address spaces says nothing to this compiler.
#define thread
#define constant const
#define kernel static
