// A lane group: 32 values that are worked on together, one per instance of the batch.
//
// On CUDA a group is one warp, and each thread holds one lane. On a CPU one thread holds all 32
// lanes in SIMD registers. (Those are the compiler's vector types, so there are no intrinsics, and
// any instruction set will do.) The kernels above this file are written once over what is defined
// here:
//
//   Lanes<T>            32 values of type T (on a CPU also fewer, see sorted.h)
//   broadcast, load, store, fma, sum, map, any, from_mask, each_lane
//   Chunk<T>            Chunk<T>::size values side by side, one for each connection: what
//                       the optimiser works on
//   load_chunk, write_chunk, store_chunk (which rounds), random_chunk, stage
//   load_codes, store_codes, largest   bytes of rows in float8 (float8.h) beside a chunk
//   Connections<T, I, W>   the (source, weight) pairs of a chunk; W is how weights are stored
//   Gathered<T>         sums rows of sources into the lanes of a label, along its connections
//   row_sums, spread    the way back: from the lanes of a label to a weight each, and to the rows;
//                       row_sums_and_spread does both at once
//   announce, fetch     array elements that are read next, or a good while later
//   Team<T>             who works on a tile of 32 labels: a CUDA warp, or one CPU thread
//
// lanes_cuda.h and lanes_cpu.h define them.
//
// FANIN_TARGET names the namespace. Each instruction set is compiled into its own: an inline
// function that differently compiled files share could be linked in its AVX-512 form and then run
// on a machine without it. For the same reason nothing of std:: with a body is used here.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <type_traits>
#include <utility>

#include "core/types.h"

#if defined(__CUDACC__)
#define FANIN_FN __device__ __forceinline__
#define FANIN_UNROLL _Pragma("unroll")
#define FANIN_UNROLL_FEW _Pragma("unroll 2")  // more would not fit the registers
#define FANIN_ROLLED _Pragma("unroll 1")
#define FANIN_INLINE
#define FANIN_OUTLINED FANIN_FN
#else
#define FANIN_FN inline __attribute__((always_inline))
#define FANIN_INLINE __attribute__((always_inline))
#define FANIN_OUTLINED inline __attribute__((noinline))  // a rare case, or a long one beside a call
#define FANIN_UNROLL_FEW
#define FANIN_ROLLED
#if defined(__clang__)
#define FANIN_UNROLL _Pragma("clang loop unroll(full)")
#else
#define FANIN_UNROLL _Pragma("GCC unroll 32")
#endif
#endif

namespace fanin {
namespace FANIN_TARGET {

#if defined(__CUDACC__)
constexpr bool kOnGpu = true;
#else
constexpr bool kOnGpu = false;
#endif
constexpr int kLanes = 32;
constexpr int kTile = 32;  // labels that are written out together

template <class T>
FANIN_FN T smaller(T a, T b) {
  return a < b ? a : b;
}

// A bit for each of the first `lanes` lanes; all 32 bits where there are more.
FANIN_FN uint32_t mask_of_first(int64_t lanes) { return lanes < kLanes ? (1u << lanes) - 1 : ~0u; }

template <class To, class From>
FANIN_FN To same_bits(const From &from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

// A number in all elements of U: uint32_t or a vector of them. On a CPU it is read from memory.
// GCC would otherwise build it again at every use, with three instructions, and a chunk takes few
// others.
template <class U, uint32_t number>
FANIN_FN U constant() {
#if defined(__CUDACC__)
  return number;
#else
  static const U all = U{} + number;
  const U *hidden = &all;
  asm("" : "+r"(hidden));
  return *hidden;
#endif
}

// Random bits from positions that are kRandomStep apart: one round of the 32-bit finaliser
// "lowbias32" (Chris Wellons, "Prospecting for hash functions", 2018) without its last step, x ^= x
// >> 16. optimizer.h does that step where it needs it. The other round is spared: 2^32 over the
// golden ratio as the step has parted neighbours already, and a chunk gets its positions by one
// addition. With both rounds, a step in bfloat16 with AVX2 takes 3 to 4 percent longer.
constexpr uint32_t kRandomStep = 0x9e3779b9u;
template <class U>
FANIN_FN U mix(U x) {
  x ^= x >> 15;
  x *= constant<U, 0x846ca68bu>();
  return x;
}

}  // namespace FANIN_TARGET
}  // namespace fanin

#if defined(__CUDACC__)
#include "core/lanes_cuda.h"
#else
#include "core/lanes_cpu.h"
#endif
