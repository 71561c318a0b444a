// The C interface of the fused training step.
#include "api/layer.h"

namespace fanin {
namespace {

int32_t prepare(const fanin_step_params *p, StepCall *call, Message message) {
  if (!p) return message.say(FANIN_INVALID, "params is null");
  Check check(message);
  check.optimizer(p->optimizer);
  const Moments moments(p->optimizer);
  Dimension batch{"batch"}, inputs{"inputs"}, labels{"labels"}, fan_in{"fan_in"},
      positives{"positives"}, one{"1", 1, "a loss"};
  check.tensor("features", p->features, {&batch, &inputs});
  check.type("features", p->features, {FANIN_FLOAT32});
  check.connections(p->connections, inputs, labels, fan_in, [&](Dimensions dims, bool allows_rows) {
    check.trained("weights", p->weights, dims, moments, false, allows_rows);
  });
  check.trained("bias", p->bias, {&labels}, moments, true);
  check.tensor("positive_instances", p->positive_instances, {&positives});
  check.type("positive_instances", p->positive_instances, {FANIN_INT32});
  check.tensor("positive_labels", p->positive_labels, {&positives});
  check.type("positive_labels", p->positive_labels, {FANIN_INT64});
  check.written("loss", p->loss, {&one});
  check.type("loss", p->loss, {FANIN_FLOAT32});
  check.written("grad_features", p->grad_features, {&batch, &inputs}, kOptional);
  check.type("grad_features", p->grad_features, {FANIN_FLOAT32}, kOptional);
  check.threads(p->resources.threads);
  check.ready(p->resources);
  check.loss_kind(p->loss_kind);
  if (check.good() && p->mean_labels && p->mean_labels < labels.size)
    check.wrong("mean_labels is %" PRId64 ", but the layer has %" PRId64
                " labels; give 0 or at least as many",
                p->mean_labels, labels.size);
  if (check.good() && p->first_weight < 0)
    check.wrong("first_weight must be at least 0, got %" PRId64, p->first_weight);
  if (check.good() && batch.size == 0)
    check.wrong("a step needs at least one instance; the batch is empty");
  if (!check.good()) return check.status();
  set_resources(call, p->resources, p->features, labels.size);
  call->batch = batch.size;
  call->inputs = inputs.size;
  call->labels = labels.size;
  call->fan_in = fan_in.size;
  call->positives = positives.size;
  call->features = data_as<float>(p->features);
  set_connections(call, p->connections);
  call->positive_instances = data_as<int32_t>(p->positive_instances);
  call->positive_labels = data_as<int64_t>(p->positive_labels);
  call->grad_features = data_as<float>(p->grad_features);
  call->loss = data_as<float>(p->loss);
  call->mean_labels = p->mean_labels ? p->mean_labels : labels.size;
  call->loss_kind = p->loss_kind;
  set_trained(call, p->weights, p->bias, p->optimizer);
  call->optimizer.first = uint32_t(p->first_weight);
  call->float8_weights = is_float8(p->weights.values);
  return FANIN_OK;
}

// On a CPU.
int32_t check_positives(const StepCall &c, Message message) {
  for (int64_t i = 0; i < c.positives; ++i) {
    if (c.positive_instances[i] < 0 || c.positive_instances[i] >= c.batch)
      return message.say(FANIN_INVALID,
                         "positive_instances[%" PRId64
                         "] is %d, out of range for a batch of %" PRId64,
                         i, c.positive_instances[i], c.batch);
    if (c.positive_labels[i] < 0 || c.positive_labels[i] >= c.labels)
      return message.say(FANIN_INVALID,
                         "positive_labels[%" PRId64 "] is %" PRId64 ", out of range for %" PRId64
                         " labels",
                         i, c.positive_labels[i], c.labels);
  }
  return FANIN_OK;
}

}  // namespace
}  // namespace fanin

using namespace fanin;

extern "C" {

uint64_t fanin_step_workspace(const fanin_step_params *params) {
  return workspace_of<StepCall>(params, prepare);
}

int32_t fanin_step(const fanin_step_params *params, char *text, size_t bytes) {
  const Message message{text, bytes};
  StepCall call;
  if (const int32_t status = prepare(params, &call, message)) return status;
  const auto on_cpu = [&](const CpuTarget &target) {
    if (const int32_t status = check_starts(call.starts, call.labels, call.connections, message))
      return status;
    if (const int32_t status = check_positives(call, message)) return status;
    const auto step = !call.indices      ? target.dense_step
                      : call.group_size  ? target.grouped_step
                      : call.tile_labels ? target.sorted_step
                                         : target.step;
    return report(step(call), layer_data(call), message);
  };
  return run(call, params->resources, message, on_cpu, [&] {
    const auto step = !call.indices     ? cuda::dense_step
                      : call.group_size ? cuda::grouped_step
                                        : cuda::step;
    return step(call);
  });
}

}  // extern "C"
