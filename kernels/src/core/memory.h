// How scratch memory is laid out, and how much of it each call needs: asked by the C interface,
// followed by the launchers. Also the sizes that depend on what fits a core's cache.
#pragma once

#include "core/call.h"

namespace fanin {

constexpr uint64_t kCacheLine = 64;  // 32 lanes must not straddle more lines than they fill

static inline void *aligned(void *workspace) {
  return reinterpret_cast<void *>((reinterpret_cast<uintptr_t>(workspace) + kCacheLine - 1) &
                                  ~uintptr_t(kCacheLine - 1));
}

// Scratch memory is divided by taking piece after piece. From a null start this only counts.
struct Memory {
  char *start;
  uint64_t bytes = 0;
  template <class T>
  __attribute__((always_inline)) T *take(int64_t count) {
    T *piece = start ? reinterpret_cast<T *>(start + bytes) : nullptr;
    bytes += (uint64_t(count) * sizeof(T) + kCacheLine - 1) / kCacheLine * kCacheLine;
    return piece;
  }
  // All that was taken, with room to align it.
  uint64_t total() const { return bytes + kCacheLine; }
};

// The op -----------------------------------------------------------------------------------------

// As many sources as the lines of a cache have room for.
static inline int64_t padded_sources(int64_t fan_in) { return (fan_in + 15) / 16 * 16; }
// Values that a CPU's thread needs beside its tile: twice the rows of a label group's sources.
template <class OpCall>
static inline int64_t sources_size(const OpCall &c) {
  return c.group_size ? 2 * padded_sources(c.fan_in) * kGroup : 0;
}
static inline uint64_t workspace_bytes(const ForwardCall &c) {
  if (c.batch == 0) return 0;
  const int64_t values = groups_of(c.batch) * c.inputs * kGroup + c.threads * sources_size(c);
  return kCacheLine + uint64_t(values) * (c.wide_values ? 8 : 4);
}
// A CPU's threads have an accumulator each for the gradients of features.
static inline uint64_t workspace_bytes(const BackwardCall &c) {
  if (c.batch == 0) return 0;
  const int accumulators = c.on_gpu ? 1 : c.threads;
  const int64_t values =
      (groups_of(c.batch) + accumulators) * c.inputs * kGroup + c.threads * sources_size(c);
  return kCacheLine + uint64_t(values) * (c.wide_values ? 8 : 4);
}

// The fused step ---------------------------------------------------------------------------------

constexpr int64_t kMostBlock = 8;       // labels of a dense layer that are worked on together
constexpr int64_t kMostGroupSize = 64;  // labels that share their sources
constexpr int64_t kStepLabels = 256;    // labels of a fixed fan-in between which groups take turns

// From so many bytes on, features and their gradients together fill a core's second-level cache.
constexpr int64_t kCacheBytes = 768 << 10;

// How many scores of a sorted tile are worked on together: those of all lanes, or, with many
// inputs, of half the lanes and twice the labels, if threads then still find enough tiles. See
// sorted.h.
constexpr int64_t kSortedScores = 65536, kHalf = kGroup / 2;
static constexpr bool in_halves(int64_t inputs, int64_t labels) {
  return inputs > 24576 && labels >= 16 * (kSortedScores / kHalf);
}
static constexpr int64_t sorted_labels(int64_t inputs, int64_t labels) {
  return kSortedScores / (in_halves(inputs, labels) ? kHalf : kGroup);
}

// Floats of a label's weights in float8, widened; 0 where they are stored otherwise.
template <class LayerCall>
static inline int64_t float8_row(const LayerCall &c) {
  return c.float8_weights ? padded_sources(c.fan_in) : 0;
}

// Groups of the batch that the step works on at a time: as many as fit the cache.
static inline int64_t groups_at_a_time(const StepCall &c) {
  const int64_t all = groups_of(c.batch);
  const int64_t fit = kCacheBytes / (2 * kGroup * int64_t(sizeof(float)) * c.inputs);
  if (!c.indices || c.tile_labels || c.starts || c.group_size || all <= fit) return all;
  return fit < 1 ? 1 : fit;
}

// The floats of GroupScratch in grouped.h.
static inline int64_t group_scratch(int64_t groups, int64_t fan_in) {
  const int64_t sources = padded_sources(fan_in);
  return (2 * kMostGroupSize + kGroup) * sources + groups * kGroup * (sources + kMostGroupSize);
}

// On a GPU the gradients of a label group by its scores are in shared memory, unless they take more
// than 80 KiB; so are beside them updated weights that are to be rounded to float8. Else each block
// has scratch memory for them, and so many blocks are launched.
constexpr int64_t kSharedValues = 20480, kScratchBlocks = 256;
// From one row of 32 values in shared memory to the next: with 4 more, no two threads that read a
// matrix together read the same bank.
constexpr int kPitch = int(kGroup) + 4;
// Labels of a group, in whole blocks of as many as are multiplied together.
FANIN_ANYWHERE static inline int64_t label_rows(int64_t group_size) {
  constexpr int64_t block = 16;
  return (group_size + block - 1) / block * block;
}
FANIN_ANYWHERE static inline int64_t group_grads(int64_t groups, int64_t group_size) {
  return groups * label_rows(group_size) * kPitch;
}
// What a block has of them, in floats, and whether that is in scratch memory.
struct GpuGroup {
  int64_t grads, rows;
  bool far_grads, far_rows;

  FANIN_ANYWHERE int64_t scratch() const { return (far_grads ? grads : 0) + (far_rows ? rows : 0); }
};
static inline GpuGroup gpu_group(const StepCall &c) {
  GpuGroup group;
  group.grads = group_grads(groups_of(c.batch), c.group_size);
  group.rows = c.float8_weights ? c.group_size * padded_sources(c.fan_in) : 0;
  group.far_grads = group.grads > kSharedValues;
  group.far_rows = group.rows + (group.far_grads ? 0 : group.grads) > kSharedValues;
  return group;
}

struct StepMemory {
  float *features;
  float *accumulators, *scratch;  // once per thread
  uint32_t *masks;                // [groups][labels]
  double *losses;                 // [threads]
  int64_t features_size, scratch_size;
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
  if (c.on_gpu)
    m.scratch_size = c.group_size ? kScratchBlocks * gpu_group(c).scratch() : 0;
  else if (c.tile_labels)
    m.scratch_size = groups * kGroup * sorted_labels(c.inputs, c.labels) +
                     (sorted_sums(c) + kGroup - 1) / kGroup * kGroup;
  else if (c.group_size)
    m.scratch_size = group_scratch(groups, c.fan_in);
  else if (groups_at_a_time(c) < groups)
    m.scratch_size = groups * kGroup + kStepLabels * (1 + c.fan_in);
  else
    m.scratch_size = groups * kGroup * (c.indices ? 1 : kMostBlock) + kGroup;
  if (!c.group_size && !c.on_gpu) m.scratch_size += float8_row(c);
  m.features = memory.take<float>(m.features_size);
  m.accumulators = memory.take<float>(c.grad_features ? c.threads * m.features_size : 0);
  m.scratch = memory.take<float>(c.threads * m.scratch_size);
  m.masks = memory.take<uint32_t>(groups * c.labels);
  m.losses = memory.take<double>(c.threads);
  m.bytes = memory.total();
  return m;
}
static inline uint64_t workspace_bytes(const StepCall &c) { return step_memory(c, nullptr).bytes; }

// Dense layers -----------------------------------------------------------------------------------

struct DenseForwardMemory {
  float *features;
  uint64_t bytes;
};
static inline DenseForwardMemory dense_forward_memory(const DenseForwardCall &c, void *workspace) {
  Memory memory{static_cast<char *>(workspace)};
  DenseForwardMemory m;
  m.features = memory.take<float>(groups_of(c.batch) * c.inputs * kGroup);
  m.bytes = memory.total();
  return m;
}
static inline uint64_t workspace_bytes(const DenseForwardCall &c) {
  return dense_forward_memory(c, nullptr).bytes;
}

struct DenseUpdateMemory {
  float *accumulators, *scratch;  // once per thread
  int64_t features_size, scratch_size;
  uint64_t bytes;
};
static inline DenseUpdateMemory dense_update_memory(const DenseUpdateCall &c, void *workspace) {
  Memory memory{static_cast<char *>(workspace)};
  DenseUpdateMemory m;
  const int64_t groups = groups_of(c.batch);
  m.features_size = groups * c.inputs * kGroup;
  m.scratch_size = groups * kGroup * kGroup;
  m.accumulators = memory.take<float>(c.grad_features ? c.threads * m.features_size : 0);
  m.scratch = memory.take<float>(c.threads * m.scratch_size);
  m.bytes = memory.total();
  return m;
}
static inline uint64_t workspace_bytes(const DenseUpdateCall &c) {
  return dense_update_memory(c, nullptr).bytes;
}

// Sparse features --------------------------------------------------------------------------------

struct SparseUpdateMemory {
  float *grads;    // [batch, units]: what relu lets through; null without relu
  float *scratch;  // a row's gradient for each of a CPU's threads
  int64_t scratch_size;
  uint64_t bytes;
};
static inline SparseUpdateMemory sparse_update_memory(const SparseUpdateCall &c, void *workspace) {
  Memory memory{static_cast<char *>(workspace)};
  SparseUpdateMemory m{};
  m.scratch_size = !c.has_row_moments() || c.on_gpu ? 0 : groups_of(c.units) * kGroup;
  if (c.outputs) m.grads = memory.take<float>(c.batch * c.units);
  m.scratch = memory.take<float>(c.threads * m.scratch_size);
  m.bytes = c.outputs || m.scratch_size ? memory.total() : 0;
  return m;
}
static inline uint64_t workspace_bytes(const SparseUpdateCall &c) {
  return sparse_update_memory(c, nullptr).bytes;
}
static inline uint64_t workspace_bytes(const SparseForwardCall &) { return 0; }

// Top-k ------------------------------------------------------------------------------------------

// A GPU's warps keep a list each, of one group at a time: fewer where lists are long.
static inline int gpu_lists(int64_t labels, int64_t k) {
  const int64_t tiles = (labels + kGroup - 1) / kGroup, few = 32, most = 2048, wanted = 65536 / k;
  const int64_t lists = wanted < few ? few : wanted > most ? most : wanted;
  return int(lists < tiles ? lists : tiles);
}

// A list of the best: see Best in top_k.h. A CPU keeps one for each thread and group.
struct TopKMemory {
  float *features;
  float *scratch;   // once per thread
  char *lists;      // [threads][groups], or on a GPU [lists]
  int64_t *counts;  // how many labels are in each thread's lists
  int64_t *used;    // [threads][threads], for merging on a CPU
  int64_t scratch_size, list_size;
  uint64_t bytes;
};
static inline TopKMemory top_k_memory(const TopKCall &c, void *workspace) {
  Memory memory{static_cast<char *>(workspace)};
  TopKMemory m;
  const int64_t groups = groups_of(c.batch), holders = c.on_gpu ? c.gpu_lists : c.threads;
  m.scratch_size = c.on_gpu        ? 0
                   : c.tile_labels ? sorted_labels(c.inputs, c.labels) * kGroup
                   : c.group_size  ? group_scratch(1, c.fan_in)
                                   : float8_row(c);
  // The ids and scores of 32 instances, and a threshold for each.
  m.list_size = (kGroup * (c.k * 12 + 4) + int64_t(kCacheLine) - 1) / int64_t(kCacheLine) *
                int64_t(kCacheLine);
  m.features = memory.take<float>(groups * c.inputs * kGroup);
  m.scratch = memory.take<float>(holders * m.scratch_size);
  m.lists = memory.take<char>(holders * (c.on_gpu ? 1 : groups) * m.list_size);
  m.counts = memory.take<int64_t>(holders);
  m.used = memory.take<int64_t>(c.on_gpu ? 0 : holders * holders);
  m.bytes = memory.total();
  return m;
}
static inline uint64_t workspace_bytes(const TopKCall &c) { return top_k_memory(c, nullptr).bytes; }

// Rewiring and sorting ---------------------------------------------------------------------------

// Tables that count weights by their size: see rewire.h.
constexpr int64_t kBuckets = 65536;

static inline uint64_t workspace_bytes(const RewireCall &c) {
  constexpr uint64_t search = 64;  // a GPU's kernels hand a struct from one to the next
  const uint64_t tables = c.on_gpu ? 1 : uint64_t(c.threads);
  return tables * kBuckets * sizeof(uint64_t) + search + kCacheLine;
}

// Scratch of one thread that sorts a tile.
struct SortMemory {
  uint32_t *starts;  // [inputs + 1]
  uint32_t *order;   // [a tile's connections]: where each comes from, or goes to
  char *copy;        // of one array's tile
};
// The scratch of thread `thread`; *bytes: what all threads need.
static inline SortMemory sort_memory(const SortCall &c, void *workspace, int thread,
                                     uint64_t *bytes = nullptr) {
  const int64_t labels = sorted_labels(c.inputs, c.labels);
  const int64_t tile = (c.labels < labels ? c.labels : labels) * c.fan_in;
  Memory memory{static_cast<char *>(workspace)};
  SortMemory own{};
  for (int t = 0; t < c.threads; ++t) {
    SortMemory m;
    m.starts = memory.take<uint32_t>(c.inputs + 1);
    m.order = memory.take<uint32_t>(tile);
    m.copy = memory.take<char>(4 * tile);
    if (t == thread) own = m;
  }
  if (bytes) *bytes = memory.total();
  return own;
}
static inline uint64_t workspace_bytes(const SortCall &c) {
  uint64_t bytes;
  sort_memory(c, nullptr, 0, &bytes);
  return bytes;
}

// Choosing and replacing sources -----------------------------------------------------------------

// On a GPU so many warps choose, one label after the other.
template <class AnyCall>
static inline int64_t choosers(const AnyCall &c) {
  constexpr int64_t most = 4096;
  return !c.on_gpu ? c.threads : c.labels < most ? c.labels : most;
}

// Scratch of one who chooses.
struct ChooseMemory {
  float *strengths;  // [inputs], in whole groups
  uint32_t *taken;   // choosing: a bit for each input; replacing: the inputs taken
};
FANIN_ANYWHERE static inline int64_t taken_words(const ChooseCall &c) {
  return groups_of(c.inputs);
}
FANIN_ANYWHERE static inline int64_t taken_words(const ReplaceCall &c) { return c.replaced; }
template <class AnyCall>
FANIN_ANYWHERE static inline int64_t chooser_words(const AnyCall &c) {
  constexpr int64_t line = int64_t(kCacheLine) / 4;
  return groups_of(c.inputs) * kGroup + (taken_words(c) + line - 1) / line * line;
}
// The scratch of chooser `which`.
template <class AnyCall>
FANIN_ANYWHERE static inline ChooseMemory choose_memory(const AnyCall &c, int64_t which) {
  float *const start = static_cast<float *>(c.workspace) + which * chooser_words(c);
  return {start, reinterpret_cast<uint32_t *>(start + groups_of(c.inputs) * kGroup)};
}
template <class AnyCall>
static inline uint64_t choosing_bytes(const AnyCall &c) {
  return uint64_t(choosers(c) * chooser_words(c)) * sizeof(float) + kCacheLine;
}
static inline uint64_t workspace_bytes(const ChooseCall &c) { return choosing_bytes(c); }
static inline uint64_t workspace_bytes(const ReplaceCall &c) { return choosing_bytes(c); }
static inline uint64_t workspace_bytes(const LabelSumsCall &) { return 0; }

}  // namespace fanin
