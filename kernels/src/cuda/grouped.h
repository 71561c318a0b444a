// Labels that share their sources, on a GPU: what the fused step (grouped.cu) and prediction
// (top_k.cu) do with one group of them. The sources' rows are gathered into shared memory, and what
// is left are products of small matrices for tensor cores (products_cuda.h). The same on a CPU:
// core/grouped.h.
//
// A block of threads works on one label group after the other. Its warps divide the blocks of 16
// labels, the lane groups and the chunks of 32 sources among themselves.
#pragma once

#include "cuda/common.h"

#include "core/float8.h"
#include "core/products_cuda.h"

namespace fanin {
namespace cuda {
namespace {

constexpr int kSquare = kLanes * kPitch;  // the rows of 32 sources
constexpr int kBlockRows = kProductRows * kPitch;
constexpr int kColumnBlocks = kLanes / kProductColumns;
constexpr int kSquaresOfWarp = 4;  // squares that are kept, for each warp

// One weight of a label's row.
template <class W>
FANIN_FN float weight_at(const W *row, int source, int) {
  return widen(row[source]);
}
FANIN_FN float weight_at(const Float8 *row, int source, int fan_in) {
  return e4m3_values(row[source].bits) * scale_of(row[fan_in].bits);
}

// One label group, and the features that its sources stand in.
template <class I, class W>
struct LabelGroup {
  const I *indices;    // [fan_in]
  const W *weights;    // [labels][fan_in]; in float8 with their scales
  const float *bias;   // [labels], or null
  int fan_in, inputs;  // as they are checked, below 2^31
  int labels;
  const float *features;  // [lane groups][inputs][32]

  FANIN_FN int chunks() const { return (fan_in - 1) / kLanes + 1; }
  FANIN_FN int sources_of(int chunk) const { return smaller(kLanes, fan_in - chunk * kLanes); }
  FANIN_FN const float *rows(int lane_group) const {
    return features + int64_t(lane_group) * inputs * kLanes;
  }
  // Beyond the last label and the last source weights are 0.
  FANIN_FN float weight(int label, int source) const {
    return label < labels && source < fan_in ? weight_at(row(label), source, fan_in) : 0.0f;
  }
  FANIN_FN const W *row(int label) const { return row_of(weights, label, int64_t(label) * fan_in); }
  FANIN_FN float bias_of(int label) const { return bias && label < labels ? bias[label] : 0.0f; }
};

// Group `number` of a layer, which is trained or only scored.
template <class I, class W, template <class, class, class...> class AnyLayer, class... M>
FANIN_FN LabelGroup<I, W> label_group(const AnyLayer<I, W, M...> &layer, int64_t number,
                                      int64_t group_size, const float *features) {
  const int64_t first = number * group_size;
  return {layer.indices + number * layer.fan_in,
          row_of(layer.weights, first, first * layer.fan_in),
          layer.bias ? layer.bias + first : nullptr,
          int(layer.fan_in),
          int(layer.inputs),
          int(smaller(group_size, layer.labels - first)),
          features};
}

// The rows of a chunk of sources -> square [32][kPitch], by one warp. Rows beyond the last source
// are 0.
template <class I, class W>
FANIN_FN void gather_square(const LabelGroup<I, W> &group, int lane_group, int chunk,
                            float *square) {
  const int count = group.sources_of(chunk), part = Sharing<float>::part;
  const uint32_t source = thread_id() < count ? group.indices[chunk * kLanes + thread_id()] : 0;
  FANIN_ROLLED
  for (int half = 0; half < kLanes; half += kLanes / 2) {  // all at once would take more registers
    FANIN_UNROLL
    for (int row = 0; row < kLanes / 2; row += kLanes / part) {
      const int k = half + row + thread_id() / part;
      const size_t from = __shfl_sync(kAll, source, k);
      Wide<float> values{};
      if (k < count) values = load_wide(group.rows(lane_group) + from * kLanes);
      *reinterpret_cast<Wide<float> *>(square + k * kPitch +
                                       thread_id() % part * Sharing<float>::wide) = values;
    }
  }
}

// The squares of a label group: all of them, [lane groups][chunks], which the block has gathered;
// or room for one, which this warp fills with what it needs next.
struct Squares {
  float *memory;
  bool whole;

  template <class I, class W>
  FANIN_FN const float *square(const LabelGroup<I, W> &group, int lane_group, int chunk) const {
    if (whole) return memory + int64_t(lane_group * group.chunks() + chunk) * kSquare;
    __syncwarp();  // nobody reads the previous one any more
    gather_square(group, lane_group, chunk, memory);
    __syncwarp();
    return memory;
  }
};

// A label's score for each lane, without tensor cores: whatever is not finite would be NaN there.
template <class I, class W>
FANIN_FN Lanes<float> plain_score(const LabelGroup<I, W> &group, int lane_group, int label) {
  Lanes<float> total = broadcast(group.bias_of(label));
  FANIN_ROLLED
  for (int k = 0; k < group.fan_in; ++k)
    total = fma(group.weight(label, k),
                load(group.rows(lane_group) + size_t(group.indices[k]) * kLanes), total);
  return total;
}

// f(label, scores) for the 16 labels from `first` on, as many of them as there are. rows: scratch,
// [16][kPitch], where f may keep what it makes of its label's scores, in the label's row.
template <class I, class W, class F>
FANIN_FN void score_labels(const LabelGroup<I, W> &group, const Squares &squares, int lane_group,
                           int first, float *rows, const F &f) {
  constexpr bool exact = !std::is_same<W, float>::value;
  float sums[kColumnBlocks][4] = {};
  for (int chunk = 0; chunk < group.chunks(); ++chunk) {
    const float *const square = squares.square(group, lane_group, chunk);
    FANIN_ROLLED
    for (int k = 0; k < group.sources_of(chunk); k += kProductDepth) {
      const int at = k + 2 * quad_lane();
      const Parts<4> left = left_parts([&](int row, int place) {
        return group.weight(first + row, chunk * kLanes + at + place);
      });
      FANIN_UNROLL
      for (int n = 0; n < kColumnBlocks; ++n)
        add_product<exact>(sums[n], left, right_parts([&](int place, int column) {
                             return square[(at + place) * kPitch + n * kProductColumns + column];
                           }));
    }
  }
  __syncwarp();
  FANIN_UNROLL
  for (int n = 0; n < kColumnBlocks; ++n) {
    FANIN_UNROLL
    for (int i = 0; i < 4; ++i)
      rows[left_row(i / 2) * kPitch + n * kProductColumns + sum_column(i)] = sums[n][i];
  }
  __syncwarp();
  const int count = smaller(kProductRows, group.labels - first);
  const float bias = group.bias_of(first + thread_id());  // of all labels at once
  FANIN_ROLLED
  for (int j = 0; j < count; ++j) {
    Lanes<float> scores = load(rows + j * kPitch);
    scores.v += __shfl_sync(kAll, bias, j);
    if (any(Lanes<float>{scores.v - scores.v})) scores = plain_score(group, lane_group, first + j);
    f(first + j, scores);
  }
}

}  // namespace
}  // namespace cuda
}  // namespace fanin
