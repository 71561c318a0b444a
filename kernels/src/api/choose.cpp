// The C interface of choosing sources by the data, and of replacing them.
#include "api/layer.h"

namespace fanin {
namespace {

int32_t prepare(const fanin_label_sums_params *p, LabelSumsCall *call, Message message) {
  if (!p) return message.say(FANIN_INVALID, "params is null");
  Check check(message);
  Dimension instances{"instances"}, inputs{"inputs"}, labels{"labels"}, positives{"positives"};
  Dimension stored{"stored"}, bounds{"instances + 1"}, label_bounds{"labels + 1"};
  const bool csr = p->starts.rank >= 0 || p->columns.rank >= 0;
  check.written("sums", p->sums, {&labels, &inputs});
  check.type("sums", p->sums, {FANIN_FLOAT32});
  const Dimensions flat = {&stored}, matrix = {&instances, &inputs};
  check.tensor("features", p->features, csr ? flat : matrix);
  check.type("features", p->features, {FANIN_FLOAT32});
  if (csr) {
    check.tensor("starts", p->starts, {&bounds});
    check.type("starts", p->starts, {FANIN_INT64});
    check.tensor("columns", p->columns, {&stored});
    check.type("columns", p->columns, {FANIN_INT32});
    if (check.good() && bounds.size == 0) check.wrong("starts must have at least 1 element");
    instances.size = bounds.size - 1;
  }
  check.tensor("positive_starts", p->positive_starts, {&label_bounds});
  check.type("positive_starts", p->positive_starts, {FANIN_INT64});
  check.tensor("positive_instances", p->positive_instances, {&positives});
  check.type("positive_instances", p->positive_instances, {FANIN_INT32});
  check.tensor("positive_weights", p->positive_weights, {&positives}, kOptional);
  check.type("positive_weights", p->positive_weights, {FANIN_FLOAT32}, kOptional);
  check.threads(p->resources.threads);
  check.ready(p->resources);
  if (check.good() && label_bounds.size != labels.size + 1)
    check.wrong("positive_starts must have %" PRId64 " elements for %" PRId64
                " labels, got %" PRId64,
                labels.size + 1, labels.size, label_bounds.size);
  if (check.good() && inputs.size == 0)
    check.wrong("inputs must be at least 1, but inputs is 0 in %s", inputs.given_by.c_str());
  if (check.good() && inputs.size > INT32_MAX)
    check.wrong("inputs must be below 2^31, got %" PRId64, inputs.size);
  if (!check.good()) return check.status();
  set_resources(call, p->resources, p->sums, labels.size);
  call->instances = instances.size;
  call->inputs = inputs.size;
  call->labels = labels.size;
  call->stored = csr ? stored.size : 0;
  call->positives = positives.size;
  call->features = data_as<float>(p->features);
  call->starts = csr ? data_as<int64_t>(p->starts) : nullptr;
  call->columns = csr ? data_as<int32_t>(p->columns) : nullptr;
  call->positive_starts = data_as<int64_t>(p->positive_starts);
  call->positive_instances = data_as<int32_t>(p->positive_instances);
  call->positive_weights = data_as<float>(p->positive_weights);
  call->sums = data_as<float>(p->sums);
  return FANIN_OK;
}

// Whether indices can name every input.
void check_narrow(Check &check, const fanin_tensor &indices, const Dimension &inputs) {
  if (check.good() && indices.dtype == FANIN_UINT16 && inputs.size > 65536)
    check.wrong("inputs %" PRId64 " do not fit indices of type uint16", inputs.size);
}

int32_t prepare(const fanin_choose_sources_params *p, ChooseCall *call, Message message) {
  if (!p) return message.say(FANIN_INVALID, "params is null");
  Check check(message);
  Dimension inputs{"inputs"}, labels{"labels"}, fan_in{"fan_in"};
  check.tensor("sums", p->sums, {&labels, &inputs});
  check.type("sums", p->sums, {FANIN_FLOAT32});
  check.tensor("counts", p->counts, {&labels});
  check.type("counts", p->counts, {FANIN_INT64});
  check.tensor("mean", p->mean, {&inputs});
  check.type("mean", p->mean, {FANIN_FLOAT32});
  check.tensor("scale", p->scale, {&inputs}, kOptional);
  check.type("scale", p->scale, {FANIN_FLOAT32}, kOptional);
  check.written("indices", p->indices, {&labels, &fan_in});
  check.indices(p->indices);
  check.written("values", p->values, {&labels, &fan_in}, kOptional);
  check.type("values", p->values, {FANIN_FLOAT32}, kOptional);
  check.sizes(inputs, labels, fan_in);
  check.threads(p->resources.threads);
  check.ready(p->resources);
  check_narrow(check, p->indices, inputs);
  if (check.good() && (p->random < 0 || p->random > fan_in.size))
    check.wrong("random must be in 0..%" PRId64 " (fan_in), got %" PRId64, fan_in.size, p->random);
  if (check.good() && p->first_label < 0)
    check.wrong("first_label must be at least 0, got %" PRId64, p->first_label);
  if (!check.good()) return check.status();
  set_resources(call, p->resources, p->sums, labels.size);
  call->inputs = inputs.size;
  call->labels = labels.size;
  call->fan_in = fan_in.size;
  call->first_label = p->first_label;
  call->random = p->random;
  call->seed = p->seed;
  call->wide_indices = p->indices.dtype == FANIN_UINT32;
  call->sums = data_as<float>(p->sums);
  call->counts = data_as<int64_t>(p->counts);
  call->mean = data_as<float>(p->mean);
  call->scale = data_as<float>(p->scale);
  call->indices = p->indices.data;
  call->values = data_as<float>(p->values);
  return FANIN_OK;
}

int32_t prepare(const fanin_replace_sources_params *p, ReplaceCall *call, Message message) {
  if (!p) return message.say(FANIN_INVALID, "params is null");
  Check check(message);
  Dimension inputs{"inputs"}, labels{"labels"}, fan_in{"fan_in"};
  check.tensor("gradients", p->gradients, {&labels, &inputs});
  check.type("gradients", p->gradients, {FANIN_FLOAT32});
  check.written("indices", p->indices, {&labels, &fan_in});
  check.indices(p->indices);
  check.trained("weights", p->weights, {&labels, &fan_in}, Moments(p->weights));
  check.written("moved", p->moved, {&labels}, kOptional);
  check.type("moved", p->moved, {FANIN_INT32}, kOptional);
  check.sizes(inputs, labels, fan_in);
  check.threads(p->resources.threads);
  check.ready(p->resources);
  check_narrow(check, p->indices, inputs);
  if (check.good() && (p->replaced < 0 || p->replaced > fan_in.size))
    check.wrong("replaced must be in 0..%" PRId64 " (fan_in), got %" PRId64, fan_in.size,
                p->replaced);
  if (!check.good()) return check.status();
  set_resources(call, p->resources, p->gradients, labels.size);
  call->inputs = inputs.size;
  call->labels = labels.size;
  call->fan_in = fan_in.size;
  call->replaced = p->replaced;
  call->keep_weights = p->keep_weights != 0;
  call->wide_indices = p->indices.dtype == FANIN_UINT32;
  call->gradients = data_as<float>(p->gradients);
  call->indices = p->indices.data;
  set_weights(call, p->weights);
  call->moved = data_as<int32_t>(p->moved);
  return FANIN_OK;
}

}  // namespace
}  // namespace fanin

using namespace fanin;

extern "C" {

uint64_t fanin_label_sums_workspace(const fanin_label_sums_params *params) {
  return workspace_of<LabelSumsCall>(params, prepare);
}

int32_t fanin_label_sums(const fanin_label_sums_params *params, char *text, size_t bytes) {
  const Message message{text, bytes};
  LabelSumsCall call;
  if (const int32_t status = prepare(params, &call, message)) return status;
  const auto on_cpu = [&](const CpuTarget &target) {
    if (const int32_t status = check_division("positive_starts", call.positive_starts, call.labels,
                                              call.positives, message))
      return status;
    if (const int32_t status = check_members("positive_instances", call.positive_instances, 0,
                                             call.positives, call.instances, "instances", message))
      return status;
    if (call.starts)
      if (const int32_t status =
              check_division("starts", call.starts, call.instances, call.stored, message))
        return status;
    const Finding finding = target.label_sums(call);
    if (finding.kind != Finding::bad_column) return report(finding, {}, message);
    return check_members("columns", call.columns, finding.position, finding.position + 1,
                         call.inputs, "inputs", message);
  };
  return run(call, params->resources, message, on_cpu, [&] { return cuda::label_sums(call); });
}

uint64_t fanin_choose_sources_workspace(const fanin_choose_sources_params *params) {
  return workspace_of<ChooseCall>(params, prepare);
}

int32_t fanin_choose_sources(const fanin_choose_sources_params *params, char *text, size_t bytes) {
  const Message message{text, bytes};
  ChooseCall call;
  if (const int32_t status = prepare(params, &call, message)) return status;
  const auto on_cpu = [&](const CpuTarget &target) {
    return report(target.choose_sources(call), {}, message);
  };
  return run(call, params->resources, message, on_cpu, [&] { return cuda::choose_sources(call); });
}

uint64_t fanin_replace_sources_workspace(const fanin_replace_sources_params *params) {
  return workspace_of<ReplaceCall>(params, prepare);
}

int32_t fanin_replace_sources(const fanin_replace_sources_params *params, char *text,
                              size_t bytes) {
  const Message message{text, bytes};
  ReplaceCall call;
  if (const int32_t status = prepare(params, &call, message)) return status;
  const auto on_cpu = [&](const CpuTarget &target) {
    return report(target.replace_sources(call), connection_data(call), message);
  };
  return run(call, params->resources, message, on_cpu, [&] { return cuda::replace_sources(call); });
}

}  // extern "C"
