// From a checked call to its launcher and back: threads, scratch memory, the device and the
// instruction set, and the words for what launchers find in the data.
#pragma once

#include "api/check.h"
#include "core/launchers.h"
#include "core/memory.h"

namespace fanin {

// How many CPU threads work on so many labels.
int threads_for(int32_t wanted, int64_t labels);

// Sets what every call has, from the resources and a tensor on the device. On a GPU, which keeps
// one set of sums for all, threads is 1.
void set_resources(Call *call, const fanin_resources &resources, const fanin_tensor &tensor,
                   int64_t labels);

int32_t require_workspace(const fanin_resources &resources, uint64_t bytes, Message message);

// The CPU code in use; it is chosen at the first call.
int32_t current_target(const CpuTarget **target, Message message);

// Asks for huge pages for results of many MiB.
void prefer_huge_pages(void *data, uint64_t bytes);

// The data that a finding is about. What a call does not have stays null.
struct CheckedData {
  const void *features = nullptr, *indices = nullptr;
  bool wide_values = false, wide_indices = false;
  int64_t inputs = 0, fan_in = 0;
};

// What a number that is not finite is called.
const char *name_of_non_finite(double value);

int32_t report(const Finding &finding, const CheckedData &data, Message message);

// For calls of the op: Forward and Backward.
template <class OpCall>
CheckedData op_data(const OpCall &c) {
  CheckedData data;
  data.features = c.features;
  data.wide_values = c.wide_values;
  data.indices = c.indices;
  data.wide_indices = c.wide_indices;
  data.inputs = c.inputs;
  data.fan_in = c.fan_in;
  return data;
}
// For calls of training and prediction, whose features are float32: with connections,
template <class LayerCall>
CheckedData layer_data(const LayerCall &c) {
  CheckedData data;
  data.features = c.features;
  data.indices = c.indices;
  data.wide_indices = c.wide_indices;
  data.inputs = c.inputs;
  data.fan_in = c.fan_in;
  return data;
}
// of dense layers,
template <class DenseCall>
CheckedData dense_data(const DenseCall &c) {
  CheckedData data;
  data.features = c.features;
  data.inputs = c.inputs;
  return data;
}
// and, for calls that read no features, of connections alone.
template <class AnyCall>
CheckedData connection_data(const AnyCall &c) {
  CheckedData data;
  data.indices = c.indices;
  data.wide_indices = c.wide_indices;
  data.inputs = c.inputs;
  data.fan_in = c.fan_in;
  return data;
}

// Makes a call that `prepare` has filled. on_gpu() returns a Finding; on_cpu(target), which may
// look at the data first, returns a status.
template <class AnyCall, class OnCpu, class OnGpu>
int32_t run(const AnyCall &call, const fanin_resources &resources, Message message,
            const OnCpu &on_cpu, const OnGpu &on_gpu) {
  if (const int32_t status = require_workspace(resources, workspace_bytes(call), message))
    return status;
  if (call.on_gpu) return report(on_gpu(), {}, message);
  const CpuTarget *target;
  if (const int32_t status = current_target(&target, message)) return status;
  return on_cpu(*target);
}

// What fanin_*_workspace returns. prepare: the op's own function, which checks the arguments and
// fills a call. Scratch memory that the params may name from an earlier call is not looked at.
template <class AnyCall, class Params>
uint64_t workspace_of(const Params *params,
                      int32_t (*prepare)(const Params *, AnyCall *, Message)) {
  if (!params) return 0;
  Params asked = *params;
  asked.resources.workspace = nullptr;
  AnyCall call;
  return prepare(&asked, &call, {nullptr, 0}) == FANIN_OK ? workspace_bytes(call) : 0;
}

}  // namespace fanin
