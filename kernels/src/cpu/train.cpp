// Launches the kernels of training and prediction on a CPU: the fused step, dense layers, top-k.
// Every thread takes one contiguous range of labels, so that results depend on the number of
// threads and on nothing else.
#include "cpu/common.h"
#include "core/dense.h"
#include "core/sorted.h"
#include "core/top_k.h"

namespace fanin {
namespace FANIN_TARGET {
namespace {

template <int N = kLanes>
int lanes_of(int64_t batch, int64_t part) {
  return int(smaller<int64_t>(N, batch - part * N));
}

// The features of a call in groups, or in halves of them. Called by all threads.
template <class Call>
void transpose_parts(const Call &c, bool halves, float *out, int64_t *bad_feature) {
  if (halves)
    transpose_features<kHalf>(c.features, c.batch, c.inputs, out, bad_feature);
  else
    transpose_features(c.features, c.batch, c.inputs, out, bad_feature);
}

void clear(float *values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) values[i] = 0;
}

// The accumulators of all threads, in parts of N lanes -> grad_features [batch, inputs]. Called by
// all threads.
template <int N = kLanes>
void collect_parts(const float *accumulators, int64_t apart, int64_t batch, int64_t inputs,
                   float *grad_features) {
#pragma omp barrier
  for (int64_t part = 0; part * N < batch; ++part)
    collect<N>(accumulators + part * inputs * N, thread_count(), apart, inputs,
               lanes_of<N>(batch, part), grad_features + part * N * inputs);
}

// The step of the labels from first to end - 1, so many groups of the batch at a time. scratch: 32
// values a group, then for each label one, and, unless all groups are worked on at once, fan_in more.
template <class I, class W, class M>
void step_labels(const TrainedLayer<I, W, M> &layer, const float *features, int64_t first,
                 int64_t end, const uint32_t *masks, int64_t at_a_time, float *scratch,
                 float *targets, Lanes<float> &loss, const Team<float> &team) {
  const int64_t groups = layer.groups();
  float *const grads = scratch + groups * kLanes, *const before = grads + (end - first);
  for (int64_t group = 0; group < groups; group += at_a_time)
    for (int64_t label = first; label < end; label += kTile) {
      const GroupRange range{group, smaller(group + at_a_time, groups),
                             at_a_time < groups ? before + (label - first) * layer.fan_in : nullptr};
      const auto step = [&](auto one_group) FANIN_INLINE {
        step_tile<decltype(one_group)::value>(layer, features, label, masks, range,
                                              grads + (label - first), scratch, targets, loss, team);
      };
      if (range.end - group == 1)
        step(std::true_type());
      else
        step(std::false_type());
    }
}

template <class I, class W, class M>
Finding run_step(const StepCall &c) {
  const StepMemory memory = step_memory(c, c.workspace);
  const int64_t groups = groups_of(c.batch), at_a_time = groups_at_a_time(c);
  const int64_t unit = c.tile_labels               ? sorted_labels(c.inputs, c.labels)
                       : at_a_time < groups ? kStepLabels
                       : c.indices          ? kTile
                                            : kBlock;
  const int64_t units = (c.labels + unit - 1) / unit;
  const bool halves = c.tile_labels && in_halves(c.inputs, c.labels);  // see sorted.h
  int64_t bad_feature = -1, bad_index = -1;
  BadTiles bad_tiles;
#pragma omp parallel num_threads(c.threads)
  {
    // The thread's own: then the compiler knows that nothing that is written changes it.
    const TrainedLayer<I, W, M> layer = trained_layer<I, W, M>(c);
    transpose_parts(c, halves, memory.features, &bad_feature);
    const Share labels(c.labels);
    for (int64_t group = 0; group < groups; ++group)
      for (int64_t l = labels.begin; l < labels.end; ++l) memory.masks[group * c.labels + l] = 0;
    float *const targets =
        c.grad_features ? memory.accumulators + thread_id() * memory.features_size : nullptr;
    if (targets) clear(targets, memory.features_size);
#pragma omp barrier
#pragma omp single
    for (int64_t i = 0; i < c.positives; ++i)
      memory.masks[c.positive_instances[i] / kLanes * c.labels + c.positive_labels[i]] |=
          1u << c.positive_instances[i] % kLanes;
    Team<float> team;
    float *const scratch = memory.scratch + thread_id() * memory.scratch_size;
    alignas(64) float staged[kStaged];
    double total = 0;
    const Share share(units);
    for (int64_t u = share.begin; u < share.end && bad_feature < 0; ++u) {
      const int64_t first = u * unit, end = smaller(first + unit, c.labels);
      Lanes<float> loss = broadcast(0.0f);
      if (!c.indices) {
        if constexpr (sizeof(I) == sizeof(uint16_t))
          step_block(layer, c.features, memory.features, first, memory.masks, scratch, staged,
                     targets, loss, team);
      } else {
        const int64_t begin = layer.begin(first), count = layer.begin(end) - begin;
        if (!team.all_below(layer.indices + begin, count, c.inputs)) {
          note_above(layer.indices, begin, count, c.inputs, &bad_index);
          break;
        }
        if (c.tile_labels && !tiles_fit(team, c.tile_labels, begin, count, end - first, &bad_tiles)) break;
        if (halves)
          step_sorted<kHalf>(layer, c.tile_labels, memory.features, first, end - first, memory.masks,
                             scratch, targets, loss);
        else if (c.tile_labels)
          step_sorted<kLanes>(layer, c.tile_labels, memory.features, first, end - first, memory.masks,
                              scratch, targets, loss);
        else
          step_labels(layer, memory.features, first, end, memory.masks, at_a_time, scratch, targets,
                      loss, team);
      }
      total += sum(loss);
    }
    memory.losses[thread_id()] = total;
    if (targets && halves)
      collect_parts<kHalf>(memory.accumulators, memory.features_size, c.batch, c.inputs,
                           c.grad_features);
    else if (targets)
      collect_parts(memory.accumulators, memory.features_size, c.batch, c.inputs, c.grad_features);
#pragma omp barrier
#pragma omp single
    {
      double all = 0;
      for (int t = 0; t < thread_count(); ++t) all += memory.losses[t];
      *c.loss = float(all);
    }
  }
  return finding(bad_feature, bad_index, bad_tiles);
}

template <class W>
Finding run_dense_forward(const DenseForwardCall &c) {
  const DenseMemory memory = dense_memory(c.batch, c.inputs, c.threads, true, false, c.workspace);
  const W *const weights = static_cast<const W *>(c.weights);
  int64_t bad_feature = -1;
#pragma omp parallel num_threads(c.threads)
  {
    transpose_features(c.features, c.batch, c.inputs, memory.features, &bad_feature);
#pragma omp barrier
    Team<float> team;
    alignas(64) float tile[kTile * kTilePitch], staged[kStaged];
    const Share share((c.labels + kTile - 1) / kTile);
    for (int64_t t = share.begin; t < share.end && bad_feature < 0; ++t)
      for (int64_t group = 0; group < groups_of(c.batch); ++group)
        dense_tile(weights, c.bias, c.inputs, c.labels, t * kTile, c.relu,
                   memory.features + group * c.inputs * kLanes,
                   c.scores + group * kLanes * c.labels, lanes_of(c.batch, group), tile, staged,
                   team);
    team.finish();
  }
  return finding(bad_feature);
}

template <class W, class M>
Finding run_dense_update(const DenseUpdateCall &c) {
  const DenseMemory memory =
      dense_memory(c.batch, c.inputs, c.threads, false, c.grad_features, c.workspace);
  const DenseLayer<W, M> layer = dense_layer<W, M>(c);
#pragma omp parallel num_threads(c.threads)
  {
    float *const targets =
        c.grad_features ? memory.accumulators + thread_id() * memory.features_size : nullptr;
    if (targets) clear(targets, memory.features_size);
    Team<float> team;
    alignas(64) float tiles[2 * kTile * kTilePitch], staged[kStaged];
    float *const grads = memory.scratch + thread_id() * memory.scratch_size;
    const Share share((c.labels + kTile - 1) / kTile);
    for (int64_t t = share.begin; t < share.end; ++t)
      update_tile(layer, t * kTile, c.grad_scores, c.scores, c.features, tiles, grads, staged,
                  targets, team);
    if (targets)
      collect_parts(memory.accumulators, memory.features_size, c.batch, c.inputs, c.grad_features);
  }
  return finding(-1);
}

// Labels whose scores one group of instances is given before the next: its features then stay in
// the cache for that long.
constexpr int64_t kScoredLabels = 512;

template <class I, class W>
Finding run_top_k(const TopKCall &c) {
  const TopKMemory memory = top_k_memory(c, c.workspace);
  const ScoredLayer<I, W> layer = scored_layer<I, W>(c);
  const I *const indices = layer.indices;
  const int64_t groups = groups_of(c.batch);
  const int64_t unit = c.tile_labels ? sorted_labels(c.inputs, c.labels) : kScoredLabels;
  const bool halves = c.tile_labels && in_halves(c.inputs, c.labels);  // see sorted.h
  int64_t bad_feature = -1, bad_index = -1;
  BadTiles bad_tiles;
  int threads = 1;
#pragma omp parallel num_threads(c.threads)
  {
    transpose_parts(c, halves, memory.features, &bad_feature);
    char *const mine = memory.best + thread_id() * groups * memory.best_size;
    for (int64_t group = 0; group < groups; ++group)
      Best(mine + group * memory.best_size, c.k).clear(lanes_of(c.batch, group));
#pragma omp single
    threads = thread_count();
    Team<float> team;
    float *const scratch = memory.scratch + thread_id() * memory.scratch_size;
    alignas(64) float staged[kStaged];
    int64_t seen = 0;
    const Share share((c.labels + unit - 1) / unit);
    for (int64_t u = share.begin; u < share.end && bad_feature < 0; ++u) {
      const int64_t first = u * unit, end = smaller(first + unit, c.labels);
      const int64_t begin = layer.begin(first), count = layer.begin(end) - begin;
      if (indices && !team.all_below(indices + begin, count, c.inputs)) {
        note_above(indices, begin, count, c.inputs, &bad_index);
        break;
      }
      if (c.tile_labels && !tiles_fit(team, c.tile_labels, begin, count, end - first, &bad_tiles)) break;
      for (int64_t group = 0; group < groups; ++group) {
        const int lanes = lanes_of(c.batch, group);
        const float *const features = memory.features + group * c.inputs * kLanes;
        Best best(mine + group * memory.best_size, c.k, smaller(seen, c.k));
        if (c.tile_labels) {
          const auto offer_sorted = [&](auto scores) {
            score_sorted(indices + begin, c.tile_labels + begin, layer.weights + begin, count,
                         c.bias ? c.bias + first : nullptr, end - first, features, c.inputs, lanes,
                         scores);
            for (int64_t l = 0; l < end - first; ++l) best.offer(first + l, scores.of(l), lanes);
          };
          if (halves)
            offer_sorted(SortedScores<kHalf>{scratch});
          else
            offer_sorted(SortedScores<kLanes>{scratch});
        } else {
          offer_labels(layer, first, end, features, lanes, staged, best, team);
        }
      }
      seen += end - first;
    }
    memory.counts[thread_id()] = smaller(seen, c.k);
#pragma omp barrier
    // Threads hold ascending ranges of labels: of equal scores the earlier thread's is the lower.
    const Share instances(c.batch);
    const bool good = bad_feature < 0 && bad_index < 0 && !bad_tiles.any();
    for (int64_t b = instances.begin; good && b < instances.end; ++b) {
      int64_t *const used = memory.used + thread_id() * c.threads;  // of each thread's list
      for (int t = 0; t < threads; ++t) used[t] = 0;
      for (int64_t r = 0; r < c.k; ++r) {
        int from = -1;
        int64_t id = 0;
        float value = 0;
        for (int t = 0; t < threads; ++t) {
          const Best list(memory.best + (t * groups + b / kLanes) * memory.best_size, c.k);
          const int64_t at = used[t] * kLanes + b % kLanes;
          if (used[t] < memory.counts[t] && (from < 0 || ranks_before(list.scores[at], value))) {
            from = t;
            id = list.ids[at];
            value = list.scores[at];
          }
        }
        ++used[from];
        c.ids[b * c.k + r] = id;
        if (c.values) c.values[b * c.k + r] = value;
      }
    }
  }
  return finding(bad_feature, bad_index, bad_tiles);
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
  return with_types(false, c.bf16_weights, c.bf16_moments,
                    [&](auto, auto weight, auto moment) {
                      return run_dense_update<decltype(weight), decltype(moment)>(c);
                    });
}

Finding top_k(const TopKCall &c) {
  return with_types(c.wide_indices, c.bf16_weights, false, [&](auto index, auto weight, auto) {
    return run_top_k<decltype(index), decltype(weight)>(c);
  });
}

}  // namespace FANIN_TARGET
}  // namespace fanin
