// Launches the fused step of labels that share their sources.
#include "core/grouped.h"

#include "cpu/common.h"

namespace fanin {
namespace FANIN_TARGET {
namespace {

template <class I, class W, class M>
bool step_labels(const StepCall &c, const StepShare &share, int64_t first, int64_t end,
                 Lanes<float> *loss) {
  const TrainedLayer<I, W, M> layer = trained_layer<I, W, M>(c);
  const int64_t at = first / c.group_size * c.fan_in;
  if (!check_connections(share.team, layer.indices, nullptr, at, c.fan_in, c.inputs, end - first,
                         share.faults))
    return false;
  const I *const indices = layer.indices + at;
  step_group(layer, indices, end < c.labels ? indices + c.fan_in : nullptr, first, end,
             share.memory.features, share.memory.masks,
             GroupScratch(share.scratch, layer.groups(), c.fan_in), share.targets, *loss);
  return true;
}

}  // namespace

Finding grouped_step(const StepCall &c) {
  return with_types(
      [&](auto index, auto weight, auto moment) {
        return run_step(c, kLanes, c.group_size,
                        step_labels<decltype(index), decltype(weight), decltype(moment)>);
      },
      index_type(c), row_type(c), moment_type(c));
}

}  // namespace FANIN_TARGET
}  // namespace fanin
