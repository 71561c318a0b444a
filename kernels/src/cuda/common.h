// What the GPU launchers share: the way of features into lanes and back, and how kernels are
// launched. Every warp takes one tile of labels after the other (a persistent grid), several warps
// share a multiprocessor and hide each other's waits. Nothing here waits for the device.
#pragma once
#define FANIN_TARGET cuda

#include <cuda_runtime.h>

#include "core/call.h"
#include "core/lanes.h"

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

// Rows [inputs, 32] that all warps of a block read, and others that they add to: its own, in shared
// memory, with `keep`, else those in device memory. sums may be null.
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
        T *const mine = shared.take(size);
        copy_by_block(mine, features, size);
        features = mine;
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
  // The block's sums to those of all. Called by all threads.
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
  if (error == cudaSuccess) return {Finding::nothing, 0, nullptr};
  return {Finding::device_error, 0, cudaGetErrorString(error)};
}

// Both are asked for, so that an error is not left behind for the next call.
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

// A persistent grid: as many blocks as the device holds at a time, of `warps` warps or as many as
// there is shared memory for; none fits, and nothing is launched, where it gives an error.
template <class... P, class... A>
Finding launch_tiles(void (*kernel)(P...), int64_t tiles, int warps, size_t of_block,
                     size_t of_warp, void *stream, A... args) {
  const Device here = device();
  if (const Finding before = last_error(); before.kind != Finding::nothing) return before;
  // Narrow layers go to more multiprocessors rather than to more warps of a few; what a block keeps
  // is worth many warps.
  while (!of_block && warps > 1 && tiles < int64_t(warps) * here.multiprocessors) warps /= 2;
  while (warps && of_block + warps * of_warp > size_t(here.shared)) warps /= 2;
  if (!warps)
    return {Finding::unavailable, 0, "the batch needs more shared memory than this GPU has; "
                                   "use smaller batches"};
  const size_t shared = of_block + warps * of_warp;
  // Always the most: what another thread sets between this and the launch is then the same.
  cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, here.shared);
  int resident = 0;
  cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, warps * kLanes, shared);
  const int64_t most = int64_t(here.multiprocessors) * (resident > 0 ? resident : 1);
  const int64_t wanted = (tiles + warps - 1) / warps;
  launch(kernel, dim3(unsigned(wanted < most ? wanted : most)), warps * kLanes, shared, stream,
         args...);
  return last_error();
}

// Whether a block keeps rows [32] that all of its warps read or add to in shared memory: where they
// fit beside `warps` warps, unless filling every multiprocessor's takes more reading than it saves.
// uses: rows read or added to in all.
inline bool keeps(int64_t rows, int64_t row_bytes, int64_t uses, int warps, size_t of_warp) {
  const Device here = device();
  return rows * row_bytes <= here.shared - int64_t(of_warp) * warps &&
         uses >= 8 * rows * here.multiprocessors;
}

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

// features [batch, inputs] -> [groups][inputs][32].
template <class T>
void to_lanes(const void *features, T *out, int64_t batch, int64_t inputs, void *stream) {
  const dim3 blocks(unsigned(column_tiles(inputs) * groups_of(batch)));
  launch(transpose_kernel<T, false>, blocks, kLanes, 0, stream, static_cast<const T *>(features),
         out, batch, inputs, int64_t(0));
}
// `groups` groups from first_group on, back into their rows of out [batch, inputs].
template <class T>
void from_lanes(const T *in, void *out, int64_t batch, int64_t inputs, int64_t first_group,
                int64_t groups, void *stream) {
  const dim3 blocks(unsigned(column_tiles(inputs) * groups));
  launch(transpose_kernel<T, true>, blocks, kLanes, 0, stream, in, static_cast<T *>(out), batch,
         inputs, first_group);
}

template <class T>
void clear(T *values, int64_t count, void *stream) {
  cudaMemsetAsync(values, 0, size_t(count) * sizeof(T), static_cast<cudaStream_t>(stream));
}

}  // namespace
}  // namespace cuda
}  // namespace fanin
