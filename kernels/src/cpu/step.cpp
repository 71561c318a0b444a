// Launches the fused step of connections that stand label by label: fixed fan-in and unstructured.
//
// Two variants: all groups of the batch at once; or, where their features do not fit the cache, as
// many as do at a time, each for some hundred labels.
#include "core/step.h"

#include "cpu/common.h"

namespace fanin {
namespace FANIN_TARGET {
namespace {

// The step's scratch: a row of weights in float8, 32 values a group, then for each label one, and,
// unless all groups are worked on at once, fan_in more.
template <class I, class W, class M>
bool step_labels(const StepCall &c, const StepShare &share, int64_t first, int64_t end,
                 Lanes<float> *loss) {
  const TrainedLayer<I, W, M> layer = trained_layer<I, W, M>(c);
  const int64_t begin = layer.begin(first), count = layer.begin(end) - begin;
  if (!check_connections(share.team, layer.indices, nullptr, begin, count, c.inputs, end - first,
                         share.faults))
    return false;
  const int64_t groups = layer.groups(), at_a_time = groups_at_a_time(c);
  float *const row = share.scratch, *const grads = row + float8_row(c);
  float *const bias_grads = grads + groups * kLanes;
  float *const before = bias_grads + (end - first);
  for (int64_t group = 0; group < groups; group += at_a_time)
    for (int64_t label = first; label < end; label += kTile) {
      GroupRange range;
      range.first = group;
      range.end = smaller(group + at_a_time, groups);
      range.before = at_a_time < groups ? before + (label - first) * layer.fan_in : nullptr;
      const auto step = [&](auto one_group) FANIN_INLINE {
        step_tile<decltype(one_group)::value>(
            layer, share.memory.features, label, share.memory.masks, range,
            bias_grads + (label - first), grads, row, share.targets, *loss, share.team);
      };
      if (range.end - group == 1)
        step(std::true_type());
      else
        step(std::false_type());
    }
  return true;
}

}  // namespace

Finding step(const StepCall &c) {
  const int64_t unit = groups_at_a_time(c) < groups_of(c.batch) ? kStepLabels : int64_t(kTile);
  return with_types(
      [&](auto index, auto weight, auto moment) {
        return run_step(c, kLanes, unit,
                        step_labels<decltype(index), decltype(weight), decltype(moment)>);
      },
      index_type(c), row_type(c), moment_type(c));
}

}  // namespace FANIN_TARGET
}  // namespace fanin
