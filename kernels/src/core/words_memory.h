// Scratch memory of labels that are connected to words, as memory.h has it of all others.
#pragma once

#include "core/memory.h"

namespace fanin {

// On a CPU, the weights of words that most labels have, also as rows [labels] with zeros where
// there is no pair: a row is added to the scores by vectors of neighbours, a list label by label.
// They are made for one call and take up to 32 MiB. A call with few instances makes none.
struct WordRows {
  int64_t most, size;  // how many there may be; numbers of a row
  int16_t *numbers;    // of each word: which row it has, or -1
  int32_t *words;      // of each row
  float *values;       // [most][size]
};
template <class Call>
static inline WordRows word_rows(const Call &c, Memory &memory) {
  constexpr int64_t instances = 64, rows = 256, bytes = int64_t(32) << 20;
  WordRows r;
  r.size = (c.labels + kGroup - 1) / kGroup * kGroup;
  const int64_t fit = bytes / (4 * r.size);
  r.most = c.on_gpu || c.batch < instances ? 0 : fit < rows ? fit : rows;
  r.numbers = memory.take<int16_t>(r.most ? c.inputs : 0);
  r.words = memory.take<int32_t>(r.most);
  r.values = memory.take<float>(r.most * r.size);
  return r;
}

// Scratch memory for work on one block of labels, by a CPU's thread or a GPU's block.
struct WordsScratch {
  float *scores;                 // of all labels; then the gradients of those that are looked at
  uint16_t *list;                // the labels that are looked at
  float *list_scores;            // their scores; then their gradients
  uint32_t *looked, *positives;  // a bit for each label
  uint8_t *touched, *high;       // on a CPU, of each group of labels: see core/words.h
  WordRows rows;                 // of all threads
};
// Sizes are counts of 32-bit numbers, and fill whole cache lines.
FANIN_ANYWHERE static inline int64_t in_lines(int64_t numbers) {
  constexpr int64_t line = int64_t(kCacheLine) / 4;
  return (numbers + line - 1) / line * line;
}
FANIN_ANYWHERE static inline int64_t largest_block(const WordsCall &c) {
  return c.block_labels < c.labels ? c.block_labels : c.labels;
}
// Bytes of groups, in whole cache lines; none on a GPU.
FANIN_ANYWHERE static inline int64_t touched_bytes(const WordsCall &c) {
  return c.on_gpu ? 0 : 4 * in_lines((groups_of(largest_block(c)) + 3) / 4);
}
FANIN_ANYWHERE static inline int64_t words_scratch_size(const WordsCall &c) {
  const int64_t groups = groups_of(largest_block(c));
  return groups * (2 * kGroup + kGroup / 2) + 2 * in_lines(groups) + 2 * touched_bytes(c) / 4;
}
FANIN_ANYWHERE static inline WordsScratch words_scratch(const WordsCall &c, float *all,
                                                        const WordRows &rows, int64_t which) {
  const int64_t groups = groups_of(largest_block(c));
  WordsScratch s;
  s.scores = all + which * words_scratch_size(c);
  s.list_scores = s.scores + groups * kGroup;
  s.looked = reinterpret_cast<uint32_t *>(s.list_scores + groups * kGroup);
  s.positives = s.looked + in_lines(groups);
  s.touched = reinterpret_cast<uint8_t *>(s.positives + in_lines(groups));
  s.high = s.touched + touched_bytes(c);
  s.list = reinterpret_cast<uint16_t *>(s.high + touched_bytes(c));
  s.rows = rows;
  return s;
}

struct WordsStepMemory {
  uint32_t *seen;  // on a CPU a bit for each word of the batch
  double *losses;  // [blocks], or on a GPU their sum
  float *scratch;
  int64_t scratch_size;  // of all together
  WordRows rows;
  uint64_t bytes;
};
static inline WordsStepMemory words_memory(const WordsStepCall &c, void *workspace) {
  Memory memory{static_cast<char *>(workspace)};
  WordsStepMemory m;
  m.scratch_size = words_scratch_size(c) * (c.on_gpu ? c.blocks : c.threads);
  m.seen = memory.take<uint32_t>(c.on_gpu ? 0 : groups_of(c.inputs));
  m.losses = memory.take<double>(c.on_gpu ? 1 : c.blocks);
  m.scratch = memory.take<float>(m.scratch_size);
  m.rows = word_rows(c, memory);
  m.bytes = memory.total();
  return m;
}
static inline uint64_t workspace_bytes(const WordsStepCall &c) {
  return words_memory(c, nullptr).bytes;
}

// Where instances are few, threads divide the blocks of labels too, so that all have work. Each
// block then has a list of its best labels, and the lists are merged.
FANIN_ANYWHERE static inline bool by_blocks(const WordsTopKCall &c) {
  constexpr int64_t few = 256;  // on a GPU
  return c.blocks > 1 && c.batch < (c.on_gpu ? few : c.threads);
}
FANIN_ANYWHERE static inline int64_t list_length(const WordsTopKCall &c) {
  return c.k < largest_block(c) ? c.k : largest_block(c);
}

// Scratch memory for the ranking of a block of labels.
struct WordsTopKScratch {
  float *scores;     // of all labels, in whole groups
  float *most;       // on a CPU: the largest bias of each 8 groups; -inf if all are NaN
  uint8_t *touched;  // as in training
  WordRows rows;     // likewise
};
struct WordsTopKMemory {
  uint32_t *seen;
  float *scratch;  // of each scorer
  int64_t scratch_size, scorers;
  int64_t *list_ids;   // by blocks: [batch][blocks][list_length]
  float *list_scores;  // likewise; or [batch][k] where the caller does not want the scores
  int64_t *used;       // [batch][blocks], for merging
  WordRows rows;
  uint64_t bytes;
};
static inline WordsTopKMemory words_memory(const WordsTopKCall &c, void *workspace) {
  Memory memory{static_cast<char *>(workspace)};
  WordsTopKMemory m;
  const int64_t lists = by_blocks(c) ? c.batch * c.blocks : 0;
  const int64_t groups = groups_of(largest_block(c));
  m.scratch_size =
      groups * kGroup + (c.on_gpu ? 0 : in_lines(groups)) + touched_bytes(c) / int64_t(4);
  // A GPU's warps have up to 128 MiB in all.
  const int64_t units = lists ? lists : c.batch, fit = (int64_t(32) << 20) / m.scratch_size;
  m.scorers = !c.on_gpu ? c.threads : units < fit ? units : fit;
  m.seen = memory.take<uint32_t>(c.on_gpu ? 0 : groups_of(c.inputs));
  m.scratch = memory.take<float>(m.scorers * m.scratch_size);
  m.list_ids = memory.take<int64_t>(lists * list_length(c));
  m.list_scores = memory.take<float>(lists ? lists * list_length(c) : c.scores ? 0 : c.batch * c.k);
  m.used = memory.take<int64_t>(lists);
  m.rows = word_rows(c, memory);
  m.bytes = memory.total();
  return m;
}
FANIN_ANYWHERE static inline WordsTopKScratch words_scratch(const WordsTopKCall &c,
                                                            const WordsTopKMemory &m,
                                                            int64_t which) {
  const int64_t groups = groups_of(largest_block(c));
  WordsTopKScratch s;
  s.scores = m.scratch + which * m.scratch_size;
  s.most = s.scores + groups * kGroup;
  s.touched = reinterpret_cast<uint8_t *>(s.most + (c.on_gpu ? 0 : in_lines(groups)));
  s.rows = m.rows;
  return s;
}
static inline uint64_t workspace_bytes(const WordsTopKCall &c) {
  return words_memory(c, nullptr).bytes;
}

}  // namespace fanin
