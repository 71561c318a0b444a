// Sorts the connections of a fixed fan-in layer by source within tiles of labels, in place, and
// back: the order that core/sorted.h wants. Each thread holds one tile a second time.
#include <string.h>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "core/launchers.h"
#include "core/memory.h"
#include "core/types.h"

namespace fanin {
namespace {

// Brings one array of a tile, from `begin` on, into the order, or back.
template <class T>
void reorder(void *array, int64_t begin, int64_t count, bool undo, const SortMemory &memory) {
  T *const values = static_cast<T *>(array) + begin;
  T *const copy = reinterpret_cast<T *>(memory.copy);
  memcpy(copy, values, size_t(count) * sizeof(T));
  if (undo)
    for (int64_t e = 0; e < count; ++e) values[memory.order[e]] = copy[e];
  else
    for (int64_t e = 0; e < count; ++e) values[e] = copy[memory.order[e]];
}

// Fills memory.order from tile_labels and slots; returns the first position where they are wrong,
// or -1.
template <class S>
int64_t order_of_slots(const SortCall &c, int64_t begin, int64_t count, const SortMemory &memory) {
  const uint16_t *const tile_labels = c.tile_labels + begin;
  const S *const slots = static_cast<const S *>(c.slots) + begin;
  char *const taken = memory.copy;  // which is not in use yet
  memset(taken, 0, size_t(count));
  for (int64_t e = 0; e < count; ++e) {
    const int64_t place = tile_labels[e] * c.fan_in + int64_t(slots[e]);
    if (int64_t(slots[e]) >= c.fan_in || place >= count || taken[place]) return begin + e;
    taken[place] = 1;
    memory.order[e] = uint32_t(place);
  }
  return -1;
}

// Fills memory.order, tile_labels and slots from indices; returns the first position where they are
// wrong, or -1.
template <class I, class S>
int64_t order_of_sources(const SortCall &c, int64_t begin, int64_t count,
                         const SortMemory &memory) {
  const I *const indices = static_cast<const I *>(c.indices) + begin;
  uint16_t *const tile_labels = c.tile_labels + begin;
  S *const slots = static_cast<S *>(c.slots) + begin;
  uint32_t *const starts = memory.starts;
  memset(starts, 0, size_t(c.inputs + 1) * sizeof *starts);
  for (int64_t e = 0; e < count; ++e) {
    if (int64_t(indices[e]) >= c.inputs) return begin + e;
    ++starts[indices[e] + 1];
  }
  for (int64_t i = 0; i < c.inputs; ++i) starts[i + 1] += starts[i];
  for (int64_t e = 0; e < count; ++e) memory.order[starts[indices[e]]++] = uint32_t(e);
  for (int64_t e = 0; e < count; ++e) {
    tile_labels[e] = uint16_t(memory.order[e] / c.fan_in);
    slots[e] = S(memory.order[e] % c.fan_in);
  }
  return -1;
}

// Sorts one tile, or undoes it; returns the first position that is wrong, or -1.
template <class I, class S, class W, class M>
int64_t sort_tile(const SortCall &c, int64_t begin, int64_t count, const SortMemory &memory) {
  const int64_t wrong = c.undo ? order_of_slots<S>(c, begin, count, memory)
                               : order_of_sources<I, S>(c, begin, count, memory);
  if (wrong >= 0) return wrong;
  reorder<I>(c.indices, begin, count, c.undo, memory);
  reorder<W>(c.weights, begin, count, c.undo, memory);
  if (c.m) reorder<M>(c.m, begin, count, c.undo, memory);
  if (c.v) reorder<M>(c.v, begin, count, c.undo, memory);
  return -1;
}

TypeChoice<uint8_t, uint32_t> slot_type(const SortCall &c) { return {c.fan_in > 256}; }

}  // namespace

Finding sort(const SortCall &c) {
  const int64_t tile = sorted_labels(c.inputs, c.labels);
  int64_t bad = -1;
#pragma omp parallel num_threads(c.threads)
  {
#if defined(_OPENMP)
    const SortMemory memory = sort_memory(c, c.workspace, omp_get_thread_num());
#else
    const SortMemory memory = sort_memory(c, c.workspace, 0);
#endif
#pragma omp for schedule(dynamic, 1)
    for (int64_t first = 0; first < c.labels; first += tile) {
      const int64_t labels = c.labels - first < tile ? c.labels - first : tile;
      const int64_t wrong = with_types(
          [&](auto index, auto slot, auto weight, auto moment) {
            return sort_tile<decltype(index), decltype(slot), decltype(weight), decltype(moment)>(
                c, first * c.fan_in, labels * c.fan_in, memory);
          },
          index_type(c), slot_type(c), weight_type(c), moment_type(c));
      if (wrong >= 0) {
#pragma omp critical(fanin_sort)
        if (bad < 0 || wrong < bad) bad = wrong;
      }
    }
  }
  if (bad < 0) return kNothing;
  return {c.undo ? Finding::bad_slot : Finding::bad_index, bad, nullptr};
}

}  // namespace fanin
