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
//   tile_round(sums)                               sums as the first operand of a product
//   tile_row_max(x), tile_row_sum(x)               of all lanes that hold the same row

#if defined(TILES_ON_TENSOR_UNITS)
#include <metal_tensor>
#include <MetalPerformancePrimitives/MetalPerformancePrimitives.h>
#endif

#if defined(METAL_ON_CUDA) || defined(METAL_ON_CPU)
#define TILE_SWIZZLE(chunk) ((2 * (chunk)) & 7)
#define TILE_LANE_BESIDE 2
#else
#define TILE_SWIZZLE(chunk) 0
#define TILE_LANE_BESIDE 8
#endif

static inline uint tile_at(uint chunks, uint row, uint chunk) {
    return ((row / 8) * chunks + chunk) * 64 + ((row % 8) ^ TILE_SWIZZLE(chunk)) * 8;
}

// Which elements a lane holds: on Metal the same on every chip so far, but nowhere promised; a device is asked before it is
// used (`check/tiles.metal`).
#if defined(METAL_ON_CUDA) || defined(METAL_ON_CPU)
static inline uint tile_row(uint lane) { return lane / 4; }
static inline uint tile_column(uint lane) { return 2 * (lane % 4); }
#else
static inline uint tile_row(uint lane) { return ((lane / 4) & 4) + (lane / 2) % 4; }
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

static inline tile_operand tile_load(threadgroup const half *tiles) {
    tile_operand o;
    asm volatile("{ .reg .u64 a; .reg .u32 s; cvta.to.shared.u64 a, %4; cvt.u32.u64 s, a;"
                 " ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [s]; }"
                 : "=r"(o.e[0]), "=r"(o.e[1]), "=r"(o.e[2]), "=r"(o.e[3]) : "l"(tiles) : "memory");
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

static inline tile_operand tile_round(thread const tile_sums &sums) {
    tile_operand o;
#pragma unroll
    for (uint i = 0; i < 4; ++i) o.e[i] = two_halves(sums.e[2 * i], sums.e[2 * i + 1]);
    return o;
}

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
    for (uint i = 0; i < 8; ++i) o.e[i] = to_half(sums.e[i]);
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
    for (uint i = 0; i < 8; ++i) o.e[i] = to_half(sums.e[i % 4 / 2 * 4 + i / 4 * 2 + i % 2]);
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
        o.m[i].thread_elements()[0] = to_half(sums.m[i].thread_elements()[0]);
        o.m[i].thread_elements()[1] = to_half(sums.m[i].thread_elements()[1]);
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

// Four lanes have a row.
static inline float tile_row_max(float x) {
    x = max(x, simd_shuffle_xor(x, 1));
    return max(x, simd_shuffle_xor(x, TILE_LANE_BESIDE));
}

static inline float tile_row_sum(float x) {
    x += simd_shuffle_xor(x, 1);
    return x + simd_shuffle_xor(x, TILE_LANE_BESIDE);
}

static inline void tile_clear(thread tile_sums &sums) {
    for (uint i = 0; i < 8; ++i) tile_set(sums, i, 0.0f);
}
