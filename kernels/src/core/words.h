// Labels that are connected to words of sparse features: their scores, and their training on one
// instance after the other. Written once for a CPU thread and for all threads of a GPU's block,
// which work on one block of labels at a time.
//
// The pairs of a block of labels stand by word: each word has a list of pairs. The scores of an
// instance are sums over the lists of its words. The labels in a list differ, so the threads of a
// block share it. They wait between two lists, since both may have the same label.
//
// A CPU has checked all words and pairs before. A GPU checks them in this file.
#pragma once

#include <math.h>

#include "core/each.h"
#include "core/loss.h"
#include "core/memory.h"
#include "core/top_k.h"

namespace fanin {
namespace FANIN_TARGET {

// Where a list is more than this many times as long as the list of labels to update, each of these
// labels is searched for. Shorter lists are read from end to end. A step took 0.43 s with 8, and
// takes 0.39 s with 20 (86,000 pairs of an instance's words, 10,658 labels, AMD Zen 5).
constexpr int64_t kSearched = 20;
// The start of a list is fetched this many values before the list is read, and the list itself half
// as many before.
constexpr int64_t kListAhead = 4;

// Who works on a block of labels.
struct Crew {
#if defined(__CUDACC__)
  int *counter;  // in shared memory

  // f(i) for each i from begin to end - 1.
  template <class F>
  FANIN_FN void each(int64_t begin, int64_t end, const F &f) const {
    for (int64_t i = begin + threadIdx.x; i < end; i += blockDim.x) f(i);
  }
  // f(group) for each group of 32, by all threads of a warp.
  template <class F>
  FANIN_FN void each_group(int64_t groups, const F &f) const {
    for (int64_t i = threadIdx.x / kLanes; i < groups; i += blockDim.x / kLanes) f(i);
  }
  FANIN_FN void sync() const { __syncthreads(); }
  FANIN_FN void set_bit(uint32_t *bits, int i) const { atomicOr(bits + i / 32, 1u << i % 32); }
  // Takes places of a list, from 0 on, for a whole warp. Returns the first of them.
  FANIN_FN void clear_taken() const {
    if (threadIdx.x == 0) *counter = 0;
  }
  FANIN_FN int take(int places) const {
    const int first = thread_id() == 0 ? atomicAdd(counter, places) : 0;
    return __shfl_sync(kAll, first, 0);
  }
  FANIN_FN int taken() const { return *counter; }
#else
  int counter = 0;

  template <class F>
  FANIN_FN void each(int64_t begin, int64_t end, const F &f) const {
    for (int64_t i = begin; i < end; ++i) f(i);
  }
  template <class F>
  FANIN_FN void each_group(int64_t groups, const F &f) const {
    for (int64_t i = 0; i < groups; ++i) f(i);
  }
  FANIN_FN void sync() const {}
  FANIN_FN void set_bit(uint32_t *bits, int i) const { bits[i / 32] |= 1u << i % 32; }
  FANIN_FN void clear_taken() { counter = 0; }
  FANIN_FN int take(int places) {
    const int first = counter;
    counter += places;
    return first;
  }
  FANIN_FN int taken() const { return counter; }
#endif
};

FANIN_FN bool has_bit(const uint32_t *bits, int i) { return bits[i / 32] >> i % 32 & 1; }

struct LabelBlock {
  int64_t first;  // its first label
  int labels;
  const int64_t *starts;  // of each word's pairs

  FANIN_FN LabelBlock(const WordsCall &c, int64_t block)
      : first(block * c.block_labels),
        labels(int(smaller(c.block_labels, c.labels - first))),
        starts(c.pair_starts + block * (c.inputs + 1)) {}
};

// Things that stand from begin to end - 1.
struct Range {
  int64_t begin, end;
};
// The stored values of an instance. On a GPU a range that is out of bounds becomes empty, and *good
// false. The functions below do the same.
FANIN_FN Range values_of(const WordsCall &c, int64_t instance, bool *good) {
  const Range values{c.starts[instance], c.starts[instance + 1]};
  if (in_bounds(values.begin, values.end, c.stored)) return values;
  *good = false;
  return {0, 0};
}
// The pairs of the word of stored value p.
FANIN_FN Range list_of(const WordsCall &c, const LabelBlock &block, int64_t p, bool *good) {
  const int32_t word = c.columns[p];
  if (!kOnGpu || (word >= 0 && word < c.inputs)) {
    const Range list{block.starts[word], block.starts[word + 1]};
    if (in_bounds(list.begin, list.end, c.pairs)) return list;
  }
  *good = false;
  return {0, 0};
}
// Fetches the lists of values that come later.
FANIN_FN void fetch_lists(const WordsCall &c, const LabelBlock &block, int64_t p, int64_t end) {
  if (kOnGpu) return;
  if (p + kListAhead < end) fetch(block.starts + c.columns[p + kListAhead], 1);
  if (p + kListAhead / 2 >= end) return;
  const int64_t list = block.starts[c.columns[p + kListAhead / 2]];
  fetch(c.pair_labels + list, 1);
  fetch(c.weights + list, 1);
}

// Writes the scores of one instance.
FANIN_FN void score_labels(const WordsCall &c, const LabelBlock &block, const Range &values,
                           float *scores, const Crew &crew, bool *good) {
  const float *const bias = c.bias + block.first;
  crew.each(0, block.labels, [&](int64_t l) FANIN_INLINE { scores[l] = bias[l]; });
  crew.sync();
  for (int64_t p = values.begin; p < values.end; ++p) {
    fetch_lists(c, block, p, values.end);
    const Range list = list_of(c, block, p, good);
    const float value = c.values[p];
    crew.each(list.begin, list.end, [&](int64_t i) FANIN_INLINE {
      const int label = c.pair_labels[i];
      if (!kOnGpu || label < block.labels)
        scores[label] += value * c.weights[i];
      else
        *good = false;
    });
    crew.sync();
  }
}

// Training ---------------------------------------------------------------------------------------

FANIN_FN void adagrad(float *weight, float *squares, float gradient, float rate) {
  const float total = *squares + gradient * gradient;
  *squares = total;
  if (total != 0.0f) *weight -= rate * gradient / sqrtf(total);
}

// f(label within the block) for each positive of the instance.
template <class F>
FANIN_FN void each_positive(const WordsStepCall &c, const LabelBlock &block, int64_t instance,
                            const Crew &crew, bool *good, const F &f) {
  const int64_t begin = c.positive_starts[instance], end = c.positive_starts[instance + 1];
  if (!in_bounds(begin, end, c.positives)) {
    *good = false;
    return;
  }
  crew.each(begin, end, [&](int64_t p) FANIN_INLINE {
    const int64_t label = c.wide_positives ? static_cast<const int64_t *>(c.positive_labels)[p]
                                           : static_cast<const int32_t *>(c.positive_labels)[p];
    if (kOnGpu && (label < 0 || label >= c.labels)) *good = false;
    if (label >= block.first && label < block.first + block.labels) f(int(label - block.first));
  });
}

// Lists the labels that are looked at, with their scores, in whole groups. Returns how many there
// are.
FANIN_FN int list_labels(const WordsStepCall &c, const LabelBlock &block, const WordsScratch &s,
                         Crew &crew) {
  crew.each_group(groups_of(block.labels), [&](int64_t group) FANIN_INLINE {
    const int64_t first = group * kLanes;
    const uint32_t mask = (mask_above(s.scores + first, c.threshold) | s.positives[group]) &
                          mask_of_first(block.labels - first);
    write_one(s.looked + group, mask, false);
    if (!mask) return;
    const int place = crew.take(bits_of(mask));
    each_bit(mask, [&](int bit, int below) FANIN_INLINE {
      s.list[place + below] = uint16_t(first + bit);
      s.list_scores[place + below] = s.scores[first + bit];
    });
  });
  crew.sync();
  const int count = crew.taken();
  crew.each(count, groups_of(count) * kGroup,
            [&](int64_t i) FANIN_INLINE { s.list_scores[i] = 0; });
  crew.sync();
  return count;
}

// Turns the scores of the listed labels into gradients. Returns the loss, on a GPU a warp's part of
// it.
FANIN_FN float scores_to_gradients(const WordsStepCall &c, const WordsScratch &s, int count,
                                   const Crew &crew) {
  Lanes<float> loss = broadcast(0.0f);
  crew.each_group(groups_of(count), [&](int64_t group) FANIN_INLINE {
    const int64_t first = group * kLanes;
    const uint32_t real = mask_of_first(count - first);
    const uint32_t positives = mask_where([&](int lane) FANIN_INLINE {
      return first + lane < count && has_bit(s.positives, s.list[first + lane]);
    });
    store(s.list_scores + first, loss_gradient(fanin_loss(c.loss_kind), load(s.list_scores + first),
                                               positives, from_mask(real, 1.0f, 0.0f), loss));
  });
  crew.sync();
  return sum(loss);
}

// Where a label stands in a list, or the first one above it.
FANIN_FN int64_t place_in(const uint16_t *labels, const Range &list, int label) {
  int64_t begin = list.begin, end = list.end;
  while (begin < end) {
    const int64_t middle = begin + (end - begin) / 2;
    if (labels[middle] < label)
      begin = middle + 1;
    else
      end = middle;
  }
  return begin;
}

// Updates the pairs of one value with the labels that were looked at.
FANIN_FN void update_list(const WordsStepCall &c, const LabelBlock &block, const WordsScratch &s,
                          const Range &list, float value, int count, const Crew &crew) {
  const auto update = [&](int64_t i, float gradient) FANIN_INLINE {
    adagrad(c.weights + i, c.squares + i, gradient * value, c.rate);
  };
  if (list.end - list.begin <= kSearched * count)
    crew.each(list.begin, list.end, [&](int64_t i) FANIN_INLINE {
      const int label = c.pair_labels[i];
      if ((!kOnGpu || label < block.labels) && has_bit(s.looked, label)) update(i, s.scores[label]);
    });
  else
    crew.each(0, count, [&](int64_t j) FANIN_INLINE {
      const int64_t i = place_in(c.pair_labels, list, s.list[j]);
      if (i < list.end && c.pair_labels[i] == s.list[j]) update(i, s.list_scores[j]);
    });
}

// Scores, loss and update of one instance. The bits of positives are clear, before and afterwards.
FANIN_FN float train_instance(const WordsStepCall &c, const LabelBlock &block, int64_t instance,
                              const WordsScratch &s, Crew &crew, bool *good) {
  const Range values = values_of(c, instance, good);
  each_positive(c, block, instance, crew, good,
                [&](int label) FANIN_INLINE { crew.set_bit(s.positives, label); });
  crew.clear_taken();
  score_labels(c, block, values, s.scores, crew, good);
  const int count = list_labels(c, block, s, crew);
  const float loss = scores_to_gradients(c, s, count, crew);
  crew.each(0, count, [&](int64_t j) FANIN_INLINE {
    const int64_t label = block.first + s.list[j];
    s.scores[s.list[j]] = s.list_scores[j];
    adagrad(c.bias + label, c.bias_squares + label, s.list_scores[j], c.bias_rate);
  });
  crew.sync();
  if (count)
    for (int64_t p = values.begin; p < values.end; ++p) {
      fetch_lists(c, block, p, values.end);
      update_list(c, block, s, list_of(c, block, p, good), c.values[p], count, crew);
      crew.sync();
    }
  each_positive(c, block, instance, crew, good,
                [&](int label) FANIN_INLINE { s.positives[label / 32] = 0; });
  crew.sync();
  return loss;
}

// Trains a block of labels on all instances. Returns the sum of their losses, on a GPU a warp's
// part of it.
FANIN_FN double train_block(const WordsStepCall &c, int64_t which, const WordsScratch &s,
                            Crew &crew, bool *good) {
  const LabelBlock block(c, which);
  crew.each(0, groups_of(block.labels), [&](int64_t i) FANIN_INLINE { s.positives[i] = 0; });
  crew.sync();
  double loss = 0;
  for (int64_t instance = 0; instance < c.batch; ++instance)
    loss += train_instance(c, block, instance, s, crew, good);
  return loss;
}

// Prediction -------------------------------------------------------------------------------------

// The best labels so far of one instance, best first. They are offered in ascending order.
struct Ranking {
  int64_t k;
  int64_t *ids;
  float *scores;
  int64_t count;  // how many there are yet, at most k

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

// Offers the labels of a block to the ranking of an instance; by a CPU thread or a warp.
FANIN_FN void rank_block(const WordsTopKCall &c, int64_t which, int64_t instance, float *scores,
                         Ranking &ranking, const Crew &crew) {
  const LabelBlock block(c, which);
  bool good = true;
  const Range values = values_of(c, instance, &good);
  score_labels(c, block, values, scores, crew, &good);
  if (kOnGpu && !all_hold(good)) {
    crew.each(0, block.labels, [&](int64_t l) FANIN_INLINE { scores[l] = NAN; });
    crew.sync();
  }
  for (int64_t first = 0; first < block.labels; first += kLanes) {
    const float bound = ranking.count < ranking.k ? NAN : ranking.scores[ranking.k - 1];
    const uint32_t mask = mask_above(scores + first, bound) & mask_of_first(block.labels - first);
    if (!mask) continue;
    const int64_t count = smaller<int64_t>(ranking.k, ranking.count + bits_of(mask));
    by_one([&]() FANIN_INLINE {
      for (uint32_t left = mask; left; left &= left - 1) {
        const int64_t label = first + bits_of((left & -left) - 1);
        ranking.offer(block.first + label, scores[label]);
      }
    });
    ranking.count = count;
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
