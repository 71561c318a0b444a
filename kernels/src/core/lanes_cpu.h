// Lane groups on a CPU: one thread holds all 32 lanes in SIMD registers. See lanes.h, which includes
// this.
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
constexpr int kTilePitch = kLanes;

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
template <class T, int N>
FANIN_FN Lanes<T, N> fma(T w, Lanes<T, N> a, Lanes<T, N> b) {
FANIN_UNROLL
  for (int i = 0; i < a.count; ++i) b.v[i] += w * a.v[i];
  return b;
}
template <class T, int N>
FANIN_FN void add_to(T *row, T w, Lanes<T, N> a) {
  store(row, fma(w, a, load<N>(row)));
}
template <class T>
FANIN_FN void add_to(T *row, const Lanes<T> &a) {
  add_to(row, T(1), a);
}

// Transposing a square of vectors, and summing its rows, are the same butterfly: in the stage of
// distance D, elements whose row and column differ in bit D change places. These are the two
// halves of an exchange between rows a (bit clear) and b (bit set).
template <int D, class V, size_t... J>
FANIN_FN V exchange_low(V a, V b, std::index_sequence<J...>) {
  return __builtin_shufflevector(a, b, (J & D ? int(sizeof...(J) + (J ^ D)) : int(J))...);
}
template <int D, class V, size_t... J>
FANIN_FN V exchange_high(V a, V b, std::index_sequence<J...>) {
  return __builtin_shufflevector(a, b, (J & D ? int(sizeof...(J) + J) : int(J ^ D))...);
}

template <class T, int D = VectorOf<T>::width / 2>
FANIN_FN void transpose(Vector<T> (&rows)[VectorOf<T>::width]) {
  constexpr int width = VectorOf<T>::width;
  constexpr std::make_index_sequence<width> columns;
FANIN_UNROLL
  for (int i = 0; i < width; ++i)
    if (!(i & D)) {
      const Vector<T> a = rows[i], b = rows[i + D];
      rows[i] = exchange_low<D>(a, b, columns);
      rows[i + D] = exchange_high<D>(a, b, columns);
    }
  if constexpr (D > 1) transpose<T, D / 2>(rows);
}

// Summing the rows of a square exchanges likewise, but leaves open where a sum ends up, so that each
// exchange is one cheap instruction (vshufps, vshuff32x4) on any instruction set. Those move whole
// 128-bit lanes, or values within one: the bits of a column fall into two fields of one or two bits
// each. In a field of one bit, operand a fills the clear half and b the set one; in a field of two,
// the upper bit tells the operand and the lower one holds what is left of the column.
template <class T, int D>
struct Field {
  static constexpr int in_lane = int(16 / sizeof(T)), width = VectorOf<T>::width;
  static constexpr int low = D < in_lane ? 1 : in_lane;            // its lowest bit
  static constexpr int all = (D < in_lane ? in_lane : width) - low;  // its bits
  static constexpr bool pair = all == 3 * low;
};
// Where column J of the result comes from; `set`: of which the bit D is set.
template <class T, int D>
constexpr int summand(int J, bool set) {
  typedef Field<T, D> F;
  const int bit = set ? D : 0, rest = J & ~F::all;
  if (!F::pair) return (J & D ? F::width : 0) + rest + bit;
  const int left = J & F::low ? F::all - D : 0;
  return (J & 2 * F::low ? F::width : 0) + rest + left + bit;
}
template <class T, int D, class V, size_t... J>
FANIN_FN V sum_pair(V a, V b, std::index_sequence<J...>) {
  return __builtin_shufflevector(a, b, summand<T, D>(J, false)...) +
         __builtin_shufflevector(a, b, summand<T, D>(J, true)...);
}
// The position at which the sum of row `row` ends up: fields of two bits have them swapped.
template <class T, int D = VectorOf<T>::width / 2>
constexpr int sum_position(int row) {
  typedef Field<T, D> F;
  const int bit = F::pair ? F::all - D : D;
  const int here = row & D ? bit : 0;
  if constexpr (D > 1)
    return here + sum_position<T, D / 2>(row);
  else
    return here;
}
// Rows Row, Row + D, Row + 2 D, ... summed, each into one element. Depth first, so that few rows are
// held at a time and the exchanges of the first overlap the loads of the next.
template <class T, int D, int Row, class Rows>
FANIN_FN Vector<T> sum_rows(const Rows &rows) {
  constexpr int width = VectorOf<T>::width;
  if constexpr (D == width)
    return rows(sum_position<T>(Row)).v;
  else
    return sum_pair<T, D>(sum_rows<T, 2 * D, Row>(rows), sum_rows<T, 2 * D, Row + D>(rows),
                          std::make_index_sequence<width>());
}

// Halves by halves, not one after the other: the chain of additions is as short as it can be.
template <int D, class V, size_t... J>
FANIN_FN V add_across(V a, std::index_sequence<J...> columns) {
  a += __builtin_shufflevector(a, a, int(J ^ D)...);
  if constexpr (D > 1)
    return add_across<D / 2>(a, columns);
  else
    return a;
}
template <class T>
FANIN_FN T sum(Lanes<T> a) {
  constexpr int width = VectorOf<T>::width;
  FANIN_UNROLL
  for (int d = Lanes<T>::count / 2; d; d /= 2)
    for (int i = 0; i < d; ++i) a.v[i] += a.v[i + d];
  return add_across<width / 2>(a.v[0], std::make_index_sequence<width>())[0];
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
FANIN_FN Lanes<float> of_mask(uint32_t mask, float set, float clear) {
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
FANIN_FN bool any_bit(const Bits &found) {
#if defined(FANIN_GCC_AVX512)
  return __builtin_ia32_ptestmd512((SignedBits)found, (SignedBits)found, uint16_t(-1));
#else
  uint32_t all = 0;
  FANIN_UNROLL
  for (int j = 0; j < VectorOf<float>::width; ++j) all |= found[j];
  return all;
#endif
}
FANIN_FN bool any(const Lanes<float> &a) {
  Bits found{};
  FANIN_UNROLL
  for (int i = 0; i < Lanes<float>::count; ++i) found |= (Bits)(a.v[i] != 0.0f);
  return any_bit(found);
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
// exp(x) = 2^n exp(r) with |r| <= ln(2) / 2, exp(r) by its Taylor series: within 2 units in the last
// place. Below -87 it gives exp(-87), above 88 exp(88): still finite, and as good as 0 and infinity
// for a loss.
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

template <class T>
struct Chunk {
  static constexpr int size = VectorOf<T>::width;
  Vector<T> v;
};
// Computed by now: GCC would hold products back until they are summed, all of a chunk at a time, and
// run out of registers for what they are made of.
template <class V>
FANIN_FN void settle(V &a) {
#if defined(__x86_64__)
  asm volatile("" : "+v"(a));
#else
  (void)a;
#endif
}
template <class T, int N>
FANIN_FN Chunk<T> product(const Lanes<T, N> &a, const Lanes<T, N> &b) {
  Chunk<T> r{a.v[0] * b.v[0]};
FANIN_UNROLL
  for (int i = 1; i < a.count; ++i) r.v += a.v[i] * b.v[i];
  settle(r.v);
  return r;
}
template <class T, class Products>
FANIN_FN Chunk<T> sums(const Products &products) {
  return {sum_rows<T, 1, 0>(products)};
}
template <class T>
FANIN_FN void write_chunk(T *out, int count, const Chunk<T> &a, bool add, bool streaming) {
  if (count == Chunk<T>::size) {
    if (streaming && !add)
      stream_vector(out, a.v);
    else
      store_vector(out, add ? load_vector(out) + a.v : a.v);
  } else {
    for (int j = 0; j < count; ++j) out[j] = add ? out[j] + a.v[j] : a.v[j];
  }
}

template <class T>
FANIN_FN void write_one(T *out, T value, bool add) {
  *out = add ? *out + value : value;
}
// What is read next; a CPU is on its way to it by itself.
template <class T>
FANIN_FN void announce(const T *, int64_t) {}
// What is read a good while later. By itself a CPU fetches no further than to the end of a page, and
// an AMD (Zen 5) at times not at all beside sums that are spread over much memory: a step from 32,768
// inputs took 42 to 86 ms, depending on where in memory its code happened to lie, and takes 44 to 56
// with moments fetched so (with weights and indices as well it was slower again).
template <class T>
FANIN_FN void fetch(const T *p, int64_t count) {
  for (int64_t i = 0; i < count; i += 64 / int64_t(sizeof(T))) __builtin_prefetch(p + i);
}
// Values that all lanes read later, each of them for itself.
FANIN_FN void stage(float *values, const Chunk<float> &a) { store_vector(values, a.v); }

#if defined(FANIN_GCC_AVX512)
typedef int16_t SignedHalfBits __attribute__((vector_size(kVectorBytes / 2)));
FANIN_FN Bits widened(const HalfBits &a) {
  return (Bits)__builtin_ia32_pmovzxwd512_mask((SignedHalfBits)a, SignedBits{}, uint16_t(-1));
}
FANIN_FN HalfBits narrowed(const Bits &a) {
  return (HalfBits)__builtin_ia32_pmovdw512_mask((SignedBits)a, SignedHalfBits{}, uint16_t(-1));
}
#else
FANIN_FN Bits widened(const HalfBits &a) { return __builtin_convertvector(a, Bits); }
FANIN_FN HalfBits narrowed(const Bits &a) { return __builtin_convertvector(a, HalfBits); }
#endif

template <class T>
FANIN_FN Chunk<T> load_chunk(const T *p, int count) {
  if (count == Chunk<T>::size) return {load_vector(p)};
  Chunk<T> r{};
  for (int j = 0; j < count; ++j) r.v[j] = p[j];
  return r;
}
template <class T>
FANIN_FN Chunk<float> load_chunk(const Bf16 *p, int count) {
  HalfBits bits{};
  if (count == Chunk<float>::size)
    bits = *reinterpret_cast<const HalfBits *>(p);
  else
    for (int j = 0; j < count; ++j) bits[j] = p[j].bits;
  return {(Vector<float>)(widened(bits) << 16)};
}
FANIN_FN Bits random_chunk(uint32_t first, uint32_t seed) {
  Bits lane;
  FANIN_UNROLL
  for (int j = 0; j < VectorOf<float>::width; ++j) lane[j] = j;
  return mix((lane + first) ^ seed);
}
FANIN_FN void store_chunk(float *p, int count, const Chunk<float> &a, const Bits &) {
  write_chunk(p, count, a, false, false);
}
// Stochastic rounding: up with the probability of the part that is cut off.
FANIN_FN void store_chunk(Bf16 *p, int count, const Chunk<float> &a, const Bits &random) {
  const Bits bits = ((Bits)a.v + (random & 0xffffu)) >> 16;
  if (count == Chunk<float>::size)
    *reinterpret_cast<HalfBits *>(p) = narrowed(bits);
  else
    for (int j = 0; j < count; ++j) p[j].bits = uint16_t(bits[j]);
}

// The indices of a whole chunk, several to a load: loads are what a CPU runs out of here.
template <class T, class I>
struct Sources {
  static constexpr int size = Chunk<T>::size;
  typedef std::conditional_t<size * sizeof(I) % 8 == 0, uint64_t, uint32_t> Word;
  static constexpr int in_word = int(sizeof(Word) / sizeof(I));
  Word words[size / in_word];

  FANIN_FN explicit Sources(const I *indices) {
    __builtin_memcpy(words, indices, sizeof words);
  }
  FANIN_FN size_t operator[](int j) const {
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    const int place = j % in_word;
#else
    const int place = in_word - 1 - j % in_word;
#endif
    return I(words[j / in_word] >> place * 8 * sizeof(I));
  }
};

template <class T, class I, class W = T>
struct Connections {
  const I *indices;
  const T *weights;
  FANIN_FN Connections(const I *i, const T *w, int) : indices(i), weights(w) {}
  FANIN_FN size_t source(int j) const { return indices[j]; }
  FANIN_FN T weight(int j) const { return weights[j]; }
};
template <class I>
struct Connections<float, I, Bf16> {
  const I *indices;
  alignas(kVectorBytes) float weights[VectorOf<float>::width];
  FANIN_FN Connections(const I *i, const Bf16 *w, int count) : indices(i) {
    store_vector(weights, load_chunk<float>(w, count).v);
#if defined(__x86_64__)
    // Each is read back from memory, as float32 weights are: taken out of the vector they would keep
    // the port busy that the sums of rows need.
    asm volatile("" : "+m"(weights));
#endif
  }
  FANIN_FN size_t source(int j) const { return indices[j]; }
  FANIN_FN float weight(int j) const { return weights[j]; }
};

// sum over connections of weight * the source's row: begun, added to chunk by chunk, and read.
// Two sums, of even and of odd connections, so that one addition need not wait for another.
template <class T>
struct Gathered {
  Lanes<T> even, odd;

  FANIN_FN explicit Gathered(T start) : even(broadcast(start)), odd(broadcast(T(0))) {}

  template <class I, class W>
  FANIN_FN void add(const Connections<T, I, W> &connections, int count, const T *rows) {
    if (count == Chunk<T>::size) {
      const Sources<T, I> sources(connections.indices);
      FANIN_UNROLL
      for (int c = 0; c < Chunk<T>::size; c += 2) {
        even = fma(connections.weight(c), load(rows + sources[c] * kLanes), even);
        odd = fma(connections.weight(c + 1), load(rows + sources[c + 1] * kLanes), odd);
      }
    } else {
      for (int c = 0; c < count; ++c)
        even = fma(connections.weight(c), load(rows + connections.source(c) * kLanes), even);
    }
  }
  FANIN_FN Lanes<T> lanes() const { return fma(T(1), odd, even); }
};

// For each connection, grad * the source's row summed over the lanes.
template <class T, class I, class W>
FANIN_FN Chunk<T> row_sums(const Connections<T, I, W> &connections, int count, const Lanes<T> &grad,
                           const T *rows) {
  const auto of_source = [&](size_t source) FANIN_INLINE {
    return product(grad, load(rows + source * kLanes));
  };
  if (count == Chunk<T>::size) {
    const Sources<T, I> sources(connections.indices);
    return sums<T>([&](int c) FANIN_INLINE { return of_source(sources[c]); });
  }
  return sums<T>([&](int c) FANIN_INLINE {
    return c < count ? of_source(connections.source(c)) : Chunk<T>{};
  });
}

// weight * grad added to each source's row.
template <class T, class I, class W>
FANIN_FN void spread(const Connections<T, I, W> &connections, int count, const Lanes<T> &grad,
                     T *rows) {
  const auto add = [&](int c, size_t source) FANIN_INLINE {
    add_to(rows + source * kLanes, connections.weight(c), grad);
  };
  if (count == Chunk<T>::size) {
    const Sources<T, I> sources(connections.indices);
    FANIN_UNROLL
    for (int c = 0; c < Chunk<T>::size; ++c) add(c, sources[c]);
  } else {
    for (int c = 0; c < count; ++c) add(c, connections.source(c));
  }
}

// Both of them; connection by connection, so that the arithmetic of one overlaps the stores of the
// other.
template <class T, class I, class W>
FANIN_FN Chunk<T> row_sums_and_spread(const Connections<T, I, W> &connections, int count,
                                      const Lanes<T> &grad, const T *rows, T *targets) {
  if (count < Chunk<T>::size) {
    spread(connections, count, grad, targets);
    return row_sums(connections, count, grad, rows);
  }
  const Sources<T, I> sources(connections.indices);
  return sums<T>([&](int c) FANIN_INLINE {
    const size_t at = sources[c] * kLanes;
    const Chunk<T> of_connection = product(grad, load(rows + at));
    add_to(targets + at, connections.weight(c), grad);
    return of_connection;
  });
}

// A tile's 32 rows lie far apart in memory; touching all of them at once waits for each. So a
// finished tile is kept, transposed, and a row of it stored beside each label of the next tile; and
// a row of the tile to come is fetched beside each label of the present one.
//
// Only whole cache lines are worth storing past the caches, and with any number of labels but a
// multiple of 16 rows begin somewhere within one. So what a tile leaves of its last line is kept with
// the row, for the next tile to complete.
template <class T>
struct Team {
  static constexpr int kLine = int(64 / sizeof(T));
  static constexpr int kKept = kLine + kTile;  // the end of the tile before, then the tile
  alignas(64) T kept[kLanes * kKept];
  alignas(64) T ahead[kLanes * kTile];
  T *target = nullptr;
  const T *ahead_of = nullptr;  // where the tile in `ahead` comes from
  int64_t target_pitch = 0;
  int next_row = 0, rows_kept = 0, rows_ahead = 0;
  bool streaming;        // the output is large: store past the caches
  bool follows = false;  // the kept tile follows the one before: the beginnings of its lines are kept

  explicit Team(bool s = false) : streaming(s) {}

  FANIN_FN int first() const { return 0; }
  FANIN_FN int step() const { return 1; }
  FANIN_FN void sync() const {}
  template <class I>
  FANIN_FN bool all_below(const I *values, int64_t count, int64_t bound) const {
    typedef I Some __attribute__((vector_size(kVectorBytes)));
    typedef I Unaligned __attribute__((vector_size(kVectorBytes), aligned(sizeof(I)), may_alias));
    constexpr int64_t some = kVectorBytes / sizeof(I);
    if (bound > int64_t(I(-1))) return true;
    const I last = I(bound - 1);
    const Some most = Some{} + last;
    int64_t i = 0;
#if defined(FANIN_GCC_AVX512)
    uint32_t above = 0;
    for (; i + some <= count; i += some) {
      const Some some_values = *reinterpret_cast<const Unaligned *>(values + i);
      if constexpr (sizeof(I) == 2)
        above |= uint32_t(__builtin_ia32_ucmpw512_mask((SignedWords)some_values, (SignedWords)most,
                                                       kGreater, uint32_t(-1)));
      else
        above |= uint16_t(__builtin_ia32_ucmpd512_mask((SignedBits)some_values, (SignedBits)most,
                                                       kGreater, uint16_t(-1)));
    }
    bool good = !above;
#else
    Bits above{};
    for (; i + some <= count; i += some)
      above |= (Bits)((Some) * reinterpret_cast<const Unaligned *>(values + i) > most);
    bool good = !any_bit(above);
#endif
    for (; i < count; ++i) good &= values[i] <= last;
    return good;
  }
  // Whether a label's indices all name an input: found out beside its work, while they are on their
  // way through the caches.
  template <class I>
  FANIN_FN bool admits(const I *indices, int64_t fan_in, int64_t inputs) const {
    return all_below(indices, fan_in, inputs);
  }
  // Elements of a line that lie before `row`.
  static FANIN_FN int into_line(const T *row) {
    return int(reinterpret_cast<uintptr_t>(row) % 64 / sizeof(T));
  }
  FANIN_FN void write_some() {
    if (next_row == rows_kept) return;
    T *const row = target + next_row * target_pitch, *const values = kept + next_row * kKept + kLine;
    ++next_row;
    if (!streaming) return store(row, load(values));
    const int before = into_line(row);
    if (!before) return stream(row, load(values));
    int done = -before;
    if (!follows)
      for (done = 0; done < kLine - before; ++done) row[done] = values[done];
    for (; done + kLine <= kTile; done += kLine) {
      FANIN_UNROLL
      for (int i = 0; i < kLine; i += VectorOf<T>::width)
        stream_vector(row + done + i, load_vector(values + done + i));
    }
    FANIN_UNROLL
    for (int i = 0; i < kLine; i += VectorOf<T>::width)
      store_vector(values - kLine + i, load_vector(values + kTile - kLine + i));
  }
  // The rows of the kept tile, and what they leave of their last lines where no tile follows.
  FANIN_FN void write_rest(bool another_follows) {
    while (next_row < rows_kept) write_some();
    if (streaming && !another_follows)
      for (int b = 0; b < rows_kept; ++b) {
        T *const end = target + b * target_pitch + kTile;
        for (int i = -into_line(end); i < 0; ++i) end[i] = kept[b * kKept + kLine + kTile + i];
      }
    follows = another_follows;
    next_row = rows_kept = 0;
  }
  FANIN_FN void finish() {
    write_rest(false);
    if (streaming) end_stream();
  }
  // Fetch row `row` of the whole tile at `in`, in order from row 0; rows beyond `lanes` are not
  // there.
  FANIN_FN void read_some(const T *in, int64_t pitch, int lanes, int row) {
    constexpr int distance = 4;  // and the ends of lines: the tile before has had the first one
    if (row == 0) rows_ahead = 0;
    if (row != rows_ahead || lanes < kLanes) return;
    if (row + distance < kLanes)
      for (int i = 0; i < kTile; i += kLine)
        __builtin_prefetch(in + (row + distance) * pitch + i + kLine - 1);
    store(ahead + row * kTile, load(in + row * pitch));
    ahead_of = in;
    ++rows_ahead;
  }
  FANIN_FN void write_tile(const T *tile, T *out, int64_t pitch, int lanes, int labels) {
    constexpr int width = VectorOf<T>::width;
    write_rest(labels == kTile && rows_kept == lanes && out == target + kTile);
    if (labels < kTile) {
      for (int b = 0; b < lanes; ++b)
        for (int l = 0; l < labels; ++l) out[b * pitch + l] = tile[l * kTilePitch + b];
      return;
    }
    for (int b = 0; b < lanes; b += width)
      for (int l = 0; l < kTile; l += width) {
        Vector<T> rows[width];
        FANIN_UNROLL
        for (int i = 0; i < width; ++i) rows[i] = load_vector(tile + (l + i) * kTilePitch + b);
        transpose<T>(rows);
        FANIN_UNROLL
        for (int i = 0; i < width; ++i) store_vector(kept + (b + i) * kKept + kLine + l, rows[i]);
      }
    target = out;
    target_pitch = pitch;
    rows_kept = lanes;
  }
  FANIN_FN void read_tile(T *tile, const T *in, int64_t pitch, int lanes, int labels) const {
    constexpr int width = VectorOf<T>::width;
    if (labels < kTile || lanes < kLanes) {
      for (int l = 0; l < kTile; ++l)
        for (int b = 0; b < kLanes; ++b)
          tile[l * kTilePitch + b] = b < lanes && l < labels ? in[b * pitch + l] : T(0);
      return;
    }
    if (ahead_of == in && rows_ahead == kLanes) {
      in = ahead;
      pitch = kTile;
    }
    for (int l = 0; l < kTile; l += width)
      for (int b = 0; b < kLanes; b += width) {
        Vector<T> rows[width];
FANIN_UNROLL
        for (int i = 0; i < width; ++i) rows[i] = load_vector(in + (b + i) * pitch + l);
        transpose<T>(rows);
FANIN_UNROLL
        for (int i = 0; i < width; ++i) store_vector(tile + (l + i) * kTilePitch + b, rows[i]);
      }
  }
};

}  // namespace FANIN_TARGET
}  // namespace fanin
