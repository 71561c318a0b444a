// The best labels of instances, among labels that are connected to words: see words.h.
#pragma once

#include "core/top_k.h"
#include "core/words.h"

namespace fanin {
namespace FANIN_TARGET {

// The best labels so far of one instance, best first. They are offered in ascending order.
struct Ranking {
  int64_t k;
  int64_t *ids;
  float *scores;
  int64_t count;  // how many there are yet, at most k

  // A score that is not above this is not among the best. It is NaN while any score is among them.
  FANIN_FN float bound() const { return count < k ? NAN : scores[k - 1]; }
  FANIN_FN void offer(int64_t label, float score) {
    if (count == k && !ranks_before(score, scores[k - 1])) return;
    int64_t at = count < k ? count++ : k - 1;
    for (; at > 0 && ranks_before(score, scores[at - 1]); --at) {
      scores[at] = scores[at - 1];
      ids[at] = ids[at - 1];
    }
    scores[at] = score;
    ids[at] = label;
  }
};

// Offers the labels of a group to the ranking.
FANIN_FN void rank_group(const LabelBlock &block, int64_t group, const float *scores,
                         Ranking &ranking) {
  const int64_t first = group * kLanes;
  const uint32_t mask =
      mask_above(scores + first, ranking.bound()) & mask_of_first(block.labels - first);
  if (!mask) return;
  const int64_t count = smaller<int64_t>(ranking.k, ranking.count + bits_of(mask));
  by_one([&]() FANIN_INLINE {
    for (uint32_t left = mask; left; left &= left - 1) {
      const int64_t label = first + bits_of((left & -left) - 1);
      ranking.offer(block.first + label, scores[label]);
    }
  });
  ranking.count = count;
}

// Gets the scratch memory ready for the instances of a block. On a CPU `rank_block` leaves it so; a
// GPU starts again for each instance.
FANIN_FN void start_ranking(const WordsTopKCall &c, int64_t which, const WordsTopKScratch &s,
                            const Crew &crew) {
  const LabelBlock block(c, which);
  const float *const bias = c.bias + block.first;
  crew.each(0, block.labels, [&](int64_t l) FANIN_INLINE { s.scores[l] = bias[l]; });
  if (!kOnGpu) {
    constexpr int64_t labels = kLanes * Groups::kChunk;
    for (int64_t i = 0; i < touched_bytes(c); ++i) s.touched[i] = 0;
    for (int64_t first = 0; first < block.labels; first += labels) {
      float most = -INFINITY;
      for (int64_t l = first; l < smaller(first + labels, int64_t(block.labels)); ++l)
        most = bias[l] > most ? bias[l] : most;
      s.most[first / labels] = most;
    }
  }
  crew.sync();
}

// Offers the labels of a block to the ranking of an instance; by a CPU thread or a warp.
FANIN_FN void rank_block(const WordsTopKCall &c, int64_t which, int64_t instance,
                         const WordsTopKScratch &s, Ranking &ranking, const Crew &crew) {
  const LabelBlock block(c, which);
  bool good = true;
  const Range values = values_of(c, instance, &good);
  const Groups groups{Groups::takes_all(c, block, values), s.touched};
  score_labels(c, block, s.rows, values, groups, s.scores, crew, &good);
  if (kOnGpu && !all_hold(good)) {
    crew.each(0, block.labels, [&](int64_t l) FANIN_INLINE { s.scores[l] = NAN; });
    crew.sync();
  }
  const int64_t count = groups_of(block.labels);
  for (int64_t chunk = 0; chunk < count; chunk += Groups::kChunk) {
    if (!groups.touches(chunk) && s.most[chunk / Groups::kChunk] <= ranking.bound()) continue;
    for (int64_t group = chunk; group < smaller(chunk + Groups::kChunk, count); ++group) {
      rank_group(block, group, s.scores, ranking);
      if (!kOnGpu) clear_group(c, block, groups, group, s.scores);
    }
  }
  crew.sync();
}

// How many labels the list of a block has.
FANIN_FN int64_t labels_in_list(const WordsTopKCall &c, int64_t block) {
  return smaller<int64_t>(list_length(c), LabelBlock(c, block).labels);
}

// Merges the lists of all blocks for one instance. Of equal scores, the one of the earlier block
// has the lower label.
FANIN_FN void merge_lists(const WordsTopKCall &c, const WordsTopKMemory &memory, int64_t instance) {
  const int64_t length = list_length(c);
  const int64_t *const ids = memory.list_ids + instance * c.blocks * length;
  const float *const scores = memory.list_scores + instance * c.blocks * length;
  int64_t *const used = memory.used + instance * c.blocks;
  for (int64_t b = 0; b < c.blocks; ++b) used[b] = 0;
  for (int64_t rank = 0; rank < c.k; ++rank) {
    int64_t from = -1;
    for (int64_t b = 0; b < c.blocks; ++b)
      if (used[b] < labels_in_list(c, b) &&
          (from < 0 ||
           ranks_before(scores[b * length + used[b]], scores[from * length + used[from]])))
        from = b;
    const int64_t at = from * length + used[from]++;
    c.ids[instance * c.k + rank] = ids[at];
    if (c.scores) c.scores[instance * c.k + rank] = scores[at];
  }
}

// The ranking of an instance after `labels` labels have been offered: among the labels of all
// blocks, or of one.
FANIN_FN Ranking ranking_of(const WordsTopKCall &c, const WordsTopKMemory &memory, int64_t instance,
                            int64_t labels) {
  float *const scores = c.scores ? c.scores : memory.list_scores;
  return {c.k, c.ids + instance * c.k, scores + instance * c.k, smaller(c.k, labels)};
}
FANIN_FN Ranking ranking_of_block(const WordsTopKCall &c, const WordsTopKMemory &memory,
                                  int64_t unit) {
  const int64_t length = list_length(c);
  return {length, memory.list_ids + unit * length, memory.list_scores + unit * length, 0};
}

}  // namespace FANIN_TARGET
}  // namespace fanin
