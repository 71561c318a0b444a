// Lane groups in CUDA: a group is one warp, and each thread holds one lane. See lanes.h, which
// includes this.
//
// Rows of 32 lanes are read and written 16 bytes a thread, the widest there is: for floats 8
// threads share a row, and one instruction moves 4 rows (for doubles 16 and 2). Threads that are
// Sharing<T>::part apart hold the same lanes of different rows. Where their sums meet, each thread
// keeps one lane, lane_of<T>(): which one follows from the exchange, and no order would do better,
// since a permuted row is still one contiguous row.
#pragma once

namespace fanin {
namespace FANIN_TARGET {

constexpr unsigned kAll = 0xffffffffu;
constexpr int kTilePitch = kLanes + 1;  // one value of padding: columns fall into distinct banks

FANIN_FN int thread_id() { return threadIdx.x % kLanes; }

template <class T>
struct Sharing {
  static constexpr int wide = int(16 / sizeof(T));  // values a thread moves at once
  static constexpr int part = kLanes / wide;        // threads of a row
};

template <class T>
FANIN_FN int lane_of() {
  return thread_id() % Sharing<T>::part * Sharing<T>::wide + thread_id() / Sharing<T>::part;
}

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
  return {row[lane_of<T>()]};
}
template <class T>
FANIN_FN void store(T *row, Lanes<T> a) {
  row[lane_of<T>()] = a.v;
}
template <class T>
FANIN_FN Lanes<T> fma(T w, Lanes<T> a, Lanes<T> b) {
  return {::fma(w, a.v, b.v)};
}
template <class T>
FANIN_FN T sum(Lanes<T> a) {
  for (int d = kLanes / 2; d; d /= 2) a.v += __shfl_xor_sync(kAll, a.v, d);
  return a.v;
}

// f on each lane; f takes and gives what a lane group is made of: a value here, a vector on a CPU.
template <class T, class F, class... More>
FANIN_FN Lanes<T> map(const F &f, Lanes<T> a, More... more) {
  return {f(a.v, more.v...)};
}
// f(lane, value) for each of the first `lanes` lanes.
template <class T, class F>
FANIN_FN void each_lane(Lanes<T> a, int lanes, const F &f) {
  if (lane_of<T>() < lanes) f(lane_of<T>(), a.v);
}
template <class T>
FANIN_FN Lanes<T> from_mask(uint32_t mask, T set, T clear) {
  return {mask >> lane_of<T>() & 1 ? set : clear};
}
template <class T>
FANIN_FN bool any(Lanes<T> a) {
  return __any_sync(kAll, a.v != T(0));
}
FANIN_FN float root(float x) { return sqrtf(x); }
FANIN_FN float exponential(float x) { return expf(x); }

// Thread t holds value t of a chunk.
template <class T>
struct Chunk {
  static constexpr int size = kLanes;
  T v;
};
// The sum over all values of a chunk.
template <class T>
FANIN_FN T sum(Chunk<T> a) {
  return sum(Lanes<T>{a.v});
}
template <class T>
FANIN_FN T widen(T x) {
  return x;
}
FANIN_FN float widen(Bf16 x) { return __uint_as_float(uint32_t(x.bits) << 16); }
template <class T, class S>
FANIN_FN Chunk<T> load_chunk(const S *p, int count) {
  return {thread_id() < count ? T(widen(p[thread_id()])) : T(0)};
}
// Bits beside a chunk.
typedef uint32_t Bits;
FANIN_FN Bits random_chunk(uint32_t first, uint32_t seed) {
  return mix((first + thread_id()) * kRandomStep + seed);
}
FANIN_FN Bits lower_half(Bits word) { return word & 0xffff; }
template <class T>
FANIN_FN void store_chunk(T *p, int count, Chunk<T> a, uint32_t) {
  if (thread_id() < count) p[thread_id()] = a.v;
}
// Stochastic rounding, by 16 random bits: up with the probability of the part that is cut off.
FANIN_FN void store_chunk(Bf16 *p, int count, Chunk<float> a, uint32_t random) {
  uint32_t bits = __float_as_uint(a.v);
  // A GPU's NaN has all bits set; adding to it would make a number of it.
  if (a.v == a.v) bits += random;
  if (thread_id() < count) p[thread_id()].bits = uint16_t(bits >> 16);
}
// Bytes of float8 rows, beside the elements of a chunk; beyond `count` 0.
FANIN_FN Bits load_codes(const Float8 *p, int count) {
  return thread_id() < count ? p[thread_id()].bits : 0;
}
FANIN_FN void store_codes(Float8 *p, int count, Bits codes) {
  if (thread_id() < count) p[thread_id()].bits = uint8_t(codes);
}
// The largest element.
FANIN_FN uint32_t largest(Bits a) {
  for (int d = kLanes / 2; d; d /= 2) {
    const uint32_t other = __shfl_xor_sync(kAll, a, d);
    a = other > a ? other : a;
  }
  return a;
}
template <class T>
FANIN_FN void write_chunk(T *out, int count, Chunk<T> a, bool add, bool) {
  if (thread_id() < count) out[thread_id()] = add ? out[thread_id()] + a.v : a.v;
}
// One value, that every thread has.
template <class T>
FANIN_FN void write_one(T *out, T value, bool add) {
  if (thread_id() == 0) *out = add ? *out + value : value;
}
// Values that all lanes read later, each of them for itself: into memory of the warp.
FANIN_FN void stage(float *shared, Chunk<float> a) { shared[thread_id()] = a.v; }

// What a thread moves at once.
template <class T>
struct alignas(16) Wide {
  T v[Sharing<T>::wide];
};
template <class T>
FANIN_FN Wide<T> load_wide(const T *row) {
  return *reinterpret_cast<const Wide<T> *>(row +
                                            thread_id() % Sharing<T>::part * Sharing<T>::wide);
}
// The lanes that this thread has in a Wide.
template <class T>
FANIN_FN Wide<T> to_wide(Lanes<T> a) {
  Wide<T> w;
  FANIN_UNROLL
  for (int i = 0; i < Sharing<T>::wide; ++i)
    w.v[i] = __shfl_sync(kAll, a.v, i * Sharing<T>::part + thread_id() % Sharing<T>::part);
  return w;
}

// The values[j] of all threads that differ in bits j * Step of their number, j < 2 D, summed: each
// exchange halves what a thread still carries, so 2 D - 1 shuffles do what 2 D sums would need
// 2 D log(2 D) for. Thread j ends with sum j, in values[0].
template <int D, int Step, class T, int N>
FANIN_FN void exchange(T (&values)[N]) {
  const bool upper = thread_id() & D * Step;
  FANIN_UNROLL
  for (int j = 0; j < D; ++j) {
    const T keep = upper ? values[j + D] : values[j];
    const T give = upper ? values[j] : values[j + D];
    values[j] = keep + __shfl_xor_sync(kAll, give, D * Step);
  }
  if constexpr (D > 1) exchange<D / 2, Step>(values);
}

// Each thread loads one connection; they are handed around by shuffles.
template <class T, class I, class W = T>
struct Connections {
  uint32_t my_source;
  T my_weight;
  FANIN_FN Connections(const I *indices, const W *weights, int count) {
    my_source = thread_id() < count ? indices[thread_id()] : 0;
    my_weight = load_chunk<T>(weights, count).v;
  }
  FANIN_FN size_t source(int j) const { return __shfl_sync(kAll, my_source, j); }
  FANIN_FN T weight(int j) const { return __shfl_sync(kAll, my_weight, j); }
};

// f(i, connection) for the connections whose rows this thread has a part in: one after the other,
// those of its row group.
template <class T, class F>
FANIN_FN void each_row(const F &f) {
  FANIN_UNROLL
  for (int i = 0; i < Sharing<T>::part; ++i)
    f(i, thread_id() / Sharing<T>::part * Sharing<T>::part + i);
}
// This thread's part of a connection's row, zeros for connections that are not there.
template <class T, class I, class W>
FANIN_FN Wide<T> source_row(const Connections<T, I, W> &connections, int c, int count,
                            const T *rows) {
  // Connections beyond the last have source 0, which can be read; but it may be infinite.
  Wide<T> row = load_wide(rows + connections.source(c) * kLanes);
  FANIN_UNROLL
  for (int k = 0; k < Sharing<T>::wide; ++k) row.v[k] = c < count ? row.v[k] : T(0);
  return row;
}

// sum over connections of weight * the source's row: begun, added to chunk by chunk, and read.
template <class T>
struct Gathered {
  T start;
  Wide<T> total{};

  FANIN_FN explicit Gathered(T s) : start(s) {}

  template <class I, class W>
  FANIN_FN void add(const Connections<T, I, W> &connections, int count, const T *rows) {
    each_row<T>([&](int, int c) {
      const T weight = connections.weight(c);
      const Wide<T> row = source_row(connections, c, count, rows);
      FANIN_UNROLL
      for (int k = 0; k < Sharing<T>::wide; ++k) total.v[k] = ::fma(weight, row.v[k], total.v[k]);
    });
  }
  FANIN_FN Lanes<T> lanes() {
    exchange<Sharing<T>::wide / 2, Sharing<T>::part>(total.v);
    return {start + total.v[0]};
  }
};

// For each connection, grad * the source's row summed over the lanes.
template <class T, class I, class W>
FANIN_FN Chunk<T> row_sums(const Connections<T, I, W> &connections, int count, Lanes<T> grad,
                           const T *rows) {
  const Wide<T> grads = to_wide(grad);
  T sums[Sharing<T>::part];
  each_row<T>([&](int i, int c) {
    const Wide<T> row = source_row(connections, c, count, rows);
    sums[i] = grads.v[0] * row.v[0];
    FANIN_UNROLL
    for (int k = 1; k < Sharing<T>::wide; ++k) sums[i] = ::fma(grads.v[k], row.v[k], sums[i]);
  });
  exchange<Sharing<T>::part / 2, 1>(sums);
  return {sums[0]};
}

#if !defined(FANIN_EMULATED_CUDA)
// Adds 16 bytes in one instruction, and waits for no answer, as atomicAdd(float4 *) might.
FANIN_FN void reduce_add(float *at, float a, float b, float c, float d) {
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(at)),
               "f"(a), "f"(b), "f"(c), "f"(d)
               : "memory");
}
FANIN_FN void prefetch(const void *at) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(__cvta_generic_to_global(at)));
}
#endif

// Whether rows are added to 16 bytes a thread; else one row at a time is the fewest transactions.
template <class T>
FANIN_FN constexpr bool adds_wide() {
#if __CUDA_ARCH__ >= 900 || defined(FANIN_EMULATED_CUDA)
  return sizeof(T) == sizeof(float);
#else
  return false;
#endif
}

// Adds to four neighbouring values in device memory, each thread for itself.
FANIN_FN void add_four(float *at, float a, float b, float c, float d) {
  if constexpr (adds_wide<float>()) {
    reduce_add(at, a, b, c, d);
  } else {
    atomicAdd(at, a);
    atomicAdd(at + 1, b);
    atomicAdd(at + 2, c);
    atomicAdd(at + 3, d);
  }
}

// What is read next: count values from p on, by this warp.
template <class T>
FANIN_FN void announce(const T *p, int64_t count) {
  for (int64_t i = thread_id(); i < count; i += kLanes) prefetch(p + i);
}
// What is read a good while later; other warps have work until then.
template <class T>
FANIN_FN void fetch(const T *, int64_t) {}

// Rows that all warps add to are in device memory (a T *), or, as SharedRows, in a block's shared
// memory. There one row at a time is free of bank conflicts.
template <class T>
struct SharedRows {
  T *rows;
  FANIN_FN explicit operator bool() const { return rows != nullptr; }
  FANIN_FN SharedRows operator+(int64_t values) const { return {rows + values}; }
};

template <class T>
FANIN_FN void add_to(T *row, Lanes<T> a) {
  atomicAdd(row + lane_of<T>(), a.v);
}
template <class T>
FANIN_FN void add_to(SharedRows<T> row, Lanes<T> a) {
  atomicAdd(row.rows + lane_of<T>(), a.v);
}

// weight * grad added to each source's row.
template <class T, class I, class W, class Rows>
FANIN_FN void spread(const Connections<T, I, W> &connections, int count, Lanes<T> grad, Rows rows) {
  if constexpr (adds_wide<T>() && std::is_pointer<Rows>::value) {
    const Wide<T> grads = to_wide(grad);
    each_row<T>([&](int, int c) {
      const T weight = connections.weight(c);
      T *const row = rows + connections.source(c) * kLanes;
      const auto part = [&](int k) { return weight * grads.v[k]; };
      if (c < count)
        reduce_add(row + thread_id() % Sharing<T>::part * Sharing<T>::wide, part(0), part(1),
                   part(2), part(3));
    });
  } else {
    for (int c = 0; c < count; ++c)
      add_to(rows + connections.source(c) * kLanes, Lanes<T>{connections.weight(c) * grad.v});
  }
}
// Both of them.
template <class T, class I, class W, class Rows>
FANIN_FN Chunk<T> row_sums_and_spread(const Connections<T, I, W> &connections, int count,
                                      Lanes<T> grad, const T *rows, Rows targets) {
  const Chunk<T> total = row_sums(connections, count, grad, rows);
  spread(connections, count, grad, targets);
  return total;
}

// A team is one warp: warps go their own ways and never wait for each other.
template <class T>
struct Team {
  static constexpr bool streaming = false;
  FANIN_FN void sync() const { __syncwarp(); }
  template <class I>
  FANIN_FN bool all_below(const I *values, int64_t count, int64_t bound) const {
    bool good = true;
    for (int64_t i = thread_id(); i < count; i += kLanes) good &= values[i] < bound;
    return __all_sync(kAll, good);
  }
  // The kernels have looked at the whole tile.
  template <class I>
  FANIN_FN bool admits(const I *, int64_t, int64_t) const {
    return true;
  }
  // Whether bounds[0] to bounds[count] ascend within [0, last].
  FANIN_FN bool ascend(const int32_t *bounds, int64_t count, int64_t last) const {
    bool good = true;
    for (int64_t i = thread_id(); i < count; i += kLanes)
      good &= 0 <= bounds[i] && bounds[i] <= bounds[i + 1] && bounds[i + 1] <= last;
    return __all_sync(kAll, good);
  }
  // tile[label][lane] -> out[lane][label], and back. On a CPU both are spread over the labels of a
  // neighbouring tile by `write_some` and `read_some`.
  FANIN_FN void write_some() const {}
  FANIN_FN void read_some(const T *, int64_t, int, int) const {}
  FANIN_FN void write_tile(const T *tile, T *out, int64_t pitch, int lanes, int labels) const {
    for (int b = 0; b < lanes; ++b)
      if (thread_id() < labels) out[b * pitch + thread_id()] = tile[thread_id() * kTilePitch + b];
  }
  FANIN_FN void read_tile(T *tile, const T *in, int64_t pitch, int lanes, int labels) const {
    for (int b = 0; b < kLanes; ++b)
      tile[thread_id() * kTilePitch + b] =
          b < lanes && thread_id() < labels ? in[b * pitch + thread_id()] : T(0);
  }
};

}  // namespace FANIN_TARGET
}  // namespace fanin
