// Products of 16 × 16 matrices by a simdgroup: half operands, float sums.
//
// Each lane holds eight elements of a matrix of sums, in two rows, in neighbouring columns by twos: element e = 4h + 2v + u of
// a `tile_sums` is in row tile_row(lane) + 8v and column tile_column_of(lane, e), and for u = 1 in the one after it.
//
// Operands lie in threadgroup memory as 8 × 8 matrices of halves, one after the other: those of a row of matrices, of
// which there are `chunks`, side by side. `tile_at` says where eight consecutive values of a row are.
//
//   tile_load_rows(tiles, chunks, row, chunk)      a[i][k] = value k of row `row + i`, from chunk `chunk` on
//   tile_load_columns(tiles, chunks, row, chunk)   b[k][j] = value k of row `row + j`: for products with the transpose
//   tile_load_straight(tiles, chunks, row, chunk)  b[k][j] = value j of row `row + k`
//   tile_multiply(sums, a, b)                      sums += a · b
//   tile_multiply_two(s, t, a, b, c)               s += a · b, t += a · c
//   tile_load_eight(tiles, chunk, lane)            two second operands of eight rows, 16 values each, from matrix `chunk` on
//   tile_multiply_eight(sums, a, c, both)          the first eight columns of sums += those of a · first + c · second of them;
//                                                  the other columns are undefined
//   tile_round(sums)                               sums that halves have room for as the first operand of a product
//   tile_row_max(x), tile_row_sum(x)               of all lanes that hold the same row
//   tile_column_max(x), tile_column_sum(x)         of all lanes that hold the same columns
//
// A first operand may also be made of what lanes hold: `tile_of_lanes(upper, lower)` has values k of rows tile_row(lane) and
// tile_row(lane) + 8, for the four k that `strip_slot(tile_place(lane), …)` gives. `tile_multiply_strips` multiplies some of these
// with rows in threadgroup memory, 16 for each of its sums, from a matrix on: with the transpose. `tile_multiply_straight` multiplies
// one with 16 rows as they are. That is done between `tile_strips_begin` and
// `tile_strips_end`, by all simdgroups of a threadgroup alike; operands and rows are in use until TILE_LAG such sets later, and the
// sums until `tile_strips_finish` of each row of them. `tile_bring` and `tile_keep` copy sixteen bytes to threadgroup memory, the first before the time that they may take, the
// second after it; TILE_SEND closes a set of such copies, and TILE_AWAIT(n) waits for all but the last n sets, before a barrier. What is
// written there otherwise after that, and before the barrier, needs a TILE_WRITTEN.

#include "common/strips.h"

#if defined(TILES_ON_TENSOR_UNITS)
#include <metal_tensor>
#include <MetalPerformancePrimitives/MetalPerformancePrimitives.h>
#endif

#if defined(METAL_ON_CUDA) || defined(METAL_ON_CPU)
#define TILE_LANE_BESIDE 2
#define TILE_LANE_BELOW(i) (4u << (i))
#else
#define TILE_LANE_BESIDE 8
#define TILE_LANE_BELOW(i) ((i) < 2 ? 2u << (i) : 16u)
#endif

static inline uint tile_at(uint chunks, uint row, uint chunk) {
    return ((row / 8) * chunks + chunk) * 64 + row % 8 * 8;
}

// Which elements a lane holds: on Metal the same on every chip so far, but nowhere promised; a device is asked before it is
// used (`check/tiles.metal`).
#if defined(METAL_ON_CUDA) || defined(METAL_ON_CPU)
static inline uint tile_row(uint lane) { return lane / 4; }
static inline uint tile_column(uint lane) { return 2 * (lane % 4); }
static inline uint tile_place(uint lane) { return lane % 4; }
#else
static inline uint tile_row(uint lane) { return ((lane / 4) & 4) + (lane / 2) % 4; }
static inline uint tile_place(uint lane) { return ((lane / 4) & 2) + lane % 2; }
#endif

#if defined(TILES_ON_TENSOR_UNITS)
// Four neighbouring columns.
static inline uint tile_column(uint lane) { return ((lane / 4) & 2) * 4 + (lane % 2) * 4; }
static inline uint tile_column_of(uint lane, uint e) { return tile_column(lane) + 2 * (e / 4) + e % 2; }
#else
// Two of each 8 × 8 quarter.
#if !defined(METAL_ON_CUDA) && !defined(METAL_ON_CPU)
static inline uint tile_column(uint lane) { return ((lane / 4) & 2) * 2 + (lane % 2) * 2; }
#endif
static inline uint tile_column_of(uint lane, uint e) { return tile_column(lane) + 8 * (e / 4) + e % 2; }
#endif

#if defined(METAL_ON_CUDA) || defined(METAL_ON_CPU) || defined(TILES_ON_TENSOR_UNITS)
struct tile_sums { float e[8]; };

static inline float tile_get(thread const tile_sums &sums, uint i) { return sums.e[i]; }
static inline void tile_set(thread tile_sums &sums, uint i, float x) { sums.e[i] = x; }
#endif

#if defined(METAL_ON_CUDA)

struct tile_operand { uint e[4]; };

// Where it is in threadgroup memory.
static inline uint tile_address(threadgroup const half *tiles) { return uint(::__cvta_generic_to_shared(tiles)); }

static inline tile_operand tile_load(threadgroup const half *tiles) {
    tile_operand o;
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(o.e[0]), "=r"(o.e[1]), "=r"(o.e[2]), "=r"(o.e[3]) : "r"(tile_address(tiles)) : "memory");
    return o;
}

static inline tile_operand tile_load_rows(threadgroup const half *tiles, uint chunks, uint row, uint chunk, uint lane) {
    return tile_load(tiles + tile_at(chunks, row + (lane & 8) + (lane & 7), chunk + lane / 16));
}

static inline tile_operand tile_load_columns(threadgroup const half *tiles, uint chunks, uint row, uint chunk, uint lane) {
    return tile_load(tiles + tile_at(chunks, row + (lane & 16) / 2 + (lane & 7), chunk + (lane & 8) / 8));
}

static inline tile_operand tile_load_straight(threadgroup const half *tiles, uint chunks, uint row, uint chunk, uint lane) {
    tile_operand o;
    threadgroup const half *from = tiles + tile_at(chunks, row + (lane & 8) + (lane & 7), chunk + lane / 16);
    asm volatile("{ .reg .u64 a; .reg .u32 s; cvta.to.shared.u64 a, %4; cvt.u32.u64 s, a;"
                 " ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [s]; }"
                 : "=r"(o.e[0]), "=r"(o.e[1]), "=r"(o.e[2]), "=r"(o.e[3]) : "l"(from) : "memory");
    return o;
}

static inline void tile_multiply(thread tile_sums &sums, thread const tile_operand &a, thread const tile_operand &b) {
#pragma unroll
    for (uint h = 0; h < 2; ++h) {
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9},"
                     " {%0, %1, %2, %3};"
                     : "+f"(sums.e[4 * h]), "+f"(sums.e[4 * h + 1]), "+f"(sums.e[4 * h + 2]), "+f"(sums.e[4 * h + 3])
                     : "r"(a.e[0]), "r"(a.e[1]), "r"(a.e[2]), "r"(a.e[3]), "r"(b.e[2 * h]), "r"(b.e[2 * h + 1]));
    }
}

struct tile_eight { tile_operand both; };

static inline tile_eight tile_load_eight(threadgroup const half *tiles, uint chunk, uint lane) {
    tile_eight o;
    o.both = tile_load(tiles + chunk * 64 + lane * 8);
    return o;
}

static inline void tile_multiply_eight(
    thread tile_sums &sums, thread const tile_operand &a, thread const tile_operand &c, thread const tile_eight &b)
{
#pragma unroll
    for (uint h = 0; h < 2; ++h) {
        thread const tile_operand &of = h == 0 ? a : c;
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9},"
                     " {%0, %1, %2, %3};"
                     : "+f"(sums.e[0]), "+f"(sums.e[1]), "+f"(sums.e[2]), "+f"(sums.e[3])
                     : "r"(of.e[0]), "r"(of.e[1]), "r"(of.e[2]), "r"(of.e[3]), "r"(b.both.e[2 * h]), "r"(b.both.e[2 * h + 1]));
    }
}

static inline tile_operand tile_round(thread const tile_sums &sums) {
    tile_operand o;
#pragma unroll
    for (uint i = 0; i < 4; ++i) {
        o.e[i] = uint(as_type<ushort>(half(sums.e[2 * i]))) | (uint(as_type<ushort>(half(sums.e[2 * i + 1]))) << 16);
    }
    return o;
}

static inline tile_operand tile_of_lanes(uint2 upper, uint2 lower) {
    tile_operand o;
    o.e[0] = upper.x;
    o.e[1] = lower.x;
    o.e[2] = upper.y;
    o.e[3] = lower.y;
    return o;
}

// Asynchronous copies past the first cache.
static inline void tile_bring(thread uint4 &held, threadgroup half *to, device const uint4 *from) {
    asm volatile("{ .reg .u64 a; .reg .u32 s; cvta.to.shared.u64 a, %0; cvt.u32.u64 s, a;"
                 " cp.async.cg.shared.global [s], [%1], 16; }" ::"l"(to), "l"(from) : "memory");
}
static inline void tile_keep(thread const uint4 &held, threadgroup half *to) {}
#define TILE_SEND() asm volatile("cp.async.commit_group;" ::: "memory")

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) && SIMDGROUPS % 4 == 0 && STAGES > 2
// Four simdgroups multiply as one, with rows that stay in threadgroup memory (`wgmma`), while they decode the next operands.
#define TILE_LAG 1
#define TILE_AWAIT(n) asm volatile("cp.async.wait_group %0; fence.proxy.async.shared::cta;" ::"n"(n) : "memory")
#define TILE_WRITTEN() asm volatile("fence.proxy.async.shared::cta;" ::: "memory")

static inline void tile_strips_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
static inline void tile_strips_end() {
    asm volatile("wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned %0;" ::"n"(TILE_LAG) : "memory");
}
template <uint TILES> static inline void tile_strips_finish(thread tile_sums (&sums)[TILES]) {
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
    // To the compiler they were there when the products were issued: nothing that reads them may be moved before this.
#pragma unroll
    for (uint i = 0; i < 8 * TILES; ++i) asm volatile("" : "+f"(sums[i / 8].e[i % 8]) :: "memory");
}

#define STRIP_SUMS(i) \
    "+f"(s[i].e[0]), "+f"(s[i].e[1]), "+f"(s[i].e[2]), "+f"(s[i].e[3]), "+f"(s[i].e[4]), "+f"(s[i].e[5]), "+f"(s[i].e[6]), "+f"(s[i].e[7])

// `b` says where the second operand is, and `next` how far it is to the next sixteen columns of it.
template <uint TILES, int STRAIGHT>
static inline void tile_multiply_wide(thread tile_sums *s, thread const tile_operand &a, ulong b, ulong next) {
    if constexpr (TILES > 8) {
        tile_multiply_wide<8, STRAIGHT>(s, a, b, next);
        tile_multiply_wide<TILES - 8, STRAIGHT>(s + 8, a, b + 8 * next, next);
    } else if constexpr (TILES == 1) {
        asm volatile("{ .reg .pred p; setp.eq.u32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7}, "
                 "{%8, %9, %10, %11}, %12, p, 1, 1, %13; }"
                 : STRIP_SUMS(0)
                 : "r"(a.e[0]), "r"(a.e[1]), "r"(a.e[2]), "r"(a.e[3]), "l"(b), "n"(STRAIGHT));
    } else if constexpr (TILES == 2) {
        asm volatile("{ .reg .pred p; setp.eq.u32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n32k16.f32.f16.f16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}, "
                 "{%16, %17, %18, %19}, %20, p, 1, 1, %21; }"
                 : STRIP_SUMS(0), STRIP_SUMS(1)
                 : "r"(a.e[0]), "r"(a.e[1]), "r"(a.e[2]), "r"(a.e[3]), "l"(b), "n"(STRAIGHT));
    } else if constexpr (TILES == 4) {
        asm volatile("{ .reg .pred p; setp.eq.u32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, "
                 "%24, %25, %26, %27, %28, %29, %30, %31}, "
                 "{%32, %33, %34, %35}, %36, p, 1, 1, %37; }"
                 : STRIP_SUMS(0), STRIP_SUMS(1), STRIP_SUMS(2), STRIP_SUMS(3)
                 : "r"(a.e[0]), "r"(a.e[1]), "r"(a.e[2]), "r"(a.e[3]), "l"(b), "n"(STRAIGHT));
    } else if constexpr (TILES == 8) {
        asm volatile("{ .reg .pred p; setp.eq.u32 p, 0, 0; wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 "
                 "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, "
                 "%24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, "
                 "%46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
                 "{%64, %65, %66, %67}, %68, p, 1, 1, %69; }"
                 : STRIP_SUMS(0), STRIP_SUMS(1), STRIP_SUMS(2), STRIP_SUMS(3), STRIP_SUMS(4), STRIP_SUMS(5), STRIP_SUMS(6), STRIP_SUMS(7)
                 : "r"(a.e[0]), "r"(a.e[1]), "r"(a.e[2]), "r"(a.e[3]), "l"(b), "n"(STRAIGHT));
    } else {
        constexpr uint whole = TILES > 4 ? 4 : 2;
        tile_multiply_wide<whole, STRAIGHT>(s, a, b, next);
        tile_multiply_wide<TILES - whole, STRAIGHT>(s + whole, a, b + whole * next, next);
    }
}

// Matrices, and how far it is from one to the next one, along the products' depth and along the sums' columns.
static inline ulong tile_matrices(threadgroup const half *first, uint along, uint across) {
    ulong address;
    asm("cvta.to.shared.u64 %0, %1;" : "=l"(address) : "l"(first));
    return (address & 0x3ffff) >> 4 | ulong(along * 8) << 16 | ulong(across * 8) << 32;
}

template <uint OPERANDS, uint TILES>
static inline void tile_multiply_strips(
    thread tile_sums (&sums)[OPERANDS][TILES], thread const tile_operand (&a)[OPERANDS], threadgroup const half *strip,
    uint matrices, uint matrix, uint lane)
{
    // A matrix is eight times sixteen bytes.
    const ulong rows = tile_matrices(strip, 1, matrices) + matrix * 8;
#pragma unroll
    for (uint k = 0; k < OPERANDS; ++k) tile_multiply_wide<TILES, 0>(sums[k], a[k], rows, matrices * 16);
}

template <uint TILES>
static inline void tile_multiply_straight(
    thread tile_sums (&sums)[TILES], thread const tile_operand &a, threadgroup const half *tiles, uint chunks, uint row, uint lane)
{
    tile_multiply_wide<TILES, 1>(sums, a, tile_matrices(tiles, chunks, 1) + row * chunks, 16);
}
#define TILE_WIDE
#else
#define TILE_AWAIT(n) asm volatile("cp.async.wait_group %0;" ::"n"(n) : "memory")
#endif

#elif defined(METAL_ON_CPU)

// Operands as on CUDA: two neighbouring values of each 8 × 8 quarter a lane.
struct tile_operand { half e[8]; };
struct tile_operands { tile_operand a, b; };

static inline tile_operand tile_load_rows(threadgroup const half *tiles, uint chunks, uint row, uint chunk, uint lane) {
    tile_operand o;
    for (uint i = 0; i < 8; ++i) {
        const uint v = (i / 2) % 2, k = i / 4;
        o.e[i] = tiles[tile_at(chunks, row + tile_row(lane) + 8 * v, chunk + k) + tile_column(lane) + i % 2];
    }
    return o;
}

static inline tile_operand tile_load_columns(threadgroup const half *tiles, uint chunks, uint row, uint chunk, uint lane) {
    tile_operand o;
    for (uint i = 0; i < 8; ++i) {
        const uint k = (i / 2) % 2, h = i / 4;
        o.e[i] = tiles[tile_at(chunks, row + tile_row(lane) + 8 * h, chunk + k) + tile_column(lane) + i % 2];
    }
    return o;
}

static inline tile_operand tile_load_straight(threadgroup const half *tiles, uint chunks, uint row, uint chunk, uint lane) {
    tile_operand o;
    for (uint i = 0; i < 8; ++i) {
        const uint k = (i / 2) % 2, h = i / 4;
        o.e[i] = tiles[tile_at(chunks, row + tile_column(lane) + i % 2 + 8 * k, chunk + h) + tile_row(lane)];
    }
    return o;
}

static inline void tile_multiply(thread tile_sums &sums, thread const tile_operand &a, thread const tile_operand &b) {
    thread const tile_operands *lanes = simd_gather(tile_operands{a, b});
    const uint lane = simt::lane();
    for (uint k = 0; k < 16; ++k) {
        const uint place = (k % 8) / 2;
        thread const tile_operand &row = lanes[tile_row(lane) * 4 + place].a;
        for (uint u = 0; u < 2; ++u) {
            thread const tile_operand &column = lanes[(tile_column(lane) + u) * 4 + place].b;
            for (uint h = 0; h < 2; ++h) {
                const float y = float(column.e[4 * h + 2 * (k / 8) + k % 2]);
                for (uint v = 0; v < 2; ++v) {
                    thread float &sum = sums.e[4 * h + 2 * v + u];
                    sum = fma(float(row.e[4 * (k / 8) + 2 * v + k % 2]), y, sum);
                }
            }
        }
    }
}

static inline tile_operand tile_round(thread const tile_sums &sums) {
    tile_operand o;
    for (uint i = 0; i < 8; ++i) o.e[i] = half(sums.e[i]);
    return o;
}

static inline tile_operand tile_of_lanes(uint2 upper, uint2 lower) {
    tile_operand o;
    const uint pairs[4] = {upper.x, lower.x, upper.y, lower.y};
    for (uint i = 0; i < 8; ++i) o.e[i] = as_type<half>(ushort(pairs[i / 2] >> (16 * (i % 2))));
    return o;
}

#elif defined(TILES_ON_TENSOR_UNITS)

// Four neighbouring elements of two rows: those of row tile_row(lane) + 8v from 4v on. The second operand of a product
// is held transposed.
struct tile_operand { half e[8]; };

static inline tile_operand tile_load_rows(threadgroup const half *tiles, uint chunks, uint row, uint chunk, uint lane) {
    tile_operand o;
    const uint column = tile_column(lane);
    for (uint v = 0; v < 2; ++v) {
        threadgroup const half *from = tiles + tile_at(chunks, row + tile_row(lane) + 8 * v, chunk + column / 8) + column % 8;
        for (uint i = 0; i < 4; ++i) o.e[4 * v + i] = from[i];
    }
    return o;
}

static inline tile_operand tile_load_columns(threadgroup const half *tiles, uint chunks, uint row, uint chunk, uint lane) {
    return tile_load_rows(tiles, chunks, row, chunk, lane);
}

static inline tile_operand tile_load_straight(threadgroup const half *tiles, uint chunks, uint row, uint chunk, uint lane) {
    tile_operand o;
    for (uint i = 0; i < 8; ++i) {
        o.e[i] = tiles[tile_at(chunks, row + tile_column(lane) + i % 4, chunk + i / 4) + tile_row(lane)];
    }
    return o;
}

static inline void tile_multiply_two(
    thread tile_sums &s, thread tile_sums &t, thread const tile_operand &a, thread const tile_operand &b,
    thread const tile_operand &c)
{
    constexpr auto shape = mpp::tensor_ops::matmul2d_descriptor(
        16, 32, 16, false, true, true, mpp::tensor_ops::matmul2d_descriptor::mode::multiply_accumulate);
    mpp::tensor_ops::matmul2d<shape, execution_simdgroup> product;
    auto left = product.get_left_input_cooperative_tensor<half, half, float>();
    auto right = product.get_right_input_cooperative_tensor<half, half, float>();
    auto sums = product.get_destination_cooperative_tensor<
        remove_addrspace_t<decltype(left)>, remove_addrspace_t<decltype(right)>, float>();
    for (uint i = 0; i < 8; ++i) {
        // Sums have columns by twos, tensors by fours.
        const uint e = i % 4 / 2 * 4 + i / 4 * 2 + i % 2;
        left[i] = a.e[i];
        right[i] = b.e[i];
        right[8 + i] = c.e[i];
        sums[i] = s.e[e];
        sums[8 + i] = t.e[e];
    }
    product.run(left, right, sums);
    for (uint i = 0; i < 8; ++i) {
        const uint e = i % 4 / 2 * 4 + i / 4 * 2 + i % 2;
        s.e[e] = sums[i];
        t.e[e] = sums[8 + i];
    }
}

static inline void tile_multiply(thread tile_sums &sums, thread const tile_operand &a, thread const tile_operand &b) {
    tile_sums unused;
    for (uint i = 0; i < 8; ++i) unused.e[i] = 0.0f;
    tile_multiply_two(sums, unused, a, b, b);
}

static inline tile_operand tile_round(thread const tile_sums &sums) {
    tile_operand o;
    for (uint i = 0; i < 8; ++i) o.e[i] = half(sums.e[i % 4 / 2 * 4 + i / 4 * 2 + i % 2]);
    return o;
}

static inline tile_operand tile_of_lanes(uint2 upper, uint2 lower) {
    tile_operand o;
    const uint pairs[4] = {upper.x, upper.y, lower.x, lower.y};
    for (uint i = 0; i < 8; ++i) o.e[i] = as_type<half>(ushort(pairs[i / 2] >> (16 * (i % 2))));
    return o;
}

#else

struct tile_sums { simdgroup_float8x8 m[4]; };
struct tile_operand { simdgroup_half8x8 m[4]; };

static inline float tile_get(thread const tile_sums &sums, uint i) { return sums.m[i / 2].thread_elements()[i % 2]; }
static inline void tile_set(thread tile_sums &sums, uint i, float x) { sums.m[i / 2].thread_elements()[i % 2] = x; }

static inline tile_operand tile_load_rows(threadgroup const half *tiles, uint chunks, uint row, uint chunk, uint lane) {
    tile_operand o;
    for (uint i = 0; i < 4; ++i) simdgroup_load(o.m[i], tiles + tile_at(chunks, row + 8 * (i % 2), chunk + i / 2), 8);
    return o;
}

static inline tile_operand tile_load_columns(threadgroup const half *tiles, uint chunks, uint row, uint chunk, uint lane) {
    tile_operand o;
    for (uint i = 0; i < 4; ++i) {
        simdgroup_load(o.m[i], tiles + tile_at(chunks, row + 8 * (i / 2), chunk + i % 2), 8, ulong2(0, 0), true);
    }
    return o;
}

static inline tile_operand tile_load_straight(threadgroup const half *tiles, uint chunks, uint row, uint chunk, uint lane) {
    tile_operand o;
    for (uint i = 0; i < 4; ++i) simdgroup_load(o.m[i], tiles + tile_at(chunks, row + 8 * (i % 2), chunk + i / 2), 8);
    return o;
}

static inline void tile_multiply(thread tile_sums &sums, thread const tile_operand &a, thread const tile_operand &b) {
    for (uint h = 0; h < 2; ++h) {
        for (uint v = 0; v < 2; ++v) {
            for (uint k = 0; k < 2; ++k) {
                simdgroup_multiply_accumulate(sums.m[2 * h + v], a.m[2 * k + v], b.m[2 * h + k], sums.m[2 * h + v]);
            }
        }
    }
}

static inline tile_operand tile_round(thread const tile_sums &sums) {
    tile_operand o;
    for (uint i = 0; i < 4; ++i) {
        o.m[i].thread_elements()[0] = half(sums.m[i].thread_elements()[0]);
        o.m[i].thread_elements()[1] = half(sums.m[i].thread_elements()[1]);
    }
    return o;
}

static inline tile_operand tile_of_lanes(uint2 upper, uint2 lower) {
    tile_operand o;
    const uint pairs[4] = {upper.x, lower.x, upper.y, lower.y};
    for (uint i = 0; i < 4; ++i) {
        o.m[i].thread_elements()[0] = as_type<half>(ushort(pairs[i] & 0xffffu));
        o.m[i].thread_elements()[1] = as_type<half>(ushort(pairs[i] >> 16));
    }
    return o;
}

#endif

#if !defined(TILES_ON_TENSOR_UNITS)
static inline void tile_multiply_two(
    thread tile_sums &s, thread tile_sums &t, thread const tile_operand &a, thread const tile_operand &b,
    thread const tile_operand &c)
{
    tile_multiply(s, a, b);
    tile_multiply(t, a, c);
}
#endif

#if !defined(METAL_ON_CUDA)
struct tile_eight { tile_operand of[2]; };

// Where sixteen rows are expected, the eight come twice.
static inline tile_eight tile_load_eight(threadgroup const half *tiles, uint chunk, uint lane) {
    tile_eight o;
    for (uint i = 0; i < 2; ++i) o.of[i] = tile_load_columns(tiles, 0, 0, chunk + 2 * i, lane);
    return o;
}

static inline void tile_multiply_eight(
    thread tile_sums &sums, thread const tile_operand &a, thread const tile_operand &c, thread const tile_eight &b)
{
    tile_multiply(sums, a, b.of[0]);
    tile_multiply(sums, c, b.of[1]);
}

static inline void tile_bring(thread uint4 &held, threadgroup half *to, device const uint4 *from) { held = *from; }
static inline void tile_keep(thread const uint4 &held, threadgroup half *to) { *(threadgroup uint4 *)to = held; }
#define TILE_SEND()
#define TILE_AWAIT(n)
#endif

#if !defined(TILE_WIDE)
#define TILE_WRITTEN()
#define TILE_LAG 0
static inline void tile_strips_begin() {}
static inline void tile_strips_end() {}
template <uint TILES> static inline void tile_strips_finish(thread tile_sums (&sums)[TILES]) {}

template <uint OPERANDS, uint TILES>
static inline void tile_multiply_strips(
    thread tile_sums (&sums)[OPERANDS][TILES], thread const tile_operand (&a)[OPERANDS], threadgroup const half *strip,
    uint matrices, uint matrix, uint lane)
{
#pragma unroll
    for (uint i = 0; i + 1 < TILES; i += 2) {
        const tile_operand b = tile_load_columns(strip, matrices, 16 * i, matrix, lane);
        const tile_operand c = tile_load_columns(strip, matrices, 16 * (i + 1), matrix, lane);
#pragma unroll
        for (uint k = 0; k < OPERANDS; ++k) tile_multiply_two(sums[k][i], sums[k][i + 1], a[k], b, c);
    }
    if (TILES % 2) {
        const tile_operand b = tile_load_columns(strip, matrices, 16 * (TILES - 1), matrix, lane);
#pragma unroll
        for (uint k = 0; k < OPERANDS; ++k) tile_multiply(sums[k][TILES - 1], a[k], b);
    }
}

template <uint TILES>
static inline void tile_multiply_straight(
    thread tile_sums (&sums)[TILES], thread const tile_operand &a, threadgroup const half *tiles, uint chunks, uint row, uint lane)
{
#pragma unroll
    for (uint i = 0; i + 1 < TILES; i += 2) {
        const tile_operand b = tile_load_straight(tiles, chunks, row, 2 * i, lane);
        const tile_operand c = tile_load_straight(tiles, chunks, row, 2 * i + 2, lane);
        tile_multiply_two(sums[i], sums[i + 1], a, b, c);
    }
    if (TILES % 2) {
        tile_multiply(sums[TILES - 1], a, tile_load_straight(tiles, chunks, row, 2 * TILES - 2, lane));
    }
}
#endif

// Four lanes have a row.
static inline float tile_row_max(float x) {
    x = max(x, simd_shuffle_xor(x, 1));
    return max(x, simd_shuffle_xor(x, TILE_LANE_BESIDE));
}

static inline float tile_row_sum(float x) {
    x += simd_shuffle_xor(x, 1);
    return x + simd_shuffle_xor(x, TILE_LANE_BESIDE);
}

// Eight lanes have a column.
static inline float tile_column_max(float x) {
#pragma unroll
    for (uint i = 0; i < 3; ++i) x = max(x, simd_shuffle_xor(x, TILE_LANE_BELOW(i)));
    return x;
}

static inline float tile_column_sum(float x) {
#pragma unroll
    for (uint i = 0; i < 3; ++i) x += simd_shuffle_xor(x, TILE_LANE_BELOW(i));
    return x;
}

static inline void tile_clear(thread tile_sums &sums) {
    for (uint i = 0; i < 8; ++i) tile_set(sums, i, 0.0f);
}
