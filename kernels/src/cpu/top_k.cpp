// Launches top-k: every thread offers its share of the labels to lists of its own, one for each
// group of instances; then the lists are merged. Labels are offered in label order, with narrower
// rows for a few instances (few.h), or by sorted tiles, with whole groups of instances or halves of
// them (see core/sorted.h).
#include "core/top_k.h"

#include "core/sorted.h"
#include "cpu/common.h"
#include "cpu/few.h"

namespace fanin {
namespace FANIN_TARGET {
namespace {

// So many labels are offered to one group of instances before the next: its features then stay in
// the cache for that long.
constexpr int64_t kScoredLabels = 512;

// How many lanes a row of features has: narrower ones where connections stand label by label and
// the batch is small. Calls f with the number as a type.
template <class F>
void with_lanes(const TopKCall &c, const F &f) {
  const bool by_label = c.indices && !c.tile_labels && !c.group_size;
  if (c.group_size && c.batch <= kFewInstances)
    f(std::integral_constant<int, 1>());
  else if (c.tile_labels && in_halves(c.inputs, c.labels))
    f(std::integral_constant<int, kHalf>());
  else if (by_label && c.batch == 1)
    f(std::integral_constant<int, 1>());
  else if (by_label && c.batch <= 4)
    f(std::integral_constant<int, 4>());
  else if (by_label && c.batch <= 8)
    f(std::integral_constant<int, 8>());
  else if (by_label && c.batch <= kHalf)
    f(std::integral_constant<int, kHalf>());
  else
    f(std::integral_constant<int, kLanes>());
}

// One thread's share of the labels.
struct OfferShare {
  const TopKMemory &memory;
  float *scratch;
  char *lists;  // of the thread, one a group
  const Team<float> &team;
  Faults *faults;
};

// Offers the labels from `first` to `end` - 1, after `seen` others, to the lists. Returns false
// where connections cannot be followed.
template <class I, class W>
bool offer(const TopKCall &c, const OfferShare &share, int64_t first, int64_t end, int64_t seen) {
  const ScoredLayer<I, W> layer = scored_layer<I, W>(c);
  const auto row_of = [&](int64_t label) { return label / c.group_size * c.fan_in; };
  const int64_t begin = c.group_size ? row_of(first) : layer.begin(first);
  const int64_t count =
      c.group_size ? row_of(end - 1) + c.fan_in - begin : layer.begin(end) - begin;
  if (layer.indices && !check_connections(share.team, layer.indices, c.tile_labels, begin, count,
                                          c.inputs, end - first, share.faults))
    return false;
  // As unsigned numbers, those below 0 are out of range, too.
  const uint32_t *const ids = reinterpret_cast<const uint32_t *>(c.label_ids);
  if (ids && !share.team.all_below(ids + first, end - first, c.labels)) {
    note_above(ids, first, end - first, c.labels, &share.faults->label_id);
    return false;
  }
  alignas(64) float staged[kStaged];
  for (int64_t group = 0; group < groups_of(c.batch); ++group) {
    const int lanes = lanes_of(c.batch, group);
    const float *const features = share.memory.features + group * c.inputs * kLanes;
    Best best(share.lists + group * share.memory.list_size, c.k, smaller(seen, c.k), c.label_ids);
    with_lanes(c, [&](auto row) FANIN_INLINE {
      constexpr int n = decltype(row)::value;
      if (c.group_size) {
        for (int64_t label = first; label < end; label += c.group_size) {
          const I *const indices = layer.indices + row_of(label);
          const int64_t group_end = smaller(label + c.group_size, end);
          if constexpr (n == 1)
            offer_group_to_few(layer, indices, label, group_end, features, lanes, share.scratch,
                               best);
          else if constexpr (n == kLanes)
            offer_group(layer, indices, label, group_end, features, lanes,
                        GroupScratch(share.scratch, 0, c.fan_in), best);
        }
      } else if (c.tile_labels) {
        if constexpr (n >= kHalf && !std::is_same<W, Float8>::value) {
          const SortedScores<n> scores{share.scratch};
          score_sorted(layer.indices + begin, c.tile_labels + begin, layer.weights + begin, count,
                       c.bias ? c.bias + first : nullptr, end - first, features, c.inputs, lanes,
                       scores);
          for (int64_t l = 0; l < end - first; ++l) best.offer(first + l, scores.get(l), lanes);
        }
      } else if constexpr (n < kLanes) {
        offer_to_few<n>(layer, first, end, features, lanes, share.scratch, best);
      } else {
        offer_labels(layer, first, end, features, lanes, staged, share.scratch, best, share.team);
      }
    });
  }
  return true;
}

// Merges the lists of all threads for one instance. used: one number a thread.
void merge(const TopKCall &c, const TopKMemory &memory, int threads, int64_t instance,
           int64_t *used) {
  const int64_t groups = groups_of(c.batch), group = instance / kLanes, lane = instance % kLanes;
  for (int t = 0; t < threads; ++t) used[t] = 0;
  for (int64_t rank = 0; rank < c.k; ++rank) {
    int from = -1;
    int64_t id = 0;
    float value = 0;
    for (int t = 0; t < threads; ++t) {
      const Best list(memory.lists + (t * groups + group) * memory.list_size, c.k);
      const int64_t at = used[t] * kLanes + lane;
      if (used[t] < memory.counts[t] &&
          (from < 0 || ranks_before(list.scores[at], list.ids[at], value, id))) {
        from = t;
        id = list.ids[at];
        value = list.scores[at];
      }
    }
    ++used[from];
    c.ids[instance * c.k + rank] = id;
    if (c.scores) c.scores[instance * c.k + rank] = value;
  }
}

typedef bool Offer(const TopKCall &, const OfferShare &, int64_t, int64_t, int64_t);

Finding run(const TopKCall &c, Offer *offer) {
  const TopKMemory memory = top_k_memory(c, c.workspace);
  const int64_t groups = groups_of(c.batch);
  const int64_t unit = c.tile_labels  ? sorted_labels(c.inputs, c.labels)
                       : c.group_size ? kScoredLabels / c.group_size * c.group_size
                                      : kScoredLabels;
  Faults faults;
  int threads = 1;
#pragma omp parallel num_threads(c.threads)
  {
    const int id = thread_id();
    with_lanes(c, [&](auto row) {
      transpose_features<decltype(row)::value>(c.features, c.batch, c.inputs, memory.features,
                                               &faults.feature);
    });
    char *const lists = memory.lists + id * groups * memory.list_size;
    for (int64_t group = 0; group < groups; ++group)
      Best(lists + group * memory.list_size, c.k).clear(lanes_of(c.batch, group));
#pragma omp single
    threads = thread_count();

    Team<float> team;
    const OfferShare share{memory, memory.scratch + id * memory.scratch_size, lists, team, &faults};
    int64_t seen = 0;
    const Share units((c.labels + unit - 1) / unit);
    for (int64_t u = units.begin; u < units.end && faults.feature < 0; ++u) {
      const int64_t first = u * unit, end = smaller(first + unit, c.labels);
      if (!offer(c, share, first, end, seen)) break;
      seen += end - first;
    }
    memory.counts[id] = smaller(seen, c.k);
#pragma omp barrier
    const Share instances(c.batch);
    for (int64_t b = instances.begin; !faults.any() && b < instances.end; ++b)
      merge(c, memory, threads, b, memory.used + id * c.threads);
  }
  return faults.finding();
}

}  // namespace

Finding top_k(const TopKCall &c) {
  return with_types(
      [&](auto index, auto weight) { return run(c, offer<decltype(index), decltype(weight)>); },
      index_type(c), row_type(c));
}

}  // namespace FANIN_TARGET
}  // namespace fanin
