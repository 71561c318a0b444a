// What a CPU thread and a warp do each in its own way: loops that the threads of a warp share,
// masks with a bit for each of 32 values, and checks of positions that only a GPU needs.
#pragma once

#include "core/lanes.h"

namespace fanin {
namespace FANIN_TARGET {

#if defined(__CUDACC__)
// f(i) for each i from begin to end - 1, by all threads of the warp.
template <class F>
FANIN_FN void each_of(int64_t begin, int64_t end, const F &f) {
  for (int64_t i = begin + thread_id(); i < end; i += kLanes) f(i);
}
FANIN_FN bool all_hold(bool good) { return __all_sync(kAll, good); }
// A bit for each of the 32 values that is at least the bound.
FANIN_FN uint32_t mask_at_least(const float *values, float bound) {
  return __ballot_sync(kAll, values[thread_id()] >= bound);
}
// A bit for each of the 32 values that is above the bound. It is also set where the value or the
// bound is NaN.
FANIN_FN uint32_t mask_above(const float *values, float bound) {
  return __ballot_sync(kAll, !(values[thread_id()] <= bound));
}
// A bit for each lane of which f(lane) holds.
template <class F>
FANIN_FN uint32_t mask_where(const F &f) {
  return __ballot_sync(kAll, f(thread_id()));
}
FANIN_FN int bits_of(uint32_t mask) { return __popc(mask); }
// f(bit, how many bits are below it) for each bit that is set.
template <class F>
FANIN_FN void each_bit(uint32_t mask, const F &f) {
  if (mask >> thread_id() & 1) f(thread_id(), __popc(mask & ((1u << thread_id()) - 1)));
}
// How many of the values, in whole groups, are at least the bound.
FANIN_FN int64_t count_at_least(const float *values, int64_t count, float bound) {
  int total = 0;
  for (int64_t i = 0; i < count; i += kLanes) total += bits_of(mask_at_least(values + i, bound));
  return total;
}
// f() by one thread; what it wrote is seen by all of the warp afterwards.
template <class F>
FANIN_FN void by_one(const F &f) {
  __syncwarp();
  if (thread_id() == 0) f();
  __syncwarp();
}
#else
template <class F>
FANIN_FN void each_of(int64_t begin, int64_t end, const F &f) {
  for (int64_t i = begin; i < end; ++i) f(i);
}
FANIN_FN bool all_hold(bool good) { return good; }
FANIN_FN uint32_t mask_at_least(const float *values, float bound) {
  uint32_t mask = 0;
  for (int lane = 0; lane < kLanes; ++lane) mask |= uint32_t(values[lane] >= bound) << lane;
  return mask;
}
template <class F>
FANIN_FN uint32_t mask_where(const F &f) {
  uint32_t mask = 0;
  for (int lane = 0; lane < kLanes; ++lane) mask |= uint32_t(bool(f(lane))) << lane;
  return mask;
}
FANIN_FN uint32_t mask_above(const float *values, float bound) {
  const Lanes<float> above =
      map([&](auto s) FANIN_INLINE { return s <= bound ? decltype(s){} : decltype(s){} + 1.0f; },
          load(values));
  if (!any(above)) return 0;
  return mask_where([&](int lane) FANIN_INLINE { return !(values[lane] <= bound); });
}
FANIN_FN int bits_of(uint32_t mask) { return __builtin_popcount(mask); }
template <class F>
FANIN_FN void each_bit(uint32_t mask, const F &f) {
  for (int below = 0; mask; mask &= mask - 1, ++below) f(__builtin_ctz(mask), below);
}
FANIN_FN int64_t count_at_least(const float *values, int64_t count, float bound) {
  constexpr int width = VectorOf<float>::width;
  const Vector<float> least = Vector<float>{} + bound;
  Bits counts[4] = {};  // so that one addition need not wait for another
  for (int64_t i = 0; i < count; i += 4 * width) {
    FANIN_UNROLL
    for (int j = 0; j < 4; ++j)
      if (4 * width <= kLanes || i + j * width < count)
        counts[j] -= (Bits)(load_vector(values + i + j * width) >= least);
  }
  const Bits all = counts[0] + counts[1] + counts[2] + counts[3];
  int64_t total = 0;
  for (int j = 0; j < width; ++j) total += all[j];
  return total;
}
template <class F>
FANIN_FN void by_one(const F &f) {
  f();
}
#endif

// Whether begin to end - 1 are positions among so many. A CPU has checked this before.
FANIN_FN bool in_bounds(int64_t begin, int64_t end, int64_t count) {
  return !kOnGpu || (0 <= begin && begin <= end && end <= count);
}

}  // namespace FANIN_TARGET
}  // namespace fanin
