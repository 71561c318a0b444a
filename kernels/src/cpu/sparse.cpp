// Launches dense layers over sparse features: forward pass, and backward pass with the optimiser on
// the rows of the words in the batch. Each output, and each row, is computed by one thread alone,
// so results do not depend on the number of threads. See core/sparse.h.
#include "core/sparse.h"

#include "cpu/common.h"

namespace fanin {
namespace FANIN_TARGET {
namespace {

constexpr int64_t kTogether = 16;  // words that a thread takes at a time

// The outputs of a block of units are computed for the whole batch before the next block. What was
// read of a word's row is then still in the second-level cache for the next instance with this
// word.
template <class W>
Finding run_forward(const SparseForwardCall &c) {
#pragma omp parallel num_threads(c.threads)
  {
    const Share share(blocks_of(c.units) * c.batch);
    for (int64_t i = share.begin; i < share.end; ++i)
      instance_outputs<W>(c, i % c.batch, i / c.batch);
  }
  return kNothing;
}

// update(i, grads, scratch) for each word of the batch, after the bias.
template <class Update>
Finding run_update(const SparseUpdateCall &c, const Update &update) {
  const SparseUpdateMemory memory = sparse_update_memory(c, c.workspace);
  const float *const grads = c.outputs ? memory.grads : c.grad_outputs;
#pragma omp parallel num_threads(c.threads)
  {
    if (c.outputs || c.bias) {
      const Share share(blocks_of(c.units));
      for (int64_t block = share.begin; block < share.end; ++block)
        pass_and_update_bias(c, memory, block);
#pragma omp barrier
    }
    float *const scratch = memory.scratch + thread_id() * memory.scratch_size;
#pragma omp for schedule(dynamic, kTogether)
    for (int64_t i = 0; i < c.words; ++i) update(i, grads, scratch);
  }
  return kNothing;
}

}  // namespace

Finding sparse_forward(const SparseForwardCall &c) {
  return with_types([&](auto weight) { return run_forward<decltype(weight)>(c); }, weight_type(c));
}

Finding sparse_update(const SparseUpdateCall &c) {
  if (c.has_row_moments())
    return with_types(
        [&](auto weight) {
          return run_update(c, [&](int64_t i, const float *grads, float *scratch) {
            update_row<decltype(weight)>(c, grads, i, scratch, Team<float>());
          });
        },
        weight_type(c));
  return with_types(
      [&](auto weight, auto moment) {
        return run_update(c, [&](int64_t i, const float *grads, float *) {
          for (int64_t block = 0; block < blocks_of(c.units); ++block)
            update_row_part<decltype(weight), decltype(moment)>(c, grads, i, block);
        });
      },
      weight_type(c), moment_type(c));
}

}  // namespace FANIN_TARGET
}  // namespace fanin
