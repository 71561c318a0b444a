// Weights in float8: rows of bytes. A row has the weights of a label, a byte each, and then its
// scale.
//
// A byte is E4M3 as the Open Compute Project defines it ("OCP 8-bit floating point specification",
// 2023): a sign, 4 bits of exponent with bias 7, 3 bits of mantissa. The largest number is 448,
// there is no infinity, and 0x7f is NaN. The scale is 2^(byte - 127) (E8M0 of "OCP microscaling
// formats", 2023).
//
// Kernels widen a row to floats in scratch memory and compute with these. Once the optimiser has
// changed them, the row is rounded again, stochastically, with the smallest scale in which its
// largest weight is at most 448. So a scale grows and shrinks with its row, and a weight that does
// not change has the same value as before, but for those far below the row's largest.
#pragma once

#include "core/optimizer.h"

namespace fanin {
namespace FANIN_TARGET {

// Where the weights of a label begin, as they are stored: behind `begin` others, and in float8 also
// behind a scale for each label before it.
template <class W>
FANIN_FN W *row_of(W *weights, int64_t label, int64_t begin) {
  return weights + begin + (std::is_same<std::remove_const_t<W>, Float8>::value ? label : 0);
}

// The weights of a label as a kernel reads them: where they stand, or widened to `row`, scratch
// memory of fan_in floats.
template <class W>
FANIN_FN const W *weights_of(const W *weights, int64_t, int64_t begin, int64_t, float *) {
  return weights + begin;
}

// The numbers of a chunk.
typedef decltype(Chunk<float>::v) Values;

// What bytes of E4M3 stand for, without the scale.
FANIN_FN Values e4m3_values(const Bits &codes) {
  const Bits magnitude = codes & 0x7f, bits = magnitude << 20;
  // Below 2^-6 there is no leading 1: it is taken away again.
  const Values small = same_bits<Values>(bits + (121u << 23)) - 0.015625f;
  Values values = magnitude < 8 ? small : same_bits<Values>(bits + (120u << 23));
  values = magnitude == 0x7f ? Values{} + __builtin_nanf("") : values;
  return same_bits<Values>(same_bits<Bits>(values) | (codes & 0x80) << 24);
}

// Numbers as bytes of E4M3, rounded up with the probability of the part that is cut off, by 16
// random bits each. NaN, and what is above 448, becomes NaN.
FANIN_FN Bits e4m3_codes(const Values &values, const Bits &random) {
  const Bits bits = same_bits<Bits>(values);
  const Values magnitude = same_bits<Values>(bits & 0x7fffffff), least = Values{} + 0.015625f;
  const Values raised = magnitude < least ? magnitude + least : magnitude;
  const Bits before = magnitude < least ? Bits{} + (121u << 3) : Bits{} + (120u << 3);
  const Bits codes = ((same_bits<Bits>(raised) + (random << 4)) >> 20) - before;
  return (magnitude <= Values{} + 448.0f ? codes : Bits{} + 0x7f) | (bits >> 24 & 0x80);
}

// The scale's byte for a row whose largest |weight| has these bits, and the scale of a byte. Of
// very small weights the scale is 2^-100, so that nothing leaves the range of a float.
FANIN_FN uint32_t scale_code(uint32_t largest) {
  const uint32_t code = (largest + 0x1fffff) >> 23;  // one more from 1.75 * a power of two on
  return code < 27 + 8 ? 27 : code - 8;
}
FANIN_FN float scale_of(uint32_t code) { return same_bits<float>(code << 23); }

// A chunk of a row, from weight k on.
FANIN_FN Chunk<float> load_row(const Float8 *row, int64_t fan_in, int64_t k, int count) {
  Chunk<float> part{e4m3_values(load_codes(row + k, count))};
  part.v *= scale_of(row[fan_in].bits);
  return part;
}
// row -> values [fan_in].
FANIN_FN void widen_row(const Float8 *row, int64_t fan_in, float *values) {
  constexpr int chunk = Chunk<float>::size;
  for (int64_t k = 0; k < fan_in; k += chunk) {
    const int count = int(smaller<int64_t>(chunk, fan_in - k));
    write_chunk(values + k, count, load_row(row, fan_in, k, count), false, false);
  }
}

// values [fan_in] -> row. at: the position of its first weight, which random numbers follow from as
// those of other weights do.
FANIN_FN void round_row(const Optimizer &o, const float *values, int64_t fan_in, int64_t at,
                        Float8 *row) {
  constexpr int chunk = Chunk<float>::size;
  Bits most{};
  for (int64_t k = 0; k < fan_in; k += chunk) {
    const int count = int(smaller<int64_t>(chunk, fan_in - k));
    const Bits bits = same_bits<Bits>(load_chunk<float>(values + k, count).v) & 0x7fffffff;
    most = bits > most ? bits : most;
  }
  const uint32_t code = scale_code(largest(most));
  const float scale = scale_of(254 - code);
  for (int64_t k = 0; k < fan_in; k += chunk) {
    const int count = int(smaller<int64_t>(chunk, fan_in - k));
    const Values scaled = load_chunk<float>(values + k, count).v * scale;
    const Bits random = random_at(o, at + k);
    store_codes(row + k, count, e4m3_codes(scaled, lower_half(random ^ random >> 16)));
  }
  write_one(&row[fan_in].bits, uint8_t(code), false);
}

FANIN_FN const float *weights_of(const Float8 *weights, int64_t label, int64_t begin,
                                 int64_t fan_in, float *row) {
  widen_row(row_of(weights, label, begin), fan_in, row);
  return row;
}

}  // namespace FANIN_TARGET
}  // namespace fanin
