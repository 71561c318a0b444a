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

#include "core/lanes.h"

namespace fanin {
namespace FANIN_TARGET {

// The functions on numbers take a uint32_t and a float, or a vector of each.
#if defined(__CUDACC__)
typedef uint32_t CodeBits;
typedef float CodeValues;
#else
typedef Bits CodeBits;
typedef Vector<float> CodeValues;
#endif

// What a byte of E4M3 stands for, without the scale.
template <class V, class U>
FANIN_FN V e4m3_value(const U &code) {
  const U magnitude = code & 0x7f, bits = magnitude << 20;
  // Below 2^-6 there is no leading 1: it is taken away again.
  const V small = same_bits<V>(bits + (121u << 23)) - 0.015625f;
  V value = magnitude < 8 ? small : same_bits<V>(bits + (120u << 23));
  value = magnitude == 0x7f ? V{} + __builtin_nanf("") : value;
  return same_bits<V>(same_bits<U>(value) | (code & 0x80) << 24);
}

// A number as a byte of E4M3, rounded up with the probability of the part that is cut off, by 16
// random bits. NaN, and what is above 448, becomes NaN.
template <class U, class V>
FANIN_FN U e4m3_code(const V &value, const U &random) {
  const U bits = same_bits<U>(value);
  const V magnitude = same_bits<V>(bits & 0x7fffffff), least = V{} + 0.015625f;
  const V raised = magnitude < least ? magnitude + least : magnitude;
  const U before = magnitude < least ? U{} + (121u << 3) : U{} + (120u << 3);
  const U code = ((same_bits<U>(raised) + (random << 4)) >> 20) - before;
  return (magnitude <= V{} + 448.0f ? code : U{} + 0x7f) | (bits >> 24 & 0x80);
}

// The scale's byte for a row whose largest |weight| has these bits, and the scale of a byte. Of
// very small weights the scale is 2^-100, so that nothing leaves the range of a float.
FANIN_FN uint32_t scale_code(uint32_t largest) {
  const uint32_t code = (largest + 0x1fffff) >> 23;  // one more from 1.75 * a power of two on
  return code < 27 + 8 ? 27 : code - 8;
}
FANIN_FN float scale_of(uint32_t code) { return same_bits<float>(code << 23); }

// Bytes of a layer's rows before those of label l.
FANIN_FN int64_t row_begin(int64_t label, int64_t fan_in) { return label * (fan_in + 1); }

// row -> values [fan_in].
FANIN_FN void widen_row(const Float8 *row, int64_t fan_in, float *values) {
  constexpr int chunk = Chunk<float>::size;
  const float scale = scale_of(row[fan_in].bits);
  for (int64_t k = 0; k < fan_in; k += chunk) {
    const int count = int(smaller<int64_t>(chunk, fan_in - k));
    Chunk<float> part{e4m3_value<CodeValues>(load_codes(row + k, count))};
    part.v *= scale;
    write_chunk(values + k, count, part, false, false);
  }
}

// values [fan_in] -> row. at: the position of its first weight in the layer, from which with the
// seed the random numbers come, as those of other weights do (optimizer.h).
FANIN_FN void round_row(const float *values, int64_t fan_in, int64_t at, uint32_t seed,
                        Float8 *row) {
  constexpr int chunk = Chunk<float>::size;
  CodeBits most{};
  for (int64_t k = 0; k < fan_in; k += chunk) {
    const int count = int(smaller<int64_t>(chunk, fan_in - k));
    const CodeBits bits = same_bits<CodeBits>(load_chunk<float>(values + k, count).v) & 0x7fffffff;
    most = bits > most ? bits : most;
  }
  const uint32_t code = scale_code(largest(most));
  const float scale = scale_of(254 - code);
  for (int64_t k = 0; k < fan_in; k += chunk) {
    const int count = int(smaller<int64_t>(chunk, fan_in - k));
    const CodeValues scaled = load_chunk<float>(values + k, count).v * scale;
    const CodeBits random = random_chunk(uint32_t(at + k), seed);
    store_codes(row + k, count, e4m3_code(scaled, lower_half(random ^ random >> 16)));
  }
  write_one(&row[fan_in].bits, uint8_t(code), false);
}

// The weights of a label as a kernel reads them: where they stand, or widened to `row`, scratch
// memory of fan_in floats.
template <class W>
FANIN_FN const W *weights_of(const W *weights, int64_t, int64_t begin, int64_t, float *) {
  return weights + begin;
}
FANIN_FN const float *weights_of(const Float8 *weights, int64_t label, int64_t, int64_t fan_in,
                                 float *row) {
  widen_row(weights + row_begin(label, fan_in), fan_in, row);
  return row;
}

}  // namespace FANIN_TARGET
}  // namespace fanin
