// Launches the training of labels that are connected to words, and their top-k, on a GPU. In
// training each block of labels has a block of threads. In top-k a warp takes one instance after
// the other, or one block of labels of an instance after the other. See core/words.h.
#include "cuda/common.h"

#include "core/words_top_k.h"

namespace fanin {
namespace cuda {
namespace {

// The 1 lets the compiler use more than 32 registers. Without it, registers spill on sm_100.
__global__ void __launch_bounds__(kFewWarps *kLanes, 1)
    words_step_kernel(WordsStepCall c, WordsStepMemory m) {
  Crew crew{dynamic_shared_memory<int>()};
  bool good = true;
  const double loss =
      train_block(c, blockIdx.x, words_scratch(c, m.scratch, m.rows, blockIdx.x), crew, &good);
  if (!good)
    atomicAdd(m.losses, double(NAN));
  else if (thread_id() == 0)
    atomicAdd(m.losses, loss);
}

__global__ void words_loss_kernel(const double *sum, int64_t batch, float *loss) {
  *loss = float(*sum / double(batch));
}

__global__ void __launch_bounds__(kLanes) words_top_k_kernel(WordsTopKCall c, WordsTopKMemory m) {
  const Crew crew{nullptr};
  const WordsTopKScratch scratch = words_scratch(c, m, blockIdx.x);
  const int64_t units = by_blocks(c) ? c.batch * c.blocks : c.batch;
  for (int64_t unit = blockIdx.x; unit < units; unit += gridDim.x) {
    if (by_blocks(c)) {
      Ranking ranking = ranking_of_block(c, m, unit);
      start_ranking(c, unit % c.blocks, scratch, crew);
      rank_block(c, unit % c.blocks, unit / c.blocks, scratch, ranking, crew);
    } else {
      Ranking ranking = ranking_of(c, m, unit, 0);
      for (int64_t b = 0; b < c.blocks; ++b) {
        start_ranking(c, b, scratch, crew);
        rank_block(c, b, unit, scratch, ranking, crew);
      }
    }
  }
}

__global__ void __launch_bounds__(kLanes) words_merge_kernel(WordsTopKCall c, WordsTopKMemory m) {
  const int64_t instance = int64_t(blockIdx.x) * kLanes + threadIdx.x;
  if (instance < c.batch) merge_lists(c, m, instance);
}

}  // namespace

Finding words_step(const WordsStepCall &c) {
  const WordsStepMemory memory = words_memory(c, c.workspace);
  clear(memory.losses, 1, c.stream);
  launch(words_step_kernel, dim3(unsigned(c.blocks)), kFewWarps * kLanes, sizeof(int), c.stream, c,
         memory);
  launch(words_loss_kernel, dim3(1), kLanes, 0, c.stream, memory.losses, c.batch, c.loss);
  return last_error();
}

Finding words_top_k(const WordsTopKCall &c) {
  const WordsTopKMemory memory = words_memory(c, c.workspace);
  launch(words_top_k_kernel, dim3(unsigned(memory.scorers)), kLanes, 0, c.stream, c, memory);
  if (by_blocks(c))
    launch(words_merge_kernel, dim3(unsigned((c.batch + kLanes - 1) / kLanes)), kLanes, 0, c.stream,
           c, memory);
  return last_error();
}

}  // namespace cuda
}  // namespace fanin
