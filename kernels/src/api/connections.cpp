// The C interface of what changes connections: rewiring and sorting.
#include "api/layer.h"

namespace fanin {
namespace {

int32_t prepare(const fanin_rewire_params *p, RewireCall *call, Message message) {
  if (!p) return message.say(FANIN_INVALID, "params is null");
  Check check(message);
  Dimension labels{"labels"}, fan_in{"fan_in"};
  const bool flat = p->indices.rank == 1;
  const Dimensions vector = {&labels}, matrix = {&labels, &fan_in};
  const Dimensions &dims = flat ? vector : matrix;
  check.written("indices", p->indices, dims);
  check.indices(p->indices);
  check.trained("weights", p->weights, dims, Moments(p->weights));
  check.threads(p->resources.threads);
  check.ready(p->resources);
  if (check.good() && !(p->fraction >= 0 && p->fraction < 1))
    check.wrong("fraction must be at least 0 and below 1, got %g", p->fraction);
  if (check.good() && (p->inputs < 1 || p->inputs > INT32_MAX ||
                       (p->indices.dtype == FANIN_UINT16 && p->inputs > 65536)))
    check.wrong("inputs %" PRId64 " do not fit indices of type %s", p->inputs,
                name_of(p->indices.dtype));
  if (!check.good()) return check.status();
  set_resources(call, p->resources, p->indices, INT32_MAX);
  call->connections = labels.size * (flat ? 1 : fan_in.size);
  call->inputs = p->inputs;
  call->fraction = p->fraction;
  call->seed = p->seed;
  call->wide_indices = p->indices.dtype == FANIN_UINT32;
  call->indices = p->indices.data;
  set_weights(call, p->weights);
  return FANIN_OK;
}

int32_t prepare(const fanin_sort_params *p, SortCall *call, Message message) {
  if (!p) return message.say(FANIN_INVALID, "params is null");
  Check check(message);
  Dimension labels{"labels"}, fan_in{"fan_in"}, inputs{"inputs", p->inputs, "the call"};
  check.written("indices", p->indices, {&labels, &fan_in});
  check.indices(p->indices);
  check.written("tile_labels", p->tile_labels, {&labels, &fan_in});
  check.type("tile_labels", p->tile_labels, {FANIN_UINT16});
  check.written("slots", p->slots, {&labels, &fan_in});
  check.type("slots", p->slots, {fan_in.size <= 256 ? FANIN_UINT8 : FANIN_UINT32});
  check.trained("weights", p->weights, {&labels, &fan_in}, Moments(p->weights));
  if (check.good() && p->inputs < 0)
    check.wrong("inputs must be at least 1, got %" PRId64, p->inputs);
  check.sizes(inputs, labels, fan_in);
  check.threads(p->resources.threads);
  check.ready(p->resources);
  if (check.good() && fan_in.size > UINT32_MAX / sorted_labels(inputs.size, labels.size))
    check.wrong("fan_in %" PRId64 " is too large for sorted connections", fan_in.size);
  if (!check.good()) return check.status();
  set_resources(call, p->resources, p->indices, labels.size);
  call->labels = labels.size;
  call->fan_in = fan_in.size;
  call->inputs = inputs.size;
  call->undo = p->undo != 0;
  call->wide_indices = p->indices.dtype == FANIN_UINT32;
  call->indices = p->indices.data;
  call->slots = p->slots.data;
  call->tile_labels = data_as<uint16_t>(p->tile_labels);
  set_weights(call, p->weights);
  return FANIN_OK;
}

constexpr Finding kCpuOnly = {Finding::unavailable, 0, "sorted connections are for CPUs only"};

}  // namespace
}  // namespace fanin

using namespace fanin;

extern "C" {

uint64_t fanin_rewire_workspace(const fanin_rewire_params *params) {
  return workspace_of<RewireCall>(params, prepare);
}

int32_t fanin_rewire(fanin_rewire_params *params, char *text, size_t bytes) {
  const Message message{text, bytes};
  RewireCall call;
  if (const int32_t status = prepare(params, &call, message)) return status;
  Rewired done{};
  const auto on_cpu = [&](const CpuTarget &) {
    done = rewire(call);
    return int32_t(FANIN_OK);
  };
  const int32_t status =
      run(call, params->resources, message, on_cpu, [&] { return cuda::rewire(call, &done); });
  if (status) return status;
  params->threshold = done.threshold;
  params->moved = done.moved;
  return FANIN_OK;
}

uint64_t fanin_sort_workspace(const fanin_sort_params *params) {
  return workspace_of<SortCall>(params, prepare);
}

int32_t fanin_sort(const fanin_sort_params *params, char *text, size_t bytes) {
  const Message message{text, bytes};
  SortCall call;
  if (const int32_t status = prepare(params, &call, message)) return status;
  const auto on_cpu = [&](const CpuTarget &) {
    return report(sort(call), connection_data(call), message);
  };
  return run(call, params->resources, message, on_cpu, [] { return kCpuOnly; });
}

}  // extern "C"
