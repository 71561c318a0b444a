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

// A type that a flag of the call decides.
template <class Narrow, class Wide>
struct TypeChoice {
  bool wide;
  // Without a constructor, nvcc 13 with GCC 12 refuses `return {c.flag}`.
  TypeChoice(bool w) : wide(w) {}
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
template <class Call>
static TypeChoice<float, Bf16> moment_type(const Call &c) {
  return {c.bf16_moments};
}

// f(a value of each chosen type).
template <class F>
static auto with_types(const F &f) {
  return f();
}
template <class F, class Narrow, class Wide, class... More>
static auto with_types(const F &f, TypeChoice<Narrow, Wide> choice, More... more) {
  if (choice.wide) return with_types([&](auto... others) { return f(Wide(), others...); }, more...);
  return with_types([&](auto... others) { return f(Narrow(), others...); }, more...);
}

}  // namespace fanin
