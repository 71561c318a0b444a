// Launches the fused step of sorted connections, tile by tile: with whole groups of instances, or
// with halves of them (see core/sorted.h).
#include "core/sorted.h"

#include "cpu/common.h"

namespace fanin {
namespace FANIN_TARGET {
namespace {

template <int N, class I, class W, class M>
bool step_labels(const StepCall &c, const StepShare &share, int64_t first, int64_t end,
                 Lanes<float> *loss) {
  const TrainedLayer<I, W, M> layer = trained_layer<I, W, M>(c);
  const int64_t begin = layer.begin(first), count = layer.begin(end) - begin;
  if (!check_connections(share.team, layer.indices, c.tile_labels, begin, count, c.inputs,
                         end - first, share.faults))
    return false;
  step_sorted<N>(layer, c.tile_labels, share.memory.features, first, end - first,
                 share.memory.masks, share.scratch, share.targets, *loss);
  return true;
}

}  // namespace

Finding sorted_step(const StepCall &c) {
  const int64_t tile = sorted_labels(c.inputs, c.labels);
  return with_types(
      [&](auto index, auto weight, auto moment) {
        typedef decltype(index) I;
        typedef decltype(weight) W;
        typedef decltype(moment) M;
        return in_halves(c.inputs, c.labels)
                   ? run_step(c, kHalf, tile, step_labels<kHalf, I, W, M>)
                   : run_step(c, kLanes, tile, step_labels<kLanes, I, W, M>);
      },
      index_type(c), weight_type(c), moment_type(c));
}

}  // namespace FANIN_TARGET
}  // namespace fanin
