// What the CPU launchers share: OpenMP threads, what they report, and the way of features into
// lanes and back. All files of this folder but rewire.cpp and sort.cpp are compiled once per
// instruction set, and FANIN_TARGET names it.
//
// Where a sum depends on the order of additions, each thread takes one contiguous range of labels.
// So results depend on the number of threads and on nothing else.
#pragma once

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "core/lanes.h"
#include "core/launchers.h"
#include "core/memory.h"
#include "core/types.h"

namespace fanin {
namespace FANIN_TARGET {

#if defined(_OPENMP)
static inline int thread_id() { return omp_get_thread_num(); }
static inline int thread_count() { return omp_get_num_threads(); }
#else
static inline int thread_id() { return 0; }
static inline int thread_count() { return 1; }
#endif

// A thread's share of n things.
struct Share {
  int64_t begin, end;
  explicit Share(int64_t n)
      : begin(n * thread_id() / thread_count()), end(n * (thread_id() + 1) / thread_count()) {}
};

// How many of its N lanes a part of the batch fills.
template <int N = kLanes>
static inline int lanes_of(int64_t batch, int64_t part) {
  return int(smaller<int64_t>(N, batch - part * N));
}

// What is wrong with the data. All threads note what they find, and the first position of a kind is
// kept.
struct Faults {
  int64_t feature = -1, index = -1;
  int64_t tile_label = -1;  // names a label beyond its tile
  int64_t pair_start = -1, pair_label = -1;
  int64_t label_id = -1;
  int64_t tile = -1;  // where a tile begins of whose labels the last is nowhere

  bool any() const { return finding().kind != Finding::nothing; }
  Finding finding() const {
    if (feature >= 0) return {Finding::bad_feature, feature, nullptr};
    if (index >= 0) return {Finding::bad_index, index, nullptr};
    if (pair_start >= 0) return {Finding::bad_pair_start, pair_start, nullptr};
    if (pair_label >= 0) return {Finding::bad_pair_label, pair_label, nullptr};
    if (tile_label >= 0) return {Finding::bad_tile_label, tile_label, nullptr};
    if (label_id >= 0) return {Finding::bad_label_id, label_id, nullptr};
    if (tile >= 0) return {Finding::bad_tile, tile, nullptr};
    return kNothing;
  }
};

static inline void note(int64_t *first_bad, int64_t position) {
#pragma omp critical(fanin_note)
  if (*first_bad < 0 || position < *first_bad) *first_bad = position;
}

// Notes the first of values[begin] to values[begin + count - 1] that is not below the bound.
template <class I>
static void note_above(const I *values, int64_t begin, int64_t count, int64_t bound,
                       int64_t *first_bad) {
  for (int64_t i = begin; i < begin + count; ++i)
    if (int64_t(values[i]) >= bound) return note(first_bad, i);
}

// Whether connections can be followed: `count` of them, from `begin` on, which belong to `labels`
// labels. tile_labels: null where connections are not sorted.
template <class I>
static bool check_connections(const Team<float> &team, const I *indices,
                              const uint16_t *tile_labels, int64_t begin, int64_t count,
                              int64_t inputs, int64_t labels, Faults *faults) {
  if (!team.all_below(indices + begin, count, inputs))
    note_above(indices, begin, count, inputs, &faults->index);
  else if (tile_labels && !team.all_below(tile_labels + begin, count, labels))
    note_above(tile_labels, begin, count, labels, &faults->tile_label);
  else if (tile_labels && labels > 1 && team.all_below(tile_labels + begin, count, labels - 1))
    note(&faults->tile, begin);
  else
    return true;
  return false;
}

// features [batch, inputs] -> [part][inputs][N], in parts of N lanes (a group, or half of one);
// lanes beyond the batch get 0. Called by all threads of a team. Notes the first value that is not
// finite. Defined for N = 1, 4, 8, 16 and 32 with float, and for 32 with
// double.
template <int N = kLanes, class T>
void transpose_features(const T *features, int64_t batch, int64_t inputs, T *out,
                        int64_t *first_bad);

// Adds up the accumulators [inputs][N] of `count` threads, of which each begins `distance` values
// behind the one before -> grad_features [lanes, inputs] of one part of N lanes. Called by all
// threads of a team. Defined like transpose_features.
template <int N = kLanes, class T>
void collect(const T *accumulators, int count, int64_t distance, int64_t inputs, int lanes,
             T *grad_features);

// The accumulators of all threads, in parts of `part` lanes (32 or 16) -> grad_features [batch,
// inputs]. Called by all threads.
void collect_parts(int part, const float *accumulators, int64_t distance, int64_t batch,
                   int64_t inputs, float *grad_features);

// One thread's share of a step.
struct StepShare {
  const StepMemory &memory;
  float *scratch;
  float *targets;  // the thread's accumulator for gradients of features, or null
  const Team<float> &team;
  Faults *faults;
};

// The step of the labels from `first` to `end` - 1, in a kernel for one kind of connections and
// their types. Adds to the loss. Returns false where connections cannot be followed.
typedef bool StepLabels(const StepCall &, const StepShare &, int64_t first, int64_t end,
                        Lanes<float> *loss);

// A whole step, `unit` labels at a time, with the features in parts of `part` lanes (32 or 16).
Finding run_step(const StepCall &c, int part, int64_t unit, StepLabels *step_labels);

}  // namespace FANIN_TARGET
}  // namespace fanin
