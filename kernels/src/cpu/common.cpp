// What is the same for all types and kinds of connections: the way of features into lanes and back,
// and the run of a step around its kernel.
#include "cpu/common.h"

namespace fanin {
namespace FANIN_TARGET {

template <int N, class T>
void transpose_features(const T *features, int64_t batch, int64_t inputs, T *out,
                        int64_t *first_bad) {
  const Share share(inputs);
  for (int64_t part = 0; part * N < batch; ++part) {
    const int lanes = lanes_of<N>(batch, part);
    const T *rows = features + part * N * inputs;
    T *target = out + part * N * inputs;
    T poison = 0;  // stays 0 while all values are finite: x * 0 is NaN for the others
    constexpr int64_t block = 16;  // inputs at a time: one cache line of each instance
    for (int64_t i = share.begin; i < share.end; i += block) {
      const int64_t end = smaller(i + block, share.end);
      for (int b = 0; b < lanes; ++b)
        for (int64_t j = i; j < end; ++j) {
          const T x = rows[b * inputs + j];
          poison += x * T(0);
          target[j * N + b] = x;
        }
      for (int b = lanes; b < N; ++b)
        for (int64_t j = i; j < end; ++j) target[j * N + b] = 0;
    }
    if (!(poison == T(0)))
      for (int64_t b = 0; b < lanes; ++b)
        for (int64_t j = share.begin; j < share.end; ++j)
          if (!(rows[b * inputs + j] * T(0) == T(0))) {
            note(first_bad, (part * N + b) * inputs + j);
            break;
          }
  }
}

template <int N, class T>
void collect(const T *accumulators, int count, int64_t distance, int64_t inputs, int lanes,
             T *grad_features) {
  Team<T> team;
  alignas(64) T tile[kTile * kTilePitch];
  const Share share((inputs + kTile - 1) / kTile);
  for (int64_t i = share.begin * kTile; i < share.end * kTile && i < inputs; i += kTile) {
    const int size = int(smaller<int64_t>(kTile, inputs - i));
    for (int j = 0; j < size; ++j) {
      Lanes<T, N> total = load<N>(accumulators + (i + j) * N);
      for (int t = 1; t < count; ++t)
        total = fma(T(1), load<N>(accumulators + t * distance + (i + j) * N), total);
      store(tile + j * kTilePitch, total);
    }
    team.write_tile(tile, grad_features + i, inputs, lanes, size);
  }
  team.finish();
}

template void transpose_features<kLanes>(const float *, int64_t, int64_t, float *, int64_t *);
template void transpose_features<kLanes>(const double *, int64_t, int64_t, double *, int64_t *);
template void transpose_features<1>(const float *, int64_t, int64_t, float *, int64_t *);
template void transpose_features<4>(const float *, int64_t, int64_t, float *, int64_t *);
template void transpose_features<8>(const float *, int64_t, int64_t, float *, int64_t *);
template void transpose_features<kHalf>(const float *, int64_t, int64_t, float *, int64_t *);
template void collect<kLanes>(const float *, int, int64_t, int64_t, int, float *);
template void collect<kLanes>(const double *, int, int64_t, int64_t, int, double *);

template <int N>
static void collect_parts_of(const float *accumulators, int64_t distance, int64_t batch,
                             int64_t inputs, float *grad_features) {
#pragma omp barrier
  for (int64_t part = 0; part * N < batch; ++part)
    collect<N>(accumulators + part * inputs * N, thread_count(), distance, inputs,
               lanes_of<N>(batch, part), grad_features + part * N * inputs);
}

void collect_parts(int part, const float *accumulators, int64_t distance, int64_t batch,
                   int64_t inputs, float *grad_features) {
  if (part == kLanes)
    collect_parts_of<kLanes>(accumulators, distance, batch, inputs, grad_features);
  else
    collect_parts_of<kHalf>(accumulators, distance, batch, inputs, grad_features);
}

// Clears the masks and sets the bits of the positives. Called by all threads; ends in a barrier.
static void mark_positives(const StepCall &c, uint32_t *masks) {
  const Share labels(c.labels);
  for (int64_t group = 0; group < groups_of(c.batch); ++group)
    for (int64_t l = labels.begin; l < labels.end; ++l) masks[group * c.labels + l] = 0;
#pragma omp barrier
#pragma omp single
  for (int64_t i = 0; i < c.positives; ++i)
    masks[c.positive_instances[i] / kLanes * c.labels + c.positive_labels[i]] |=
        1u << c.positive_instances[i] % kLanes;
}

Finding run_step(const StepCall &c, int part, int64_t unit, StepLabels *step_labels) {
  const StepMemory memory = step_memory(c, c.workspace);
  Faults faults;
#pragma omp parallel num_threads(c.threads)
  {
    const int id = thread_id();
    if (part == kLanes)
      transpose_features<kLanes>(c.features, c.batch, c.inputs, memory.features, &faults.feature);
    else
      transpose_features<kHalf>(c.features, c.batch, c.inputs, memory.features, &faults.feature);
    float *const targets =
        c.grad_features ? memory.accumulators + id * memory.features_size : nullptr;
    for (int64_t i = 0; targets && i < memory.features_size; ++i) targets[i] = 0;
    mark_positives(c, memory.masks);

    Team<float> team;
    const StepShare step{memory, memory.scratch + id * memory.scratch_size, targets, team, &faults};
    double total = 0;
    const Share share((c.labels + unit - 1) / unit);
    for (int64_t u = share.begin; u < share.end && faults.feature < 0; ++u) {
      Lanes<float> loss = broadcast(0.0f);
      if (!step_labels(c, step, u * unit, smaller((u + 1) * unit, c.labels), &loss)) break;
      total += sum(loss);
    }
    memory.losses[id] = total;

    if (targets)
      collect_parts(part, memory.accumulators, memory.features_size, c.batch, c.inputs,
                    c.grad_features);
#pragma omp barrier
#pragma omp single
    {
      double all = 0;
      for (int t = 0; t < thread_count(); ++t) all += memory.losses[t];
      *c.loss = float(all);
    }
  }
  return faults.finding();
}

}  // namespace FANIN_TARGET
}  // namespace fanin
