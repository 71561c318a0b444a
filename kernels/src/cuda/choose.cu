// Launches the choice of sources and what replaces them on a GPU: a warp for each label. See
// core/choose.h.
#include "cuda/common.h"

#include "core/choose.h"

namespace fanin {
namespace cuda {
namespace {

constexpr int64_t kMostBlocks = 4096;  // with more labels, a warp takes several

template <bool stored>
__global__ void __launch_bounds__(kFewWarps *kLanes) sums_kernel(LabelSumsCall c) {
  Team<float> team;
  each_tile(c.labels, [&](int64_t label) {
    if (!add_label<stored>(c, label, team))
      each_of(0, c.inputs, [&](int64_t i) { c.sums[label * c.inputs + i] = NAN; });
  });
}

// f(label, memory, team) for each label that this warp takes.
template <class AnyCall, class F>
__device__ void each_label(const AnyCall &c, int64_t choosers, const F &f) {
  Team<float> team;
  const int64_t me = int64_t(blockIdx.x) * warps_of_block() + warp_of_block();
  if (me >= choosers) return;
  const ChooseMemory memory = choose_memory(c, me);
  for (int64_t label = me; label < c.labels; label += choosers) {
    f(label, memory, team);
    team.sync();
  }
}

// The 1 lets the compiler use more than 64 registers, which it else spills on sm_100.
template <class I>
__global__ void __launch_bounds__(kFewWarps *kLanes, 1)
    choose_kernel(ChooseCall c, int64_t choosers) {
  each_label(c, choosers, [&](int64_t label, const ChooseMemory &memory, const Team<float> &team) {
    choose_label<I>(c, label, memory, team);
  });
}

template <class I, class W, class M>
__global__ void __launch_bounds__(kFewWarps *kLanes, 1)
    replace_kernel(ReplaceCall c, int64_t choosers) {
  each_label(c, choosers, [&](int64_t label, const ChooseMemory &memory, const Team<float> &team) {
    const int64_t moved = replace_label<I, W, M>(c, label, memory, team);
    if (c.moved && thread_id() == 0) c.moved[label] = int32_t(moved < 0 ? 0 : moved);
  });
}

dim3 blocks_for(int64_t warps) {
  const int64_t blocks = (warps + kFewWarps - 1) / kFewWarps;
  return dim3(unsigned(blocks < kMostBlocks ? blocks : kMostBlocks));
}

}  // namespace

Finding label_sums(const LabelSumsCall &c) {
  const auto kernel = c.starts ? sums_kernel<true> : sums_kernel<false>;
  if (c.labels) launch(kernel, blocks_for(c.labels), kFewWarps * kLanes, 0, c.stream, c);
  return last_error();
}

Finding choose_sources(const ChooseCall &c) {
  const int64_t all = choosers(c);
  if (all)
    with_types(
        [&](auto index) {
          launch(choose_kernel<decltype(index)>, blocks_for(all), kFewWarps * kLanes, 0, c.stream,
                 c, all);
        },
        index_type(c));
  return last_error();
}

Finding replace_sources(const ReplaceCall &c) {
  const int64_t all = choosers(c);
  with_types(
      [&](auto index, auto weight, auto moment) {
        launch(replace_kernel<decltype(index), decltype(weight), decltype(moment)>, blocks_for(all),
               kFewWarps * kLanes, 0, c.stream, c, all);
      },
      index_type(c), weight_type(c), moment_type(c));
  return last_error();
}

}  // namespace cuda
}  // namespace fanin
