// The C interface of the op: forward and backward pass of the fixed fan-in layer.
#include <cstring>

#include "api/run.h"

namespace fanin {
namespace {

// Checks the arguments. With a call, which is then filled, all sizes have to be known; without one,
// those that are not are skipped.
int32_t prepare(const fanin_linear_forward_params *p, ForwardCall *call, Message message) {
  if (!p) return message.say(FANIN_INVALID, "params is null");
  Check check(message);
  Dimension batch{"batch"}, inputs{"inputs"}, labels{"labels"}, fan_in{"fan_in"};
  check.tensor("features", p->features, {&batch, &inputs});
  check.sources(p->indices, p->weights, p->group_size, labels, fan_in);
  check.tensor("bias", p->bias, {&labels}, kOptional);
  check.written("scores", p->scores, {&batch, &labels}, kOptional);
  check.values("features", p->features);
  check.values("weights", p->weights);
  check.values("bias", p->bias, kOptional);
  check.values("scores", p->scores, kOptional);
  check.sizes(inputs, labels, fan_in);
  check.threads(p->resources.threads);
  if (!call) return check.status();
  check.ready(p->resources);
  if (!check.good()) return check.status();
  set_resources(call, p->resources, p->features, labels.size);
  call->batch = batch.size;
  call->inputs = inputs.size;
  call->labels = labels.size;
  call->fan_in = fan_in.size;
  call->group_size = p->group_size;
  call->wide_values = p->features.dtype == FANIN_FLOAT64;
  call->wide_indices = p->indices.dtype == FANIN_UINT32;
  call->features = p->features.data;
  call->indices = p->indices.data;
  call->weights = p->weights.data;
  call->bias = data_of(p->bias);
  call->scores = data_of(p->scores);
  return FANIN_OK;
}

int32_t prepare(const fanin_linear_backward_params *p, BackwardCall *call, Message message) {
  if (!p) return message.say(FANIN_INVALID, "params is null");
  Check check(message);
  Dimension batch{"batch"}, inputs{"inputs"}, labels{"labels"}, fan_in{"fan_in"};
  check.tensor("features", p->features, {&batch, &inputs});
  check.sources(p->indices, p->weights, p->group_size, labels, fan_in);
  check.tensor("grad_scores", p->grad_scores, {&batch, &labels});
  check.written("grad_features", p->grad_features, {&batch, &inputs}, kOptional);
  check.written("grad_weights", p->grad_weights, {&labels, &fan_in}, kOptional);
  check.written("grad_bias", p->grad_bias, {&labels}, kOptional);
  check.values("features", p->features);
  check.values("weights", p->weights);
  check.values("grad_scores", p->grad_scores);
  check.values("grad_features", p->grad_features, kOptional);
  check.values("grad_weights", p->grad_weights, kOptional);
  check.values("grad_bias", p->grad_bias, kOptional);
  check.sizes(inputs, labels, fan_in);
  check.threads(p->resources.threads);
  check.ready(p->resources);
  if (!check.good()) return check.status();
  set_resources(call, p->resources, p->features, labels.size);
  call->batch = batch.size;
  call->inputs = inputs.size;
  call->labels = labels.size;
  call->fan_in = fan_in.size;
  call->group_size = p->group_size;
  call->wide_values = p->features.dtype == FANIN_FLOAT64;
  call->wide_indices = p->indices.dtype == FANIN_UINT32;
  call->grad_scores = p->grad_scores.data;
  call->features = p->features.data;
  call->indices = p->indices.data;
  call->weights = p->weights.data;
  call->grad_features = data_of(p->grad_features);
  call->grad_weights = data_of(p->grad_weights);
  call->grad_bias = data_of(p->grad_bias);
  return FANIN_OK;
}

template <class OpCall>
uint64_t value_bytes(const OpCall &c) {
  return c.wide_values ? 8 : 4;
}

// Gradients of parameters over no instances are zero.
Finding clear_gradients(const BackwardCall &c) {
  const size_t bias = size_t(c.labels) * value_bytes(c), weights = bias * size_t(c.fan_in);
  if (c.on_gpu) return cuda::zero(c.grad_weights, weights, c.grad_bias, bias, c.stream);
  if (c.grad_weights) memset(c.grad_weights, 0, weights);
  if (c.grad_bias) memset(c.grad_bias, 0, bias);
  return kNothing;
}

}  // namespace
}  // namespace fanin

using namespace fanin;

extern "C" {

int32_t fanin_linear_forward_check(const fanin_linear_forward_params *params, char *message,
                                   size_t message_bytes) {
  return prepare(params, nullptr, {message, message_bytes});
}

uint64_t fanin_linear_forward_workspace(const fanin_linear_forward_params *params) {
  return workspace_of<ForwardCall>(params, prepare);
}

int32_t fanin_linear_forward(const fanin_linear_forward_params *params, char *text, size_t bytes) {
  const Message message{text, bytes};
  ForwardCall call;
  if (const int32_t status = prepare(params, &call, message)) return status;
  if (params->scores.rank < 0) return message.say(FANIN_INVALID, "scores is missing");
  if (call.batch == 0) return FANIN_OK;
  const auto on_cpu = [&](const CpuTarget &target) {
    prefer_huge_pages(call.scores, uint64_t(call.batch * call.labels) * value_bytes(call));
    return report(target.forward(call), op_data(call), message);
  };
  return run(call, params->resources, message, on_cpu, [&] { return cuda::forward(call); });
}

uint64_t fanin_linear_backward_workspace(const fanin_linear_backward_params *params) {
  return workspace_of<BackwardCall>(params, prepare);
}

int32_t fanin_linear_backward(const fanin_linear_backward_params *params, char *text,
                              size_t bytes) {
  const Message message{text, bytes};
  BackwardCall call;
  if (const int32_t status = prepare(params, &call, message)) return status;
  if (call.batch == 0) return report(clear_gradients(call), op_data(call), message);
  const auto on_cpu = [&](const CpuTarget &target) {
    prefer_huge_pages(call.grad_weights, uint64_t(call.labels * call.fan_in) * value_bytes(call));
    return report(target.backward(call), op_data(call), message);
  };
  return run(call, params->resources, message, on_cpu, [&] { return cuda::backward(call); });
}

}  // extern "C"
