// What the GPU launchers share: how kernels are launched, what blocks keep in shared memory, the
// way of features into lanes and back, and the run of a step around its kernel.
//
// Every warp takes one tile of labels after the other (a persistent grid). Several warps share a
// multiprocessor and hide each other's waits. Nothing here waits for the device.
#pragma once
#define FANIN_TARGET cuda  // before lanes.h, so this file is included first

#include <cuda_runtime.h>

#include "core/lanes.h"
#include "core/launchers.h"
#include "core/memory.h"
#include "core/types.h"

#if !defined(FANIN_EMULATED_CUDA)
template <class T>
__device__ __forceinline__ T *dynamic_shared_memory() {
  extern __shared__ __align__(16) char shared_memory[];
  return reinterpret_cast<T *>(shared_memory);
}
#endif

namespace fanin {
namespace cuda {
namespace {

constexpr int kMostWarps = 16;  // of a block: leaves a thread 128 registers
constexpr int kMostThreads = kMostWarps * kLanes;
constexpr int kFewWarps = 8;  // where blocks share nothing: two of them fit a multiprocessor
constexpr size_t kRowBytes = kLanes * sizeof(float);

FANIN_FN int warp_of_block() { return threadIdx.x / kLanes; }
FANIN_FN int warps_of_block() { return blockDim.x / kLanes; }

// f(tile) for the tiles of this warp.
template <class F>
FANIN_FN void each_tile(int64_t tiles, const F &f) {
  for (int64_t tile = int64_t(blockIdx.x) * warps_of_block() + warp_of_block(); tile < tiles;
       tile += int64_t(gridDim.x) * warps_of_block())
    f(tile);
}

// Shared memory, piece after piece; all pieces are multiples of 16 bytes.
template <class T>
struct SharedPieces {
  T *next = dynamic_shared_memory<T>();
  FANIN_FN T *take(int64_t count) {
    T *const piece = next;
    next += count;
    return piece;
  }
  // One piece for each warp; this warp's.
  FANIN_FN T *take_for_warp(int64_t count) {
    return take(count * warps_of_block()) + warp_of_block() * count;
  }
};
template <class T>
FANIN_FN void copy_by_block(T *to, const T *from, int64_t count) {
  constexpr int wide = Sharing<T>::wide;
  for (int64_t i = threadIdx.x; i < count / wide; i += blockDim.x)
    reinterpret_cast<Wide<T> *>(to)[i] = reinterpret_cast<const Wide<T> *>(from)[i];
}
template <class T>
FANIN_FN void clear_by_block(T *values, int64_t count) {
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) values[i] = 0;
}
template <class T>
FANIN_FN void add_by_block(T *to, const T *from, int64_t count) {
  if constexpr (adds_wide<T>()) {
    for (int64_t i = 4 * threadIdx.x; i < count; i += 4 * blockDim.x)
      reduce_add(to + i, from[i], from[i + 1], from[i + 2], from[i + 3]);
  } else {
    for (int64_t i = threadIdx.x; i < count; i += blockDim.x) atomicAdd(to + i, from[i]);
  }
}

// Rows [inputs, 32] that all warps of a block read, and others that they add to. With `keep` these
// are the block's own, in shared memory, else those in device memory. sums may be null.
template <class T, bool keep>
struct BlockRows {
  const T *features;
  T *sums, *total;
  int64_t size;

  // Called by all threads of a block.
  FANIN_FN BlockRows(SharedPieces<T> &shared, const T *features_, T *total_, int64_t values,
                     bool keep_features = true)
      : features(features_), sums(total_), total(total_), size(values) {
    if constexpr (keep) {
      if (keep_features) {
        T *const kept = shared.take(size);
        copy_by_block(kept, features, size);
        features = kept;
      }
      if (sums) {
        sums = shared.take(size);
        clear_by_block(sums, size);
      }
      __syncthreads();
    }
  }
  FANIN_FN auto to_add() const {
    if constexpr (keep)
      return SharedRows<T>{sums};
    else
      return sums;
  }
  // Adds the block's sums to those of all blocks. Called by all threads.
  FANIN_FN void finish() const {
    if constexpr (keep) {
      __syncthreads();
      if (sums) add_by_block(total, sums, size);
    }
  }
};

struct Device {
  int multiprocessors, shared;  // bytes of shared memory that a block may ask for
};
inline Device device() {
  Device d{};
  int id = 0;
  cudaGetDevice(&id);
  cudaDeviceGetAttribute(&d.multiprocessors, cudaDevAttrMultiProcessorCount, id);
  cudaDeviceGetAttribute(&d.shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, id);
  return d;
}

inline Finding last_error() {
  const cudaError_t error = cudaGetLastError();
  if (error == cudaSuccess) return kNothing;
  return {Finding::device_error, 0, cudaGetErrorString(error)};
}

// The first of two findings. Both have been asked for, so that no error is left behind for the next
// call.
inline Finding first_of(const Finding &a, const Finding &b) {
  return a.kind == Finding::nothing ? b : a;
}

template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, int threads, size_t shared, void *stream, A... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(unsigned(threads));
  config.dynamicSmemBytes = shared;
  config.stream = static_cast<cudaStream_t>(stream);
  cudaLaunchKernelEx(&config, kernel, static_cast<P>(args)...);
}

constexpr Finding kNoRoom = {
    Finding::unavailable, 0,
    "the batch, or a row in float8, needs more shared memory than this GPU "
    "has; use smaller batches, or bfloat16"};

// Launches a persistent grid: as many of the blocks as the device holds at a time. Where not even
// one fits, nothing is launched, and that is the finding.
template <class... P, class... A>
Finding launch_resident(void (*kernel)(P...), int64_t blocks, int warps, size_t shared,
                        void *stream, A... args) {
  const Device gpu = device();
  if (const Finding before = last_error(); before.kind != Finding::nothing) return before;
  if (shared > size_t(gpu.shared)) return kNoRoom;
  // Always the most there is: then another thread cannot set anything else between this and the
  // launch.
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, gpu.shared);
  int resident = 0;
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, warps * kLanes, shared);
  const int64_t most = int64_t(gpu.multiprocessors) * (resident > 0 ? resident : 1);
  launch(kernel, dim3(unsigned(blocks < most ? blocks : most)), warps * kLanes, shared, stream,
         args...);
  return last_error();
}

// The same for tiles that warps take one by one: in blocks of `warps` warps, or of as many as there
// is shared memory for.
template <class... P, class... A>
Finding launch_tiles(void (*kernel)(P...), int64_t tiles, int warps, size_t block_bytes,
                     size_t warp_bytes, void *stream, A... args) {
  const Device gpu = device();
  if (const Finding before = last_error(); before.kind != Finding::nothing) return before;
  // Narrow layers use more multiprocessors rather than more warps of a few. But what a block keeps
  // is worth many warps.
  while (!block_bytes && warps > 1 && tiles < int64_t(warps) * gpu.multiprocessors) warps /= 2;
  while (warps && block_bytes + warps * warp_bytes > size_t(gpu.shared)) warps /= 2;
  if (!warps) return kNoRoom;
  return launch_resident(kernel, (tiles + warps - 1) / warps, warps,
                         block_bytes + warps * warp_bytes, stream, args...);
}

// Whether a block keeps the rows [32] that all of its warps read or add to in shared memory. It
// does where they fit beside `warps` warps, unless filling the memory of every multiprocessor takes
// more reading than it saves. uses: how often rows are read or added to in all.
inline bool keeps(int64_t rows, int64_t row_bytes, int64_t uses, int warps, size_t warp_bytes) {
  const Device gpu = device();
  return rows * row_bytes <= gpu.shared - int64_t(warp_bytes) * warps &&
         uses >= 8 * rows * gpu.multiprocessors;
}

template <class T>
void clear(T *values, int64_t count, void *stream) {
  cudaMemsetAsync(values, 0, size_t(count) * sizeof(T), static_cast<cudaStream_t>(stream));
}

// In kernels ------------------------------------------------------------------------------------

// Whether the connections of the labels from first to end - 1 can be followed.
template <class AnyLayer>
FANIN_FN bool good_connections(const AnyLayer &layer, int64_t connections, int64_t first,
                               int64_t end, const Team<float> &team) {
  if (layer.starts && !team.ascend(layer.starts + first, end - first, connections)) return false;
  const int64_t begin = layer.begin(first);
  return team.all_below(layer.indices + begin, layer.begin(end) - begin, layer.inputs);
}

FANIN_FN void add_loss(Lanes<float> loss, double *loss_sum) {
  const float total = sum(loss);
  if (thread_id() == 0) atomicAdd(loss_sum, double(total));
}

}  // namespace

// Around kernels --------------------------------------------------------------------------------

// features [batch, inputs] -> [groups][inputs][32]; lanes beyond the batch get 0. Defined for float
// and double.
template <class T>
void to_lanes(const void *features, T *out, int64_t batch, int64_t inputs, void *stream);
// `groups` groups from first_group on, back into their rows of out [batch, inputs].
template <class T>
void from_lanes(const T *in, void *out, int64_t batch, int64_t inputs, int64_t first_group,
                int64_t groups, void *stream);

// What comes before and after the kernel of a step: features, positives, memory to add to; and the
// loss and the gradients of features. launched: what the kernel's launch gave.
Finding begin_step(const StepCall &c, const StepMemory &memory);
Finding end_step(const StepCall &c, const StepMemory &memory, const Finding &launched);

namespace {

// A whole step. start(memory, sums) launches its kernel; sums: the gradients of features, or null.
template <class Start>
Finding run_step(const StepCall &c, const Start &start) {
  const StepMemory memory = step_memory(c, c.workspace);
  const Finding begun = begin_step(c, memory);
  if (begun.kind != Finding::nothing) return begun;
  return end_step(c, memory, start(memory, c.grad_features ? memory.accumulators : nullptr));
}

}  // namespace
}  // namespace cuda
}  // namespace fanin
