// Launches the training of labels that are connected to words, and their top-k. Each block of
// labels, and in top-k each instance of it, is worked on by one thread alone, so results do not
// depend on the number of threads. See core/words.h.
#include "core/words_top_k.h"

#include "cpu/common.h"

namespace fanin {
namespace FANIN_TARGET {
namespace {

// Whether the pairs of a word are labels of the block, in ascending order.
bool good_labels(const uint16_t *labels, int64_t count, int block_labels) {
  bool bad = count > 0 && labels[0] >= block_labels;
  for (int64_t i = 1; i < count; ++i)
    bad |= (labels[i] >= block_labels) | (labels[i] <= labels[i - 1]);
  return !bad;
}

// Notes the first pair that is wrong.
void note_label(const uint16_t *labels, const Range &list, int block_labels, Faults *faults) {
  for (int64_t i = list.begin; i < list.end; ++i)
    if (labels[i] >= block_labels || (i > list.begin && labels[i] <= labels[i - 1]))
      return note(&faults->pair_label, i);
}

// The first start where blocks overlap or go beyond the pairs, or -1. With such a start, two
// threads could write to one pair.
int64_t bad_block_start(const WordsCall &c) {
  int64_t least = 0;
  for (int64_t b = 0; b < c.blocks; ++b)
    for (const int64_t at : {b * (c.inputs + 1), b * (c.inputs + 1) + c.inputs}) {
      if (c.pair_starts[at] < least || c.pair_starts[at] > c.pairs) return at;
      least = c.pair_starts[at];
    }
  return -1;
}

// Checks the pairs of all words of the batch, each word once. seen: scratch memory, a bit for each
// word.
Finding check_pairs(const WordsCall &c, uint32_t *seen) {
  Faults faults;
  faults.pair_start = bad_block_start(c);
  if (faults.any()) return faults.finding();
  const int64_t groups = groups_of(c.inputs);
  for (int64_t i = 0; i < groups; ++i) seen[i] = 0;
  for (int64_t p = c.starts[0]; p < c.starts[c.batch]; ++p)
    seen[c.columns[p] / 32] |= 1u << c.columns[p] % 32;
#pragma omp parallel for num_threads(c.threads) schedule(dynamic, 1)
  for (int64_t b = 0; b < c.blocks; ++b) {
    const LabelBlock block(c, b);
    const int64_t *const starts = block.starts, first = starts[0], last = starts[c.inputs];
    for (int64_t group = 0; group < groups; ++group)
      each_bit(seen[group], [&](int bit, int) {
        const int64_t word = group * 32 + bit;
        const Range list{starts[word], starts[word + 1]};
        if (list.begin < first || list.begin > last)
          note(&faults.pair_start, starts + word - c.pair_starts);
        else if (list.end < list.begin || list.end > last)
          note(&faults.pair_start, starts + word + 1 - c.pair_starts);
        else if (!good_labels(c.pair_labels + list.begin, list.end - list.begin, block.labels))
          note_label(c.pair_labels, list, block.labels, &faults);
      });
  }
  return faults.finding();
}

// Makes the rows of the batch's words that at least every eighth label has. The cost of a row is
// the same for all of them; that of a list grows with its labels. seen: as `check_pairs` left it.
void make_rows(const WordsCall &c, const uint32_t *seen, const WordRows &rows) {
  constexpr int64_t share = 8;
  if (!rows.most) return;
  int64_t count = 0;
  for (int64_t i = 0; i < c.inputs; ++i) rows.numbers[i] = -1;
  for (int64_t group = 0; group < groups_of(c.inputs); ++group)
    each_bit(seen[group], [&](int bit, int) {
      const int64_t word = group * 32 + bit;
      int64_t pairs = 0;
      for (int64_t b = 0; b < c.blocks; ++b) {
        const int64_t *const starts = LabelBlock(c, b).starts;
        pairs += starts[word + 1] - starts[word];
      }
      if (share * pairs < c.labels || count == rows.most) return;
      rows.words[count] = int32_t(word);
      rows.numbers[word] = int16_t(count++);
    });
#pragma omp parallel for num_threads(c.threads) schedule(dynamic, 1)
  for (int64_t row = 0; row < count; ++row) {
    float *const values = rows.values + row * rows.size;
    const int64_t word = rows.words[row];
    for (int64_t l = 0; l < c.labels; ++l) values[l] = 0;
    for (int64_t b = 0; b < c.blocks; ++b) {
      const LabelBlock block(c, b);
      for (int64_t i = block.starts[word]; i < block.starts[word + 1]; ++i)
        values[block.first + c.pair_labels[i]] = c.weights[i];
    }
  }
}

// A thread ranks a block of labels for all its instances before the next block, so the block's
// pairs are read again while they are in the cache.
void rank_instances(const WordsTopKCall &c, const WordsTopKMemory &memory,
                    const WordsTopKScratch &scratch) {
  const Share instances(c.batch);
  Crew crew;
  for (int64_t b = 0; b < c.blocks; ++b) {
    start_ranking(c, b, scratch, crew);
    for (int64_t i = instances.begin; i < instances.end; ++i) {
      Ranking ranking = ranking_of(c, memory, i, LabelBlock(c, b).first);
      rank_block(c, b, i, scratch, ranking, crew);
    }
  }
}
// A unit is one block of labels for one instance.
void rank_units(const WordsTopKCall &c, const WordsTopKMemory &memory,
                const WordsTopKScratch &scratch) {
  Crew crew;
#pragma omp for schedule(dynamic, 1)
  for (int64_t unit = 0; unit < c.batch * c.blocks; ++unit) {
    Ranking ranking = ranking_of_block(c, memory, unit);
    start_ranking(c, unit % c.blocks, scratch, crew);
    rank_block(c, unit % c.blocks, unit / c.blocks, scratch, ranking, crew);
  }
#pragma omp for schedule(static)
  for (int64_t i = 0; i < c.batch; ++i) merge_lists(c, memory, i);
}

}  // namespace

Finding words_step(const WordsStepCall &c) {
  const WordsStepMemory memory = words_memory(c, c.workspace);
  const Finding wrong = check_pairs(c, memory.seen);
  if (wrong.kind != Finding::nothing) return wrong;
  make_rows(c, memory.seen, memory.rows);
#pragma omp parallel num_threads(c.threads)
  {
    const WordsScratch scratch = words_scratch(c, memory.scratch, memory.rows, thread_id());
    Crew crew;
    bool good = true;
#pragma omp for schedule(dynamic, 1)
    for (int64_t b = 0; b < c.blocks; ++b)
      memory.losses[b] = train_block(c, b, scratch, crew, &good);
  }
  double loss = 0;
  for (int64_t b = 0; b < c.blocks; ++b) loss += memory.losses[b];
  *c.loss = float(loss / double(c.batch));
  return kNothing;
}

Finding words_top_k(const WordsTopKCall &c) {
  const WordsTopKMemory memory = words_memory(c, c.workspace);
  const Finding wrong = check_pairs(c, memory.seen);
  if (wrong.kind != Finding::nothing) return wrong;
  make_rows(c, memory.seen, memory.rows);
#pragma omp parallel num_threads(c.threads)
  {
    const WordsTopKScratch scratch = words_scratch(c, memory, thread_id());
    if (by_blocks(c))
      rank_units(c, memory, scratch);
    else
      rank_instances(c, memory, scratch);
  }
  return kNothing;
}

}  // namespace FANIN_TARGET
}  // namespace fanin
