// Launches the kernels on a GPU: one block of eight warps per tile of 32 labels, each warp one
// label at a time, each thread one instance of the batch. Nothing here waits for the device.
#define FANIN_TARGET cuda

#include <cuda_runtime.h>

#include "call.h"
#include "fan_in_linear.h"
#include "step.h"

namespace fanin {
namespace cuda {
namespace {

constexpr int kThreads = kWarps * kLanes;
constexpr int kBlocks = 2;  // resident on a multiprocessor: leaves a thread 128 registers

// in [rows, columns] -> out [columns, 32] for the group's up to 32 rows, zeros beyond; or, with
// `back`, the other way around. blockIdx: x over 32 columns, y over groups.
template <class T, bool back>
__global__ void transpose_kernel(const T *in, T *out, int64_t batch, int64_t inputs,
                                 int64_t first_group) {
  __shared__ T tile[kTile * kTilePitch];
  const int64_t group = first_group + blockIdx.y, first = int64_t(blockIdx.x) * kTile;
  const int lanes = int(smaller<int64_t>(kLanes, batch - group * kLanes));
  const int columns = int(smaller<int64_t>(kTile, inputs - first));
  Team<T> team;
  if (back) {
    const T *rows = in + (int64_t(blockIdx.y) * inputs + first) * kLanes;
    for (int j = team.first(); j < columns; j += team.step())
      tile[j * kTilePitch + lane_id()] = rows[j * kLanes + lane_id()];
    team.sync();
    team.write_tile(tile, out + group * kLanes * inputs + first, inputs, lanes, columns);
  } else {
    team.read_tile(tile, in + group * kLanes * inputs + first, inputs, lanes, columns);
    team.sync();
    T *rows = out + (int64_t(blockIdx.y) * inputs + first) * kLanes;
    for (int j = team.first(); j < columns; j += team.step())
      rows[j * kLanes + lane_id()] = tile[j * kTilePitch + lane_id()];
  }
}

template <class T, class I>
__global__ void __launch_bounds__(kThreads, kBlocks)
    forward_kernel(Layer<T, I> layer, const T *features, T *scores) {
  __shared__ T tile[kTile * kTilePitch];
  const int64_t first = int64_t(blockIdx.x) * kTile;
  const int64_t labels = smaller<int64_t>(kTile, layer.labels - first);
  Team<T> team;
  if (!team.all_below(layer.indices + first * layer.fan_in, labels * layer.fan_in, layer.inputs)) {
    for (int64_t i = threadIdx.x; i < layer.batch * labels; i += kThreads)
      scores[i / labels * layer.labels + first + i % labels] = T(NAN);
    return;
  }
  for (int64_t group = 0; group < groups_of(layer.batch); ++group)
    forward_tile(layer, features + group * layer.inputs * kLanes, group, first, scores, tile, team);
}

template <class T, class I>
__global__ void __launch_bounds__(kThreads, kBlocks)
    backward_kernel(Layer<T, I> layer, const T *features, int64_t group, const T *grad_scores,
                    T *grad_features, T *grad_weights, T *grad_bias) {
  __shared__ T tile[kTile * kTilePitch];
  const int64_t first = int64_t(blockIdx.x) * kTile;
  const int64_t labels = smaller<int64_t>(kTile, layer.labels - first);
  Team<T> team;
  if (!team.all_below(layer.indices + first * layer.fan_in, labels * layer.fan_in, layer.inputs)) {
    for (int64_t i = threadIdx.x; grad_weights && i < labels * layer.fan_in; i += kThreads)
      grad_weights[first * layer.fan_in + i] = T(NAN);
    return;
  }
  backward_tile(layer, features, group, first, grad_scores, grad_features, grad_weights, grad_bias,
                tile, team);
}

// Sets the bits of the positives; what names no instance or label is left out.
__global__ void mark_kernel(const int32_t *rows, const int64_t *labels, int64_t positives,
                            int64_t batch, int64_t label_count, uint32_t *masks) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= positives || rows[i] < 0 || rows[i] >= batch) return;
  if (labels[i] < 0 || labels[i] >= label_count) return;
  atomicOr(masks + rows[i] / kLanes * label_count + labels[i], 1u << rows[i] % kLanes);
}

__global__ void write_loss_kernel(const double *sum, float *loss) { *loss = float(*sum); }

// Shared memory: 32 values of the tile, then [groups][32] for each warp.
template <class I, class W, class M>
__global__ void __launch_bounds__(kThreads, kBlocks)
    step_kernel(TrainedLayer<I, W, M> layer, const float *features, const uint32_t *masks,
                float *grad_features, double *loss_sum) {
  extern __shared__ float grads[];
  const int64_t first = int64_t(blockIdx.x) * kTile;
  const int64_t end = smaller(first + kTile, layer.labels);
  const int64_t begin = layer.begin(first), count = layer.begin(end) - begin;
  Team<float> team;
  Lanes<float> loss = broadcast(0.0f);
  if (team.all_below(layer.indices + begin, count, layer.inputs))
    step_tile(layer, features, first, masks, grads, grad_features, loss, team);
  else
    loss = broadcast(NAN);
  const float total = sum(loss);
  if (lane_id() == 0) atomicAdd(loss_sum, double(total));
}

Finding last_error() {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return {Finding::nothing, 0, nullptr};
  return {Finding::device_error, 0, cudaGetErrorString(error)};
}

template <class T>
void to_lanes(const void *features, T *out, int64_t batch, int64_t inputs, cudaStream_t stream) {
  const dim3 grid(unsigned((inputs + kTile - 1) / kTile), unsigned(groups_of(batch)));
  transpose_kernel<T, false><<<grid, kThreads, 0, stream>>>(static_cast<const T *>(features), out,
                                                            batch, inputs, 0);
}

template <class T, class I>
Finding run_forward(const ForwardCall &c) {
  const auto stream = static_cast<cudaStream_t>(c.stream);
  const Layer<T, I> layer = layer_of<T, I>(c, c.bias);
  T *features = static_cast<T *>(c.workspace);
  to_lanes(c.features, features, c.batch, c.inputs, stream);
  forward_kernel<T, I><<<unsigned((c.labels + kTile - 1) / kTile), kThreads, 0, stream>>>(
      layer, features, static_cast<T *>(c.scores));
  return last_error();
}

template <class T, class I>
Finding run_backward(const BackwardCall &c) {
  const auto stream = static_cast<cudaStream_t>(c.stream);
  const Layer<T, I> layer = layer_of<T, I>(c, nullptr);
  const int64_t groups = groups_of(c.batch), group_size = c.inputs * kLanes;
  T *features = static_cast<T *>(c.workspace);
  T *accumulator = features + groups * group_size;
  to_lanes(c.features, features, c.batch, c.inputs, stream);
  for (int64_t group = 0; group < groups; ++group) {
    if (c.grad_features) cudaMemsetAsync(accumulator, 0, size_t(group_size) * sizeof(T), stream);
    backward_kernel<T, I><<<unsigned((c.labels + kTile - 1) / kTile), kThreads, 0, stream>>>(
        layer, features + group * group_size, group, static_cast<const T *>(c.grad_scores),
        c.grad_features ? accumulator : nullptr, static_cast<T *>(c.grad_weights),
        static_cast<T *>(c.grad_bias));
    if (c.grad_features)
      transpose_kernel<T, true><<<unsigned((c.inputs + kTile - 1) / kTile), kThreads, 0, stream>>>(
          accumulator, static_cast<T *>(c.grad_features), c.batch, c.inputs, group);
  }
  return last_error();
}

template <class I, class W, class M>
Finding run_step(const StepCall &c) {
  const auto stream = static_cast<cudaStream_t>(c.stream);
  const TrainedLayer<I, W, M> layer = trained_layer<I, W, M>(c);
  const StepMemory memory = step_memory(c, c.workspace);
  const int64_t groups = groups_of(c.batch);
  to_lanes(c.features, memory.features, c.batch, c.inputs, stream);
  cudaMemsetAsync(memory.masks, 0, size_t(groups * c.labels) * sizeof(uint32_t), stream);
  cudaMemsetAsync(memory.losses, 0, sizeof(double), stream);
  if (c.grad_features)
    cudaMemsetAsync(memory.accumulators, 0, size_t(memory.features_size) * sizeof(float), stream);
  if (c.positives)
    mark_kernel<<<unsigned((c.positives + kThreads - 1) / kThreads), kThreads, 0, stream>>>(
        c.positive_rows, c.positive_labels, c.positives, c.batch, c.labels, memory.masks);
  const size_t shared = size_t(kTile + kWarps * groups * kLanes) * sizeof(float);
  step_kernel<I, W, M><<<unsigned((c.labels + kTile - 1) / kTile), kThreads, shared, stream>>>(
      layer, memory.features, memory.masks, c.grad_features ? memory.accumulators : nullptr,
      memory.losses);
  write_loss_kernel<<<1, 1, 0, stream>>>(memory.losses, c.loss);
  const unsigned columns = unsigned((c.inputs + kTile - 1) / kTile);
  if (c.grad_features)
    transpose_kernel<float, true><<<dim3(columns, unsigned(groups)), kThreads, 0, stream>>>(
        memory.accumulators, c.grad_features, c.batch, c.inputs, 0);
  return last_error();
}

template <class I>
Finding run_step_of(const StepCall &c) {
  if (c.half_weights)
    return c.half_moments ? run_step<I, Bf16, Bf16>(c) : run_step<I, Bf16, float>(c);
  return c.half_moments ? run_step<I, float, Bf16>(c) : run_step<I, float, float>(c);
}

}  // namespace

// 48 KiB of shared memory hold the gradients of this many instances.
extern const int64_t most_instances = (48 * 1024 / 4 - kTile) / (kWarps * kLanes) * kLanes;

Finding step(const StepCall &c) {
  return c.wide_indices ? run_step_of<uint32_t>(c) : run_step_of<uint16_t>(c);
}

Finding forward(const ForwardCall &c) {
  if (c.wide_values)
    return c.wide_indices ? run_forward<double, uint32_t>(c) : run_forward<double, uint16_t>(c);
  return c.wide_indices ? run_forward<float, uint32_t>(c) : run_forward<float, uint16_t>(c);
}

Finding backward(const BackwardCall &c) {
  if (c.wide_values)
    return c.wide_indices ? run_backward<double, uint32_t>(c) : run_backward<double, uint16_t>(c);
  return c.wide_indices ? run_backward<float, uint32_t>(c) : run_backward<float, uint16_t>(c);
}

Finding zero(void *a, size_t a_bytes, void *b, size_t b_bytes, void *stream) {
  if (a) cudaMemsetAsync(a, 0, a_bytes, static_cast<cudaStream_t>(stream));
  if (b) cudaMemsetAsync(b, 0, b_bytes, static_cast<cudaStream_t>(stream));
  return last_error();
}

extern const char *const architectures = FANIN_CUDA_ARCHITECTURES;

}  // namespace cuda
}  // namespace fanin
