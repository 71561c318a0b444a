// Launches training and prediction on a GPU: the fused step, dense layers, top-k.
#include "cuda/common.h"
#include "core/dense.h"
#include "core/top_k.h"

namespace fanin {
namespace cuda {
namespace {

constexpr int kUpdateWarps = 4;  // of a block that updates a dense layer: takes 160 registers a thread
constexpr size_t kRowBytes = kLanes * sizeof(float);

// Floats of scratch that a warp needs.
int64_t step_scratch(int64_t groups) { return kTile + groups * kLanes; }
int64_t dense_step_scratch(int64_t groups) { return kStaged + groups * kBlock * kLanes; }
constexpr int64_t kDenseForwardScratch = kStaged + kTile * kTilePitch;
int64_t dense_update_scratch(int64_t groups) {
  return kStaged + 2 * kTile * kTilePitch + groups * kTile * kLanes;
}

// Whether the connections of the labels from first to end - 1 can be followed.
template <class AnyLayer>
FANIN_FN bool good_connections(const AnyLayer &layer, int64_t connections, int64_t first,
                               int64_t end, const Team<float> &team) {
  if (layer.starts && !team.ascend(layer.starts + first, end - first, connections)) return false;
  const int64_t begin = layer.begin(first);
  return team.all_below(layer.indices + begin, layer.begin(end) - begin, layer.inputs);
}

// Sets the bits of the positives. One that names no instance or label makes the loss NaN.
__global__ void mark_kernel(const int32_t *rows, const int64_t *labels, int64_t positives,
                            int64_t batch, int64_t label_count, uint32_t *masks,
                            double *loss_sum) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= positives) return;
  if (rows[i] < 0 || rows[i] >= batch || labels[i] < 0 || labels[i] >= label_count) {
    atomicAdd(loss_sum, double(NAN));
    return;
  }
  atomicOr(masks + rows[i] / kLanes * label_count + labels[i], 1u << rows[i] % kLanes);
}

__global__ void write_loss_kernel(const double *sum, float *loss) { *loss = float(*sum); }

FANIN_FN void add_loss(Lanes<float> loss, double *loss_sum) {
  const float total = sum(loss);
  if (thread_id() == 0) atomicAdd(loss_sum, double(total));
}

template <class I, class W, class M, bool keep>
__global__ void __launch_bounds__(kMostThreads, 1)
    step_kernel(TrainedLayer<I, W, M> layer, int64_t connections, const float *features,
                const uint32_t *masks, float *grad_features, double *loss_sum) {
  SharedPieces<float> shared;
  const BlockRows<float, keep> block(shared, features, grad_features,
                                     layer.groups() * layer.inputs * kLanes);
  float *const grads = shared.take_for_warp(kTile + layer.groups() * kLanes);
  Team<float> team;
  Lanes<float> loss = broadcast(0.0f);
  each_tile((layer.labels + kTile - 1) / kTile, [&](int64_t tile) {
    const int64_t first = tile * kTile;
    if (!good_connections(layer, connections, first, smaller(first + kTile, layer.labels), team))
      loss = broadcast(NAN);
    else
      step_tile<false>(layer, block.features, first, masks, {0, layer.groups(), nullptr}, grads,
                       grads + kTile, block.to_add(), loss, team);
  });
  add_loss(loss, loss_sum);
  block.finish();
}

// Dense layers read features in order, which the first-level cache does well; sums are kept.
template <class W, class M, bool keep_sums>
__global__ void __launch_bounds__(kMostThreads, 1)
    dense_step_kernel(TrainedLayer<uint16_t, W, M> layer, const float *rows, const float *features,
                      const uint32_t *masks, float *grad_features, double *loss_sum) {
  SharedPieces<float> shared;
  const BlockRows<float, keep_sums> block(shared, features, grad_features,
                                          layer.groups() * layer.inputs * kLanes, false);
  float *const staged = shared.take_for_warp(kStaged);
  float *const grads = shared.take_for_warp(layer.groups() * kBlock * kLanes);
  Team<float> team;
  Lanes<float> loss = broadcast(0.0f);
  each_tile((layer.labels + kBlock - 1) / kBlock, [&](int64_t number) {
    step_block(layer, rows, features, number * kBlock, masks, grads, staged, block.to_add(), loss,
               team);
  });
  add_loss(loss, loss_sum);
  block.finish();
}

template <class W>
__global__ void __launch_bounds__(kMostThreads, 1)
    dense_forward_kernel(const W *weights, const float *bias, int64_t inputs, int64_t units,
                         bool relu, const float *features, float *outputs, int64_t batch) {
  SharedPieces<float> shared;
  float *const staged = shared.take_for_warp(kStaged);
  float *const tile = shared.take_for_warp(kTile * kTilePitch);
  Team<float> team;
  const int64_t groups = groups_of(batch);
  each_tile((units + kTile - 1) / kTile * groups, [&](int64_t number) {
    const int64_t group = number % groups;
    dense_tile(weights, bias, inputs, units, number / groups * kTile, relu,
               features + group * inputs * kLanes, outputs + group * kLanes * units,
               int(smaller<int64_t>(kLanes, batch - group * kLanes)), tile, staged, team);
  });
}

template <class W, class M>
__global__ void __launch_bounds__(kUpdateWarps *kLanes, 3)
    dense_update_kernel(DenseLayer<W, M> layer, const float *grad_outputs, const float *outputs,
                        const float *rows, float *grad_features) {
  SharedPieces<float> shared;
  float *const staged = shared.take_for_warp(kStaged);
  float *const tiles = shared.take_for_warp(2 * kTile * kTilePitch);
  float *const grads = shared.take_for_warp(groups_of(layer.batch) * kTile * kLanes);
  Team<float> team;
  each_tile((layer.units + kTile - 1) / kTile, [&](int64_t tile) {
    update_tile(layer, tile * kTile, grad_outputs, outputs, rows, tiles, grads, staged,
                grad_features, team);
  });
}

// The best of one group: every warp takes one contiguous range of labels and fills one list.
template <class I, class W>
__global__ void __launch_bounds__(kMostThreads, 1)
    top_k_kernel(ScoredLayer<I, W> layer, int64_t connections, const float *features, int lanes,
                 int64_t k, char *lists, int64_t list_size, int64_t *counts, int64_t list_count) {
  SharedPieces<float> shared;
  float *const staged = shared.take_for_warp(kStaged);
  const int64_t list = int64_t(blockIdx.x) * warps_of_block() + warp_of_block();
  if (list >= list_count) return;
  const int64_t tiles = (layer.labels + kTile - 1) / kTile;
  const int64_t begin = tiles * list / list_count * kTile;
  const int64_t end = smaller(tiles * (list + 1) / list_count * kTile, layer.labels);
  Team<float> team;
  Best best(lists + list * list_size, k);
  best.clear(lanes);
  for (int64_t first = begin; first < end; first += kTile) {
    const int64_t stop = smaller(first + kTile, end);
    if (!layer.indices || good_connections(layer, connections, first, stop, team))
      offer_labels(layer, first, stop, features, lanes, staged, best, team);
    else
      for (int64_t label = first; label < stop; ++label) best.offer(label, broadcast(NAN), lanes);
  }
  if (thread_id() == 0) counts[list] = smaller(end - begin, k);
}

// One block, of one warp, for each instance of the group. Lists hold ascending ranges of labels: of
// equal scores the earlier list's is the lower.
__global__ void merge_kernel(char *lists, int64_t list_size, const int64_t *counts,
                             int64_t list_count, int64_t k, int64_t *ids, float *values) {
  int32_t *const used = dynamic_shared_memory<int32_t>();  // of each list; a thread's own ones
  const int lane = blockIdx.x;
  for (int64_t l = thread_id(); l < list_count; l += kLanes) used[l] = 0;
  for (int64_t r = 0; r < k; ++r) {
    int from = -1;
    float value = 0;
    for (int l = thread_id(); l < list_count; l += kLanes) {
      if (used[l] >= counts[l]) continue;
      const float head = Best(lists + l * list_size, k).scores[used[l] * kLanes + lane];
      if (from < 0 || ranks_before(head, value)) {
        from = l;
        value = head;
      }
    }
    for (int d = kLanes / 2; d; d /= 2) {
      const int other = __shfl_xor_sync(kAll, from, d);
      const float score = __shfl_xor_sync(kAll, value, d);
      const bool equal = !ranks_before(score, value) && !ranks_before(value, score);
      if (other >= 0 && (from < 0 || ranks_before(score, value) || (equal && other < from))) {
        from = other;
        value = score;
      }
    }
    if (from % kLanes == thread_id()) {
      const int64_t at = int64_t(used[from]++) * kLanes + lane;
      ids[lane * k + r] = Best(lists + from * list_size, k).ids[at];
      if (values) values[lane * k + r] = value;
    }
  }
}

// Launches ---------------------------------------------------------------------------------------

template <class I, class W, class M>
Finding run_step(const StepCall &c) {
  const TrainedLayer<I, W, M> layer = trained_layer<I, W, M>(c);
  const StepMemory memory = step_memory(c, c.workspace);
  const int64_t groups = groups_of(c.batch), rows = groups * c.inputs;
  float *const sums = c.grad_features ? memory.accumulators : nullptr;
  to_lanes(c.features, memory.features, c.batch, c.inputs, c.stream);
  clear(memory.masks, groups * c.labels, c.stream);
  clear(memory.losses, 1, c.stream);
  if (sums) clear(sums, memory.features_size, c.stream);
  if (c.positives)
    launch(mark_kernel, dim3(unsigned((c.positives + 255) / 256)), 256, 0, c.stream,
           c.positive_instances, c.positive_labels, c.positives, c.batch, c.labels, memory.masks,
           memory.losses);
  Finding found = last_error();
  if (found.kind != Finding::nothing) return found;
  if (c.indices) {
    const size_t of_warp = size_t(step_scratch(groups)) * sizeof(float);
    const int64_t tiles = (c.labels + kTile - 1) / kTile;
    const auto start = [&](auto kernel, int warps, size_t of_block) {
      return launch_tiles(kernel, tiles, warps, of_block, of_warp, c.stream, layer, c.connections,
                          memory.features, memory.masks, sums, memory.losses);
    };
    const int64_t kept = sums ? 2 * rows : rows;
    found = keeps(kept, kRowBytes, c.connections, kMostWarps, of_warp)
                ? start(step_kernel<I, W, M, true>, kMostWarps, size_t(kept) * kRowBytes)
                : start(step_kernel<I, W, M, false>, kFewWarps, 0);
  } else if constexpr (sizeof(I) == sizeof(uint16_t)) {
    const size_t of_warp = size_t(dense_step_scratch(groups)) * sizeof(float);
    const int64_t blocks = (c.labels + kBlock - 1) / kBlock;
    const auto start = [&](auto kernel, int warps, size_t of_block) {
      return launch_tiles(kernel, blocks, warps, of_block, of_warp, c.stream, layer, c.features,
                          memory.features, memory.masks, sums, memory.losses);
    };
    found = sums && keeps(rows, kRowBytes, blocks * c.inputs, kMostWarps, of_warp)
                ? start(dense_step_kernel<W, M, true>, kMostWarps, size_t(rows) * kRowBytes)
                : start(dense_step_kernel<W, M, false>, kFewWarps, 0);
  }
  launch(write_loss_kernel, dim3(1), kLanes, 0, c.stream, memory.losses, c.loss);
  if (sums) from_lanes(sums, c.grad_features, c.batch, c.inputs, 0, groups, c.stream);
  return first_of(found, last_error());
}

template <class W>
Finding run_dense_forward(const DenseForwardCall &c) {
  const DenseMemory memory = dense_memory(c.batch, c.inputs, 1, true, false, c.workspace);
  to_lanes(c.features, memory.features, c.batch, c.inputs, c.stream);
  const int64_t tiles = (c.labels + kTile - 1) / kTile * groups_of(c.batch);
  return launch_tiles(dense_forward_kernel<W>, tiles, kFewWarps, 0,
                      kDenseForwardScratch * sizeof(float), c.stream,
                      static_cast<const W *>(c.weights), c.bias, c.inputs, c.labels, c.relu,
                      memory.features, c.scores, c.batch);
}

template <class W, class M>
Finding run_dense_update(const DenseUpdateCall &c) {
  const DenseMemory memory =
      dense_memory(c.batch, c.inputs, 1, false, c.grad_features, c.workspace);
  const DenseLayer<W, M> layer = dense_layer<W, M>(c);
  const int64_t groups = groups_of(c.batch), rows = groups * c.inputs;
  float *const sums = c.grad_features ? memory.accumulators : nullptr;
  const int64_t tiles = (c.labels + kTile - 1) / kTile;
  if (sums) clear(sums, rows * kLanes, c.stream);
  const size_t of_warp = size_t(dense_update_scratch(groups)) * sizeof(float);
  const Finding found =
      launch_tiles(dense_update_kernel<W, M>, tiles, kUpdateWarps, 0, of_warp, c.stream, layer,
                   c.grad_scores, c.scores, c.features, sums);
  if (sums) from_lanes(sums, c.grad_features, c.batch, c.inputs, 0, groups, c.stream);
  return first_of(found, last_error());
}

template <class I, class W>
Finding run_top_k(const TopKCall &c) {
  const TopKMemory memory = top_k_memory(c, c.workspace);
  const ScoredLayer<I, W> layer = scored_layer<I, W>(c);
  to_lanes(c.features, memory.features, c.batch, c.inputs, c.stream);
  const Finding begun = last_error();
  if (begun.kind != Finding::nothing) return begun;
  const size_t of_warp = size_t(kStaged) * sizeof(float);
  // A block more or less does not matter; every list has its warp.
  const dim3 blocks(unsigned((c.threads + kFewWarps - 1) / kFewWarps));
  for (int64_t group = 0; group < groups_of(c.batch); ++group) {
    const int lanes = int(c.batch - group * kLanes < kLanes ? c.batch - group * kLanes : kLanes);
    launch(top_k_kernel<I, W>, blocks, kFewWarps * kLanes, kFewWarps * of_warp, c.stream, layer,
           c.connections, memory.features + group * c.inputs * kLanes, lanes, c.k, memory.best,
           memory.best_size, memory.counts, int64_t(c.threads));
    launch(merge_kernel, dim3(unsigned(lanes)), kLanes, size_t(c.threads) * sizeof(int32_t),
           c.stream, memory.best, memory.best_size, memory.counts, int64_t(c.threads), c.k,
           c.ids + group * kLanes * c.k, c.values ? c.values + group * kLanes * c.k : nullptr);
  }
  return last_error();
}

}  // namespace

Finding step(const StepCall &c) {
  return with_types(c.wide_indices, c.bf16_weights, c.bf16_moments,
                    [&](auto index, auto weight, auto moment) {
                      return run_step<decltype(index), decltype(weight), decltype(moment)>(c);
                    });
}

Finding dense_forward(const DenseForwardCall &c) {
  return c.bf16_weights ? run_dense_forward<Bf16>(c) : run_dense_forward<float>(c);
}

Finding dense_update(const DenseUpdateCall &c) {
  return with_types(false, c.bf16_weights, c.bf16_moments, [&](auto, auto weight, auto moment) {
    return run_dense_update<decltype(weight), decltype(moment)>(c);
  });
}

Finding top_k(const TopKCall &c) {
  return with_types(c.wide_indices, c.bf16_weights, false, [&](auto index, auto weight, auto) {
    return run_top_k<decltype(index), decltype(weight)>(c);
  });
}

}  // namespace cuda
}  // namespace fanin
