// How a CPU thread reads and writes tiles of [batch, labels] arrays. lanes_cpu.h includes this.
#pragma once

#include "core/lanes_cpu_sums.h"

namespace fanin {
namespace FANIN_TARGET {

// The 32 rows of a tile lie far apart in memory, and touching all of them at once would wait for
// each. So a finished tile is kept, transposed; one row of it is stored beside each label of the
// next tile. In the same way, one row of the tile to come is fetched beside each label of the
// present one.
//
// Only whole cache lines are worth storing past the caches. Unless the number of labels is a
// multiple of 16, rows begin somewhere within a line. So the part of a line that a tile leaves at
// its end is kept with the row, and the next tile completes it.
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
  bool streaming;  // the output is large: store past the caches
  bool follows =
      false;  // the kept tile follows the one before: the beginnings of its lines are kept

  explicit Team(bool s = false) : streaming(s) {}

  FANIN_FN void sync() const {}
  // Whether values[0] to values[count - 1] are all below the bound.
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
  // Whether all indices of a label name an input. This is checked beside the label's work, while
  // the indices pass through the caches anyway.
  template <class I>
  FANIN_FN bool admits(const I *indices, int64_t fan_in, int64_t inputs) const {
    return all_below(indices, fan_in, inputs);
  }
  // Elements of a line that lie before `row`.
  static FANIN_FN int into_line(const T *row) {
    return int(reinterpret_cast<uintptr_t>(row) % 64 / sizeof(T));
  }
  // Writes one more row of the kept tile, if there is one.
  FANIN_FN void write_some() {
    if (next_row == rows_kept) return;
    T *const row = target + next_row * target_pitch, *const values =
                                                         kept + next_row * kKept + kLine;
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
  // Writes the rows of the kept tile, and, where no tile follows, what they leave of their last
  // lines.
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
  // Fetches row `row` of the whole tile at `in`; called in order, from row 0. Rows beyond `lanes`
  // do not exist.
  FANIN_FN void read_some(const T *in, int64_t pitch, int lanes, int row) {
    constexpr int distance =
        4;  // what is prefetched are the ends of rows: the tile before had the rest
    if (row == 0) rows_ahead = 0;
    if (row != rows_ahead || lanes < kLanes) return;
    if (row + distance < kLanes)
      for (int i = 0; i < kTile; i += kLine)
        __builtin_prefetch(in + (row + distance) * pitch + i + kLine - 1);
    store(ahead + row * kTile, load(in + row * pitch));
    ahead_of = in;
    ++rows_ahead;
  }
  // tile[label][lane] -> out[lane][label], at once or by and by; and back.
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
