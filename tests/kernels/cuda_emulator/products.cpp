// One product of two matrices through core/products_cuda.h, for test_grouped_cuda.py: a warp goes
// over blocks of it as the kernels do. `apart` is the other of the two orders in which they take
// the places along the depth.
#include "cuda/common.h"

#include "core/products_cuda.h"

namespace fanin {
namespace cuda {
namespace {

// left [rows, depth], right [depth, columns]; all sizes are whole blocks.
__global__ void product_kernel(const float *left, const float *right, float *out, int rows,
                               int depth, int columns, bool exact, bool apart) {
  for (int row = 0; row < rows; row += kProductRows)
    for (int column = 0; column < columns; column += kProductColumns) {
      float sums[4] = {};
      for (int k = 0; k < depth; k += kProductDepth) {
        const auto at = [&](int place) {
          return k + (apart ? quad_lane() + 4 * place : 2 * quad_lane() + place);
        };
        const Parts<4> l =
            left_parts([&](int i, int place) { return left[(row + i) * depth + at(place)]; });
        const Parts<2> r =
            right_parts([&](int place, int i) { return right[at(place) * columns + column + i]; });
        if (exact)
          add_product<true>(sums, l, r);
        else
          add_product<false>(sums, l, r);
      }
      for (int i = 0; i < 4; ++i)
        out[(row + left_row(i / 2)) * columns + column + sum_column(i)] = sums[i];
    }
}

}  // namespace
}  // namespace cuda
}  // namespace fanin

extern "C" void multiply(const float *left, const float *right, float *out, int rows, int depth,
                         int columns, bool exact, bool apart) {
  using namespace fanin::cuda;
  launch(product_kernel, dim3(1), kLanes, 0, nullptr, left, right, out, rows, depth, columns, exact,
         apart);
}
