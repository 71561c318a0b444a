// The C interface of dense layers.
#include "api/layer.h"

namespace fanin {
namespace {

int32_t prepare(const fanin_dense_forward_params *p, DenseForwardCall *call, Message message) {
  if (!p) return message.say(FANIN_INVALID, "params is null");
  Check check(message);
  Dimension batch{"batch"}, inputs{"inputs"}, units{"units"};
  check.tensor("features", p->features, {&batch, &inputs});
  check.type("features", p->features, {FANIN_FLOAT32});
  check.tensor("weights", p->weights, {&units, &inputs});
  check.type("weights", p->weights, kStored);
  check.tensor("bias", p->bias, {&units}, kOptional);
  check.type("bias", p->bias, {FANIN_FLOAT32}, kOptional);
  check.written("outputs", p->outputs, {&batch, &units});
  check.type("outputs", p->outputs, {FANIN_FLOAT32});
  check.sizes(inputs, units, inputs);
  check.threads(p->resources.threads);
  check.ready(p->resources);
  if (!check.good()) return check.status();
  set_resources(call, p->resources, p->features, units.size);
  call->batch = batch.size;
  call->inputs = inputs.size;
  call->units = units.size;
  call->bf16_weights = is_bf16(p->weights);
  call->relu = p->relu != 0;
  call->features = data_as<float>(p->features);
  call->weights = p->weights.data;
  call->bias = data_as<float>(p->bias);
  call->outputs = data_as<float>(p->outputs);
  return FANIN_OK;
}

int32_t prepare(const fanin_dense_update_params *p, DenseUpdateCall *call, Message message) {
  if (!p) return message.say(FANIN_INVALID, "params is null");
  Check check(message);
  check.optimizer(p->optimizer);
  const Moments moments(p->optimizer);
  Dimension batch{"batch"}, inputs{"inputs"}, units{"units"};
  check.tensor("grad_outputs", p->grad_outputs, {&batch, &units});
  check.type("grad_outputs", p->grad_outputs, {FANIN_FLOAT32});
  check.tensor("outputs", p->outputs, {&batch, &units}, kOptional);
  check.type("outputs", p->outputs, {FANIN_FLOAT32}, kOptional);
  check.tensor("features", p->features, {&batch, &inputs});
  check.type("features", p->features, {FANIN_FLOAT32});
  check.trained("weights", p->weights, {&units, &inputs}, moments);
  check.trained("bias", p->bias, {&units}, moments, true);
  check.written("grad_features", p->grad_features, {&batch, &inputs}, kOptional);
  check.type("grad_features", p->grad_features, {FANIN_FLOAT32}, kOptional);
  check.sizes(inputs, units, inputs);
  check.threads(p->resources.threads);
  check.ready(p->resources);
  if (check.good() && batch.size == 0)
    check.wrong("an update needs at least one instance; the batch is empty");
  if (!check.good()) return check.status();
  set_resources(call, p->resources, p->features, units.size);
  call->batch = batch.size;
  call->inputs = inputs.size;
  call->units = units.size;
  call->grad_outputs = data_as<float>(p->grad_outputs);
  call->outputs = data_as<float>(p->outputs);
  call->features = data_as<float>(p->features);
  call->grad_features = data_as<float>(p->grad_features);
  set_trained(call, p->weights, p->bias, p->optimizer);
  return FANIN_OK;
}

}  // namespace
}  // namespace fanin

using namespace fanin;

extern "C" {

uint64_t fanin_dense_forward_workspace(const fanin_dense_forward_params *params) {
  return workspace_of<DenseForwardCall>(params, prepare);
}

int32_t fanin_dense_forward(const fanin_dense_forward_params *params, char *text, size_t bytes) {
  const Message message{text, bytes};
  DenseForwardCall call;
  if (const int32_t status = prepare(params, &call, message)) return status;
  const auto on_cpu = [&](const CpuTarget &target) {
    return report(call.batch ? target.dense_forward(call) : kNothing, dense_data(call), message);
  };
  return run(call, params->resources, message, on_cpu,
             [&] { return call.batch ? cuda::dense_forward(call) : kNothing; });
}

uint64_t fanin_dense_update_workspace(const fanin_dense_update_params *params) {
  return workspace_of<DenseUpdateCall>(params, prepare);
}

int32_t fanin_dense_update(const fanin_dense_update_params *params, char *text, size_t bytes) {
  const Message message{text, bytes};
  DenseUpdateCall call;
  if (const int32_t status = prepare(params, &call, message)) return status;
  const auto on_cpu = [&](const CpuTarget &target) {
    return report(target.dense_update(call), dense_data(call), message);
  };
  return run(call, params->resources, message, on_cpu, [&] { return cuda::dense_update(call); });
}

}  // extern "C"
