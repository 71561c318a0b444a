// What the calls of training and prediction share beyond their checks.
#pragma once

#include "api/run.h"

namespace fanin {

// How many connections there are; 0 for a dense layer.
int64_t connection_count(const fanin_connections &c);

// Fills the fields that a step and top-k have in common.
template <class LayerCall>
void set_connections(LayerCall *call, const fanin_connections &c) {
  call->connections = connection_count(c);
  call->wide_indices = c.indices.dtype == FANIN_UINT32;
  call->indices = data_of(c.indices);
  call->starts = data_as<int32_t>(c.starts);
  call->tile_labels = data_as<uint16_t>(c.tile_labels);
  call->group_size = c.group_size;
}

// Fills the fields of an array that is trained.
template <class TrainingCall>
void set_weights(TrainingCall *call, const fanin_trained &weights) {
  call->bf16_weights = is_bf16(weights.values);
  const fanin_tensor &moments = weights.m.rank >= 0 ? weights.m : weights.v;
  call->bf16_moments = moments.rank >= 0 && is_bf16(moments);
  call->weights = data_of(weights.values);
  call->m = data_of(weights.m);
  call->v = data_of(weights.v);
}

OptimizerCall optimizer_call(const fanin_optimizer &optimizer);

// Fills all fields of a call that trains a layer: its arrays and the optimiser. Where moments are
// not kept, the kernels read others, of one type with them, in their place: m for v, and the values
// for both. Values in float8 are too short for that: beside them, kernels read no moments that are
// not kept.
template <class TrainingCall>
void set_trained(TrainingCall *call, const fanin_trained &weights, const fanin_trained &bias,
                 const fanin_optimizer &optimizer) {
  set_weights(call, weights);
  call->bias = data_as<float>(bias.values);
  call->bias_m = data_as<float>(bias.m);
  call->bias_v = data_as<float>(bias.v);
  call->optimizer = optimizer_call(optimizer);
  if (call->optimizer.kept == 0) {
    call->bf16_moments = call->bf16_weights;
    call->m = call->weights;
    call->bias_m = call->bias;
  }
  if (call->optimizer.kept < 2) {
    call->v = call->m;
    call->bias_v = call->bias_m;
  }
}

// On a CPU: whether unstructured connections are divided among the labels, all of them.
int32_t check_starts(const int32_t *starts, int64_t labels, int64_t connections, Message message);

// On a CPU: whether `starts` [count + 1] divide `size` things among `count` others.
int32_t check_division(const char *name, const int64_t *starts, int64_t count, int64_t size,
                       Message message);

// On a CPU: whether each of the members from begin to end - 1 is at least 0 and below the bound.
// things: what the members are, for the message. Defined for int32_t and int64_t.
template <class I>
int32_t check_members(const char *name, const I *members, int64_t begin, int64_t end, int64_t bound,
                      const char *things, Message message);

// Checks that there is one more bound than there are things.
void check_bounds(Check &check, const char *name, const Dimension &bounds, const Dimension &things);

// Checks of sparse features, stored by rows (CSR): shapes and types of the arrays,
void check_csr(Check &check, const fanin_tensor &values, const fanin_tensor &starts,
               const fanin_tensor &columns, Dimension &stored, Dimension &bounds);
// and on a CPU their contents: of values alone,
int32_t check_values(const float *values, int64_t begin, int64_t end, Message message);
// and of all three.
template <class SparseCall>
int32_t check_csr_data(const SparseCall &c, Message message) {
  if (const int32_t status = check_division("starts", c.starts, c.batch, c.stored, message))
    return status;
  const int64_t begin = c.starts[0], end = c.starts[c.batch];
  if (const int32_t status =
          check_members("columns", c.columns, begin, end, c.inputs, "inputs", message))
    return status;
  return check_values(c.values, begin, end, message);
}

}  // namespace fanin
