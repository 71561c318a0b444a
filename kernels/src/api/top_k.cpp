// The C interface of top-k.
#include "api/layer.h"

namespace fanin {
namespace {

int32_t prepare(const fanin_top_k_params *p, TopKCall *call, Message message) {
  if (!p) return message.say(FANIN_INVALID, "params is null");
  Check check(message);
  Dimension batch{"batch"}, inputs{"inputs"}, labels{"labels"}, fan_in{"fan_in"}, k{"k"};
  check.tensor("features", p->features, {&batch, &inputs});
  check.type("features", p->features, {FANIN_FLOAT32});
  check.connections(p->connections, inputs, labels, fan_in, [&](Dimensions dims, bool allows_rows) {
    check.stored("weights", p->weights, dims, allows_rows, false);
  });
  check.tensor("bias", p->bias, {&labels}, kOptional);
  check.type("bias", p->bias, {FANIN_FLOAT32}, kOptional);
  check.tensor("label_ids", p->label_ids, {&labels}, kOptional);
  check.type("label_ids", p->label_ids, {FANIN_INT32}, kOptional);
  check.written("ids", p->ids, {&batch, &k});
  check.type("ids", p->ids, {FANIN_INT64});
  check.written("scores", p->scores, {&batch, &k}, kOptional);
  check.type("scores", p->scores, {FANIN_FLOAT32}, kOptional);
  check.threads(p->resources.threads);
  check.ready(p->resources);
  check.k(k, labels);
  if (!check.good()) return check.status();
  set_resources(call, p->resources, p->features, labels.size);
  call->batch = batch.size;
  call->inputs = inputs.size;
  call->labels = labels.size;
  call->fan_in = fan_in.size;
  call->k = k.size;
  call->features = data_as<float>(p->features);
  set_connections(call, p->connections);
  call->bf16_weights = is_bf16(p->weights);
  call->float8_weights = is_float8(p->weights);
  call->weights = p->weights.data;
  call->bias = data_as<float>(p->bias);
  call->label_ids = data_as<int32_t>(p->label_ids);
  call->ids = data_as<int64_t>(p->ids);
  call->scores = data_as<float>(p->scores);
  call->gpu_lists = gpu_lists(labels.size, k.size);
  return FANIN_OK;
}

}  // namespace
}  // namespace fanin

using namespace fanin;

extern "C" {

uint64_t fanin_top_k_workspace(const fanin_top_k_params *params) {
  return workspace_of<TopKCall>(params, prepare);
}

int32_t fanin_top_k(const fanin_top_k_params *params, char *text, size_t bytes) {
  const Message message{text, bytes};
  TopKCall call;
  if (const int32_t status = prepare(params, &call, message)) return status;
  const auto on_cpu = [&](const CpuTarget &target) {
    if (const int32_t status = check_starts(call.starts, call.labels, call.connections, message))
      return status;
    const Finding finding = call.batch ? target.top_k(call) : kNothing;
    if (finding.kind == Finding::bad_label_id)
      return check_members("label_ids", call.label_ids, finding.position, call.labels, call.labels,
                           "labels", message);
    return report(finding, layer_data(call), message);
  };
  return run(call, params->resources, message, on_cpu,
             [&] { return call.batch ? cuda::top_k(call) : kNothing; });
}

}  // extern "C"
