// Labels that are connected to words of sparse features: their scores, and their training on one
// instance after the other. Written once for a CPU thread and for all threads of a GPU's block,
// which work on one block of labels at a time.
//
// The pairs of a block of labels stand by word: each word has a list of pairs. The scores of an
// instance are sums over the lists of its words. The labels in a list differ, so the threads of a
// block share it. They wait between two lists, since both may have the same label.
//
// Between two instances the scores are the biases. Where the lists of an instance are short, a CPU
// notes which groups of 32 labels they touch, and visits these groups alone: all other labels have
// their bias for a score. A GPU visits all groups.
//
// A CPU has checked all words and pairs before. A GPU checks them in this file.
#pragma once

#include <math.h>
#include <string.h>

#include "core/each.h"
#include "core/loss.h"
#include "core/words_memory.h"

namespace fanin {
namespace FANIN_TARGET {

// Where a list is more than this many times as long as the list of labels to update, each of these
// labels is searched for. Shorter lists are read from end to end.
constexpr int64_t kSearched = 12;
// The start of a list is fetched this many values before the list is read, and the list itself half
// as many before.
constexpr int64_t kListAhead = 4;
// Touched groups are noted where the block has more than this many times as many labels as the
// instance has pairs in it. Otherwise most groups are touched, and a pass over all costs less: of
// 100,000 labels it takes 12 us of an instance's step (AMD EPYC, family 25).
constexpr int64_t kShare = 128;

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

// Which groups of 32 labels an instance visits.
struct Groups {
  bool all;
  uint8_t *touched;  // of each group in whole chunks of kChunk; clear between two instances

  static constexpr int64_t kChunk = 8;

  // Whether the lists of an instance are so long that noting the groups would not pay.
  FANIN_FN static bool takes_all(const WordsCall &c, const LabelBlock &block, const Range &values) {
    if (kOnGpu) return true;
    int64_t pairs = 0;
    for (int64_t p = values.begin; p < values.end; ++p) {
      const int32_t word = c.columns[p];
      pairs += block.starts[word + 1] - block.starts[word];
    }
    return kShare * pairs >= block.labels;
  }

  // Whether any group of a chunk is visited. chunk: its first group.
  FANIN_FN bool touches(int64_t chunk) const {
    uint64_t bytes = 1;
    if (!all) memcpy(&bytes, touched + chunk, sizeof bytes);
    return bytes;
  }
  // f(group) for each group that is visited, in ascending order. also: bytes of further groups to
  // visit.
  template <class F>
  FANIN_FN void each(const LabelBlock &block, const uint8_t *also, const Crew &crew,
                     const F &f) const {
    const int64_t groups = groups_of(block.labels);
    if (all) return crew.each_group(groups, f);
    for (int64_t chunk = 0; chunk < groups; chunk += kChunk) {
      uint64_t more;
      memcpy(&more, also + chunk, sizeof more);
      if (!more && !touches(chunk)) continue;
      for (int64_t group = chunk; group < smaller(chunk + kChunk, groups); ++group)
        if (touched[group] || also[group]) f(group);
    }
  }
};

// Sets the scores of a group to the biases, by a CPU thread or a warp, and forgets that the group
// was touched.
FANIN_FN void clear_group(const WordsCall &c, const LabelBlock &block, const Groups &groups,
                          int64_t group, float *scores) {
  const float *const bias = c.bias + block.first;
  const int64_t first = group * kLanes, end = smaller<int64_t>(first + kLanes, block.labels);
  if (!kOnGpu && end - first == kLanes)
    store(scores + first, load(bias + first));
  else
    each_of(first, end, [&](int64_t l) FANIN_INLINE { scores[l] = bias[l]; });
  if (!groups.all) groups.touched[group] = 0;
}

// The row of the word of stored value p, from the block's first label on; or null.
FANIN_FN float *row_of(const WordsCall &c, const WordRows &rows, const LabelBlock &block,
                       int64_t p) {
  if (kOnGpu || !rows.most) return nullptr;
  const int16_t number = rows.numbers[c.columns[p]];
  return number < 0 ? nullptr : rows.values + number * rows.size + block.first;
}
FANIN_FN void add_row(float *__restrict scores, const float *__restrict row, float value,
                      int labels) {
  for (int l = 0; l < labels; ++l) scores[l] += value * row[l];
}

// Adds the words of one instance to the scores, which are the biases before.
template <bool kNoted>
FANIN_FN void add_lists(const WordsCall &c, const LabelBlock &block, const WordRows &rows,
                        const Range &values, float *scores, uint8_t *touched, const Crew &crew,
                        bool *good) {
  for (int64_t p = values.begin; p < values.end; ++p) {
    fetch_lists(c, block, p, values.end);
    const Range list = list_of(c, block, p, good);
    const float value = c.values[p];
    if (!kOnGpu && !kNoted)
      if (const float *const row = row_of(c, rows, block, p)) {
        add_row(scores, row, value, block.labels);
        continue;
      }
    crew.each(list.begin, list.end, [&](int64_t i) FANIN_INLINE {
      const int label = c.pair_labels[i];
      if (!kOnGpu || label < block.labels) {
        scores[label] += value * c.weights[i];
        if (kNoted) touched[label / kLanes] = 1;
      } else {
        *good = false;
      }
    });
    crew.sync();
  }
}
FANIN_FN void score_labels(const WordsCall &c, const LabelBlock &block, const WordRows &rows,
                           const Range &values, const Groups &groups, float *scores,
                           const Crew &crew, bool *good) {
  if (groups.all)
    add_lists<false>(c, block, rows, values, scores, nullptr, crew, good);
  else
    add_lists<true>(c, block, rows, values, scores, groups.touched, crew, good);
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

// Notes the group of a label whose bias is above the threshold, for the whole call. Such a label is
// looked at by an instance that does not touch it, too.
FANIN_FN void note_bias(const WordsStepCall &c, const LabelBlock &block, const WordsScratch &s,
                        int64_t label) {
  if (!kOnGpu && !(c.bias[block.first + label] <= c.threshold)) s.high[label / kLanes] = 1;
}

// Lists the labels that are looked at, with their scores, in whole groups, and makes all scores of
// the block the biases again. Returns how many labels there are.
FANIN_FN int list_labels(const WordsStepCall &c, const LabelBlock &block, const Groups &groups,
                         const WordsScratch &s, Crew &crew) {
  groups.each(block, s.high, crew, [&](int64_t group) FANIN_INLINE {
    const int64_t first = group * kLanes;
    const uint32_t mask = (mask_above(s.scores + first, c.threshold) | s.positives[group]) &
                          mask_of_first(block.labels - first);
    write_one(s.looked + group, mask, false);
    if (mask) {
      const int place = crew.take(bits_of(mask));
      each_bit(mask, [&](int bit, int below) FANIN_INLINE {
        s.list[place + below] = uint16_t(first + bit);
        s.list_scores[place + below] = s.scores[first + bit];
      });
    }
    clear_group(c, block, groups, group, s.scores);
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

// Where a label stands in a list that is not empty; some other place where it is not in the list.
// The loop takes as many rounds for every label, and has no branch that a CPU could guess wrong. So
// a CPU works on the search for the next label at the same time.
FANIN_FN int64_t place_in(const uint16_t *labels, const Range &list, int label) {
  int64_t begin = list.begin;
  for (int64_t count = list.end - list.begin; count > 1;) {
    const int64_t half = count / 2;
    begin = labels[begin + half] <= label ? begin + half : begin;
    count -= half;
  }
  return begin;
}

// Updates the pairs of one value with the labels that were looked at. row: of its word, or null.
FANIN_FN void update_list(const WordsStepCall &c, const LabelBlock &block, const WordsScratch &s,
                          const Range &list, float *row, float value, int count, const Crew &crew) {
  const auto update = [&](int64_t i, float gradient) FANIN_INLINE {
    adagrad(c.weights + i, c.squares + i, gradient * value, c.rate);
    if (!kOnGpu && row) row[c.pair_labels[i]] = c.weights[i];
  };
  if (list.end - list.begin <= kSearched * count)
    crew.each(list.begin, list.end, [&](int64_t i) FANIN_INLINE {
      const int label = c.pair_labels[i];
      if ((!kOnGpu || label < block.labels) && has_bit(s.looked, label)) update(i, s.scores[label]);
    });
  else
    crew.each(0, count, [&](int64_t j) FANIN_INLINE {
      const int64_t i = place_in(c.pair_labels, list, s.list[j]);
      if (c.pair_labels[i] == s.list[j]) update(i, s.list_scores[j]);
    });
}

// Scores, loss and update of one instance. The bits of positives are clear, before and afterwards.
FANIN_FN float train_instance(const WordsStepCall &c, const LabelBlock &block, int64_t instance,
                              const WordsScratch &s, Crew &crew, bool *good) {
  const Range values = values_of(c, instance, good);
  const Groups groups{Groups::takes_all(c, block, values), s.touched};
  each_positive(c, block, instance, crew, good, [&](int label) FANIN_INLINE {
    crew.set_bit(s.positives, label);
    if (!groups.all) s.touched[label / kLanes] = 1;
  });
  crew.clear_taken();
  score_labels(c, block, s.rows, values, groups, s.scores, crew, good);
  const int count = list_labels(c, block, groups, s, crew);
  const float loss = scores_to_gradients(c, s, count, crew);
  crew.each(0, count, [&](int64_t j) FANIN_INLINE {
    const int64_t label = block.first + s.list[j];
    s.scores[s.list[j]] = s.list_scores[j];
    adagrad(c.bias + label, c.bias_squares + label, s.list_scores[j], c.bias_rate);
    note_bias(c, block, s, s.list[j]);
  });
  crew.sync();
  if (count)
    for (int64_t p = values.begin; p < values.end; ++p) {
      fetch_lists(c, block, p, values.end);
      update_list(c, block, s, list_of(c, block, p, good), row_of(c, s.rows, block, p), c.values[p],
                  count, crew);
      crew.sync();
    }
  each_positive(c, block, instance, crew, good,
                [&](int label) FANIN_INLINE { s.positives[label / 32] = 0; });
  crew.each(0, count,
            [&](int64_t j) FANIN_INLINE { s.scores[s.list[j]] = c.bias[block.first + s.list[j]]; });
  crew.sync();
  return loss;
}

// Trains a block of labels on all instances. Returns the sum of their losses, on a GPU a warp's
// part of it.
FANIN_FN double train_block(const WordsStepCall &c, int64_t which, const WordsScratch &s,
                            Crew &crew, bool *good) {
  const LabelBlock block(c, which);
  crew.each(0, block.labels,
            [&](int64_t l) FANIN_INLINE { s.scores[l] = c.bias[block.first + l]; });
  crew.each(0, groups_of(block.labels), [&](int64_t i) FANIN_INLINE { s.positives[i] = 0; });
  if (!kOnGpu) {
    for (int64_t i = 0; i < touched_bytes(c); ++i) s.touched[i] = s.high[i] = 0;
    for (int64_t label = 0; label < block.labels; ++label) note_bias(c, block, s, label);
  }
  crew.sync();
  double loss = 0;
  for (int64_t instance = 0; instance < c.batch; ++instance)
    loss += train_instance(c, block, instance, s, crew, good);
  return loss;
}

}  // namespace FANIN_TARGET
}  // namespace fanin
