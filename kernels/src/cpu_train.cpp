// Launches the kernels of training and prediction on a CPU: the fused step, dense layers, top-k.
// Every thread takes one contiguous range of labels, so that results depend on the number of
// threads and on nothing else.
#include "cpu_common.h"
#include "dense.h"
#include "step.h"
#include "top_k.h"

namespace fanin {
namespace FANIN_TARGET {
namespace {

// f(a value of the index type, of the type of weights, of the type of moments)
template <class F>
Finding with_types(bool wide_indices, bool half_weights, bool half_moments, const F &f) {
  const auto with_index = [&](auto index) {
    if (half_weights) return half_moments ? f(index, Bf16(), Bf16()) : f(index, Bf16(), float());
    return half_moments ? f(index, float(), Bf16()) : f(index, float(), float());
  };
  return wide_indices ? with_index(uint32_t()) : with_index(uint16_t());
}

int lanes_of(int64_t batch, int64_t group) {
  return int(smaller<int64_t>(kLanes, batch - group * kLanes));
}

void clear(float *values, int64_t count) {
  for (int64_t i = 0; i < count; ++i) values[i] = 0;
}

// The accumulators of all threads -> grad_features [batch, inputs]. Called by all threads.
void collect_groups(const float *accumulators, int64_t apart, int64_t batch, int64_t inputs,
                    float *grad_features) {
#pragma omp barrier
  for (int64_t group = 0; group < groups_of(batch); ++group)
    collect(accumulators + group * inputs * kLanes, thread_count(), apart, inputs,
            lanes_of(batch, group), grad_features + group * kLanes * inputs);
}

// One block of a dense output layer: scores, loss and all gradients.
template <class W, class M>
void step_block(const TrainedLayer<uint16_t, W, M> &layer, const float *rows, const float *features,
                int64_t first, const uint32_t *masks, float *grads, float *grad_features,
                Lanes<float> &loss) {
  const int labels = int(smaller<int64_t>(kBlock, layer.labels - first));
  const int64_t groups = layer.groups(), inputs = layer.inputs;
  W *const weights = layer.weights + first * inputs;
  float of_bias[kTile] = {};
  for (int64_t group = 0; group < groups; ++group) {
    Lanes<float> block[kBlock];
    score_block(weights, inputs, layer.bias ? layer.bias + first : nullptr, labels,
                features + group * inputs * kLanes, block);
    for (int j = 0; j < kBlock; ++j) {
      if (j < labels)
        block[j] = loss_gradient(layer.loss, block[j], masks[group * layer.labels + first + j],
                                 layer.scale_of(group), loss);
      else
        block[j] = broadcast(0.0f);
      store(grads + (group * kBlock + j) * kLanes, block[j]);
      of_bias[j] += sum(block[j]);
    }
    if (grad_features)
      spread_block(weights, inputs, labels, block, grad_features + group * inputs * kLanes);
  }
  update_block(layer.adam, layer.weights, layer.m, layer.v, first * inputs, inputs, labels, rows,
               layer.batch, grads);
  if (layer.bias) step_bias(layer, first, labels, of_bias);
}

template <class I, class W, class M>
Finding run_step(const StepCall &c) {
  const TrainedLayer<I, W, M> layer = trained_layer<I, W, M>(c);
  const StepMemory memory = step_memory(c, c.workspace);
  const int64_t unit = c.rows ? kSortedLabels : c.indices ? kTile : kBlock;
  const int64_t units = (c.labels + unit - 1) / unit, groups = groups_of(c.batch);
  int64_t bad_feature = -1, bad_index = -1, bad_row = -1;
#pragma omp parallel num_threads(c.threads)
  {
    transpose_features(c.features, c.batch, c.inputs, memory.features, &bad_feature);
    const Share labels(c.labels);
    for (int64_t group = 0; group < groups; ++group)
      for (int64_t l = labels.begin; l < labels.end; ++l) memory.masks[group * c.labels + l] = 0;
    float *const targets =
        c.grad_features ? memory.accumulators + thread_id() * memory.features_size : nullptr;
    if (targets) clear(targets, memory.features_size);
#pragma omp barrier
#pragma omp single
    for (int64_t i = 0; i < c.positives; ++i)
      memory.masks[c.positive_rows[i] / kLanes * c.labels + c.positive_labels[i]] |=
          1u << c.positive_rows[i] % kLanes;
    Team<float> team;
    float *const scratch = memory.scratch + thread_id() * memory.scratch_size;
    double total = 0;
    const Share share(units);
    for (int64_t u = share.begin; u < share.end && bad_feature < 0; ++u) {
      const int64_t first = u * unit, end = smaller(first + unit, c.labels);
      Lanes<float> loss = broadcast(0.0f);
      if (!c.indices) {
        if constexpr (sizeof(I) == sizeof(uint16_t))
          step_block(layer, c.features, memory.features, first, memory.masks, scratch, targets,
                     loss);
      } else {
        const int64_t begin = layer.begin(first), count = layer.begin(end) - begin;
        if (!team.all_below(layer.indices + begin, count, c.inputs)) {
          note_above(layer.indices, begin, count, c.inputs, &bad_index);
          break;
        }
        if (c.rows && !team.all_below(c.rows + begin, count, end - first)) {
          note_above(c.rows, begin, count, end - first, &bad_row);
          break;
        }
        if (c.rows)
          step_sorted(layer, c.rows, memory.features, first, memory.masks, scratch, targets, loss);
        else
          step_tile(layer, memory.features, first, memory.masks, scratch, targets, loss, team);
      }
      total += sum(loss);
    }
    memory.losses[thread_id()] = total;
    if (targets)
      collect_groups(memory.accumulators, memory.features_size, c.batch, c.inputs, c.grad_features);
#pragma omp barrier
#pragma omp single
    {
      double all = 0;
      for (int t = 0; t < thread_count(); ++t) all += memory.losses[t];
      *c.loss = float(all);
    }
  }
  return finding(bad_feature, bad_index, bad_row);
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
    alignas(64) float tile[kTile * kTilePitch];
    const Share share((c.labels + kTile - 1) / kTile);
    for (int64_t t = share.begin; t < share.end && bad_feature < 0; ++t)
      for (int64_t group = 0; group < groups_of(c.batch); ++group) {
        const int64_t first = t * kTile;
        const int labels = int(smaller<int64_t>(kTile, c.labels - first));
        for (int j = 0; j < labels; j += kBlock) {
          const int here = smaller(kBlock, labels - j);
          Lanes<float> block[kBlock];
          score_block(weights + (first + j) * c.inputs, c.inputs,
                      c.bias ? c.bias + first + j : nullptr, here,
                      memory.features + group * c.inputs * kLanes, block);
          for (int i = 0; i < here; ++i)
            store(tile + (j + i) * kTilePitch,
                  c.relu ? map([](auto x) FANIN_INLINE {
                    return x < decltype(x){} ? decltype(x){} : x; }, block[i]) : block[i]);
        }
        team.write_tile(tile, c.scores + group * kLanes * c.labels + first, c.labels,
                        lanes_of(c.batch, group), labels);
      }
    team.finish();
  }
  return finding(bad_feature);
}

template <class W, class M>
Finding run_dense_update(const DenseUpdateCall &c) {
  const DenseMemory memory =
      dense_memory(c.batch, c.inputs, c.threads, false, c.grad_features, c.workspace);
  W *const weights = static_cast<W *>(c.weights);
  M *const m = static_cast<M *>(c.m), *const v = static_cast<M *>(c.v);
  const int64_t groups = groups_of(c.batch);
#pragma omp parallel num_threads(c.threads)
  {
    float *const targets =
        c.grad_features ? memory.accumulators + thread_id() * memory.features_size : nullptr;
    if (targets) clear(targets, memory.features_size);
    Team<float> team;
    alignas(64) float tile[kTile * kTilePitch], outputs[kTile * kTilePitch];
    float *const grads = memory.scratch + thread_id() * memory.scratch_size;
    const Share share((c.labels + kTile - 1) / kTile);
    for (int64_t t = share.begin; t < share.end; ++t) {
      const int64_t first = t * kTile;
      const int labels = int(smaller<int64_t>(kTile, c.labels - first));
      // [block][group][kBlock][32]
      const auto rows_of = [&](int64_t group, int j) {
        return grads + ((j / kBlock * groups + group) * kBlock + j % kBlock) * kLanes;
      };
      for (int64_t group = 0; group < groups; ++group) {
        const int64_t at = group * kLanes * c.labels + first;
        const int lanes = lanes_of(c.batch, group);
        team.read_tile(tile, c.grad_scores + at, c.labels, lanes, labels);
        if (c.scores) team.read_tile(outputs, c.scores + at, c.labels, lanes, labels);
        for (int j = 0; j < kTile; ++j) {
          Lanes<float> grad = load(tile + j * kTilePitch);
          if (c.scores)
            grad = map([](auto g, auto y) FANIN_INLINE { return y > decltype(y){} ? g : decltype(g){}; },
                       grad, load(outputs + j * kTilePitch));
          store(rows_of(group, j), grad);
        }
      }
      for (int j = 0; j < labels; j += kBlock) {
        const int here = smaller(kBlock, labels - j);
        const int64_t at = (first + j) * c.inputs;
        for (int64_t group = 0; targets && group < groups; ++group) {
          Lanes<float> block[kBlock];
          for (int i = 0; i < kBlock; ++i) block[i] = load(rows_of(group, j + i));
          spread_block(weights + at, c.inputs, here, block, targets + group * c.inputs * kLanes);
        }
        update_block(c.adam, weights, m, v, at, c.inputs, here, c.features, c.batch,
                     rows_of(0, j));
        Chunk<float> of_bias{};
        static_assert(kBlock <= Chunk<float>::size, "a block's biases fit a chunk");
        for (int64_t group = 0; group < groups; ++group)
          for (int i = 0; i < here; ++i) of_bias.v[i] += sum(load(rows_of(group, j + i)));
        if (c.bias) adam(c.adam, c.bias, c.bias_m, c.bias_v, first + j, here, of_bias);
      }
    }
    if (targets)
      collect_groups(memory.accumulators, memory.features_size, c.batch, c.inputs, c.grad_features);
  }
  return finding(-1);
}

// Labels whose scores one group of instances is given before the next: its features then stay in
// the cache for that long.
constexpr int64_t kScoredLabels = 512;

template <class I, class W>
Finding run_top_k(const TopKCall &c) {
  const TopKMemory memory = top_k_memory(c, c.workspace);
  const I *const indices = static_cast<const I *>(c.indices);
  const W *const weights = static_cast<const W *>(c.weights);
  const int64_t groups = groups_of(c.batch), unit = c.rows ? kSortedLabels : kScoredLabels;
  const auto begin_of = [&](int64_t label) {
    return c.starts ? int64_t(c.starts[label]) : label * c.fan_in;
  };
  int64_t bad_feature = -1, bad_index = -1, bad_row = -1;
  int threads = 1;
#pragma omp parallel num_threads(c.threads)
  {
    transpose_features(c.features, c.batch, c.inputs, memory.features, &bad_feature);
    char *const mine = memory.best + thread_id() * groups * memory.best_size;
    for (int64_t group = 0; group < groups; ++group)
      Best(mine + group * memory.best_size, c.k).clear();
#pragma omp single
    threads = thread_count();
    Team<float> team;
    float *const scratch = memory.scratch + thread_id() * memory.scratch_size;
    int64_t seen = 0;
    const Share share((c.labels + unit - 1) / unit);
    for (int64_t u = share.begin; u < share.end && bad_feature < 0; ++u) {
      const int64_t first = u * unit, end = smaller(first + unit, c.labels);
      const int64_t begin = begin_of(first), count = begin_of(end) - begin;
      if (indices && !team.all_below(indices + begin, count, c.inputs)) {
        note_above(indices, begin, count, c.inputs, &bad_index);
        break;
      }
      if (c.rows && !team.all_below(c.rows + begin, count, end - first)) {
        note_above(c.rows, begin, count, end - first, &bad_row);
        break;
      }
      for (int64_t group = 0; group < groups; ++group) {
        const int lanes = lanes_of(c.batch, group);
        const float *const features = memory.features + group * c.inputs * kLanes;
        Best best(mine + group * memory.best_size, c.k, smaller(seen, c.k));
        if (!indices) {
          for (int64_t label = first; label < end; label += kBlock) {
            const int here = int(smaller<int64_t>(kBlock, end - label));
            Lanes<float> block[kBlock];
            score_block(weights + label * c.inputs, c.inputs, c.bias ? c.bias + label : nullptr,
                        here, features, block);
            for (int j = 0; j < here; ++j) best.offer(label + j, block[j], lanes);
          }
        } else if (c.rows) {
          for (int64_t label = first; label < end; ++label)
            store(scratch + (label - first) * kLanes, broadcast(c.bias ? c.bias[label] : 0.0f));
          score_sorted(indices + begin, c.rows + begin, weights + begin, count, features, scratch);
          for (int64_t label = first; label < end; ++label)
            best.offer(label, load(scratch + (label - first) * kLanes), lanes);
        } else {
          for (int64_t label = first; label < end; ++label) {
            const int64_t at = begin_of(label);
            best.offer(label,
                       score(indices + at, weights + at, begin_of(label + 1) - at, features,
                             c.bias ? c.bias[label] : 0.0f),
                       lanes);
          }
        }
      }
      seen += end - first;
    }
    memory.counts[thread_id()] = smaller(seen, c.k);
#pragma omp barrier
    // Threads hold ascending ranges of labels: of equal scores the earlier thread's is the lower.
    const Share instances(c.batch);
    for (int64_t b = instances.begin; b < instances.end && bad_feature < 0 && bad_index < 0 && bad_row < 0;
         ++b) {
      int64_t *const used = memory.used + thread_id() * c.threads;  // of each thread's list
      for (int t = 0; t < threads; ++t) used[t] = 0;
      for (int64_t r = 0; r < c.k; ++r) {
        int from = -1;
        int64_t id = 0;
        float value = 0;
        for (int t = 0; t < threads; ++t) {
          const Best list(memory.best + (t * groups + b / kLanes) * memory.best_size, c.k);
          const int64_t at = b % kLanes * c.k + used[t];
          if (used[t] < memory.counts[t] && (from < 0 || list.scores[at] > value)) {
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
  return finding(bad_feature, bad_index, bad_row);
}

}  // namespace

Finding step(const StepCall &c) {
  return with_types(c.wide_indices, c.half_weights, c.half_moments,
                    [&](auto index, auto weight, auto moment) {
                      return run_step<decltype(index), decltype(weight), decltype(moment)>(c);
                    });
}

Finding dense_forward(const DenseForwardCall &c) {
  return c.half_weights ? run_dense_forward<Bf16>(c) : run_dense_forward<float>(c);
}

Finding dense_update(const DenseUpdateCall &c) {
  return with_types(false, c.half_weights, c.half_moments,
                    [&](auto, auto weight, auto moment) {
                      return run_dense_update<decltype(weight), decltype(moment)>(c);
                    });
}

Finding top_k(const TopKCall &c) {
  return with_types(c.wide_indices, c.half_weights, false, [&](auto index, auto weight, auto) {
    return run_top_k<decltype(index), decltype(weight)>(c);
  });
}

}  // namespace FANIN_TARGET
}  // namespace fanin
