// What is the same for all types and kinds of connections: the way of features into lanes and back,
// and what comes before and after the kernel of a step.
#include "cuda/common.h"

namespace fanin {
namespace cuda {
namespace {

FANIN_ANYWHERE inline int64_t column_tiles(int64_t inputs) { return (inputs + kTile - 1) / kTile; }

// in [rows, columns] -> out [columns, 32] for the group's up to 32 rows, zeros beyond; or, with
// `back`, the other way around. A warp of each 32 columns of each of the groups.
template <class T, bool back>
__global__ void transpose_kernel(const T *in, T *out, int64_t batch, int64_t inputs,
                                 int64_t first_group) {
  __shared__ T tile[kTile * kTilePitch];
  const int64_t across = column_tiles(inputs), nth = blockIdx.x / across;
  const int64_t group = first_group + nth, first = (blockIdx.x - nth * across) * kTile;
  const int lanes = int(smaller<int64_t>(kLanes, batch - group * kLanes));
  const int columns = int(smaller<int64_t>(kTile, inputs - first));
  const int64_t row = (nth * inputs + first) * kLanes;
  Team<T> team;
  if (back) {
    for (int j = 0; j < columns; ++j) store(tile + j * kTilePitch, load(in + row + j * kLanes));
    team.sync();
    team.write_tile(tile, out + group * kLanes * inputs + first, inputs, lanes, columns);
  } else {
    team.read_tile(tile, in + group * kLanes * inputs + first, inputs, lanes, columns);
    team.sync();
    for (int j = 0; j < columns; ++j) store(out + row + j * kLanes, load(tile + j * kTilePitch));
  }
}

// Sets the bits of the positives. One that names no instance or label makes the loss NaN.
__global__ void mark_kernel(const int32_t *instances, const int64_t *label_ids, int64_t positives,
                            int64_t batch, int64_t label_count, uint32_t *masks, double *loss_sum) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= positives) return;
  if (instances[i] < 0 || instances[i] >= batch || label_ids[i] < 0 ||
      label_ids[i] >= label_count) {
    atomicAdd(loss_sum, double(NAN));
    return;
  }
  atomicOr(masks + instances[i] / kLanes * label_count + label_ids[i], 1u << instances[i] % kLanes);
}

__global__ void write_loss_kernel(const double *sum, float *loss) { *loss = float(*sum); }

}  // namespace

template <class T>
void to_lanes(const void *features, T *out, int64_t batch, int64_t inputs, void *stream) {
  const dim3 blocks(unsigned(column_tiles(inputs) * groups_of(batch)));
  launch(transpose_kernel<T, false>, blocks, kLanes, 0, stream, static_cast<const T *>(features),
         out, batch, inputs, int64_t(0));
}
template <class T>
void from_lanes(const T *in, void *out, int64_t batch, int64_t inputs, int64_t first_group,
                int64_t groups, void *stream) {
  const dim3 blocks(unsigned(column_tiles(inputs) * groups));
  launch(transpose_kernel<T, true>, blocks, kLanes, 0, stream, in, static_cast<T *>(out), batch,
         inputs, first_group);
}
template void to_lanes(const void *, float *, int64_t, int64_t, void *);
template void to_lanes(const void *, double *, int64_t, int64_t, void *);
template void from_lanes(const float *, void *, int64_t, int64_t, int64_t, int64_t, void *);
template void from_lanes(const double *, void *, int64_t, int64_t, int64_t, int64_t, void *);

Finding begin_step(const StepCall &c, const StepMemory &memory) {
  to_lanes(c.features, memory.features, c.batch, c.inputs, c.stream);
  clear(memory.masks, groups_of(c.batch) * c.labels, c.stream);
  clear(memory.losses, 1, c.stream);
  if (c.grad_features) clear(memory.accumulators, memory.features_size, c.stream);
  if (c.positives)
    launch(mark_kernel, dim3(unsigned((c.positives + 255) / 256)), 256, 0, c.stream,
           c.positive_instances, c.positive_labels, c.positives, c.batch, c.labels, memory.masks,
           memory.losses);
  return last_error();
}

Finding end_step(const StepCall &c, const StepMemory &memory, const Finding &launched) {
  launch(write_loss_kernel, dim3(1), kLanes, 0, c.stream, memory.losses, c.loss);
  if (c.grad_features)
    from_lanes(memory.accumulators, c.grad_features, c.batch, c.inputs, 0, groups_of(c.batch),
               c.stream);
  return first_of(launched, last_error());
}

Finding zero(void *a, size_t a_bytes, void *b, size_t b_bytes, void *stream) {
  if (a) clear(static_cast<char *>(a), int64_t(a_bytes), stream);
  if (b) clear(static_cast<char *>(b), int64_t(b_bytes), stream);
  return last_error();
}

extern const char *const architectures = FANIN_CUDA_ARCHITECTURES;

}  // namespace cuda
}  // namespace fanin
