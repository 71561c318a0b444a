// The C interface of training: checks the arguments, and hands a checked call to the launcher of
// the device and instruction set.
#include <cmath>
#include <functional>

#include "api/check.h"
#include "core/rewire.h"

namespace fanin {
namespace {

constexpr auto kStored = {int32_t(FANIN_FLOAT32), int32_t(FANIN_BFLOAT16)};

void check_trained(Check &check, const char *name, const fanin_trained &t,
                   std::initializer_list<Dimension *> dims, bool is_bias = false) {
  const std::string m = std::string(name) + ".m", v = std::string(name) + ".v";
  if (is_bias && t.values.rank < 0 && t.m.rank < 0 && t.v.rank < 0) return;
  check.tensor(name, t.values, dims);
  check.tensor(m.c_str(), t.m, dims);
  check.tensor(v.c_str(), t.v, dims);
  if (is_bias) {
    for (const auto &[part, tensor] : {std::pair(name, &t.values), std::pair(m.c_str(), &t.m),
                                       std::pair(v.c_str(), &t.v)})
      check.type(part, *tensor, {FANIN_FLOAT32});
  } else {
    check.type(name, t.values, kStored);
    check.type(m.c_str(), t.m, kStored);
    check.type(v.c_str(), t.v, {t.m.dtype});
  }
}

void check_adam(Check &check, const fanin_adam &adam) {
  if (check.status() != FANIN_OK) return;
  // As the kernels have them, in float32.
  if (!(adam.learning_rate >= 0) || std::isinf(float(adam.learning_rate)))
    check.wrong("learning_rate must be finite and at least 0, got %g", adam.learning_rate);
  else if (!(adam.beta1 >= 0 && adam.beta1 < 1 && adam.beta2 >= 0 && adam.beta2 < 1))
    check.wrong("beta1 and beta2 must be in [0, 1), got %g and %g", adam.beta1, adam.beta2);
  else if (!(float(adam.epsilon) > 0) || std::isinf(float(adam.epsilon)))
    // With 0, a weight without gradients would become 0 / 0.
    check.wrong("epsilon must be finite and above 0, got %g", adam.epsilon);
  else if (adam.step < 1)
    check.wrong("step counts from 1, got %" PRId64, adam.step);
}

AdamCall adam_call(const fanin_adam &a) {
  const double t = double(a.step);
  const double rate =
      a.learning_rate * std::sqrt(1 - std::pow(a.beta2, t)) / (1 - std::pow(a.beta1, t));
  // Neighbouring seeds must not be one stream a step apart, so the step is added to a mixed one.
  uint64_t seed = a.seed;
  uint64_t of_step = split_mix(seed) + uint64_t(a.step);
  return {float(rate), float(1 - a.beta1), float(1 - a.beta2), float(a.epsilon),
          uint32_t(split_mix(of_step) >> 32)};
}

// Checks connections and what is shaped like them; fan_in is 0 for unstructured ones.
void check_connections(Check &check, const fanin_connections &c, Dimension &inputs,
                       Dimension &labels, Dimension &fan_in,
                       const std::function<void(std::initializer_list<Dimension *>)> &like) {
  if (c.indices.rank < 0) {
    if (c.starts.rank >= 0 || c.tile_labels.rank >= 0)
      return check.wrong("starts and tile_labels have no meaning without indices");
    like({&labels, &inputs});
    fan_in.size = inputs.size;
    fan_in.said_by = "features";
  } else if (c.starts.rank >= 0) {
    if (c.tile_labels.rank >= 0) return check.wrong("connections are either unstructured or sorted");
    Dimension bounds{"labels + 1", -1, ""}, connections{"connections", -1, ""};
    check.tensor("starts", c.starts, {&bounds});
    check.type("starts", c.starts, {FANIN_INT32});
    check.tensor("indices", c.indices, {&connections});
    check.indices(c.indices);
    if (check.status() != FANIN_OK) return;
    if (bounds.size < 2) return check.wrong("starts must have at least 2 elements");
    if (connections.size == 0) return check.wrong("a layer needs at least one connection");
    labels.size = bounds.size - 1;
    labels.said_by = "starts";
    like({&connections});
    check.sizes(inputs, labels, fan_in);
    fan_in.size = 0;
    return;
  } else {
    check.tensor("indices", c.indices, {&labels, &fan_in});
    check.indices(c.indices);
    check.tensor("tile_labels", c.tile_labels, {&labels, &fan_in}, true);
    check.type("tile_labels", c.tile_labels, {FANIN_UINT16}, true);
    if (check.status() == FANIN_OK && c.tile_labels.rank >= 0 && c.tile_labels.device == FANIN_CUDA)
      return check.wrong("sorted connections (tile_labels) are for CPUs only");
    like({&labels, &fan_in});
  }
  check.sizes(inputs, labels, fan_in);
}

bool is_bf16(const fanin_tensor &t) { return t.dtype == FANIN_BFLOAT16; }

template <class T>
T *data_as(const fanin_tensor &t) {
  return static_cast<T *>(data_of(t));
}

// How many connections there are; 0 for a dense layer.
int64_t connection_count(const fanin_connections &c) {
  if (c.indices.rank < 0) return 0;
  return c.indices.shape[0] * (c.indices.rank > 1 ? c.indices.shape[1] : 1);
}

// CPU threads; 1 on a GPU, which keeps one set of sums for all.
int cpu_threads(const fanin_tensor &where, int32_t wanted, int64_t labels) {
  return where.device == FANIN_CPU ? threads_for(wanted, labels) : 1;
}

int32_t prepare(const fanin_step_params *p, StepCall *call, Message message) {
  if (!p) return message.say(FANIN_INVALID, "params is null");
  Check check(message);
  Dimension batch{"batch", -1, ""}, inputs{"inputs", -1, ""}, labels{"labels", -1, ""},
      fan_in{"fan_in", -1, ""}, positives{"positives", -1, ""}, one{"1", 1, "a loss"};
  check.tensor("features", p->features, {&batch, &inputs});
  check.type("features", p->features, {FANIN_FLOAT32});
  check_connections(check, p->connections, inputs, labels, fan_in,
                    [&](auto dims) { check_trained(check, "weights", p->weights, dims); });
  check_trained(check, "bias", p->bias, {&labels}, true);
  check.tensor("positive_instances", p->positive_instances, {&positives});
  check.type("positive_instances", p->positive_instances, {FANIN_INT32});
  check.tensor("positive_labels", p->positive_labels, {&positives});
  check.type("positive_labels", p->positive_labels, {FANIN_INT64});
  check.tensor("loss", p->loss, {&one});
  check.type("loss", p->loss, {FANIN_FLOAT32});
  check.tensor("grad_features", p->grad_features, {&batch, &inputs}, true);
  check.type("grad_features", p->grad_features, {FANIN_FLOAT32}, true);
  check_adam(check, p->adam);
  check.threads(p->resources.threads);
  check.known();
  if (check.status() == FANIN_OK && p->loss_kind != FANIN_SQUARED_HINGE &&
      p->loss_kind != FANIN_BINARY_CROSS_ENTROPY)
    check.wrong("loss_kind %d is unknown", p->loss_kind);
  if (check.status() == FANIN_OK && batch.size == 0)
    check.wrong("a step needs at least one instance; the batch is empty");
  if (check.status() != FANIN_OK) return check.status();
  *call = {batch.size, inputs.size, labels.size, fan_in.size,
           connection_count(p->connections), positives.size,
           p->connections.indices.dtype == FANIN_UINT32, is_bf16(p->weights.values),
           is_bf16(p->weights.m),
           data_as<float>(p->features), data_of(p->connections.indices),
           data_as<int32_t>(p->connections.starts), data_as<uint16_t>(p->connections.tile_labels),
           p->weights.values.data, p->weights.m.data, p->weights.v.data,
           data_as<float>(p->bias.values), data_as<float>(p->bias.m), data_as<float>(p->bias.v),
           data_as<int32_t>(p->positive_instances), data_as<int64_t>(p->positive_labels),
           data_as<float>(p->grad_features), data_as<float>(p->loss),
           p->loss_kind, adam_call(p->adam), workspace_of(p->resources.workspace), p->resources.stream,
           cpu_threads(p->features, p->resources.threads, labels.size)};
  return FANIN_OK;
}

int32_t prepare(const fanin_dense_forward_params *p, DenseForwardCall *call, Message message) {
  if (!p) return message.say(FANIN_INVALID, "params is null");
  Check check(message);
  Dimension batch{"batch", -1, ""}, inputs{"inputs", -1, ""}, units{"units", -1, ""};
  check.tensor("features", p->features, {&batch, &inputs});
  check.type("features", p->features, {FANIN_FLOAT32});
  check.tensor("weights", p->weights, {&units, &inputs});
  check.type("weights", p->weights, kStored);
  check.tensor("bias", p->bias, {&units}, true);
  check.type("bias", p->bias, {FANIN_FLOAT32}, true);
  check.tensor("outputs", p->outputs, {&batch, &units});
  check.type("outputs", p->outputs, {FANIN_FLOAT32});
  check.sizes(inputs, units, inputs);
  check.threads(p->resources.threads);
  check.known();
  if (check.status() != FANIN_OK) return check.status();
  *call = {batch.size, inputs.size, units.size, is_bf16(p->weights), p->relu != 0,
           data_as<float>(p->features), p->weights.data, data_as<float>(p->bias),
           data_as<float>(p->outputs), workspace_of(p->resources.workspace), p->resources.stream,
           cpu_threads(p->features, p->resources.threads, units.size)};
  return FANIN_OK;
}

int32_t prepare(const fanin_dense_update_params *p, DenseUpdateCall *call, Message message) {
  if (!p) return message.say(FANIN_INVALID, "params is null");
  Check check(message);
  Dimension batch{"batch", -1, ""}, inputs{"inputs", -1, ""}, units{"units", -1, ""};
  check.tensor("grad_outputs", p->grad_outputs, {&batch, &units});
  check.type("grad_outputs", p->grad_outputs, {FANIN_FLOAT32});
  check.tensor("outputs", p->outputs, {&batch, &units}, true);
  check.type("outputs", p->outputs, {FANIN_FLOAT32}, true);
  check.tensor("features", p->features, {&batch, &inputs});
  check.type("features", p->features, {FANIN_FLOAT32});
  check_trained(check, "weights", p->weights, {&units, &inputs});
  check_trained(check, "bias", p->bias, {&units}, true);
  check.tensor("grad_features", p->grad_features, {&batch, &inputs}, true);
  check.type("grad_features", p->grad_features, {FANIN_FLOAT32}, true);
  check.sizes(inputs, units, inputs);
  check_adam(check, p->adam);
  check.threads(p->resources.threads);
  check.known();
  if (check.status() == FANIN_OK && batch.size == 0)
    check.wrong("an update needs at least one instance; the batch is empty");
  if (check.status() != FANIN_OK) return check.status();
  *call = {batch.size, inputs.size, units.size, is_bf16(p->weights.values), is_bf16(p->weights.m),
           data_as<float>(p->grad_outputs), data_as<float>(p->outputs),
           data_as<float>(p->features),
           p->weights.values.data, p->weights.m.data, p->weights.v.data,
           data_as<float>(p->bias.values), data_as<float>(p->bias.m), data_as<float>(p->bias.v),
           data_as<float>(p->grad_features), adam_call(p->adam), workspace_of(p->resources.workspace), p->resources.stream,
           cpu_threads(p->features, p->resources.threads, units.size)};
  return FANIN_OK;
}

int32_t prepare(const fanin_top_k_params *p, TopKCall *call, Message message) {
  if (!p) return message.say(FANIN_INVALID, "params is null");
  Check check(message);
  Dimension batch{"batch", -1, ""}, inputs{"inputs", -1, ""}, labels{"labels", -1, ""},
      fan_in{"fan_in", -1, ""}, k{"k", -1, ""};
  check.tensor("features", p->features, {&batch, &inputs});
  check.type("features", p->features, {FANIN_FLOAT32});
  check_connections(check, p->connections, inputs, labels, fan_in, [&](auto dims) {
    check.tensor("weights", p->weights, dims);
    check.type("weights", p->weights, kStored);
  });
  check.tensor("bias", p->bias, {&labels}, true);
  check.type("bias", p->bias, {FANIN_FLOAT32}, true);
  check.tensor("ids", p->ids, {&batch, &k});
  check.type("ids", p->ids, {FANIN_INT64});
  check.tensor("scores", p->scores, {&batch, &k}, true);
  check.type("scores", p->scores, {FANIN_FLOAT32}, true);
  check.threads(p->resources.threads);
  check.known();
  if (check.status() == FANIN_OK && (k.size < 1 || k.size > labels.size))
    check.wrong("k must be in 1..%" PRId64 " (the labels), got %" PRId64, labels.size, k.size);
  if (check.status() != FANIN_OK) return check.status();
  const bool on_gpu = p->features.device == FANIN_CUDA;
  *call = {batch.size, inputs.size, labels.size, fan_in.size, connection_count(p->connections),
           k.size, p->connections.indices.dtype == FANIN_UINT32, is_bf16(p->weights), on_gpu,
           data_as<float>(p->features), data_of(p->connections.indices),
           data_as<int32_t>(p->connections.starts), data_as<uint16_t>(p->connections.tile_labels),
           p->weights.data, data_as<float>(p->bias), data_as<int64_t>(p->ids),
           data_as<float>(p->scores), workspace_of(p->resources.workspace), p->resources.stream,
           on_gpu ? gpu_lists(labels.size, k.size) : threads_for(p->resources.threads, labels.size)};
  return FANIN_OK;
}

int32_t prepare(const fanin_rewire_params *p, RewireCall *call, Message message) {
  if (!p) return message.say(FANIN_INVALID, "params is null");
  Check check(message);
  Dimension rows{"labels", -1, ""}, columns{"fan_in", -1, ""};
  const std::initializer_list<Dimension *> flat = {&rows}, matrix = {&rows, &columns};
  const auto &dims = p->indices.rank == 1 ? flat : matrix;
  check.tensor("indices", p->indices, dims);
  check.indices(p->indices);
  check_trained(check, "weights", p->weights, dims);
  check.threads(p->resources.threads);
  check.known();
  if (check.status() == FANIN_OK && !(p->fraction >= 0 && p->fraction < 1))
    check.wrong("fraction must be at least 0 and below 1, got %g", p->fraction);
  if (check.status() == FANIN_OK &&
      (p->inputs < 1 || p->inputs > INT32_MAX ||
       (p->indices.dtype == FANIN_UINT16 && p->inputs > 65536)))
    check.wrong("inputs %" PRId64 " do not fit indices of type %s", p->inputs,
                name_of(p->indices.dtype));
  if (check.status() != FANIN_OK) return check.status();
  *call = {rows.size * (p->indices.rank == 1 ? 1 : columns.size), p->inputs, p->fraction, p->seed,
           p->indices.dtype == FANIN_UINT32, is_bf16(p->weights.values), is_bf16(p->weights.m),
           p->indices.device == FANIN_CUDA, p->indices.data, p->weights.values.data, p->weights.m.data, p->weights.v.data,
           workspace_of(p->resources.workspace), p->resources.stream,
           cpu_threads(p->indices, p->resources.threads, INT32_MAX)};
  return FANIN_OK;
}

int32_t prepare(const fanin_sort_params *p, SortCall *call, Message message) {
  if (!p) return message.say(FANIN_INVALID, "params is null");
  Check check(message);
  Dimension labels{"labels", -1, ""}, fan_in{"fan_in", -1, ""},
      inputs{"inputs", p->inputs, "the call"};
  check.tensor("indices", p->indices, {&labels, &fan_in});
  check.indices(p->indices);
  check.tensor("tile_labels", p->tile_labels, {&labels, &fan_in});
  check.type("tile_labels", p->tile_labels, {FANIN_UINT16});
  check.tensor("slots", p->slots, {&labels, &fan_in});
  check.type("slots", p->slots, {fan_in.size <= 256 ? FANIN_UINT8 : FANIN_UINT32});
  check_trained(check, "weights", p->weights, {&labels, &fan_in});
  if (check.status() == FANIN_OK && p->inputs < 0)
    check.wrong("inputs must be at least 1, got %" PRId64, p->inputs);
  check.sizes(inputs, labels, fan_in);
  check.threads(p->resources.threads);
  check.known();
  if (check.status() == FANIN_OK && fan_in.size > UINT32_MAX / sorted_labels(inputs.size, labels.size))
    check.wrong("fan_in %" PRId64 " is too large for sorted connections", fan_in.size);
  if (check.status() != FANIN_OK) return check.status();
  *call = {labels.size, fan_in.size, inputs.size,
           p->indices.dtype == FANIN_UINT32, is_bf16(p->weights.values), is_bf16(p->weights.m),
           p->undo != 0, p->indices.data, p->slots.data,
           p->weights.values.data, p->weights.m.data, p->weights.v.data,
           data_as<uint16_t>(p->tile_labels), workspace_of(p->resources.workspace),
           threads_for(p->resources.threads, labels.size)};
  return FANIN_OK;
}

uint64_t workspace_bytes(const StepCall &c) { return step_memory(c, nullptr).bytes; }
uint64_t workspace_bytes(const DenseForwardCall &c) {
  return dense_memory(c.batch, c.inputs, c.threads, true, false, nullptr).bytes;
}
uint64_t workspace_bytes(const DenseUpdateCall &c) {
  return dense_memory(c.batch, c.inputs, c.threads, false, c.grad_features, nullptr).bytes;
}
uint64_t workspace_bytes(const TopKCall &c) { return top_k_memory(c, nullptr).bytes; }
uint64_t workspace_bytes(const RewireCall &c) {
  return c.on_gpu ? cuda::rewire_workspace() : rewire_workspace(c);
}
uint64_t workspace_bytes(const SortCall &c) { return sort_workspace(c); }

template <class Call, class Params>
uint64_t workspace_for(const Params *params) {
  Call call;
  return prepare(params, &call, {nullptr, 0}) == FANIN_OK ? workspace_bytes(call) : 0;
}

constexpr Finding kCpuOnly = {Finding::unavailable, 0, "sorted connections are for CPUs only"};

// Checks, and the call itself: `on_cpu(call, target)` or `on_gpu(call)`.
template <class Call, class Params, class OnCpu, class OnGpu>
int32_t dispatch(const Params *params, const fanin_tensor &where, Message message,
                 const OnCpu &on_cpu, const OnGpu &on_gpu) {
  Call call;
  if (const int32_t status = prepare(params, &call, message)) return status;
  if (const int32_t status = require_workspace(params->resources.workspace_bytes, params->resources.workspace,
                                               workspace_bytes(call), message))
    return status;
  if (where.device == FANIN_CUDA) return report_device(on_gpu(call), message);
  const CpuTarget *target;
  if (const int32_t status = current(&target, message)) return status;
  return on_cpu(call, *target);
}

// Where there is nothing to be done for an empty batch.
template <class Call>
Finding unless_empty(Finding (*run)(const Call &), const Call &call) {
  return call.batch ? run(call) : Finding{Finding::nothing, 0, nullptr};
}

// On a CPU, of unstructured connections: that they are divided among the labels, all of them.
template <class Call>
int32_t check_starts(const Call &c, Message message) {
  if (!c.starts) return FANIN_OK;
  bool good = c.starts[0] == 0 && c.starts[c.labels] == c.connections;
  for (int64_t l = 0; l < c.labels; ++l) good &= c.starts[l] <= c.starts[l + 1];
  return good ? FANIN_OK
              : message.say(FANIN_INVALID,
                            "starts must ascend from 0 to the %" PRId64 " connections",
                            c.connections);
}

int32_t check_positives(const StepCall &c, Message message) {
  for (int64_t i = 0; i < c.positives; ++i) {
    if (c.positive_instances[i] < 0 || c.positive_instances[i] >= c.batch)
      return message.say(FANIN_INVALID,
                         "positive_instances[%" PRId64 "] is %d, out of range for a batch of %" PRId64,
                         i, c.positive_instances[i], c.batch);
    if (c.positive_labels[i] < 0 || c.positive_labels[i] >= c.labels)
      return message.say(FANIN_INVALID,
                         "positive_labels[%" PRId64 "] is %" PRId64
                         ", out of range for %" PRId64 " labels",
                         i, c.positive_labels[i], c.labels);
  }
  return FANIN_OK;
}

}  // namespace
}  // namespace fanin

using namespace fanin;

extern "C" {

uint64_t fanin_step_workspace(const fanin_step_params *params) {
  return workspace_for<StepCall>(params);
}

int32_t fanin_step(const fanin_step_params *params, char *text, size_t bytes) {
  const Message message{text, bytes};
  return dispatch<StepCall>(
      params, params->features, message,
      [&](const StepCall &call, const CpuTarget &target) {
        if (const int32_t status = check_starts(call, message)) return status;
        if (const int32_t status = check_positives(call, message)) return status;
        return report(target.step(call), call, message);
      },
      cuda::step);
}

uint64_t fanin_dense_forward_workspace(const fanin_dense_forward_params *params) {
  return workspace_for<DenseForwardCall>(params);
}

int32_t fanin_dense_forward(const fanin_dense_forward_params *params, char *text, size_t bytes) {
  const Message message{text, bytes};
  return dispatch<DenseForwardCall>(
      params, params->features, message,
      [&](const DenseForwardCall &call, const CpuTarget &target) {
        return report(unless_empty(target.dense_forward, call), call, message);
      },
      [](const DenseForwardCall &call) { return unless_empty(cuda::dense_forward, call); });
}

uint64_t fanin_dense_update_workspace(const fanin_dense_update_params *params) {
  return workspace_for<DenseUpdateCall>(params);
}

int32_t fanin_dense_update(const fanin_dense_update_params *params, char *text, size_t bytes) {
  const Message message{text, bytes};
  return dispatch<DenseUpdateCall>(
      params, params->features, message,
      [&](const DenseUpdateCall &call, const CpuTarget &target) {
        return report(target.dense_update(call), call, message);
      },
      cuda::dense_update);
}

uint64_t fanin_top_k_workspace(const fanin_top_k_params *params) {
  return workspace_for<TopKCall>(params);
}

int32_t fanin_top_k(const fanin_top_k_params *params, char *text, size_t bytes) {
  const Message message{text, bytes};
  return dispatch<TopKCall>(
      params, params->features, message,
      [&](const TopKCall &call, const CpuTarget &target) {
        if (const int32_t status = check_starts(call, message)) return status;
        return report(unless_empty(target.top_k, call), call, message);
      },
      [](const TopKCall &call) { return unless_empty(cuda::top_k, call); });
}

uint64_t fanin_rewire_workspace(const fanin_rewire_params *params) {
  return workspace_for<RewireCall>(params);
}

int32_t fanin_rewire(fanin_rewire_params *params, char *text, size_t bytes) {
  Rewired done{};
  const int32_t status = dispatch<RewireCall>(
      params, params->indices, {text, bytes},
      [&](const RewireCall &call, const CpuTarget &) {
        done = rewire(call);
        return int32_t(FANIN_OK);
      },
      [&](const RewireCall &call) { return cuda::rewire(call, &done); });
  if (status) return status;
  params->threshold = done.threshold;
  params->moved = done.moved;
  return FANIN_OK;
}

uint64_t fanin_sort_workspace(const fanin_sort_params *params) {
  return workspace_for<SortCall>(params);
}

int32_t fanin_sort(const fanin_sort_params *params, char *text, size_t bytes) {
  const Message message{text, bytes};
  return dispatch<SortCall>(
      params, params->indices, message,
      [&](const SortCall &call, const CpuTarget &) {
        const int64_t bad = sort(call);
        if (bad < 0) return int32_t(FANIN_OK);
        if (!call.undo)
          return report_index({Finding::bad_index, bad, nullptr}, call, message);
        return message.say(FANIN_INVALID,
                           "tile_labels and slots at flat position %" PRId64
                           " name a place beyond the tile, or one named before", bad);
      },
      [](const SortCall &) { return kCpuOnly; });
}

}  // extern "C"
