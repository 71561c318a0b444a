// Lane groups on a CPU: one thread holds all 32 lanes in SIMD registers, which are the compiler's
// vector types. See lanes.h, which includes this.
//
// This file has vectors and Lanes; lanes_cpu_sums.h transposes and sums squares of vectors;
// lanes_cpu_chunks.h has values along connections; lanes_cpu_team.h reads and writes tiles.
#pragma once

namespace fanin {
namespace FANIN_TARGET {

#if defined(__AVX512F__)
constexpr size_t kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr size_t kVectorBytes = 32;
#else
constexpr size_t kVectorBytes = 16;
#endif
constexpr int kTilePitch = kLanes;  // from one label of a tile to the next

template <class T>
struct VectorOf {
  static constexpr int width = int(kVectorBytes / sizeof(T));
  typedef T type __attribute__((vector_size(kVectorBytes)));
  typedef T unaligned __attribute__((vector_size(kVectorBytes), aligned(sizeof(T)), may_alias));
};
template <class T>
using Vector = typename VectorOf<T>::type;

#if defined(__AVX512F__) && defined(__GNUC__) && !defined(__clang__)
#define FANIN_GCC_AVX512  // whose builtins do what GCC makes several instructions of otherwise
typedef int32_t SignedBits __attribute__((vector_size(kVectorBytes)));
typedef int16_t SignedWords __attribute__((vector_size(kVectorBytes)));
constexpr int kGreater = 6;  // of a comparison that gives a bit per element
#elif defined(__AVX2__) && defined(__GNUC__) && !defined(__clang__)
#define FANIN_GCC_AVX2
typedef int32_t SignedBits __attribute__((vector_size(kVectorBytes)));
#endif

// Integers beside the elements of a Vector<float>.
typedef uint32_t Bits __attribute__((vector_size(kVectorBytes)));
typedef uint16_t HalfBits
    __attribute__((vector_size(kVectorBytes / 2), aligned(sizeof(uint16_t)), may_alias));

template <class T>
FANIN_FN Vector<T> load_vector(const T *p) {
  return *reinterpret_cast<const typename VectorOf<T>::unaligned *>(p);
}
template <class T>
FANIN_FN void store_vector(T *p, Vector<T> a) {
  *reinterpret_cast<typename VectorOf<T>::unaligned *>(p) = a;
}

// Stores past the caches where the address allows it: large arrays that are not read soon need not
// be fetched before they are overwritten.
template <class T>
FANIN_FN void stream_vector(T *p, Vector<T> a) {
#if defined(__SSE2__) && defined(__GNUC__) && !defined(__clang__)
  if (reinterpret_cast<uintptr_t>(p) % kVectorBytes == 0) {
    typedef float Floats __attribute__((vector_size(kVectorBytes)));
    float *out = reinterpret_cast<float *>(p);
#if defined(__AVX512F__)
    __builtin_ia32_movntps512(out, (Floats)a);
#elif defined(__AVX2__)
    __builtin_ia32_movntps256(out, (Floats)a);
#else
    __builtin_ia32_movntps(out, (Floats)a);
#endif
    return;
  }
#endif
  store_vector(p, a);
}
// Makes streamed stores visible to other threads.
FANIN_FN void end_stream() {
#if defined(__SSE2__)
  __builtin_ia32_sfence();
#endif
}

// N: fewer where a group is worked on in parts.
template <class T, int N = kLanes>
struct Lanes {
  static constexpr int count = N / VectorOf<T>::width;
  Vector<T> v[count];
};

template <class T>
FANIN_FN Lanes<T> broadcast(T x) {
  Lanes<T> r;
  for (auto &v : r.v) v = Vector<T>{} + x;
  return r;
}
template <int N = kLanes, class T>
FANIN_FN Lanes<T, N> load(const T *row) {
  Lanes<T, N> r;
  FANIN_UNROLL
  for (int i = 0; i < r.count; ++i) r.v[i] = load_vector(row + i * VectorOf<T>::width);
  return r;
}
template <class T, int N>
FANIN_FN void store(T *row, Lanes<T, N> a) {
  FANIN_UNROLL
  for (int i = 0; i < a.count; ++i) store_vector(row + i * VectorOf<T>::width, a.v[i]);
}
template <class T>
FANIN_FN void stream(T *row, Lanes<T> a) {
  FANIN_UNROLL
  for (int i = 0; i < Lanes<T>::count; ++i) stream_vector(row + i * VectorOf<T>::width, a.v[i]);
}
template <class W, class T, int N>
FANIN_FN Lanes<T, N> fma(W w, Lanes<T, N> a, Lanes<T, N> b) {
  FANIN_UNROLL
  for (int i = 0; i < a.count; ++i) b.v[i] += w * a.v[i];
  return b;
}
// Vector by vector: GCC stores a whole group of lanes on the stack after it has loaded it.
template <class W, class T, int N>
FANIN_FN void add_to(T *row, W w, const Lanes<T, N> &a) {
  constexpr int width = VectorOf<T>::width;
  FANIN_UNROLL
  for (int i = 0; i < a.count; ++i)
    store_vector(row + i * width, load_vector(row + i * width) + w * a.v[i]);
}
// Adds w * a row to lanes.
template <class W, class T, int N>
FANIN_FN void add_row(Lanes<T, N> &a, W w, const T *row) {
  FANIN_UNROLL
  for (int i = 0; i < a.count; ++i) a.v[i] += w * load_vector(row + i * VectorOf<T>::width);
}
template <class T>
FANIN_FN void add_to(T *row, const Lanes<T> &a) {
  add_to(row, T(1), a);
}

// f(lane, value) for each of the first `lanes` lanes.
template <class T, class F>
FANIN_FN void each_lane(const Lanes<T> &a, int lanes, const F &f) {
  T row[kLanes];
  store(row, a);
  for (int lane = 0; lane < lanes; ++lane) f(lane, row[lane]);
}

template <class T, class F, class... More>
FANIN_FN Lanes<T> map(const F &f, const Lanes<T> &a, const More &...more) {
  Lanes<T> r;
  FANIN_UNROLL
  for (int i = 0; i < Lanes<T>::count; ++i) r.v[i] = f(a.v[i], more.v[i]...);
  return r;
}
FANIN_FN Lanes<float> from_mask(uint32_t mask, float set, float clear) {
  constexpr int width = VectorOf<float>::width;
  Bits lane;
  FANIN_UNROLL
  for (int j = 0; j < width; ++j) lane[j] = 1u << j;
  Lanes<float> r;
  FANIN_UNROLL
  for (int i = 0; i < Lanes<float>::count; ++i) {
    const Bits bits = lane & (Bits{} + (mask >> i * width));
    r.v[i] = bits != 0 ? Vector<float>{} + set : Vector<float>{} + clear;
  }
  return r;
}
FANIN_FN bool any_bit(const Bits &bits) {
#if defined(FANIN_GCC_AVX512)
  return __builtin_ia32_ptestmd512((SignedBits)bits, (SignedBits)bits, uint16_t(-1));
#else
  uint32_t all = 0;
  FANIN_UNROLL
  for (int j = 0; j < VectorOf<float>::width; ++j) all |= bits[j];
  return all;
#endif
}
FANIN_FN bool any(const Lanes<float> &a) {
  Bits not_zero{};
  FANIN_UNROLL
  for (int i = 0; i < Lanes<float>::count; ++i) not_zero |= (Bits)(a.v[i] != 0.0f);
  return any_bit(not_zero);
}
FANIN_FN Vector<float> root(Vector<float> x) {
#if defined(FANIN_GCC_AVX512)
  return (Vector<float>)__builtin_ia32_sqrtps512_mask(x, x, uint16_t(-1), 4);
#else
  Vector<float> r{};
  FANIN_UNROLL
  for (int j = 0; j < VectorOf<float>::width; ++j) r[j] = __builtin_sqrtf(x[j]);
  return r;
#endif
}
// exp(x) = 2^n exp(r) with |r| <= ln(2) / 2, exp(r) by its Taylor series: within 2 units in the
// last place. Below -87 it gives exp(-87), above 88 exp(88): still finite, and as good as 0 and
// infinity for a loss.
FANIN_FN Vector<float> exponential(Vector<float> x) {
  typedef Vector<float> V;
  x = x < -87.0f ? V{} - 87.0f : x > 88.0f ? V{} + 88.0f : x;
  const V magic = V{} + 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const V n = (x * 1.44269504f + magic) - magic;
  // ln(2) in two parts, so that the difference is exact.
  const V r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  V e = V{} + 1.0f / 5040;
  e = e * r + 1.0f / 720;
  e = e * r + 1.0f / 120;
  e = e * r + 1.0f / 24;
  e = e * r + 1.0f / 6;
  e = e * r + 0.5f;
  e = e * r + 1.0f;
  e = e * r + 1.0f;
  const Bits power = ((Bits)(n + magic) - 0x4b400000u + 127u) << 23;
  return e * (V)power;
}

}  // namespace FANIN_TARGET
}  // namespace fanin

#include "core/lanes_cpu_chunks.h"
#include "core/lanes_cpu_sums.h"
#include "core/lanes_cpu_team.h"
