// The C interface of dense layers over sparse features.
#include "api/layer.h"

namespace fanin {
namespace {

int32_t prepare(const fanin_sparse_forward_params *p, SparseForwardCall *call, Message message) {
  if (!p) return message.say(FANIN_INVALID, "params is null");
  Check check(message);
  Dimension batch{"batch"}, inputs{"inputs"}, units{"units"};
  Dimension stored{"stored"}, bounds{"batch + 1"};
  check_csr(check, p->values, p->starts, p->columns, stored, bounds);
  check.tensor("weights", p->weights, {&inputs, &units});
  check.type("weights", p->weights, kStored);
  check.tensor("bias", p->bias, {&units}, kOptional);
  check.type("bias", p->bias, {FANIN_FLOAT32}, kOptional);
  check.written("outputs", p->outputs, {&batch, &units});
  check.type("outputs", p->outputs, {FANIN_FLOAT32});
  check.sizes(inputs, units, inputs);
  check.threads(p->resources.threads);
  check.ready(p->resources);
  check_bounds(check, "starts", bounds, batch);
  if (!check.good()) return check.status();
  set_resources(call, p->resources, p->weights, batch.size * units.size);
  call->batch = batch.size;
  call->inputs = inputs.size;
  call->units = units.size;
  call->stored = stored.size;
  call->bf16_weights = is_bf16(p->weights);
  call->relu = p->relu != 0;
  call->values = data_as<float>(p->values);
  call->starts = data_as<int64_t>(p->starts);
  call->columns = data_as<int32_t>(p->columns);
  call->weights = p->weights.data;
  call->bias = data_as<float>(p->bias);
  call->outputs = data_as<float>(p->outputs);
  return FANIN_OK;
}

int32_t prepare(const fanin_sparse_update_params *p, SparseUpdateCall *call, Message message) {
  if (!p) return message.say(FANIN_INVALID, "params is null");
  Check check(message);
  check.optimizer(p->optimizer);
  const Moments moments(p->optimizer);
  Dimension batch{"batch"}, inputs{"inputs"}, units{"units"};
  Dimension stored{"stored"}, words{"words"}, bounds{"words + 1"};
  check.tensor("grad_outputs", p->grad_outputs, {&batch, &units});
  check.type("grad_outputs", p->grad_outputs, {FANIN_FLOAT32});
  check.tensor("outputs", p->outputs, {&batch, &units}, kOptional);
  check.type("outputs", p->outputs, {FANIN_FLOAT32}, kOptional);
  check.tensor("words", p->words, {&words});
  check.type("words", p->words, {FANIN_INT32});
  check.tensor("word_starts", p->word_starts, {&bounds});
  check.type("word_starts", p->word_starts, {FANIN_INT64});
  check.tensor("instances", p->instances, {&stored});
  check.type("instances", p->instances, {FANIN_INT32});
  check.tensor("values", p->values, {&stored});
  check.type("values", p->values, {FANIN_FLOAT32});
  check.trained_rows("weights", p->weights, inputs, units, moments);
  check.trained("bias", p->bias, {&units}, moments, true);
  check.sizes(inputs, units, inputs);
  check.threads(p->resources.threads);
  check.ready(p->resources);
  check_bounds(check, "word_starts", bounds, words);
  if (check.good() && batch.size == 0)
    check.wrong("an update needs at least one instance; the batch is empty");
  if (!check.good()) return check.status();
  set_resources(call, p->resources, p->grad_outputs, words.size + units.size);
  call->batch = batch.size;
  call->inputs = inputs.size;
  call->units = units.size;
  call->stored = stored.size;
  call->words = words.size;
  call->grad_outputs = data_as<float>(p->grad_outputs);
  call->outputs = data_as<float>(p->outputs);
  call->word_ids = data_as<int32_t>(p->words);
  call->word_starts = data_as<int64_t>(p->word_starts);
  call->instances = data_as<int32_t>(p->instances);
  call->values = data_as<float>(p->values);
  set_trained(call, p->weights, p->bias, p->optimizer);
  return FANIN_OK;
}

// On a CPU.
int32_t check_data(const SparseUpdateCall &c, Message message) {
  if (const int32_t status =
          check_members("words", c.word_ids, 0, c.words, c.inputs, "inputs", message))
    return status;
  for (int64_t i = 1; i < c.words; ++i)
    if (c.word_ids[i - 1] >= c.word_ids[i])
      return message.say(FANIN_INVALID,
                         "words must ascend, each once, but words[%" PRId64 "] is %d after %d", i,
                         c.word_ids[i], c.word_ids[i - 1]);
  if (const int32_t status =
          check_division("word_starts", c.word_starts, c.words, c.stored, message))
    return status;
  const int64_t begin = c.word_starts[0], end = c.word_starts[c.words];
  if (const int32_t status =
          check_members("instances", c.instances, begin, end, c.batch, "instances", message))
    return status;
  return check_values(c.values, begin, end, message);
}

}  // namespace
}  // namespace fanin

using namespace fanin;

extern "C" {

uint64_t fanin_sparse_forward_workspace(const fanin_sparse_forward_params *params) {
  return workspace_of<SparseForwardCall>(params, prepare);
}

int32_t fanin_sparse_forward(const fanin_sparse_forward_params *params, char *text, size_t bytes) {
  const Message message{text, bytes};
  SparseForwardCall call;
  if (const int32_t status = prepare(params, &call, message)) return status;
  const auto on_cpu = [&](const CpuTarget &target) {
    if (const int32_t status = check_csr_data(call, message)) return status;
    return report(target.sparse_forward(call), {}, message);
  };
  return run(call, params->resources, message, on_cpu,
             [&] { return call.batch ? cuda::sparse_forward(call) : kNothing; });
}

uint64_t fanin_sparse_update_workspace(const fanin_sparse_update_params *params) {
  return workspace_of<SparseUpdateCall>(params, prepare);
}

int32_t fanin_sparse_update(const fanin_sparse_update_params *params, char *text, size_t bytes) {
  const Message message{text, bytes};
  SparseUpdateCall call;
  if (const int32_t status = prepare(params, &call, message)) return status;
  const auto on_cpu = [&](const CpuTarget &target) {
    if (const int32_t status = check_data(call, message)) return status;
    return report(target.sparse_update(call), {}, message);
  };
  return run(call, params->resources, message, on_cpu, [&] { return cuda::sparse_update(call); });
}

}  // extern "C"
