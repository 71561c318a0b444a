// What passes between the C interface (api/), which checks everything, and the launchers (cpu/ and
// cuda/), which trust it: one struct per op.
//
// Functions in the headers of core/ belong to the file that includes them (static, or in a
// namespace of the target): see lanes.h for the reason.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "fanin.h"

#if defined(__CUDACC__)
#define FANIN_ANYWHERE __host__ __device__
#else
#define FANIN_ANYWHERE
#endif

namespace fanin {

constexpr int64_t kGroup = 32;  // instances worked on together

FANIN_ANYWHERE static inline int64_t groups_of(int64_t batch) {
  return (batch + kGroup - 1) / kGroup;
}

// What every call has. The workspace is aligned to a cache line.
struct Call {
  void *workspace;
  void *stream;
  int threads;
  bool on_gpu;
};

// Shapes as in fanin.h. The types of arrays that are `void *` are told by flags: see types.h.
struct ForwardCall : Call {
  int64_t batch, inputs, labels, fan_in;
  int64_t group_size;  // labels that share a row of indices, else 0
  bool wide_values;    // float64 rather than float32
  bool wide_indices;   // uint32 rather than uint16
  const void *features, *indices, *weights;
  const void *bias;  // or null
  void *scores;
};

struct BackwardCall : Call {
  int64_t batch, inputs, labels, fan_in;
  int64_t group_size;  // as in ForwardCall
  bool wide_values, wide_indices;
  const void *grad_scores, *features, *indices, *weights;
  void *grad_features, *grad_weights, *grad_bias;  // each may be null
};

// The optimiser's numbers at one step: see optimizer.h. The betas are held as 1 - beta, since a
// float has more digits of that.
struct OptimizerCall {
  int kept;  // moments of each weight: 2 (m and v), 1 (m) or 0, which tells which optimiser it is
  float rate, rest1, rest2, epsilon, momentum;
  float row_rate;   // of rows that have no m: without its bias correction
  float decay, l2;  // of weights; 0 of biases
  uint32_t seed;    // of stochastic rounding, another one for every step
  uint32_t first;   // the lower bits of fanin_step_params' first_weight
};

// Weights are [labels, fan_in], or, with starts, [connections]. Where m and v stand beside an
// array, they are its moments. In calls that train, others of the same type stand in for those that
// the optimiser does not keep, and are only read; in calls that only move values, these are null.
struct StepCall : Call {
  int64_t batch, inputs, labels, fan_in, connections, positives;
  int64_t group_size;  // as in ForwardCall
  bool wide_indices, bf16_weights, bf16_moments;
  bool float8_weights;  // rows of fan_in + 1 bytes, see float8.h
  const float *features;
  const void *indices;          // null for a dense layer
  const int32_t *starts;        // [labels + 1], or null
  const uint16_t *tile_labels;  // of the shape of indices, or null; see sorted.h
  void *weights, *m, *v;
  float *bias, *bias_m, *bias_v;  // or null
  const int32_t *positive_instances;
  const int64_t *positive_labels;
  float *grad_features;  // or null
  float *loss;
  int64_t mean_labels;  // see fanin_step_params; never 0
  int loss_kind;
  OptimizerCall optimizer;
};

struct DenseForwardCall : Call {
  int64_t batch, inputs, units;
  bool bf16_weights, relu;
  const float *features;
  const void *weights;
  const float *bias;  // or null
  float *outputs;
};

struct DenseUpdateCall : Call {
  int64_t batch, inputs, units;
  bool bf16_weights, bf16_moments;
  const float *grad_outputs;
  const float *outputs;  // of a relu, where 0 lets no gradient through; or null
  const float *features;
  void *weights, *m, *v;
  float *bias, *bias_m, *bias_v;  // or null
  float *grad_features;           // or null
  OptimizerCall optimizer;
};

struct SparseForwardCall : Call {
  int64_t batch, inputs, units, stored;
  bool bf16_weights, relu;
  const float *values;
  const int64_t *starts;
  const int32_t *columns;
  const void *weights;
  const float *bias;  // or null
  float *outputs;
};

struct SparseUpdateCall : Call {
  int64_t batch, inputs, units, stored, words;
  bool bf16_weights, bf16_moments;
  const float *grad_outputs;
  const float *outputs;  // as in DenseUpdateCall
  const int32_t *word_ids;
  const int64_t *word_starts;
  const int32_t *instances;
  const float *values;
  void *weights;
  void *m, *v;                    // as in StepCall; m is null where v has one float for each row
  float *bias, *bias_m, *bias_v;  // or null
  OptimizerCall optimizer;

  FANIN_ANYWHERE bool has_row_moments() const { return !m; }
};

struct TopKCall : Call {
  int64_t batch, inputs, labels, fan_in, connections, k;
  int64_t group_size;  // as in ForwardCall
  bool wide_indices, bf16_weights, float8_weights;
  const float *features;
  const void *indices;  // connections are as in StepCall
  const int32_t *starts;
  const uint16_t *tile_labels;
  const void *weights;
  const float *bias;         // or null
  const int32_t *label_ids;  // or null
  int64_t *ids;
  float *scores;  // or null
  int gpu_lists;  // how many lists of the best a GPU keeps, see memory.h
};

// Labels connected to words. Weights and bias are only read by top-k.
struct WordsCall : Call {
  int64_t batch, inputs, labels, stored, pairs, block_labels, blocks;
  const float *values;
  const int64_t *starts;
  const int32_t *columns;
  const int64_t *pair_starts;
  const uint16_t *pair_labels;
  float *weights, *bias;
};

struct WordsStepCall : WordsCall {
  int64_t positives;
  bool wide_positives;  // int64 rather than int32
  const int64_t *positive_starts;
  const void *positive_labels;
  float *squares, *bias_squares, *loss;
  float rate, bias_rate, threshold;
  int32_t loss_kind;
};

struct WordsTopKCall : WordsCall {
  int64_t k;
  int64_t *ids;
  float *scores;  // or null
};

struct RewireCall : Call {
  int64_t connections, inputs;
  double fraction;
  uint64_t seed;
  bool wide_indices, bf16_weights, bf16_moments;
  void *indices, *weights, *m, *v;
};

// What rewiring reports.
struct Rewired {
  double threshold;
  int64_t moved;
};

struct SortCall : Call {
  int64_t labels, fan_in, inputs;
  bool wide_indices, bf16_weights, bf16_moments, undo;
  void *indices, *slots, *weights, *m, *v;
  uint16_t *tile_labels;
};

struct LabelSumsCall : Call {
  int64_t instances, inputs, labels, stored, positives;
  const float *features;
  const int64_t *starts;  // of CSR features, else null
  const int32_t *columns;
  const int64_t *positive_starts;
  const int32_t *positive_instances;
  const float *positive_weights;  // or null
  float *sums;
};

struct ChooseCall : Call {
  int64_t inputs, labels, fan_in, first_label, random;
  uint64_t seed;
  bool wide_indices;
  const float *sums, *mean;
  const int64_t *counts;
  const float *scale;  // or null
  void *indices;
  float *values;  // or null
};

struct ReplaceCall : Call {
  int64_t inputs, labels, fan_in, replaced;
  bool wide_indices, bf16_weights, bf16_moments, keep_weights;
  const float *gradients;
  void *indices, *weights, *m, *v;
  int32_t *moved;  // or null
};

// What a launcher reports. `position` is flat, in the array concerned.
struct Finding {
  enum Kind {
    nothing,
    bad_index,
    bad_tile_label,
    bad_tile,
    bad_feature,
    bad_slot,
    bad_column,
    bad_pair_start,
    bad_pair_label,
    bad_label_id,
    unavailable,
    device_error
  } kind;
  int64_t position;
  const char *text;  // of the last two kinds
};

constexpr Finding kNothing = {Finding::nothing, 0, nullptr};

}  // namespace fanin
