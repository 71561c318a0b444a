// Rewiring on a GPU: see core/rewire.h. It waits for the stream, since the caller wants to know how
// many connections moved; a training step never waits.
#include "cuda/common.h"

#include "core/rewire.h"

namespace fanin {
namespace cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kRewireThreads = 512;   // more would leave a thread too few registers
constexpr int64_t kMostBlocks = 512;  // with more connections, a thread takes several

// What passes from kernel to kernel, and at the end to the caller.
struct Search {
  unsigned long long rank, moved;
  uint32_t upper, threshold;
};

typedef unsigned long long Count;  // as atomicAdd has it
static_assert(sizeof(Count) == sizeof(uint64_t) && sizeof(Search) <= 64, "memory.h makes room");

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
  constexpr int buckets = int(kBuckets / kThreads);
  Count total = 0;
  for (int b = 0; b < buckets; ++b) total += counts[threadIdx.x * buckets + b];
  sums[threadIdx.x] = total;
  __syncthreads();
  if (threadIdx.x) return;
  Count rank = search->rank;
  int part = 0;
  for (; part < kThreads - 1 && rank >= sums[part]; ++part) rank -= sums[part];
  uint32_t bucket = uint32_t(part) * buckets;
  for (; bucket < kBuckets - 1 && rank >= counts[bucket]; ++bucket) rank -= counts[bucket];
  search->rank = rank;
  if (!second)
    search->upper = bucket;
  else
    search->threshold = search->upper << 16 | bucket;
}

__global__ void begin_kernel(Count rank, Search *search) { *search = {rank, 0, 0, 0}; }

template <class I, class W, class M>
__global__ void __launch_bounds__(kRewireThreads, 1) rewire_kernel(RewireCall c, Search *search) {
  int moved = 0;
  for (int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; i < c.connections;
       i += int64_t(gridDim.x) * blockDim.x)
    moved += rewire_one<I, W, M>(c, i, search->threshold);
  for (int d = kLanes / 2; d; d /= 2) moved += __shfl_xor_sync(kAll, moved, d);
  if (thread_id() == 0 && moved) atomicAdd(&search->moved, Count(moved));
}

template <class I, class W, class M>
Finding run(const RewireCall &c, Search *result) {
  const W *const weights = static_cast<const W *>(c.weights);
  Count *const counts = static_cast<Count *>(c.workspace);
  Search *const search = reinterpret_cast<Search *>(counts + kBuckets);
  const int64_t wanted = (c.connections + kThreads - 1) / kThreads;
  const dim3 blocks(unsigned(wanted < kMostBlocks ? wanted : kMostBlocks));
  launch(begin_kernel, dim3(1), kLanes, 0, c.stream, Count(threshold_rank(c)), search);
  for (const bool second : {false, true}) {
    clear(counts, kBuckets, c.stream);
    launch(count_kernel<W>, blocks, kThreads, 0, c.stream, weights, c.connections, second, search,
           counts);
    launch(find_kernel, dim3(1), kThreads, 0, c.stream, counts, second, search);
  }
  launch(rewire_kernel<I, W, M>, blocks, kRewireThreads, 0, c.stream, c, search);
  const auto stream = static_cast<cudaStream_t>(c.stream);
  cudaMemcpyAsync(result, search, sizeof *result, cudaMemcpyDeviceToHost, stream);
  const cudaError_t waited = cudaStreamSynchronize(stream);
  const Finding launched = last_error();
  if (waited != cudaSuccess) return {Finding::device_error, 0, cudaGetErrorString(waited)};
  return launched;
}

}  // namespace

Finding rewire(const RewireCall &c, Rewired *done) {
  Search search{};
  *done = {0, 0};
  if (c.connections == 0) return kNothing;
  const Finding finding = with_types(
      [&](auto index, auto weight, auto moment) {
        return run<decltype(index), decltype(weight), decltype(moment)>(c, &search);
      },
      index_type(c), weight_type(c), moment_type(c));
  *done = {weight_of(search.threshold), int64_t(search.moved)};
  return finding;
}

}  // namespace cuda
}  // namespace fanin
