// Products of small matrices on a GPU's tensor cores, with the digits of a float.
//
// One instruction multiplies [16, 8] by [8, 8]. Its operands have 11 significant bits (tf32), so a
// float is split in two such parts, and a product is the sum of three: high by high, and each high
// part by the other's low one. What is left out is below 2^-22 of a product. A bfloat16 is its own
// high part, so two products are enough for weights in bfloat16, and take about as long as the
// three of bfloat16 parts that hold a float would.
//
// Tensor cores cut their sums off where they should round them. So a sum of many products is made
// of short ones, which are added as floats: the error then does not grow in one direction.
//
// A thread has a few elements of each matrix: its row and the place of its column follow from its
// number (PTX ISA, "Matrix fragments for mma.m16n8k8").
#pragma once

#include "core/lanes.h"

namespace fanin {
namespace FANIN_TARGET {

#if !defined(FANIN_EMULATED_CUDA)
// x rounded to the nearest number that the instruction takes.
FANIN_FN float to_tf32(float x) {
  uint32_t bits;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(x));
  return __uint_as_float(bits);
}
// sums [16, 8] += left [16, 8] * right [8, 8]; all threads of a warp call it together.
FANIN_FN void multiply_tf32(float (&sums)[4], const float (&left)[4], const float (&right)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(__float_as_uint(left[0])), "r"(__float_as_uint(left[1])), "r"(__float_as_uint(left[2])),
        "r"(__float_as_uint(left[3])), "r"(__float_as_uint(right[0])),
        "r"(__float_as_uint(right[1])));
}
#endif

constexpr int kProductRows = 16, kProductColumns = 8, kProductDepth = 8;

// Where this thread's elements stand. Of the left matrix they have the rows left_row(i) and of the
// right one the column right_column(); element i of the sums is at (left_row(i / 2),
// sum_column(i)). Along the depth a thread has two places, the same in both matrices; which of the
// 8 each stands for is free.
FANIN_FN int quad() { return thread_id() / 4; }
FANIN_FN int quad_lane() { return thread_id() % 4; }
FANIN_FN int left_row(int i) { return quad() + i % 2 * 8; }
FANIN_FN int right_column() { return quad(); }
FANIN_FN int sum_column(int i) { return quad_lane() * 2 + i % 2; }

// This thread's elements of a matrix, in two parts each.
template <int Count>
struct Parts {
  float high[Count], low[Count];
  FANIN_FN void set(int i, float x) {
    high[i] = to_tf32(x);
    low[i] = to_tf32(x - high[i]);
  }
};
// element(row, place): of the left matrix, place 0 or 1.
template <class Element>
FANIN_FN Parts<4> left_parts(const Element &element) {
  Parts<4> parts;
  FANIN_UNROLL
  for (int i = 0; i < 4; ++i) parts.set(i, element(left_row(i), i / 2));
  return parts;
}
// element(place, column): of the right matrix.
template <class Element>
FANIN_FN Parts<2> right_parts(const Element &element) {
  Parts<2> parts;
  FANIN_UNROLL
  for (int i = 0; i < 2; ++i) parts.set(i, element(i, right_column()));
  return parts;
}

// sums += left * right. exact_left: the low parts of the left matrix are zero.
template <bool exact_left>
FANIN_FN void add_product(float (&sums)[4], const Parts<4> &left, const Parts<2> &right) {
  float product[4] = {};
  if constexpr (!exact_left) multiply_tf32(product, left.low, right.high);
  multiply_tf32(product, left.high, right.low);
  multiply_tf32(product, left.high, right.high);
  FANIN_UNROLL
  for (int i = 0; i < 4; ++i) sums[i] += product[i];
}

}  // namespace FANIN_TARGET
}  // namespace fanin
