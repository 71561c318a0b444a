// Rewiring on a GPU: see rewire.h. It waits for the stream, since how many connections moved is
// something the caller wants to know; a training step never does.
#include "core/rewire.h"

#include "cuda/common.h"

namespace fanin {
namespace cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int64_t kMostBlocks = 512;  // each thread goes on by as many as all of them are

// What passes from kernel to kernel, and at the end to the caller.
struct Search {
  unsigned long long rank, moved;
  uint32_t upper, threshold;
};

typedef unsigned long long Count;

// counts[bucket] of all weights, or, in the second round, of those in the bucket of the first.
template <class W>
__global__ void __launch_bounds__(kThreads)
    count_kernel(const W *weights, int64_t count, bool second, const Search *search,
                 Count *counts) {
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < count;
       i += int64_t(gridDim.x) * blockDim.x) {
    const uint32_t bits = magnitude(weights[i]);
    if (!second)
      atomicAdd(counts + (bits >> 16), Count(1));
    else if (bits >> 16 == search->upper)
      atomicAdd(counts + (bits & 0xffffu), Count(1));
  }
}

// The bucket of the wanted rank, and the rank within it. One block.
__global__ void __launch_bounds__(kThreads)
    find_kernel(const Count *counts, bool second, Search *search) {
  __shared__ Count sums[kThreads];
  constexpr int here = int(kBuckets / kThreads);
  Count total = 0;
  for (int b = 0; b < here; ++b) total += counts[threadIdx.x * here + b];
  sums[threadIdx.x] = total;
  __syncthreads();
  if (threadIdx.x) return;
  Count rank = search->rank;
  int part = 0;
  for (; part < kThreads - 1 && rank >= sums[part]; ++part) rank -= sums[part];
  uint32_t bucket = uint32_t(part) * here;
  for (; bucket < kBuckets - 1 && rank >= counts[bucket]; ++bucket) rank -= counts[bucket];
  search->rank = rank;
  if (!second)
    search->upper = bucket;
  else
    search->threshold = search->upper << 16 | bucket;
}

__global__ void begin_kernel(Count rank, Search *search) { *search = {rank, 0, 0, 0}; }

template <class I, class W, class M>
__global__ void __launch_bounds__(kThreads) regrow_kernel(RewireCall c, Search *search) {
  int moved = 0;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < c.count;
       i += int64_t(gridDim.x) * blockDim.x)
    moved += regrow<I, W, M>(c, i, search->threshold);
  for (int d = kLanes / 2; d; d /= 2) moved += __shfl_xor_sync(kAll, moved, d);
  if (thread_id() == 0 && moved) atomicAdd(&search->moved, Count(moved));
}

template <class I, class W, class M>
Finding run(const RewireCall &c, Search *found) {
  const W *const weights = static_cast<const W *>(c.weights);
  Count *const counts = static_cast<Count *>(c.workspace);
  Search *const search = reinterpret_cast<Search *>(counts + kBuckets);
  const int64_t wanted = (c.count + kThreads - 1) / kThreads;
  const dim3 blocks(unsigned(wanted < kMostBlocks ? wanted : kMostBlocks));
  launch(begin_kernel, dim3(1), kLanes, 0, c.stream, Count(threshold_rank(c)), search);
  for (const bool second : {false, true}) {
    clear(counts, kBuckets, c.stream);
    launch(count_kernel<W>, blocks, kThreads, 0, c.stream, weights, c.count, second, search,
           counts);
    launch(find_kernel, dim3(1), kThreads, 0, c.stream, counts, second, search);
  }
  launch(regrow_kernel<I, W, M>, blocks, kThreads, 0, c.stream, c, search);
  const auto stream = static_cast<cudaStream_t>(c.stream);
  cudaMemcpyAsync(found, search, sizeof *found, cudaMemcpyDeviceToHost, stream);
  const cudaError_t waited = cudaStreamSynchronize(stream);
  const Finding launched = last_error();
  if (waited != cudaSuccess) return {Finding::device_error, 0, cudaGetErrorString(waited)};
  return launched;
}

template <class I, class W>
Finding run_of(const RewireCall &c, Search *found) {
  return c.bf16_moments ? run<I, W, uint16_t>(c, found) : run<I, W, float>(c, found);
}
template <class I>
Finding run_of(const RewireCall &c, Search *found) {
  return c.bf16_weights ? run_of<I, uint16_t>(c, found) : run_of<I, float>(c, found);
}

}  // namespace

uint64_t rewire_workspace() { return kBuckets * sizeof(Count) + sizeof(Search) + kCacheLine; }

Finding rewire(const RewireCall &c, Rewired *done) {
  Search search{};
  *done = {0, 0};
  if (c.count == 0) return {Finding::nothing, 0, nullptr};
  const Finding found = c.wide_indices ? run_of<uint32_t>(c, &search) : run_of<uint16_t>(c, &search);
  *done = {weight_of(search.threshold), int64_t(search.moved)};
  return found;
}

}  // namespace cuda
}  // namespace fanin
