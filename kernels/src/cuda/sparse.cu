// Launches dense layers over sparse features on a GPU: forward pass, and backward pass with the
// optimiser on the rows of the words in the batch. A warp takes a block of units of one instance or
// word after the other. See core/sparse.h.
#include "cuda/common.h"

#include "core/sparse.h"

namespace fanin {
namespace cuda {
namespace {

template <class W>
__global__ void __launch_bounds__(kFewWarps *kLanes) sparse_forward_kernel(SparseForwardCall c) {
  each_tile(blocks_of(c.units) * c.batch,
            [&](int64_t i) { instance_outputs<W>(c, i % c.batch, i / c.batch); });
}

__global__ void __launch_bounds__(kFewWarps *kLanes)
    sparse_bias_kernel(SparseUpdateCall c, SparseUpdateMemory memory) {
  each_tile(blocks_of(c.units), [&](int64_t block) { pass_and_update_bias(c, memory, block); });
}

template <class W, class M>
__global__ void __launch_bounds__(kFewWarps *kLanes)
    sparse_update_kernel(SparseUpdateCall c, const float *grads) {
  const int64_t blocks = blocks_of(c.units);
  each_tile(blocks * c.words, [&](int64_t i) {
    if (has_row(c, i / blocks)) update_row_part<W, M>(c, grads, i / blocks, i % blocks);
  });
}

template <class W>
__global__ void __launch_bounds__(kFewWarps *kLanes)
    sparse_rows_kernel(SparseUpdateCall c, const float *grads) {
  Team<float> team;
  each_tile(c.words, [&](int64_t i) {
    if (has_row(c, i)) update_row<W>(c, grads, i, nullptr, team);
  });
}

// A warp for each of so many things.
template <class... P, class... A>
Finding launch_warps(void (*kernel)(P...), int64_t count, void *stream, A... args) {
  return count ? launch_tiles(kernel, count, kFewWarps, 0, 0, stream, args...) : kNothing;
}

}  // namespace

Finding sparse_forward(const SparseForwardCall &c) {
  return with_types(
      [&](auto weight) {
        return launch_warps(sparse_forward_kernel<decltype(weight)>, blocks_of(c.units) * c.batch,
                            c.stream, c);
      },
      weight_type(c));
}

Finding sparse_update(const SparseUpdateCall &c) {
  const SparseUpdateMemory memory = sparse_update_memory(c, c.workspace);
  const float *const grads = c.outputs ? memory.grads : c.grad_outputs;
  const int64_t blocks = blocks_of(c.units);
  const Finding passed = c.outputs || c.bias
                             ? launch_warps(sparse_bias_kernel, blocks, c.stream, c, memory)
                             : kNothing;
  if (passed.kind != Finding::nothing) return passed;
  if (c.has_row_moments())
    return with_types(
        [&](auto weight) {
          return launch_warps(sparse_rows_kernel<decltype(weight)>, c.words, c.stream, c, grads);
        },
        weight_type(c));
  return with_types(
      [&](auto weight, auto moment) {
        return launch_warps(sparse_update_kernel<decltype(weight), decltype(moment)>,
                            blocks * c.words, c.stream, c, grads);
      },
      weight_type(c), moment_type(c));
}

}  // namespace cuda
}  // namespace fanin
