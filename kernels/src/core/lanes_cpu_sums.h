// Squares of vectors on a CPU: transposing them, and summing their rows. lanes_cpu.h includes this.
#pragma once

namespace fanin {
namespace FANIN_TARGET {

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

// Summing the rows of a square exchanges elements in the same way, but it does not matter where a
// sum ends up. So each exchange can be one cheap instruction (vshufps, vshuff32x4) on any
// instruction set. Those instructions move whole 128-bit lanes, or values within one. Therefore the
// bits of a column fall into two fields of one or two bits each. In a field of one bit, operand a
// fills the half where it is clear, and b the other half. In a field of two bits, the upper one
// tells the operand, and the lower one holds what is left of the column.
template <class T, int D>
struct Field {
  static constexpr int in_lane = int(16 / sizeof(T)), width = VectorOf<T>::width;
  static constexpr int low = D < in_lane ? 1 : in_lane;              // its lowest bit
  static constexpr int all = (D < in_lane ? in_lane : width) - low;  // its bits
  static constexpr bool pair = all == 3 * low;
};
// Where column J of the result comes from: the summand whose bit D is clear, or the one whose bit
// is set.
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
// The position at which the sum of row `row` ends up: in fields of two bits, these change places.
template <class T, int D = VectorOf<T>::width / 2>
constexpr int sum_position(int row) {
  typedef Field<T, D> F;
  const int bit = F::pair ? F::all - D : D;
  const int moved = row & D ? bit : 0;
  if constexpr (D > 1)
    return moved + sum_position<T, D / 2>(row);
  else
    return moved;
}
// Sums each of the rows Row, Row + D, Row + 2 D, ... into one element. It goes depth first, so that
// few rows are in registers at a time, and the exchanges of the first overlap the loads of the
// next.
template <class T, int D, int Row, class Rows>
FANIN_FN Vector<T> sum_rows(const Rows &rows) {
  constexpr int width = VectorOf<T>::width;
  if constexpr (D == width) {
    return rows(sum_position<T>(Row)).v;
  } else {
    const Vector<T> second = sum_rows<T, 2 * D, Row + D>(rows);
    return sum_pair<T, D>(sum_rows<T, 2 * D, Row>(rows), second, std::make_index_sequence<width>());
  }
}
// The order in which sum_rows asks for the rows: it matters where they have side effects.
template <class T>
struct SumOrder {
  int rows[VectorOf<T>::width] = {};
  constexpr SumOrder() { fill(1, 0, 0); }
  constexpr int fill(int distance, int row, int next) {
    if (distance == VectorOf<T>::width) {
      rows[next] = sum_position<T>(row);
      return next + 1;
    }
    return fill(2 * distance, row, fill(2 * distance, row + distance, next));
  }
};

// Adds halves to halves, not one element after the other: so the chain of additions is short.
template <int D, class V, size_t... J>
FANIN_FN V add_across(V a, std::index_sequence<J...> columns) {
  a += __builtin_shufflevector(a, a, int(J ^ D)...);
  if constexpr (D > 1)
    return add_across<D / 2>(a, columns);
  else
    return a;
}

// The vectors First, First + D, First + 2 D, ... of a group of lanes, added up: halves to halves.
// (A copy of the lanes, summed in place, would go through memory with GCC.)
template <int D, int First, class T>
FANIN_FN Vector<T> sum_vectors(const Lanes<T> &a) {
  if constexpr (D == Lanes<T>::count)
    return a.v[First];
  else
    return sum_vectors<2 * D, First>(a) + sum_vectors<2 * D, First + D>(a);
}
// The sum over all lanes.
template <class T>
FANIN_FN T sum(const Lanes<T> &a) {
  constexpr int width = VectorOf<T>::width;
  return add_across<width / 2>(sum_vectors<1, 0>(a), std::make_index_sequence<width>())[0];
}

}  // namespace FANIN_TARGET
}  // namespace fanin
