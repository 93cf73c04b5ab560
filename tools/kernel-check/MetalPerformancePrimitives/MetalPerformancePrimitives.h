// Metal's tensor operations as declarations: what the kernels use of them.
#pragma once
#include <metal_tensor>

namespace mpp {
namespace tensor_ops {

struct matmul2d_descriptor {
    enum class mode { multiply, multiply_accumulate };
    int m, n, k;
    bool transpose_left, transpose_right, relaxed_precision;
    mode matmul_mode;
    constexpr matmul2d_descriptor(
        int m, int n, int k, bool transpose_left, bool transpose_right, bool relaxed_precision, mode matmul_mode)
        : m(m), n(n), k(k), transpose_left(transpose_left), transpose_right(transpose_right),
          relaxed_precision(relaxed_precision), matmul_mode(matmul_mode) {}
};

template <matmul2d_descriptor shape, class Scope> struct matmul2d {
    static_assert(shape.m % 16 == 0 && shape.n % 16 == 0 && shape.k % 16 == 0 && shape.m * shape.n * shape.k >= 16 * 16 * 32,
        "a simdgroup's product is at least 16 × 32 × 16");
    template <class L, class R, class D> metal::cooperative_tensor<L> get_left_input_cooperative_tensor();
    template <class L, class R, class D> metal::cooperative_tensor<R> get_right_input_cooperative_tensor();
    template <class L, class R, class D> metal::cooperative_tensor<D> get_destination_cooperative_tensor();
    template <class L, class R, class D> void run(
        const metal::cooperative_tensor<L> &, const metal::cooperative_tensor<R> &, metal::cooperative_tensor<D> &);
};

}  // namespace tensor_ops
}  // namespace mpp
