// What passes between the C interface (api.cpp and api_train.cpp, which check everything) and the
// launchers (which then trust it): one struct per op, and the launchers' signatures.
//
// Functions here belong to the file that includes them (static): see lanes.h for why.
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

struct ForwardCall {
  int64_t batch, inputs, labels, fan_in;
  bool wide_values;   // float64 rather than float32
  bool wide_indices;  // uint32 rather than uint16
  const void *features, *indices, *weights, *bias;
  void *scores;
  void *workspace;
  void *stream;
  int threads;
};

struct BackwardCall {
  int64_t batch, inputs, labels, fan_in;
  bool wide_values, wide_indices;
  const void *grad_scores, *features, *indices, *weights;
  void *grad_features, *grad_weights, *grad_bias;
  void *workspace;
  void *stream;
  int threads;
};

// How Adam goes at one step: see step.h. The betas are held as 1 - beta, of which a float has more
// digits.
struct AdamCall {
  float rate, rest1, rest2, epsilon;
  uint32_t seed;
};

// Weights [labels, fan_in] (or flat, with starts) and their moments; bias [labels] or null.
struct StepCall {
  int64_t batch, inputs, labels, fan_in, connections, positives;
  bool wide_indices, bf16_weights, bf16_moments;
  const float *features;
  const void *indices;  // null for a dense layer
  const int32_t *starts;  // [labels + 1] or null
  const uint16_t *tile_labels;  // like indices, or null: sorted tiles, see sorted.h
  void *weights, *m, *v;
  float *bias, *bias_m, *bias_v;
  const int32_t *positive_instances;
  const int64_t *positive_labels;
  float *grad_features;  // or null
  float *loss;
  int loss_kind;
  AdamCall adam;
  void *workspace;
  void *stream;
  int threads;
};

// A dense layer's outputs, [batch, labels].
struct DenseForwardCall {
  int64_t batch, inputs, labels;
  bool bf16_weights, relu;
  const float *features;
  const void *weights;
  const float *bias;
  float *scores;
  void *workspace;
  void *stream;
  int threads;
};

struct DenseUpdateCall {
  int64_t batch, inputs, labels;
  bool bf16_weights, bf16_moments;
  const float *grad_scores;
  const float *scores;  // or null: the outputs of a relu, where 0 lets no gradient through
  const float *features;
  void *weights, *m, *v;
  float *bias, *bias_m, *bias_v;
  float *grad_features;  // or null
  AdamCall adam;
  void *workspace;
  void *stream;
  int threads;
};

struct TopKCall {
  int64_t batch, inputs, labels, fan_in, connections, k;
  bool wide_indices, bf16_weights, on_gpu;
  const float *features;
  const void *indices;
  const int32_t *starts;
  const uint16_t *tile_labels;
  const void *weights;
  const float *bias;
  int64_t *ids;  // [batch, k]
  float *values;  // [batch, k] or null
  void *workspace;
  void *stream;
  int threads;  // on a GPU the number of lists, see gpu_lists
};

FANIN_ANYWHERE static inline int64_t groups_of(int64_t batch) {
  return (batch + kGroup - 1) / kGroup;
}

// What a launcher found in the data itself; `at` is a flat position in the array concerned.
struct Finding {
  enum Kind { nothing, bad_index, bad_tile_label, bad_tile, bad_feature, unavailable, device_error } kind;
  int64_t at;
  const char *text;  // of the last two
};

// One per compiled instruction set.
struct CpuTarget {
  const char *name;
  Finding (*forward)(const ForwardCall &);
  Finding (*backward)(const BackwardCall &);
  Finding (*step)(const StepCall &);
  Finding (*dense_forward)(const DenseForwardCall &);
  Finding (*dense_update)(const DenseUpdateCall &);
  Finding (*top_k)(const TopKCall &);
};

namespace baseline { extern const CpuTarget target; }
namespace avx2 { extern const CpuTarget target; }
namespace avx512 { extern const CpuTarget target; }

// Bytes of scratch memory. The CPU's backward pass holds one accumulator per thread.
constexpr uint64_t kCacheLine = 64;  // rows of 32 lanes must not straddle more lines than they fill
static inline uint64_t forward_workspace(const ForwardCall &c) {
  return kCacheLine +
         uint64_t(groups_of(c.batch) * c.inputs * kGroup) * (c.wide_values ? 8 : 4);
}
static inline uint64_t backward_workspace(const BackwardCall &c, int accumulators) {
  return kCacheLine +
         uint64_t((groups_of(c.batch) + accumulators) * c.inputs * kGroup) * (c.wide_values ? 8 : 4);
}
static inline void *aligned(void *workspace) {
  return reinterpret_cast<void *>((reinterpret_cast<uintptr_t>(workspace) + kCacheLine - 1) &
                                  ~uintptr_t(kCacheLine - 1));
}

// Scratch memory is divided by taking piece after piece; from a null start it only counts.
struct Memory {
  char *start;
  uint64_t bytes = 0;
  template <class T>
  __attribute__((always_inline)) T *take(int64_t count) {
    T *piece = start ? reinterpret_cast<T *>(start + bytes) : nullptr;
    bytes += (uint64_t(count) * sizeof(T) + kCacheLine - 1) / kCacheLine * kCacheLine;
    return piece;
  }
};

// Scores of a sorted tile that are worked on together: those of all lanes, or, with many inputs, of
// half the lanes and twice the labels, where threads then still find enough tiles. See sorted.h.
constexpr int64_t kSortedScores = 65536, kHalf = kGroup / 2;
static constexpr bool in_halves(int64_t inputs, int64_t labels) {
  return inputs > 24576 && labels >= 16 * (kSortedScores / kHalf);
}
static constexpr int64_t sorted_labels(int64_t inputs, int64_t labels) {
  return kSortedScores / (in_halves(inputs, labels) ? kHalf : kGroup);
}
constexpr int64_t kMostBlock = 8;     // labels of a dense layer that are worked on together
constexpr int64_t kStepLabels = 256;  // and of a fixed fan-in, where groups take turns

// Features and their gradients fill a core's second-level cache together from so many bytes on.
constexpr int64_t kCacheBytes = 768 << 10;

// Groups of the batch that the step works on at a time: as many as fit the cache.
static inline int64_t groups_at_a_time(const StepCall &c) {
  const int64_t all = groups_of(c.batch);
  const int64_t fit = kCacheBytes / (2 * kGroup * int64_t(sizeof(float)) * c.inputs);
  if (!c.indices || c.tile_labels || c.starts || all <= fit) return all;
  return fit < 1 ? 1 : fit;
}

struct StepMemory {
  float *features, *accumulators, *scratch;  // the last two once per thread
  int64_t features_size, scratch_size;
  uint32_t *masks;  // [groups][labels]
  double *losses;   // [threads]
  uint64_t bytes;
};

// Connections of a sorted tile whose sums are held from one part of the batch to the next.
static inline int64_t sorted_sums(const StepCall &c) {
  const int64_t tile = sorted_labels(c.inputs, c.labels);
  const bool one_part = c.batch <= (in_halves(c.inputs, c.labels) ? kHalf : kGroup);
  return one_part ? 0 : (c.labels < tile ? c.labels : tile) * c.fan_in;
}

static inline StepMemory step_memory(const StepCall &c, void *workspace) {
  Memory memory{static_cast<char *>(workspace)};
  StepMemory m;
  const int64_t groups = groups_of(c.batch);
  m.features_size = groups * c.inputs * kGroup;
  if (c.tile_labels)
    m.scratch_size = groups * kGroup * sorted_labels(c.inputs, c.labels) +
                     (sorted_sums(c) + kGroup - 1) / kGroup * kGroup;
  else if (groups_at_a_time(c) < groups)
    m.scratch_size = groups * kGroup + kStepLabels * (1 + c.fan_in);
  else
    m.scratch_size = groups * kGroup * (c.indices ? 1 : kMostBlock) + kGroup;
  m.features = memory.take<float>(m.features_size);
  m.accumulators = memory.take<float>(c.grad_features ? c.threads * m.features_size : 0);
  m.scratch = memory.take<float>(c.threads * m.scratch_size);
  m.masks = memory.take<uint32_t>(groups * c.labels);
  m.losses = memory.take<double>(c.threads);
  m.bytes = memory.bytes + kCacheLine;
  return m;
}

struct DenseMemory {
  float *features, *accumulators, *scratch;
  int64_t features_size, scratch_size;
  uint64_t bytes;
};
static inline DenseMemory dense_memory(int64_t batch, int64_t inputs, int threads, bool forward,
                                bool grad_features, void *workspace) {
  Memory memory{static_cast<char *>(workspace)};
  DenseMemory m;
  const int64_t groups = groups_of(batch);
  m.features_size = groups * inputs * kGroup;
  m.scratch_size = groups * kGroup * kGroup;
  m.features = memory.take<float>(forward ? m.features_size : 0);
  m.accumulators = memory.take<float>(grad_features ? threads * m.features_size : 0);
  m.scratch = memory.take<float>(forward ? 0 : threads * m.scratch_size);
  m.bytes = memory.bytes + kCacheLine;
  return m;
}

// A GPU's warps keep a list each, of one group at a time: fewer where lists are long.
static inline int gpu_lists(int64_t labels, int64_t k) {
  const int64_t tiles = (labels + kGroup - 1) / kGroup, few = 32, most = 2048, wanted = 65536 / k;
  const int64_t lists = wanted < few ? few : wanted > most ? most : wanted;
  return int(lists < tiles ? lists : tiles);
}

struct TopKMemory {
  float *features, *scratch;
  char *best;  // [threads][groups]
  int64_t *counts;  // [threads]: labels in its lists
  int64_t *used;    // [threads][threads], for merging on a CPU
  int64_t scratch_size, best_size;
  uint64_t bytes;
};
static inline TopKMemory top_k_memory(const TopKCall &c, void *workspace) {
  Memory memory{static_cast<char *>(workspace)};
  TopKMemory m;
  const int64_t groups = groups_of(c.batch);
  m.scratch_size = c.tile_labels ? sorted_labels(c.inputs, c.labels) * kGroup : 0;
  // ids and scores of 32 instances, and a threshold for each: see Best in top_k.h.
  m.best_size = (kGroup * (c.k * 12 + 4) + int64_t(kCacheLine) - 1) / int64_t(kCacheLine) *
                int64_t(kCacheLine);
  m.features = memory.take<float>(groups * c.inputs * kGroup);
  m.scratch = memory.take<float>(c.threads * m.scratch_size);
  m.best = memory.take<char>(c.threads * (c.on_gpu ? 1 : groups) * m.best_size);
  m.counts = memory.take<int64_t>(c.threads);
  m.used = memory.take<int64_t>(c.on_gpu ? 0 : int64_t(c.threads) * c.threads);
  m.bytes = memory.bytes + kCacheLine;
  return m;
}

struct RewireCall;
struct Rewired;

// On a GPU; without_cuda.cpp stands in where they are not built.
namespace cuda {
Finding forward(const ForwardCall &);
Finding backward(const BackwardCall &);
Finding step(const StepCall &);  // not sorted
Finding dense_forward(const DenseForwardCall &);
Finding dense_update(const DenseUpdateCall &);
Finding top_k(const TopKCall &);  // not sorted
Finding rewire(const RewireCall &, Rewired *);  // waits for the stream
uint64_t rewire_workspace();
Finding zero(void *a, size_t a_bytes, void *b, size_t b_bytes, void *stream);
extern const char *const architectures;  // "80, 90"
}  // namespace cuda

}  // namespace fanin
