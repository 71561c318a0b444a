// From the flags of a call to types: how every launcher gets to its instance of a kernel.
//
//   return with_types([&](auto index, auto weight) { return run<decltype(index),
//   decltype(weight)>(c); },
//                     index_type(c), weight_type(c));
//
// runs one of the four instances. Kernels that are long have their instances in several files, so
// that they compile side by side: see FANIN_INDEX in cpu/step.cpp.
#pragma once

#include <stdint.h>

#include "core/call.h"

namespace fanin {

// bfloat16 as stored: the upper half of a float32.
struct Bf16 {
  uint16_t bits;
};

// A byte of a row in float8: a weight in E4M3, or the row's scale. See float8.h.
struct Float8 {
  uint8_t bits;
};

// A type that a flag of the call decides: which of them, counted from 0.
template <class... Types>
struct TypeChoice {
  int which;
  // Without a constructor, nvcc 13 with GCC 12 refuses `return {c.flag}`.
  TypeChoice(int w) : which(w) {}
};

template <class Call>
static TypeChoice<float, double> value_type(const Call &c) {
  return {c.wide_values};
}
template <class Call>
static TypeChoice<uint16_t, uint32_t> index_type(const Call &c) {
  return {c.wide_indices};
}
template <class Call>
static TypeChoice<float, Bf16> weight_type(const Call &c) {
  return {c.bf16_weights};
}
// Of layers whose weights may also be rows in float8.
template <class Call>
static TypeChoice<float, Bf16, Float8> row_type(const Call &c) {
  return {c.float8_weights ? 2 : c.bf16_weights};
}
template <class Call>
static TypeChoice<float, Bf16> moment_type(const Call &c) {
  return {c.bf16_moments};
}

// f(a value of each chosen type).
template <class F>
static auto with_types(const F &f) {
  return f();
}
template <class F, class First, class... Others, class... More>
static auto with_types(const F &f, TypeChoice<First, Others...> choice, More... more) {
  if constexpr (sizeof...(Others) > 0)
    if (choice.which) return with_types(f, TypeChoice<Others...>(choice.which - 1), more...);
  return with_types([&](auto... others) { return f(First(), others...); }, more...);
}

}  // namespace fanin
