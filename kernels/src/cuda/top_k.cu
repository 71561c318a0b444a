// Launches top-k on a GPU: one kernel fills lists, as many as memory.h says; a second one merges
// them.
#include "cuda/grouped.h"

#include "core/top_k.h"

namespace fanin {
namespace cuda {
namespace {

// The best of one group: every warp takes one contiguous range of labels and fills one list.
template <class I, class W>
__global__ void __launch_bounds__(kMostThreads, 1)
    top_k_kernel(ScoredLayer<I, W> layer, int64_t connections, const float *features, int lanes,
                 int64_t k, const int32_t *label_ids, char *lists, int64_t list_size,
                 int64_t *counts, int64_t list_count, int64_t row_size) {
  SharedPieces<float> shared;
  float *const staged = shared.take_for_warp(kStaged), *const row = shared.take_for_warp(row_size);
  const int64_t tiles = (layer.labels + kTile - 1) / kTile;
  Team<float> team;
  each_tile(list_count, [&](int64_t list) {
    const int64_t begin = tiles * list / list_count * kTile;
    const int64_t end = smaller(tiles * (list + 1) / list_count * kTile, layer.labels);
    Best best(lists + list * list_size, k, 0, label_ids);
    best.clear(lanes);
    for (int64_t first = begin; first < end; first += kTile) {
      const int64_t stop = smaller(first + kTile, end);
      if (!layer.indices || good_connections(layer, connections, first, stop, team))
        offer_labels(layer, first, stop, features, lanes, staged, row, best, team);
      else
        for (int64_t label = first; label < stop; ++label) best.offer(label, broadcast(NAN), lanes);
    }
    if (thread_id() == 0) counts[list] = smaller(end - begin, k);
  });
}

// The same of labels that share their sources: a list is of whole label groups. whole: squares are
// kept for all chunks of sources.
template <class I, class W>
__global__ void __launch_bounds__(kFewWarps *kLanes, 2)
    grouped_top_k_kernel(ScoredLayer<I, W> layer, int64_t group_size, bool whole,
                         const float *features, int lanes, int64_t k, const int32_t *label_ids,
                         char *lists, int64_t list_size, int64_t *counts, int64_t list_count) {
  const int64_t label_groups = (layer.labels + group_size - 1) / group_size;
  const int64_t chunks = (layer.fan_in + kLanes - 1) / kLanes;
  SharedPieces<float> shared;
  float *const rows = shared.take_for_warp(kBlockRows);
  const Squares squares{shared.take_for_warp((whole ? chunks : 1) * kSquare), whole};
  Team<float> team;
  each_tile(list_count, [&](int64_t list) {
    const int64_t begin = label_groups * list / list_count;
    const int64_t end = label_groups * (list + 1) / list_count;
    Best best(lists + list * list_size, k, 0, label_ids);
    best.clear(lanes);
    for (int64_t number = begin; number < end; ++number) {
      const LabelGroup<I, W> group = label_group<I, W>(layer, number, group_size, features);
      const int64_t first = number * group_size;
      if (!team.all_below(group.indices, group.fan_in, group.inputs)) {
        for (int j = 0; j < group.labels; ++j) best.offer(first + j, broadcast(NAN), lanes);
        continue;
      }
      if (whole) {
        team.sync();  // nobody reads the previous group's squares any more
        for (int64_t chunk = 0; chunk < chunks; ++chunk)
          gather_square(group, 0, chunk, squares.memory + chunk * kSquare);
        team.sync();
      }
      for (int j = 0; j < group.labels; j += kProductRows)
        score_labels(group, squares, 0, j, rows, [&](int label, Lanes<float> scores) {
          best.offer(first + label, scores, lanes);
        });
    }
    const int64_t offered = smaller(end * group_size, layer.labels) - begin * group_size;
    if (thread_id() == 0) counts[list] = smaller(offered, k);
  });
}

// One block, of one warp, for each instance of the group. That no id stands in two lists is not
// checked; if one does, all threads still agree on one of the lists.
__global__ void merge_kernel(char *lists, int64_t list_size, const int64_t *counts,
                             int64_t list_count, int64_t k, int64_t *ids, float *values) {
  int32_t *const used = dynamic_shared_memory<int32_t>();  // of each list; a thread's own ones
  const int lane = blockIdx.x;
  for (int64_t l = thread_id(); l < list_count; l += kLanes) used[l] = 0;
  for (int64_t r = 0; r < k; ++r) {
    int from = -1;
    float value = 0;
    int64_t id = 0;
    const auto take_better = [&](int other, float score, int64_t other_id) {
      if (other < 0 || (from >= 0 && ranks_before(value, id, score, other_id))) return;
      const bool better = from < 0 || ranks_before(score, other_id, value, id) || other < from;
      from = better ? other : from;
      value = better ? score : value;
      id = better ? other_id : id;
    };
    for (int l = thread_id(); l < list_count; l += kLanes) {
      const Best list(lists + l * list_size, k);
      const int64_t at = int64_t(used[l]) * kLanes + lane;
      if (used[l] < counts[l]) take_better(l, list.scores[at], list.ids[at]);
    }
    for (int d = kLanes / 2; d; d /= 2)
      take_better(__shfl_xor_sync(kAll, from, d), __shfl_xor_sync(kAll, value, d),
                  __shfl_xor_sync(kAll, id, d));
    if (from % kLanes == thread_id()) {
      ++used[from];
      ids[lane * k + r] = id;
      if (values) values[lane * k + r] = value;
    }
  }
}

template <class I, class W>
Finding run_top_k(const TopKCall &c) {
  const TopKMemory memory = top_k_memory(c, c.workspace);
  const ScoredLayer<I, W> layer = scored_layer<I, W>(c);
  to_lanes(c.features, memory.features, c.batch, c.inputs, c.stream);
  const Finding begun = last_error();
  if (begun.kind != Finding::nothing) return begun;
  const int64_t row = float8_row(c);
  for (int64_t group = 0; group < groups_of(c.batch); ++group) {
    const int lanes = int(c.batch - group * kLanes < kLanes ? c.batch - group * kLanes : kLanes);
    const float *const features = memory.features + group * c.inputs * kLanes;
    Finding launched;
    if (c.group_size) {
      const int64_t chunks = (c.fan_in + kLanes - 1) / kLanes;
      const bool whole = chunks <= kSquaresOfWarp;
      const size_t bytes = size_t(kBlockRows + (whole ? chunks : 1) * kSquare) * sizeof(float);
      launched =
          launch_tiles(grouped_top_k_kernel<I, W>, c.gpu_lists, kFewWarps, 0, bytes, c.stream,
                       layer, c.group_size, whole, features, lanes, c.k, c.label_ids, memory.lists,
                       memory.list_size, memory.counts, int64_t(c.gpu_lists));
    } else {
      launched = launch_tiles(top_k_kernel<I, W>, c.gpu_lists, kFewWarps, 0,
                              size_t(kStaged + row) * sizeof(float), c.stream, layer, c.connections,
                              features, lanes, c.k, c.label_ids, memory.lists, memory.list_size,
                              memory.counts, int64_t(c.gpu_lists), row);
    }
    if (launched.kind != Finding::nothing) return launched;
    launch(merge_kernel, dim3(unsigned(lanes)), kLanes, size_t(c.gpu_lists) * sizeof(int32_t),
           c.stream, memory.lists, memory.list_size, memory.counts, int64_t(c.gpu_lists), c.k,
           c.ids + group * kLanes * c.k, c.scores ? c.scores + group * kLanes * c.k : nullptr);
  }
  return last_error();
}

}  // namespace

Finding top_k(const TopKCall &c) {
  return with_types(
      [&](auto index, auto weight) { return run_top_k<decltype(index), decltype(weight)>(c); },
      index_type(c), row_type(c));
}

}  // namespace cuda
}  // namespace fanin
