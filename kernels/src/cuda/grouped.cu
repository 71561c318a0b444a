// Launches the fused step of labels that share their sources on a GPU.
#include <algorithm>

#include "cuda/grouped.h"

#include "core/trained.h"

namespace fanin {
namespace cuda {
namespace {

constexpr int kGroupWarps = 8;     // the most of a block
constexpr int kUpdatedLabels = 2;  // whose weights are loaded together before they are updated

// Adds the gradients of 16 sources from `first` on, summed over the labels of a group. grads: of
// this lane group, [label rows][kPitch]. targets: its rows.
template <class I, class W>
FANIN_FN void spread_sources(const LabelGroup<I, W> &group, int first, const float *grads,
                             float *targets) {
  // A thread's sums of two neighbouring blocks of columns are four neighbouring lanes.
  const auto lane_at = [](int n, int column) {
    return n / 2 * 16 + column / 2 * 4 + n % 2 * 2 + column % 2;
  };
  constexpr bool exact = !std::is_same<W, float>::value;
  float sums[kColumnBlocks][4] = {};
  FANIN_ROLLED
  for (int k = 0; k < group.labels; k += kProductDepth) {
    const int at = k + 2 * quad_lane();
    const Parts<4> left =
        left_parts([&](int row, int place) { return group.weight(at + place, first + row); });
    FANIN_UNROLL
    for (int n = 0; n < kColumnBlocks; ++n)
      add_product<exact>(sums[n], left, right_parts([&](int place, int column) {
                           return grads[(at + place) * kPitch + lane_at(n, column)];
                         }));
  }
  FANIN_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int k = first + left_row(half);
    if (k >= group.fan_in) continue;
    float *const row = targets + size_t(group.indices[k]) * kLanes + quad_lane() * 4;
    FANIN_UNROLL
    for (int n = 0; n < kColumnBlocks; n += 2)
      add_four(row + n * 8, sums[n][half * 2], sums[n][half * 2 + 1], sums[n + 1][half * 2],
               sums[n + 1][half * 2 + 1]);
  }
}

// Gradients of the weights of 16 labels from `first` on and a chunk of sources, and the optimiser.
// at: the group's first weight. grads: [lane groups][group_rows]. staged: scratch, [16][kPitch].
// updated: [labels][fan_in], where weights in float8 go, to be rounded when their rows are
// complete.
template <class I, class W, class M>
FANIN_FN void update_labels(const TrainedLayer<I, W, M> &layer, const LabelGroup<I, W> &group,
                            const Squares &squares, int64_t at, int first, int chunk,
                            const float *grads, int group_rows, float *staged, float *updated) {
  float sums[kColumnBlocks][4] = {};
  for (int lane_group = 0; lane_group < int(layer.groups()); ++lane_group) {
    const float *const square = squares.square(group, lane_group, chunk);
    const float *const rows = grads + int64_t(lane_group) * group_rows + first * kPitch;
    FANIN_ROLLED
    for (int b = 0; b < kLanes; b += kProductDepth) {
      const auto instance = [&](int place) { return b + quad_lane() + 4 * place; };
      const Parts<4> left =
          left_parts([&](int row, int place) { return rows[row * kPitch + instance(place)]; });
      FANIN_UNROLL
      for (int n = 0; n < kColumnBlocks; ++n)
        add_product<false>(
            sums[n], left, right_parts([&](int place, int column) {
              return square[(n * kProductColumns + column) * kPitch + instance(place)];
            }));
    }
  }
  __syncwarp();
  FANIN_UNROLL
  for (int n = 0; n < kColumnBlocks; ++n) {
    FANIN_UNROLL
    for (int i = 0; i < 4; ++i)
      staged[left_row(i / 2) * kPitch + n * kProductColumns + sum_column(i)] = sums[n][i];
  }
  __syncwarp();
  const int labels = smaller(kProductRows, group.labels - first), count = group.sources_of(chunk);
  FANIN_ROLLED
  for (int j = 0; j < labels; j += kUpdatedLabels) {
    TrainedChunk chunks[kUpdatedLabels];
    const auto each = [&](auto f) {
      FANIN_UNROLL
      for (int u = 0; u < kUpdatedLabels; ++u)
        if (j + u < labels) f(u, at + int64_t(first + j + u) * group.fan_in + chunk * kLanes);
    };
    each([&](int u, int64_t from) {
      if constexpr (std::is_same<W, Float8>::value) {
        chunks[u].weight = load_row(group.row(first + j + u), group.fan_in, chunk * kLanes, count);
        chunks[u].load_moments(layer.optimizer, layer.m, layer.v, from, count);
      } else {
        chunks[u].load(layer.optimizer, layer.weights + from, layer.m, layer.v, from, count);
      }
    });
    each([&](int u, int64_t to) {
      const Chunk<float> grad{staged[(j + u) * kPitch + thread_id()]};
      if constexpr (std::is_same<W, Float8>::value)
        chunks[u].step(layer.optimizer, updated + (to - at), layer.m, layer.v, to, count, grad);
      else
        chunks[u].step(layer.optimizer, layer.weights + to, layer.m, layer.v, to, count, grad);
    });
  }
}

// What a block keeps, in shared memory where nothing else is said. Sizes count floats.
struct GroupMemory {
  float *grads;    // [lane groups][label_rows][kPitch]; of a large batch in device memory
  float *updated;  // [labels][fan_in], for float8; of a large group in device memory
  float *bias_grads;
  float *staged;   // this warp's
  float *squares;  // see Squares
  bool whole;

  FANIN_FN GroupMemory(const GpuGroup &sizes, float *scratch, bool whole_) : whole(whole_) {
    SharedPieces<float> shared;
    scratch += blockIdx.x * sizes.scratch();
    grads = sizes.far_grads ? scratch : shared.take(sizes.grads);
    updated = sizes.far_rows ? scratch + sizes.scratch() - sizes.rows : shared.take(sizes.rows);
    bias_grads = shared.take(kMostGroupSize);
    staged = shared.take_for_warp(kBlockRows);
    squares = shared.next + (whole ? 0 : warp_of_block() * kSquare);
  }
  static size_t bytes(int64_t shared_values, int warps, int64_t squares) {
    return size_t(shared_values + kMostGroupSize + warps * int64_t(kBlockRows) +
                  squares * kSquare) *
           sizeof(float);
  }
};

// What a block reads first of the group that comes next.
template <class I, class W>
FANIN_FN void announce_group(const LabelGroup<I, W> &group) {
  if (warp_of_block() == 0) announce(group.indices, group.fan_in);
  for (int j = warp_of_block(); j < group.labels; j += warps_of_block())
    announce(group.row(j), group.fan_in);
}

// The step of one group, by a block. first: its first label.
template <class I, class W, class M>
FANIN_FN void step_group(const TrainedLayer<I, W, M> &layer, const LabelGroup<I, W> &group,
                         int64_t group_size, int64_t first, const uint32_t *masks,
                         const GroupMemory &memory, float *grad_features, Lanes<float> &loss) {
  const int warp = warp_of_block(), warps = warps_of_block();
  const int lane_groups = int(layer.groups());
  const int64_t at = first * group.fan_in;
  const int group_rows = int(label_rows(group_size)) * kPitch;
  const Squares squares{memory.squares, memory.whole};
  for (int j = warp; j < group.labels; j += warps) {
    const int64_t row = at + int64_t(j) * group.fan_in;
    if (layer.optimizer.kept > 0) announce(layer.m + row, group.fan_in);
    if (layer.optimizer.kept == 2) announce(layer.v + row, group.fan_in);
  }
  __syncthreads();  // nobody reads the previous group's squares and gradients any more
  if (memory.whole)
    for (int i = warp; i < lane_groups * group.chunks(); i += warps)
      gather_square(group, i / group.chunks(), i % group.chunks(),
                    memory.squares + int64_t(i) * kSquare);
  __syncthreads();

  const int blocks = (group.labels + kProductRows - 1) / kProductRows;
  for (int i = warp; i < lane_groups * blocks; i += warps) {
    const int lane_group = i / blocks, label = i % blocks * kProductRows;
    float *const rows = memory.grads + int64_t(lane_group) * group_rows + label * kPitch;
    const Lanes<float> scale = layer.scale_of(lane_group);
    const int count = smaller(kProductRows, group.labels - label);
    const uint32_t positives =  // of all labels at once
        thread_id() < count ? masks[lane_group * layer.labels + first + label + thread_id()] : 0;
    score_labels(group, squares, lane_group, label, rows, [&](int j, Lanes<float> scores) {
      const uint32_t of_label = __shfl_sync(kAll, positives, j - label);
      store(rows + (j - label) * kPitch, loss_gradient(layer.loss, scores, of_label, scale, loss));
    });
    // The products have whole blocks of labels.
    for (int j = count; j < kProductRows; ++j) store(rows + j * kPitch, broadcast(0.0f));
  }
  __syncthreads();

  const int64_t spread = (group.fan_in - 1) / kProductRows + 1;
  for (int64_t i = warp; grad_features && i < lane_groups * spread; i += warps) {
    const int64_t lane_group = i / spread;
    spread_sources(group, int(i % spread) * kProductRows, memory.grads + lane_group * group_rows,
                   grad_features + lane_group * layer.inputs * kLanes);
  }
  for (int j = warp; layer.bias && j < group.labels; j += warps) {
    float total = 0;
    for (int lane_group = 0; lane_group < lane_groups; ++lane_group)
      total += sum(load(memory.grads + int64_t(lane_group) * group_rows + j * kPitch));
    write_one(memory.bias_grads + j, total, false);
  }
  __syncthreads();  // all have read the weights

  for (int i = warp; i < group.chunks() * blocks; i += warps)
    update_labels(layer, group, squares, at, i % blocks * kProductRows, i / blocks, memory.grads,
                  group_rows, memory.staged, memory.updated);
  if (layer.bias && warp == 0) step_bias(layer, first, group.labels, memory.bias_grads);
  if constexpr (std::is_same<W, Float8>::value) {
    __syncthreads();  // all rows are complete
    for (int j = warp; j < group.labels; j += warps) {
      const int64_t row = int64_t(j) * group.fan_in;
      round_row(layer.optimizer, memory.updated + row, group.fan_in, at + row,
                row_of(layer.weights, first + j, at + row));
    }
  }
}

template <class I, class W, class M>
__global__ void __launch_bounds__(kGroupWarps *kLanes, 2)
    grouped_step_kernel(TrainedLayer<I, W, M> layer, int64_t group_size, GpuGroup sizes,
                        float *scratch, bool whole, const float *features, const uint32_t *masks,
                        float *grad_features, double *loss_sum) {
  const GroupMemory memory(sizes, scratch, whole);
  Team<float> team;
  Lanes<float> loss = broadcast(0.0f);
  const int64_t label_groups = (layer.labels + group_size - 1) / group_size;
  for (int64_t number = blockIdx.x; number < label_groups; number += gridDim.x) {
    const LabelGroup<I, W> group = label_group<I, W>(layer, number, group_size, features);
    if (const int64_t next = number + gridDim.x; next < label_groups)
      announce_group(label_group<I, W>(layer, next, group_size, features));
    if (team.all_below(group.indices, group.fan_in, group.inputs))
      step_group(layer, group, group_size, number * group_size, masks, memory, grad_features, loss);
    else
      loss = broadcast(NAN);
  }
  add_loss(loss, loss_sum);
}

template <class I, class W, class M>
Finding run(const StepCall &c) {
  return run_step(c, [&](const StepMemory &memory, float *sums) {
    const int64_t lane_groups = groups_of(c.batch);
    const int64_t label_groups = (c.labels + c.group_size - 1) / c.group_size;
    const int64_t units = lane_groups * label_rows(c.group_size) / kProductRows;
    const GpuGroup sizes = gpu_group(c);
    const int64_t near = sizes.grads + sizes.rows - sizes.scratch();
    const size_t room = size_t(device().shared);
    int warps = kGroupWarps;
    while (warps > units || (warps > 1 && GroupMemory::bytes(near, warps, warps) > room))
      warps /= 2;
    const int64_t all = lane_groups * ((c.fan_in + kLanes - 1) / kLanes);
    const size_t whole_bytes = GroupMemory::bytes(near, warps, all);
    const bool whole = all <= warps * kSquaresOfWarp && whole_bytes <= room;
    return launch_resident(grouped_step_kernel<I, W, M>,
                           sizes.scratch() ? std::min(label_groups, kScratchBlocks) : label_groups,
                           warps, whole ? whole_bytes : GroupMemory::bytes(near, warps, warps),
                           c.stream, trained_layer<I, W, M>(c), c.group_size, sizes, memory.scratch,
                           whole, memory.features, memory.masks, sums, memory.losses);
  });
}

}  // namespace

Finding grouped_step(const StepCall &c) {
  return with_types(
      [&](auto index, auto weight, auto moment) {
        return run<decltype(index), decltype(weight), decltype(moment)>(c);
      },
      index_type(c), row_type(c), moment_type(c));
}

}  // namespace cuda
}  // namespace fanin
