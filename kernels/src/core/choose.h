// Choosing sources by the data: sums of the features of each label's positives, from them the
// inputs of largest strength, and better sources in place of the weakest connections. Written once
// for a CPU thread and a GPU warp; each works on one label at a time.
#pragma once

#include "core/each.h"
#include "core/lanes.h"
#include "core/memory.h"
#include "core/rewire.h"

namespace fanin {
namespace FANIN_TARGET {

// f(first, count) for one chunk of the inputs after the other.
template <class F>
FANIN_FN void each_chunk(int64_t inputs, const F &f) {
  constexpr int size = Chunk<float>::size;
  int64_t i = 0;
  for (; i + size <= inputs; i += size) f(i, size);
  if (i < inputs) f(i, int(inputs - i));
}

// Sums -------------------------------------------------------------------------------------------

FANIN_FN void add_row(const float *row, float weight, int64_t inputs, float *sums) {
  each_chunk(inputs, [&](int64_t i, int count) FANIN_INLINE {
    const Chunk<float> added{load_chunk<float>(row + i, count).v * weight};
    write_chunk(sums + i, count, added, true, false);
  });
}

// Adds one row of CSR features; false where it cannot be followed.
FANIN_FN bool add_stored(const LabelSumsCall &c, int64_t instance, float weight, float *sums,
                         const Team<float> &team) {
  const int64_t begin = c.starts[instance], end = c.starts[instance + 1];
  if (begin < 0 || begin > end || end > c.stored) return false;
  bool good = true;
  each_of(begin, end, [&](int64_t i) FANIN_INLINE {
    const int32_t column = c.columns[i];
    if (column >= 0 && column < c.inputs)
#if defined(__CUDACC__)
      atomicAdd(sums + column, weight * c.features[i]);  // a column may stand twice
#else
      sums[column] += weight * c.features[i];
#endif
    else
      good = false;
  });
  team.sync();  // another thread may add to the same column next
  return all_hold(good);
}

// Adds the features of a label's positives to its sums; false where they cannot be followed.
// stored: whether features are stored by rows (CSR).
template <bool stored>
FANIN_FN bool add_label(const LabelSumsCall &c, int64_t label, const Team<float> &team) {
  const int64_t begin = c.positive_starts[label], end = c.positive_starts[label + 1];
  if (begin < 0 || begin > end || end > c.positives) return false;
  float *const sums = c.sums + label * c.inputs;
  for (int64_t p = begin; p < end; ++p) {
    const int64_t instance = c.positive_instances[p];
    if (instance < 0 || instance >= c.instances) return false;
    const float weight = c.positive_weights ? c.positive_weights[p] : 1.0f;
    if constexpr (stored) {
      if (!add_stored(c, instance, weight, sums, team)) return false;
    } else {
      if (p + 1 < end) fetch(c.features + c.positive_instances[p + 1] * c.inputs, c.inputs);
      add_row(c.features + instance * c.inputs, weight, c.inputs, sums);
    }
  }
  return true;
}

// Sources ----------------------------------------------------------------------------------------

FANIN_ANYWHERE static inline float float_of(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

// By how much an input of a label stands out; see fanin_choose_sources_params. share: 1 / the
// count.
template <class V>
FANIN_FN V value_of(V sum, float share, V mean, V scale) {
  return (sum * share - mean) * scale;
}

// Writes the label's strengths, |value|, in whole groups; those beyond the inputs are below any
// other.
FANIN_FN void write_strengths(const ChooseCall &c, const float *sums, float share,
                              float *strengths) {
  each_chunk(c.inputs, [&](int64_t i, int size) FANIN_INLINE {
    const auto sum = load_chunk<float>(sums + i, size).v,
               mean = load_chunk<float>(c.mean + i, size).v;
    const auto one = decltype(load_chunk<float>(sums, 0).v){} + 1.0f;
    const auto scale = c.scale ? load_chunk<float>(c.scale + i, size).v : one;
    auto strength = value_of(sum, share, mean, scale);
    strength = strength < 0.0f ? -strength : strength;
    strength = strength == strength ? strength : one - 1.0f;  // not NaN
    write_chunk(strengths + i, size, Chunk<float>{strength}, false, false);
  });
  each_of(c.inputs, groups_of(c.inputs) * kGroup,
          [&](int64_t i) FANIN_INLINE { strengths[i] = -1; });
}

// Where to cut: all strengths from `above` on are chosen, and the first `equal` of those from
// `least` on but below `above`.
struct Cut {
  float least, above;
  int64_t equal;
};
// The cut that chooses exactly `wanted` of the strengths, 1 to all. Floats that are not negative
// are ordered as their bits are, so it is found by halving the range of the bits.
FANIN_FN Cut find_cut(const float *strengths, int64_t inputs, int64_t wanted) {
  const int64_t count = groups_of(inputs) * kGroup;
  uint32_t low = 0, high = 0x7f800001u;  // at least `wanted` reach low, fewer reach high
  int64_t reach_high = 0;
  while (high - low > 1) {
    const uint32_t middle = low + (high - low) / 2;
    const int64_t reach = count_at_least(strengths, count, float_of(middle));
    if (reach == wanted) return {float_of(middle), float_of(middle), 0};
    if (reach > wanted) {
      low = middle;
    } else {
      high = middle;
      reach_high = reach;
    }
  }
  return {float_of(low), float_of(high), wanted - reach_high};
}

// f(first of the group, a bit for each that the cut chooses) for one group of strengths after the
// other.
template <class F>
FANIN_FN void each_choice(const float *strengths, int64_t count, Cut cut, const F &f) {
  for (int64_t first = 0; first < count; first += kGroup) {
    const uint32_t sure = mask_at_least(strengths + first, cut.above);
    uint32_t mask = sure;
    if (cut.equal > 0) {
      uint32_t equal = mask_at_least(strengths + first, cut.least) & ~sure;
      for (; equal && cut.equal > 0; equal &= equal - 1, --cut.equal) mask |= equal & -equal;
    }
    f(first, mask);
  }
}

// The first input from `input` on (after the last, 0 is next) that is not taken yet; takes it.
FANIN_FN int64_t take_free(uint32_t *taken, int64_t inputs, int64_t input) {
  while (taken[input / 32] >> (input % 32) & 1) input = input + 1 < inputs ? input + 1 : 0;
  taken[input / 32] |= 1u << (input % 32);
  return input;
}

// Writes the sources and values of one label.
template <class I>
FANIN_FN void choose_label(const ChooseCall &c, int64_t label, const ChooseMemory &memory,
                           const Team<float> &team) {
  const float *const sums = c.sums + label * c.inputs;
  const int64_t positives = c.counts[label];
  const int64_t chosen = positives > 0 ? c.fan_in - c.random : 0;
  I *const indices = static_cast<I *>(c.indices) + label * c.fan_in;
  float *const values = c.values ? c.values + label * c.fan_in : nullptr;
  const float share = 1.0f / float(positives);
  const auto write = [&](int64_t slot, int64_t input) FANIN_INLINE {
    indices[slot] = I(input);
    if (values)
      values[slot] = positives > 0 ? value_of(sums[input], share, c.mean[input],
                                              c.scale ? c.scale[input] : 1.0f)
                                   : 0.0f;
  };
  const int64_t groups = groups_of(c.inputs);
  if (chosen > 0) {
    write_strengths(c, sums, share, memory.strengths);
    team.sync();
    const Cut cut = find_cut(memory.strengths, c.inputs, chosen);
    int64_t slot = 0;
    each_choice(memory.strengths, c.inputs, cut, [&](int64_t first, uint32_t mask) FANIN_INLINE {
      each_bit(mask, [&](int bit, int below) FANIN_INLINE { write(slot + below, first + bit); });
      slot += bits_of(mask);
      if (chosen < c.fan_in) by_one([&]() FANIN_INLINE { memory.taken[first / kGroup] = mask; });
    });
  } else {
    each_of(0, groups, [&](int64_t group) FANIN_INLINE { memory.taken[group] = 0; });
  }
  if (chosen == c.fan_in) return;
  by_one([&]() FANIN_INLINE {
    for (int64_t slot = chosen; slot < c.fan_in; ++slot) {
      const uint64_t position = uint64_t((c.first_label + label) * c.fan_in + slot);
      const int64_t drawn = drawn_source(c.seed, position, c.inputs);
      write(slot, take_free(memory.taken, c.inputs, drawn));
    }
  });
}

// Better sources ---------------------------------------------------------------------------------

// Writes how much each input wants to be a source, |gradient|, in whole groups. Those that are none
// to take are below 0: those that are sources, those of gradient 0 or NaN, and those beyond the
// inputs.
template <class I>
FANIN_FN void write_wanted(const ReplaceCall &c, const float *gradients, const I *indices,
                           float *strengths, const Team<float> &team) {
  each_chunk(c.inputs, [&](int64_t i, int size) FANIN_INLINE {
    const auto gradient = load_chunk<float>(gradients + i, size).v;
    const auto none = decltype(load_chunk<float>(gradients, 0).v){} - 1.0f;
    const auto strength = gradient < 0.0f ? -gradient : gradient;
    write_chunk(strengths + i, size, Chunk<float>{strength > 0.0f ? strength : none}, false, false);
  });
  each_of(c.inputs, groups_of(c.inputs) * kGroup,
          [&](int64_t i) FANIN_INLINE { strengths[i] = -1; });
  team.sync();
  each_of(0, c.fan_in, [&](int64_t i) FANIN_INLINE { strengths[indices[i]] = -1; });
  team.sync();
}

// Writes the weakness of each connection, in whole groups: a float that is larger the smaller
// |weight| is, 0 where that is infinite or NaN.
template <class W>
FANIN_FN void write_weakness(const W *weights, int64_t fan_in, float *weakness,
                             const Team<float> &team) {
  constexpr uint32_t infinity = 0x7f800000u;
  each_of(0, groups_of(fan_in) * kGroup, [&](int64_t i) FANIN_INLINE {
    weakness[i] = i < fan_in ? float_of(infinity - smaller(magnitude(weights[i]), infinity)) : -1;
  });
  team.sync();
}

// Moves a label's weakest connections to the inputs of largest gradient; returns how many moved, or
// -1 where the indices cannot be followed.
template <class I, class W, class M>
FANIN_FN int64_t replace_label(const ReplaceCall &c, int64_t label, const ChooseMemory &memory,
                               const Team<float> &team) {
  const int64_t start = label * c.fan_in;
  I *const indices = static_cast<I *>(c.indices) + start;
  W *const weights = static_cast<W *>(c.weights) + start;
  M *const m = c.m ? static_cast<M *>(c.m) + start : nullptr;
  M *const v = c.v ? static_cast<M *>(c.v) + start : nullptr;
  if (!team.all_below(indices, c.fan_in, c.inputs)) return -1;
  float *const strengths = memory.strengths;
  write_wanted(c, c.gradients + label * c.inputs, indices, strengths, team);
  const int64_t count = groups_of(c.inputs) * kGroup;
  const int64_t moved = smaller(c.replaced, count_at_least(strengths, count, 0.0f));
  if (moved == 0) return 0;
  int64_t place = 0;
  each_choice(strengths, c.inputs, find_cut(strengths, c.inputs, moved),
              [&](int64_t first, uint32_t mask) FANIN_INLINE {
                each_bit(mask, [&](int bit, int below) FANIN_INLINE {
                  memory.taken[place + below] = uint32_t(first + bit);
                });
                place += bits_of(mask);
              });
  team.sync();
  write_weakness(weights, c.fan_in, strengths, team);
  place = 0;
  each_choice(strengths, c.fan_in, find_cut(strengths, c.fan_in, moved),
              [&](int64_t first, uint32_t mask) FANIN_INLINE {
                each_bit(mask, [&](int bit, int below) FANIN_INLINE {
                  const int64_t slot = first + bit;
                  indices[slot] = I(memory.taken[place + below]);
                  if (m) m[slot] = M();
                  if (v) v[slot] = M();
                  if (!c.keep_weights) weights[slot] = W();
                });
                place += bits_of(mask);
              });
  return moved;
}

}  // namespace FANIN_TARGET
}  // namespace fanin
