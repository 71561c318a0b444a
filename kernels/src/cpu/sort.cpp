// Sorts the connections of a fixed fan-in layer by source within tiles of labels, in place, and back:
// the order that sorted.h wants. One tile is held a second time per thread.
#include <string.h>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "core/call.h"
#include "core/rewire.h"

namespace fanin {
namespace {

struct Scratch {
  uint32_t *starts;  // [inputs + 1]
  uint32_t *order;   // [a tile's connections]: where each comes from, or goes to
  char *copy;        // of one array's tile
};

int64_t tile_size(const SortCall &c) {
  const int64_t labels = sorted_labels(c.inputs, c.labels);
  return (c.labels < labels ? c.labels : labels) * c.fan_in;
}

Scratch scratch_of(const SortCall &c, int thread, uint64_t *bytes) {
  Memory memory{thread < 0 ? nullptr : static_cast<char *>(c.workspace)};
  Scratch scratch{};
  for (int t = 0; t < c.threads; ++t) {
    const Scratch one{memory.take<uint32_t>(c.inputs + 1), memory.take<uint32_t>(tile_size(c)),
                      memory.take<char>(4 * tile_size(c))};
    if (t == thread) scratch = one;
  }
  if (bytes) *bytes = memory.bytes + kCacheLine;
  return scratch;
}

template <class T>
void reorder(void *array, int64_t begin, int64_t count, bool undo, const Scratch &scratch) {
  T *const values = static_cast<T *>(array) + begin, *const copy = reinterpret_cast<T *>(scratch.copy);
  memcpy(copy, values, size_t(count) * sizeof(T));
  if (undo)
    for (int64_t e = 0; e < count; ++e) values[scratch.order[e]] = copy[e];
  else
    for (int64_t e = 0; e < count; ++e) values[e] = copy[scratch.order[e]];
}

void reorder_values(void *array, bool half, int64_t begin, int64_t count, bool undo,
                    const Scratch &scratch) {
  half ? reorder<uint16_t>(array, begin, count, undo, scratch)
       : reorder<uint32_t>(array, begin, count, undo, scratch);
}

// Fills `order`, and tile_labels and slots where sorting; the first position that is wrong, or -1.
template <class I, class S>
int64_t find_order(const SortCall &c, int64_t begin, int64_t count, const Scratch &scratch) {
  const I *const indices = static_cast<const I *>(c.indices) + begin;
  uint16_t *const tile_labels = c.tile_labels + begin;
  S *const slots = static_cast<S *>(c.slots) + begin;
  if (c.undo) {
    char *const taken = scratch.copy;  // not in use yet
    memset(taken, 0, size_t(count));
    for (int64_t e = 0; e < count; ++e) {
      const int64_t place = tile_labels[e] * c.fan_in + int64_t(slots[e]);
      if (int64_t(slots[e]) >= c.fan_in || place >= count || taken[place]) return begin + e;
      taken[place] = 1;
      scratch.order[e] = uint32_t(place);
    }
    return -1;
  }
  memset(scratch.starts, 0, size_t(c.inputs + 1) * sizeof *scratch.starts);
  for (int64_t e = 0; e < count; ++e) {
    if (int64_t(indices[e]) >= c.inputs) return begin + e;
    ++scratch.starts[indices[e] + 1];
  }
  for (int64_t i = 0; i < c.inputs; ++i) scratch.starts[i + 1] += scratch.starts[i];
  for (int64_t e = 0; e < count; ++e) scratch.order[scratch.starts[indices[e]]++] = uint32_t(e);
  for (int64_t e = 0; e < count; ++e) {
    tile_labels[e] = uint16_t(scratch.order[e] / c.fan_in);
    slots[e] = S(scratch.order[e] % c.fan_in);
  }
  return -1;
}

int64_t find_order_of_types(const SortCall &c, int64_t begin, int64_t count,
                            const Scratch &scratch) {
  const bool wide_slots = c.fan_in > 256;
  if (c.wide_indices)
    return wide_slots ? find_order<uint32_t, uint32_t>(c, begin, count, scratch)
                      : find_order<uint32_t, uint8_t>(c, begin, count, scratch);
  return wide_slots ? find_order<uint16_t, uint32_t>(c, begin, count, scratch)
                    : find_order<uint16_t, uint8_t>(c, begin, count, scratch);
}

}  // namespace

uint64_t sort_workspace(const SortCall &c) {
  uint64_t bytes;
  scratch_of(c, -1, &bytes);
  return bytes;
}

int64_t sort(const SortCall &c) {
  const int64_t tile = sorted_labels(c.inputs, c.labels);
  int64_t bad = -1;
#pragma omp parallel num_threads(c.threads)
  {
#if defined(_OPENMP)
    const Scratch scratch = scratch_of(c, omp_get_thread_num(), nullptr);
#else
    const Scratch scratch = scratch_of(c, 0, nullptr);
#endif
#pragma omp for schedule(dynamic, 1)
    for (int64_t first = 0; first < c.labels; first += tile) {
      const int64_t labels = c.labels - first < tile ? c.labels - first : tile;
      const int64_t begin = first * c.fan_in, count = labels * c.fan_in;
      const int64_t wrong = find_order_of_types(c, begin, count, scratch);
      if (wrong >= 0) {
#pragma omp critical(fanin_sort)
        if (bad < 0 || wrong < bad) bad = wrong;
        continue;
      }
      reorder_values(c.indices, !c.wide_indices, begin, count, c.undo, scratch);
      reorder_values(c.weights, c.bf16_weights, begin, count, c.undo, scratch);
      reorder_values(c.m, c.bf16_moments, begin, count, c.undo, scratch);
      reorder_values(c.v, c.bf16_moments, begin, count, c.undo, scratch);
    }
  }
  return bad;
}

}  // namespace fanin
