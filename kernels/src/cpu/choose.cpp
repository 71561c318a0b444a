// Launches the choice of sources and what replaces them: threads take labels one after the other,
// and what a label gets does not depend on which thread takes it. See core/choose.h.
#include "core/choose.h"

#include "cpu/common.h"

namespace fanin {
namespace FANIN_TARGET {
namespace {

constexpr int64_t kTogether = 64;  // labels that a thread takes at a time

template <class I>
Finding run(const ChooseCall &c) {
#pragma omp parallel num_threads(c.threads)
  {
    Team<float> team;
    const ChooseMemory memory = choose_memory(c, thread_id());
#pragma omp for schedule(dynamic, kTogether)
    for (int64_t label = 0; label < c.labels; ++label) choose_label<I>(c, label, memory, team);
  }
  return kNothing;
}

template <class I, class W, class M>
Finding replace(const ReplaceCall &c) {
  Faults faults;
#pragma omp parallel num_threads(c.threads)
  {
    Team<float> team;
    const ChooseMemory memory = choose_memory(c, thread_id());
#pragma omp for schedule(dynamic, kTogether)
    for (int64_t label = 0; label < c.labels; ++label) {
      const int64_t moved = replace_label<I, W, M>(c, label, memory, team);
      if (c.moved) c.moved[label] = int32_t(moved < 0 ? 0 : moved);
      if (moved < 0)
        note_above(static_cast<const I *>(c.indices), label * c.fan_in, c.fan_in, c.inputs,
                   &faults.index);
    }
  }
  return faults.finding();
}

// The first stored value whose column is none.
int64_t bad_column(const LabelSumsCall &c) {
  for (int64_t i = 0; i < c.stored; ++i)
    if (c.columns[i] < 0 || c.columns[i] >= c.inputs) return i;
  return -1;
}

// Whether all could be followed.
template <bool stored>
bool add_labels(const LabelSumsCall &c) {
  bool good = true;
#pragma omp parallel num_threads(c.threads)
  {
    Team<float> team;
#pragma omp for schedule(dynamic, kTogether) reduction(&& : good)
    for (int64_t label = 0; label < c.labels; ++label)
      good = add_label<stored>(c, label, team) && good;
  }
  return good;
}

}  // namespace

Finding label_sums(const LabelSumsCall &c) {
  const bool good = c.starts ? add_labels<true>(c) : add_labels<false>(c);
  if (good) return kNothing;
  return {Finding::bad_column, bad_column(c), nullptr};
}

Finding choose_sources(const ChooseCall &c) {
  return with_types([&](auto index) { return run<decltype(index)>(c); }, index_type(c));
}

Finding replace_sources(const ReplaceCall &c) {
  return with_types(
      [&](auto index, auto weight, auto moment) {
        return replace<decltype(index), decltype(weight), decltype(moment)>(c);
      },
      index_type(c), weight_type(c), moment_type(c));
}

}  // namespace FANIN_TARGET
}  // namespace fanin
