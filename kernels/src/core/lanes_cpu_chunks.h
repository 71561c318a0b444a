// Chunks on a CPU, one value for each of as many connections as a vector holds, and the ways of
// values along connections. lanes_cpu.h includes this.
//
// Every function has two variants: one for a whole chunk, unrolled, and one for the first `count`
// values, which the last chunk of a label needs. The latter are loops, and out of line where they
// can be: inlined into every kernel, they took the compiler as long as the kernels themselves.
#pragma once

#include "core/lanes_cpu_sums.h"

namespace fanin {
namespace FANIN_TARGET {

template <class T>
struct Chunk {
  static constexpr int size = VectorOf<T>::width;
  Vector<T> v;
};

// Announces what is read next. A CPU fetches that by itself.
template <class T>
FANIN_FN void announce(const T *, int64_t) {}
// Fetches what is read a good while later. By itself a CPU fetches no further than to the end of a
// page, and an AMD (Zen 5) at times nothing at all beside sums that are spread over much memory: a
// step from 32,768 inputs took 42 to 86 ms, depending on where in memory its code happened to lie.
// It takes 44 to 56 ms with moments fetched so; with weights and indices as well it was slower
// again.
template <class T>
FANIN_FN void fetch(const T *p, int64_t count) {
  for (int64_t i = 0; i < count; i += 64 / int64_t(sizeof(T))) __builtin_prefetch(p + i);
}

// Loads and stores -------------------------------------------------------------------------------

#if defined(FANIN_GCC_AVX512)
typedef int16_t SignedHalfBits __attribute__((vector_size(kVectorBytes / 2)));
FANIN_FN Bits widened(const HalfBits &a) {
  return (Bits)__builtin_ia32_pmovzxwd512_mask((SignedHalfBits)a, SignedBits{}, uint16_t(-1));
}
FANIN_FN HalfBits narrowed(const Bits &a) {
  return (HalfBits)__builtin_ia32_pmovdw512_mask((SignedBits)a, SignedHalfBits{}, uint16_t(-1));
}
#elif defined(FANIN_GCC_AVX2)
typedef int16_t SignedHalfBits __attribute__((vector_size(kVectorBytes / 2)));
FANIN_FN Bits widened(const HalfBits &a) {
  return (Bits)__builtin_ia32_pmovzxwd256((SignedHalfBits)a);
}
// Of numbers below 2^16.
FANIN_FN HalfBits narrowed(const Bits &a) {
  typedef long long Words __attribute__((vector_size(kVectorBytes)));
  typedef int32_t Half __attribute__((vector_size(kVectorBytes / 2)));
  return (HalfBits)__builtin_ia32_packusdw128((Half)__builtin_ia32_extract128i256((Words)a, 0),
                                              (Half)__builtin_ia32_extract128i256((Words)a, 1));
}
#else
FANIN_FN Bits widened(const HalfBits &a) { return __builtin_convertvector(a, Bits); }
FANIN_FN HalfBits narrowed(const Bits &a) { return __builtin_convertvector(a, HalfBits); }
#endif

// Of each element the upper 16 bits.
#if defined(FANIN_GCC_AVX2)
FANIN_FN HalfBits upper_halves(const Bits &a) {
  typedef char Bytes __attribute__((vector_size(kVectorBytes)));
  typedef long long Words __attribute__((vector_size(kVectorBytes)));
  const Bytes places = {2, 3, 6, 7, 10, 11, 14, 15, 2, 3, 6, 7, 10, 11, 14, 15,
                        2, 3, 6, 7, 10, 11, 14, 15, 2, 3, 6, 7, 10, 11, 14, 15};
  const Words parts = (Words)__builtin_ia32_pshufb256((Bytes)a, places);
  const Words whole = __builtin_shufflevector(parts, parts, 0, 2, 0, 2);
  return (HalfBits)__builtin_ia32_extract128i256(whole, 0);
}
#else
FANIN_FN HalfBits upper_halves(const Bits &a) { return narrowed(a >> 16); }
#endif

// Which half of a 32-bit element is the upper one, in the order of memory.
constexpr size_t kUpperHalf = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__;

template <class T>
FANIN_FN T widen(T x) {
  return x;
}
FANIN_FN float widen(Bf16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

template <class T>
FANIN_OUTLINED Chunk<T> load_part(const T *p, int count) {
  Chunk<T> r{};
  for (int j = 0; j < count; ++j) r.v[j] = p[j];
  return r;
}
#if defined(FANIN_GCC_AVX512)
FANIN_FN Chunk<float> load_part(const float *p, int count) {
  return {(Vector<float>)__builtin_ia32_loadups512_mask(p, Vector<float>{},
                                                        uint16_t((1u << count) - 1))};
}
#elif defined(FANIN_GCC_AVX2)
FANIN_FN Chunk<float> load_part(const float *p, int count) {
  const SignedBits lane = {0, 1, 2, 3, 4, 5, 6, 7};
  return {(Vector<float>)__builtin_ia32_maskloadps256((const Vector<float> *)p, lane < count)};
}
#endif
FANIN_FN Chunk<float> to_float(const HalfBits &bits) {
  return {(Vector<float>)(widened(bits) << 16)};
}
FANIN_OUTLINED Chunk<float> load_part(const Bf16 *p, int count) {
  HalfBits bits{};
  for (int j = 0; j < count; ++j) bits[j] = p[j].bits;
  return to_float(bits);
}
template <class T>
FANIN_FN Chunk<T> load_chunk(const T *p, int count) {
  return count == Chunk<T>::size ? Chunk<T>{load_vector(p)} : load_part(p, count);
}
template <class T>
FANIN_FN Chunk<float> load_chunk(const Bf16 *p, int count) {
  return count == Chunk<float>::size ? to_float(*reinterpret_cast<const HalfBits *>(p))
                                     : load_part(p, count);
}

// Bytes of float8 rows, beside the elements of a chunk; beyond `count` 0.
typedef uint8_t Codes
    __attribute__((vector_size(kVectorBytes / 4), aligned(sizeof(uint8_t)), may_alias));
FANIN_OUTLINED Bits load_part(const Float8 *p, int count) {
  Bits bits{};
  for (int j = 0; j < count; ++j) bits[j] = p[j].bits;
  return bits;
}
FANIN_FN Bits load_codes(const Float8 *p, int count) {
  if (count < Chunk<float>::size) return load_part(p, count);
  const Codes &codes = *reinterpret_cast<const Codes *>(p);
#if defined(FANIN_GCC_AVX512)  // GCC takes every byte by itself otherwise
  typedef char Bytes __attribute__((vector_size(16)));
  return (Bits)__builtin_ia32_pmovzxbd512_mask((Bytes)codes, SignedBits{}, uint16_t(-1));
#elif defined(FANIN_GCC_AVX2)
  typedef char Bytes __attribute__((vector_size(16)));
  typedef long long Words __attribute__((vector_size(16)));
  return (Bits)__builtin_ia32_pmovzxbd256((Bytes)Words{same_bits<long long>(codes), 0});
#else
  return __builtin_convertvector(codes, Bits);
#endif
}
FANIN_OUTLINED void store_part(Float8 *p, int count, Bits bits) {
  for (int j = 0; j < count; ++j) p[j].bits = uint8_t(bits[j]);
}
FANIN_FN void store_codes(Float8 *p, int count, const Bits &bits) {
  if (count < Chunk<float>::size) return store_part(p, count, bits);
#if defined(FANIN_GCC_AVX2)
  typedef int16_t Halves __attribute__((vector_size(16)));
  typedef long long Words __attribute__((vector_size(16)));
  const Halves halves = (Halves)narrowed(bits);
  *reinterpret_cast<Codes *>(p) =
      same_bits<Codes>(((Words)__builtin_ia32_packuswb128(halves, halves))[0]);
#else
  *reinterpret_cast<Codes *>(p) = __builtin_convertvector(bits, Codes);
#endif
}
// The largest element.
FANIN_FN uint32_t largest(const Bits &bits) {
  uint32_t most = 0;
  FANIN_UNROLL
  for (int j = 0; j < VectorOf<float>::width; ++j) most = bits[j] > most ? bits[j] : most;
  return most;
}

// Writes a chunk, or adds it to what is there. streaming: past the caches.
template <class T>
FANIN_OUTLINED void write_part(T *out, int count, Chunk<T> a, bool add) {
  for (int j = 0; j < count; ++j) out[j] = add ? out[j] + a.v[j] : a.v[j];
}
#if defined(FANIN_GCC_AVX512)  // AVX2 has no such instruction that is fast on AMD
FANIN_FN void write_part(float *out, int count, Chunk<float> a, bool add) {
  if (add) a.v += load_part(out, count).v;
  __builtin_ia32_storeups512_mask(out, a.v, uint16_t((1u << count) - 1));
}
#endif
template <class T>
FANIN_FN void write_chunk(T *out, int count, const Chunk<T> &a, bool add, bool streaming) {
  if (count < Chunk<T>::size)
    write_part(out, count, a, add);
  else if (streaming && !add)
    stream_vector(out, a.v);
  else
    store_vector(out, add ? load_vector(out) + a.v : a.v);
}
template <class T>
FANIN_FN void write_one(T *out, T value, bool add) {
  *out = add ? *out + value : value;
}

// Stages values that all lanes read later, each of them for itself.
FANIN_FN void stage(float *values, const Chunk<float> &a) { store_vector(values, a.v); }

FANIN_FN Bits random_chunk(uint32_t first, uint32_t seed) {
  Bits lane;
  FANIN_UNROLL
  for (int j = 0; j < VectorOf<float>::width; ++j) lane[j] = j * kRandomStep;
  return mix(lane + (first * kRandomStep + seed));
}
template <size_t... J>
FANIN_FN Bits without_upper(Vector<uint16_t> a, std::index_sequence<J...>) {
  return (Bits)__builtin_shufflevector(a, Vector<uint16_t>{},
                                       int(J % 2 == kUpperHalf ? sizeof...(J) + J : J)...);
}
FANIN_FN Bits lower_half(const Bits &a) {
  return without_upper((Vector<uint16_t>)a, std::make_index_sequence<VectorOf<uint16_t>::width>());
}
FANIN_FN void store_chunk(float *p, int count, const Chunk<float> &a, const Bits &) {
  write_chunk(p, count, a, false, false);
}
// Stochastic rounding, by 16 random bits: up with the probability of the part that is cut off.
FANIN_OUTLINED void store_part(Bf16 *p, int count, Bits bits) {
  for (int j = 0; j < count; ++j) p[j].bits = uint16_t(bits[j]);
}
FANIN_FN void store_chunk(Bf16 *p, int count, const Chunk<float> &a, const Bits &random) {
  const Bits bits = (Bits)a.v + random;
  if (count == Chunk<float>::size)
    *reinterpret_cast<HalfBits *>(p) = upper_halves(bits);
  else
    store_part(p, count, bits >> 16);
}

// Products and their sums ------------------------------------------------------------------------

// Makes the compiler compute a value by now. GCC would hold products back until they are summed,
// all of a chunk at a time, and run out of registers for what they are made of.
template <class V>
FANIN_FN void settle(V &a) {
#if defined(__x86_64__)
  asm volatile("" : "+v"(a));
#else
  (void)a;
#endif
}
// The products of two groups of lanes, summed to the width of a vector.
template <class T, int N>
FANIN_FN Chunk<T> product(const Lanes<T, N> &a, const Lanes<T, N> &b) {
  Chunk<T> r{a.v[0] * b.v[0]};
  FANIN_UNROLL
  for (int i = 1; i < a.count; ++i) r.v += a.v[i] * b.v[i];
  settle(r.v);
  return r;
}
// Element c of the result is the sum over products(c).
template <class T, class Products>
FANIN_FN Chunk<T> sums(const Products &products) {
  return {sum_rows<T, 1, 0>(products)};
}
// The same for c < count, in the same order; the other elements are 0.
template <class T, class Products>
FANIN_FN Chunk<T> sums_of_part(int count, const Products &products) {
  static constexpr SumOrder<T> order;
  Chunk<T> rows[Chunk<T>::size] = {};
  for (const int c : order.rows)
    if (c < count) rows[c] = products(c);
  return sums<T>([&](int c) FANIN_INLINE { return rows[c]; });
}

// The sum over all values of a chunk.
template <class T>
FANIN_FN T sum(const Chunk<T> &a) {
  constexpr int width = VectorOf<T>::width;
  return add_across<width / 2>(a.v, std::make_index_sequence<width>())[0];
}

// Connections ------------------------------------------------------------------------------------

// The indices of a whole chunk, several to a load: loads are what a CPU runs out of here.
template <class T, class I>
struct Sources {
  static constexpr int size = Chunk<T>::size;
  typedef std::conditional_t<size * sizeof(I) % 8 == 0, uint64_t, uint32_t> Word;
  static constexpr int in_word = int(sizeof(Word) / sizeof(I));
  Word words[size / in_word];

  FANIN_FN explicit Sources(const I *indices) { __builtin_memcpy(words, indices, sizeof words); }
  FANIN_FN size_t operator[](int j) const {
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    const int place = j % in_word;
#else
    const int place = in_word - 1 - j % in_word;
#endif
    return I(words[j / in_word] >> place * 8 * sizeof(I));
  }
};

// The weights of a whole chunk: each as a number, or as a vector that has it in all elements.
template <class T, class W>
struct Weights {
  const T *weights;
  FANIN_FN explicit Weights(const T *w) : weights(w) {}
  FANIN_FN T operator[](int j) const { return weights[j]; }
};
// Four bfloat16 to a load, which fills a vector with them; one instruction widens them, and one
// more takes a weight out. Both stay within 128-bit lanes. To write the widened weights to memory
// and read each from there took a step with AVX2 15 % longer, and with AVX-512 a third.
template <>
struct Weights<float, Bf16> {
  static constexpr int width = VectorOf<float>::width;
  Vector<float> fours[width / 4];

  FANIN_FN explicit Weights(const Bf16 *w) {
    FANIN_UNROLL
    for (int i = 0; i < width / 4; ++i) {
      uint64_t four;
      __builtin_memcpy(&four, w + 4 * i, sizeof four);
      fours[i] = (Vector<float>)after_zeros((Vector<uint16_t>)(Vector<uint64_t>{} + four),
                                            std::make_index_sequence<2 * width>());
    }
  }
  FANIN_FN Vector<float> operator[](int j) const {
    constexpr std::make_index_sequence<width> elements;
    const Vector<float> &four = fours[j / 4];
    return j % 4 == 0   ? one_of_four<0>(four, elements)
           : j % 4 == 1 ? one_of_four<1>(four, elements)
           : j % 4 == 2 ? one_of_four<2>(four, elements)
                        : one_of_four<3>(four, elements);
  }

 private:
  // The first four of each eight words, each the upper half of an element whose other half is 0.
  template <size_t... J>
  FANIN_FN static Vector<uint16_t> after_zeros(Vector<uint16_t> a, std::index_sequence<J...>) {
    return __builtin_shufflevector(
        a, Vector<uint16_t>{},
        int((J % 2 == kUpperHalf ? 0 : sizeof...(J)) + J / 8 * 8 + J % 8 / 2)...);
  }
  template <int which, size_t... J>
  FANIN_FN static Vector<float> one_of_four(Vector<float> a, std::index_sequence<J...>) {
    return __builtin_shufflevector(a, a, int(J / 4 * 4 + which)...);
  }
};

template <class T, class I, class W = T>
struct Connections {
  const I *indices;
  const W *weights;
  FANIN_FN Connections(const I *i, const W *w, int) : indices(i), weights(w) {}
  FANIN_FN size_t source(int j) const { return indices[j]; }
  FANIN_FN T weight(int j) const { return widen(weights[j]); }
};

// The sum over connections of weight * the source's row: it is begun, chunks are added, and it is
// read. There are two sums, of even and of odd connections, so that one addition need not wait for
// another.
template <class T>
struct Gathered {
  Lanes<T> even, odd;

  FANIN_FN explicit Gathered(T start) : even(broadcast(start)), odd(broadcast(T(0))) {}

  template <class I, class W>
  FANIN_FN void add(const Connections<T, I, W> &connections, int count, const T *rows) {
    if (count == Chunk<T>::size) {
      const Sources<T, I> sources(connections.indices);
      const Weights<T, W> weights(connections.weights);
      FANIN_UNROLL
      for (int c = 0; c < Chunk<T>::size; c += 2) {
        add_row(even, weights[c], rows + sources[c] * kLanes);
        add_row(odd, weights[c + 1], rows + sources[c + 1] * kLanes);
      }
    } else {
      for (int c = 0; c < count; ++c)
        add_row(even, connections.weight(c), rows + connections.source(c) * kLanes);
    }
  }
  FANIN_FN Lanes<T> lanes() const { return fma(T(1), odd, even); }
};

// For each connection, grad * the source's row, summed over the lanes.
template <class T, class I, class W>
FANIN_FN Chunk<T> row_sums(const Connections<T, I, W> &connections, int count, const Lanes<T> &grad,
                           const T *rows) {
  const auto row_sum = [&](size_t source)
                           FANIN_INLINE { return product(grad, load(rows + source * kLanes)); };
  if (count == Chunk<T>::size) {
    const Sources<T, I> sources(connections.indices);
    return sums<T>([&](int c) FANIN_INLINE { return row_sum(sources[c]); });
  }
  return sums_of_part<T>(count, [&](int c) FANIN_INLINE { return row_sum(connections.source(c)); });
}

// Adds weight * grad to each source's row.
template <class T, class I, class W>
FANIN_FN void spread(const Connections<T, I, W> &connections, int count, const Lanes<T> &grad,
                     T *rows) {
  if (count == Chunk<T>::size) {
    const Sources<T, I> sources(connections.indices);
    const Weights<T, W> weights(connections.weights);
    FANIN_UNROLL
    for (int c = 0; c < Chunk<T>::size; ++c) add_to(rows + sources[c] * kLanes, weights[c], grad);
  } else {
    for (int c = 0; c < count; ++c)
      add_to(rows + connections.source(c) * kLanes, connections.weight(c), grad);
  }
}

// Both of them, connection by connection, so that the arithmetic of one overlaps the stores of the
// other.
template <class T, class I, class W>
FANIN_FN Chunk<T> row_sums_and_spread(const Connections<T, I, W> &connections, int count,
                                      const Lanes<T> &grad, const T *rows, T *targets) {
  if (count < Chunk<T>::size) {
    spread(connections, count, grad, targets);
    return row_sums(connections, count, grad, rows);
  }
  const Sources<T, I> sources(connections.indices);
  const Weights<T, W> weights(connections.weights);
  return sums<T>([&](int c) FANIN_INLINE {
    const size_t at = sources[c] * kLanes;
    const Chunk<T> sum = product(grad, load(rows + at));
    add_to(targets + at, weights[c], grad);
    return sum;
  });
}

}  // namespace FANIN_TARGET
}  // namespace fanin
