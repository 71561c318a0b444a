// A lane group: 32 values that are worked on together, one per instance of the batch.
//
// On CUDA a group is one warp and each thread holds one lane; on a CPU one thread holds all 32
// lanes in SIMD registers (compiler vector types, so no intrinsics and any instruction set). The
// kernels above this file are written once over what is defined here:
//
//   Lanes<T>            32 values of type T
//   broadcast, load, store, fma, sum                  what one expects of them
//   Partial<T>, partial, store_sums                   many horizontal sums for the price of few
//   Connections<T, I>   some (source, weight) pairs of one label, Partial<T>::at_once of them
//   Team<T>             who shares a tile of 32 labels: a CUDA block, or one CPU thread
//
// FANIN_TARGET names the namespace. Each instruction set is compiled into its own, since an inline
// function shared between differently compiled files could be linked in its AVX-512 form and then
// run on a machine without it; for the same reason nothing of std:: with a body is used here.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <utility>

#if defined(__CUDACC__)
#define FANIN_FN __device__ __forceinline__
#define FANIN_UNROLL _Pragma("unroll")
#define FANIN_INLINE
#else
#define FANIN_FN inline __attribute__((always_inline))
#define FANIN_INLINE __attribute__((always_inline))
#if defined(__clang__)
#define FANIN_UNROLL _Pragma("clang loop unroll(full)")
#else
#define FANIN_UNROLL _Pragma("GCC unroll 32")
#endif
#endif

namespace fanin {
namespace FANIN_TARGET {

constexpr int kLanes = 32;
constexpr int kTile = 32;  // labels that are written out together

template <class T>
FANIN_FN T smaller(T a, T b) {
  return a < b ? a : b;
}

#if defined(__CUDACC__)

constexpr unsigned kAll = 0xffffffffu;
constexpr int kWarps = 8;  // of a block; each takes every eighth label of a tile
constexpr int kTilePitch = kLanes + 1;  // one float of padding: columns fall into distinct banks

FANIN_FN int lane_id() { return threadIdx.x % kLanes; }

template <class T>
struct Lanes {
  T v;
};

template <class T>
FANIN_FN Lanes<T> broadcast(T x) {
  return {x};
}
template <class T>
FANIN_FN Lanes<T> load(const T *row) {
  return {row[lane_id()]};
}
template <class T>
FANIN_FN void store(T *row, Lanes<T> a) {
  row[lane_id()] = a.v;
}
template <class T>
FANIN_FN Lanes<T> fma(T w, Lanes<T> a, Lanes<T> b) {
  return {::fma(w, a.v, b.v)};
}
template <class T>
FANIN_FN void add_to(T *row, T w, Lanes<T> a) {
  atomicAdd(row + lane_id(), w * a.v);
}
template <class T>
FANIN_FN T sum(Lanes<T> a) {
  for (int d = kLanes / 2; d; d /= 2) a.v += __shfl_xor_sync(kAll, a.v, d);
  return a.v;
}

template <class T>
struct Partial {
  static constexpr int at_once = kLanes;
  T v;
};
template <class T>
FANIN_FN Partial<T> partial(Lanes<T> a, Lanes<T> b) {
  return {a.v * b.v};
}

// products(j) summed over the lanes, for 32 j at once: each exchange halves what a lane still
// carries, so 31 shuffles do what 32 separate sums would need 160 for. Lane j ends with sum j.
template <int D, class T>
FANIN_FN void exchange(Partial<T> (&p)[kLanes]) {
  const bool upper = lane_id() & D;
  FANIN_UNROLL
  for (int j = 0; j < D; ++j) {
    const T keep = upper ? p[j + D].v : p[j].v;
    const T give = upper ? p[j].v : p[j + D].v;
    p[j].v = keep + __shfl_xor_sync(kAll, give, D);
  }
  if constexpr (D > 1) exchange<D / 2>(p);
}
template <class T, class Products>
FANIN_FN void store_sums(const Products &products, T *out, int count, bool add, bool) {
  Partial<T> p[kLanes];
  FANIN_UNROLL
  for (int j = 0; j < kLanes; ++j) p[j] = products(j);
  exchange<kLanes / 2>(p);
  const int lane = lane_id();
  if (lane < count) out[lane] = add ? out[lane] + p[0].v : p[0].v;
}

// Each lane loads one connection; they are handed around by shuffles.
template <class T, class I>
struct Connections {
  uint32_t my_source;
  T my_weight;
  FANIN_FN Connections(const I *indices, const T *weights, int count) {
    const bool mine = lane_id() < count;
    my_source = mine ? indices[lane_id()] : 0;
    my_weight = mine ? weights[lane_id()] : T(0);
  }
  FANIN_FN size_t source(int j) const { return __shfl_sync(kAll, my_source, j); }
  FANIN_FN T weight(int j) const { return __shfl_sync(kAll, my_weight, j); }
};

template <class T>
struct Team {
  static constexpr bool streaming = false;
  FANIN_FN int first() const { return threadIdx.x / kLanes; }
  FANIN_FN int step() const { return kWarps; }
  FANIN_FN void sync() const { __syncthreads(); }
  template <class I>
  FANIN_FN bool all_below(const I *values, int64_t count, int64_t bound) const {
    bool good = true;
    for (int64_t i = threadIdx.x; i < count; i += kWarps * kLanes) good &= values[i] < bound;
    return __syncthreads_and(good);
  }
  // tile[label][lane] -> out[lane][label], and back. On a CPU both are spread over the labels of a
  // neighbouring tile by `write_some` and `read_some`.
  FANIN_FN void write_some() const {}
  FANIN_FN void read_some(const T *, int64_t, int, int) const {}
  FANIN_FN void write_tile(const T *tile, T *out, int64_t pitch, int lanes, int labels) const {
    for (int b = first(); b < lanes; b += kWarps)
      if (lane_id() < labels) out[b * pitch + lane_id()] = tile[lane_id() * kTilePitch + b];
  }
  FANIN_FN void read_tile(T *tile, const T *in, int64_t pitch, int lanes, int labels) const {
    for (int b = first(); b < kLanes; b += kWarps)
      tile[lane_id() * kTilePitch + b] =
          b < lanes && lane_id() < labels ? in[b * pitch + lane_id()] : T(0);
  }
};

#else  // a CPU

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
  static constexpr int count = kLanes / width;  // vectors in a lane group
  typedef T type __attribute__((vector_size(kVectorBytes)));
  typedef T unaligned __attribute__((vector_size(kVectorBytes), aligned(sizeof(T)), may_alias));
};
template <class T>
using Vector = typename VectorOf<T>::type;

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

template <class T>
struct Lanes {
  Vector<T> v[VectorOf<T>::count];
};

template <class T>
FANIN_FN Lanes<T> broadcast(T x) {
  Lanes<T> r;
  for (auto &v : r.v) v = Vector<T>{} + x;
  return r;
}
template <class T>
FANIN_FN Lanes<T> load(const T *row) {
  Lanes<T> r;
FANIN_UNROLL
  for (int i = 0; i < VectorOf<T>::count; ++i) r.v[i] = load_vector(row + i * VectorOf<T>::width);
  return r;
}
template <class T>
FANIN_FN void store(T *row, Lanes<T> a) {
FANIN_UNROLL
  for (int i = 0; i < VectorOf<T>::count; ++i) store_vector(row + i * VectorOf<T>::width, a.v[i]);
}
template <class T>
FANIN_FN void stream(T *row, Lanes<T> a) {
  FANIN_UNROLL
  for (int i = 0; i < VectorOf<T>::count; ++i) stream_vector(row + i * VectorOf<T>::width, a.v[i]);
}
template <class T>
FANIN_FN Lanes<T> fma(T w, Lanes<T> a, Lanes<T> b) {
FANIN_UNROLL
  for (int i = 0; i < VectorOf<T>::count; ++i) b.v[i] += w * a.v[i];
  return b;
}
template <class T>
FANIN_FN void add_to(T *row, T w, Lanes<T> a) {
  store(row, fma(w, a, load(row)));
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

// Rows Row, Row + D, Row + 2 D, ... summed, each into one element. Depth first, so that few rows are
// held at a time and the exchanges of the first overlap the loads of the next.
template <class T, int D, int Row, class Rows>
FANIN_FN Vector<T> sum_rows(const Rows &rows) {
  constexpr int width = VectorOf<T>::width;
  if constexpr (D == width) {
    return rows(Row).v;
  } else {
    constexpr std::make_index_sequence<width> columns;
    const Vector<T> a = sum_rows<T, 2 * D, Row>(rows), b = sum_rows<T, 2 * D, Row + D>(rows);
    return exchange_low<D>(a, b, columns) + exchange_high<D>(a, b, columns);
  }
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
  for (int d = VectorOf<T>::count / 2; d; d /= 2)
    for (int i = 0; i < d; ++i) a.v[i] += a.v[i + d];
  return add_across<width / 2>(a.v[0], std::make_index_sequence<width>())[0];
}

template <class T>
struct Partial {
  static constexpr int at_once = VectorOf<T>::width;
  Vector<T> v;
};
template <class T>
FANIN_FN Partial<T> partial(const Lanes<T> &a, const Lanes<T> &b) {
  Partial<T> r{a.v[0] * b.v[0]};
FANIN_UNROLL
  for (int i = 1; i < VectorOf<T>::count; ++i) r.v += a.v[i] * b.v[i];
  return r;
}
template <class T, class Products>
FANIN_FN void store_sums(const Products &products, T *out, int count, bool add, bool streaming) {
  const Vector<T> sums = sum_rows<T, 1, 0>(products);
  if (count == VectorOf<T>::width) {
    if (streaming && !add)
      stream_vector(out, sums);
    else
      store_vector(out, add ? load_vector(out) + sums : sums);
  } else {
    for (int j = 0; j < count; ++j) out[j] = add ? out[j] + sums[j] : sums[j];
  }
}

template <class T, class I>
struct Connections {
  const I *indices;
  const T *weights;
  FANIN_FN Connections(const I *i, const T *w, int) : indices(i), weights(w) {}
  FANIN_FN size_t source(int j) const { return indices[j]; }
  FANIN_FN T weight(int j) const { return weights[j]; }
};

// A tile's 32 rows lie far apart in memory; touching all of them at once waits for each. So a
// finished tile is kept, transposed, and a row of it stored beside each label of the next tile; and
// a row of the tile to come is fetched beside each label of the present one.
template <class T>
struct Team {
  alignas(64) T kept[kLanes * kTile];
  alignas(64) T ahead[kLanes * kTile];
  T *target = nullptr;
  const T *ahead_of = nullptr;  // where the tile in `ahead` comes from
  int64_t target_pitch = 0;
  int next_row = 0, rows_kept = 0, rows_ahead = 0;
  bool streaming;  // the output is large: store past the caches

  explicit Team(bool s = false) : streaming(s) {}

  FANIN_FN int first() const { return 0; }
  FANIN_FN int step() const { return 1; }
  FANIN_FN void sync() const {}
  template <class I>
  FANIN_FN bool all_below(const I *values, int64_t count, int64_t bound) const {
    I largest = 0;
    for (int64_t i = 0; i < count; ++i) largest = values[i] > largest ? values[i] : largest;
    return count == 0 || int64_t(largest) < bound;
  }
  FANIN_FN void write_some() {
    if (next_row == rows_kept) return;
    T *row = target + next_row * target_pitch;
    if (streaming)
      stream(row, load(kept + next_row * kTile));
    else
      store(row, load(kept + next_row * kTile));
    ++next_row;
  }
  FANIN_FN void finish() {
    while (next_row < rows_kept) write_some();
    if (streaming) end_stream();
  }
  // Fetch row `row` of the whole tile at `in`, in order from row 0; rows beyond `lanes` are not
  // there.
  FANIN_FN void read_some(const T *in, int64_t pitch, int lanes, int row) {
    constexpr int distance = 4;
    if (row == 0) rows_ahead = 0;
    if (row != rows_ahead || lanes < kLanes) return;
    if (row + distance < kLanes)
      for (size_t i = 0; i < kTile; i += 64 / sizeof(T))
        __builtin_prefetch(in + (row + distance) * pitch + i);
    store(ahead + row * kTile, load(in + row * pitch));
    ahead_of = in;
    ++rows_ahead;
  }
  FANIN_FN void write_tile(const T *tile, T *out, int64_t pitch, int lanes, int labels) {
    constexpr int width = VectorOf<T>::width;
    while (next_row < rows_kept) write_some();
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
        for (int i = 0; i < width; ++i) store_vector(kept + (b + i) * kTile + l, rows[i]);
      }
    target = out;
    target_pitch = pitch;
    next_row = 0;
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

#endif

}  // namespace FANIN_TARGET
}  // namespace fanin
