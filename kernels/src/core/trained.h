// An output layer while it is trained: its arrays, and what the steps of all kinds of connections
// share.
#pragma once

#include "core/loss.h"
#include "core/memory.h"
#include "core/optimizer.h"

namespace fanin {
namespace FANIN_TARGET {

// I: the type of indices; W and M: how weights and moments are stored.
template <class I, class W, class M>
struct TrainedLayer {
  int64_t batch, inputs, labels, fan_in;
  const int32_t *starts;  // or null
  const I *indices;       // null for a dense layer
  W *weights;
  M *m, *v;
  float *bias, *bias_m, *bias_v;  // or null
  Optimizer optimizer;
  fanin_loss loss;
  float scale;  // 1 / (batch * mean_labels)

  // The connections of label l are those from begin(l) to begin(l + 1) - 1.
  FANIN_FN int64_t begin(int64_t label) const { return starts ? starts[label] : label * fan_in; }
  FANIN_FN int64_t groups() const { return groups_of(batch); }
  // The scale in the lanes of a group: none of the padding counts.
  FANIN_FN Lanes<float> scale_of(int64_t group) const {
    const int64_t lanes = batch - group * kLanes;
    return lanes >= kLanes ? broadcast(scale) : from_mask((1u << lanes) - 1, scale, 0.0f);
  }
};

template <class I, class W, class M>
TrainedLayer<I, W, M> trained_layer(const StepCall &c) {
  TrainedLayer<I, W, M> layer;
  layer.batch = c.batch;
  layer.inputs = c.inputs;
  layer.labels = c.labels;
  layer.fan_in = c.fan_in;
  layer.starts = c.starts;
  layer.indices = static_cast<const I *>(c.indices);
  layer.weights = static_cast<W *>(c.weights);
  layer.m = static_cast<M *>(c.m);
  layer.v = static_cast<M *>(c.v);
  layer.bias = c.bias;
  layer.bias_m = c.bias_m;
  layer.bias_v = c.bias_v;
  layer.optimizer = c.optimizer;
  layer.loss = fanin_loss(c.loss_kind);
  layer.scale = float(1.0 / (double(c.batch) * double(c.mean_labels)));
  return layer;
}

// The optimiser for the biases of a tile, given the gradients of its up to 32 labels.
template <class I, class W, class M>
FANIN_FN void step_bias(const TrainedLayer<I, W, M> &layer, int64_t first_label, int labels,
                        const float *grads) {
  constexpr int chunk = Chunk<float>::size;
  for (int j = 0; j < labels; j += chunk) {
    const int count = smaller(chunk, labels - j);
    update_chunk(without_decay(layer.optimizer), layer.bias, layer.bias_m, layer.bias_v,
                 first_label + j, count, load_chunk<float>(grads + j, count));
  }
}

}  // namespace FANIN_TARGET
}  // namespace fanin
