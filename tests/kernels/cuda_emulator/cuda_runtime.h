// A stand-in for CUDA's header that runs kernels on a CPU, one block after the other. It takes the
// place of <cuda_runtime.h> when kernels/src/cuda/*.cu are compiled as C++ (FANIN_CUDA=EMULATED).
// So what is written for a GPU is executed, with the very same launches, on any machine.
//
// Every thread of a block is a fiber. It runs until it has to wait for others (a shuffle, a
// barrier); then another one runs. FANIN_EMULATOR_ORDER gives the order: with 0, one warp runs as
// far as it can, then the next; with 1, likewise from the last one on; with 2, any warp. Code that
// relies on an order which CUDA does not promise gives wrong results in one of them. Lanes of a
// warp take turns at random. Shared memory is full of NaN when a block begins. What a GPU would
// refuse or hang on (too much shared memory, a shuffle that threads have left) ends the process
// with a message. The emulator tells nothing about speed.
#pragma once

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#define __CUDACC__ 1
#define __device__
#define __host__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
#define __shared__ static

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
typedef struct Stream *cudaStream_t;
typedef int cudaError_t;
enum { cudaSuccess = 0, cudaErrorUnknown = 1 };
enum cudaMemcpyKind { cudaMemcpyDeviceToHost };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

namespace emulator {

constexpr int kWarp = 32, kMultiprocessors = 3, kMostShared = 227 * 1024;
constexpr int kSharedUnasked = 48 * 1024;  // more has to be asked for, kernel by kernel
constexpr size_t kStack = 64 * 1024;

[[noreturn]] inline void stop(const char *why) {
  fprintf(stderr, "CUDA emulator: %s\n", why);
  abort();
}

// Threads that wait for each other: a warp, or a block.
struct Meeting {
  int members = 0, arrived = 0;
  std::vector<int> waiting;
};

struct Fiber {
  ucontext_t context;
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Meeting> warps;
  Meeting all;
  std::vector<uint64_t> values;         // of a shuffle: two sets of one for each thread, in turns
  std::vector<int> turn;                // of each thread
  std::vector<std::vector<int>> ready;  // of each warp
  std::vector<char> shared;
  ucontext_t scheduler;
  int current = 0, left = 0;
  std::function<void()> body;
  std::mt19937 random;
};
inline Block *block = nullptr;
inline std::vector<std::unique_ptr<char[]>> stacks;
inline std::map<void *, int> asked_for;  // kernel -> shared memory

}  // namespace emulator

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulator {

inline int order() {
  const char *text = getenv("FANIN_EMULATOR_ORDER");
  return text ? atoi(text) : 0;
}

inline void wake(Meeting &meeting) {
  meeting.arrived = 0;
  for (const int thread : meeting.waiting) block->ready[thread / kWarp].push_back(thread);
  meeting.waiting.clear();
}

// The warp whose turn it is, or -1.
inline int next_warp(int wanted) {
  std::vector<std::vector<int>> &ready = block->ready;
  const int warps = int(ready.size());
  const int start = wanted == 2 ? int(block->random() % warps) : 0;
  for (int i = 0; i < warps; ++i) {
    const int warp = wanted == 1 ? warps - 1 - i : (start + i) % warps;
    if (!ready[warp].empty()) return warp;
  }
  return -1;
}

inline void __attribute__((noinline)) meet(Meeting &meeting) {
  const int me = block->current;
  if (++meeting.arrived == meeting.members) return wake(meeting);
  meeting.waiting.push_back(me);
  swapcontext(&block->fibers[me].context, &block->scheduler);
}

inline Meeting &my_warp() { return block->warps[block->current / kWarp]; }

inline void thread_main() {
  block->body();
  --block->left;
  // Whoever left is not waited for any more by the block; a warp's shuffles would hang (see run).
  Meeting &all = block->all;
  if (--all.members > 0 && all.arrived == all.members) wake(all);
}

inline void run_block() {
  Block &b = *block;
  const int threads = int(blockDim.x);
  b.left = b.all.members = threads;
  b.all.arrived = 0;
  for (Meeting &warp : b.warps) warp = Meeting{kWarp, 0, {}};
  std::fill(b.shared.begin(), b.shared.end(), char(0xff));  // NaN
  for (int t = 0; t < threads; ++t) {
    Fiber &fiber = b.fibers[t];
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stacks[t].get();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = &b.scheduler;
    makecontext(&fiber.context, thread_main, 0);
    b.ready[t / kWarp].push_back(t);
  }
  const int wanted = order();
  for (int warp; (warp = next_warp(wanted)) >= 0;) {
    std::vector<int> &lanes = b.ready[warp];
    std::swap(lanes[b.random() % lanes.size()], lanes.back());
    b.current = lanes.back();
    lanes.pop_back();
    threadIdx = dim3(unsigned(b.current));
    swapcontext(&b.scheduler, &b.fibers[b.current].context);
  }
  if (b.left) stop("threads wait for others that have ended: the kernel would hang");
}

template <class... P>
void run(dim3 grid, dim3 threads, size_t shared, void (*kernel)(P...), P... arguments) {
  if (!grid.x || grid.x > 0x7fffffffu || !grid.y || grid.y > 65535 || grid.z != 1)
    stop("the grid is none a GPU would take");
  if (threads.x % kWarp || !threads.x || threads.x > 1024 || threads.y != 1 || threads.z != 1)
    stop("the block is none this emulator takes: whole warps, in x, at most 32");
  const int allowed = std::max(kSharedUnasked, asked_for[reinterpret_cast<void *>(kernel)]);
  if (shared > size_t(allowed)) stop("more shared memory than was asked for");
  Block state;
  state.fibers.resize(threads.x);
  while (stacks.size() < threads.x) stacks.emplace_back(new char[kStack]);
  state.warps.resize(threads.x / kWarp);
  state.ready.resize(threads.x / kWarp);
  state.values.resize(2 * threads.x);
  state.turn.resize(threads.x);
  state.shared.resize(shared + 16);
  state.body = [&] { kernel(arguments...); };
  block = &state;
  gridDim = grid;
  blockDim = threads;
  for (unsigned y = 0; y < grid.y; ++y)
    for (unsigned x = 0; x < grid.x; ++x) {
      // Backwards, since no order is promised.
      blockIdx = dim3(grid.x - 1 - x, y);
      run_block();
    }
  block = nullptr;
}

// Hands a value to all lanes of the warp; returns the values of all, lane by lane.
template <class T>
const uint64_t *exchange(T value) {
  Block &b = *block;
  const int me = b.current, warp = me / kWarp * kWarp;
  uint64_t *const values = b.values.data() + (b.turn[me] ^= 1) * b.fibers.size();
  memcpy(values + me, &value, sizeof value);
  meet(my_warp());
  return values + warp;
}

template <class T>
T shuffle(T value, int from) {
  memcpy(&value, exchange(value) + (from & (kWarp - 1)), sizeof value);
  return value;
}

}  // namespace emulator

// What kernels use of CUDA.

template <class T>
T *dynamic_shared_memory() {
  char *const start = emulator::block->shared.data();
  return reinterpret_cast<T *>((reinterpret_cast<uintptr_t>(start) + 15) & ~uintptr_t(15));
}
inline void __syncwarp() { emulator::meet(emulator::my_warp()); }
inline void __syncthreads() { emulator::meet(emulator::block->all); }
template <class T>
T __shfl_sync(unsigned, T value, int from) {
  return emulator::shuffle(value, from);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int distance) {
  return emulator::shuffle(value, emulator::block->current % emulator::kWarp ^ distance);
}
inline unsigned __ballot_sync(unsigned, bool value) {
  const uint64_t *const values = emulator::exchange(uint64_t(value));
  unsigned votes = 0;
  for (int lane = 0; lane < emulator::kWarp; ++lane) votes |= unsigned(values[lane]) << lane;
  return votes;
}
inline bool __any_sync(unsigned mask, bool value) { return __ballot_sync(mask, value) != 0; }
inline bool __all_sync(unsigned mask, bool value) { return __ballot_sync(mask, value) == ~0u; }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
template <class T>
T atomicAdd(T *at, T value) {
  const T before = *at;
  *at = before + value;
  return before;
}
inline void reduce_add(float *at, float a, float b, float c, float d) {
  if (reinterpret_cast<uintptr_t>(at) % 16) emulator::stop("16 bytes that are not aligned");
  for (const float value : {a, b, c, d}) *at++ += value;
}
inline void prefetch(const void *) {}
inline float to_tf32(float x) {
  if (!std::isfinite(x)) return x;
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  bits = (bits + 0x1000) & 0xffffe000;
  memcpy(&x, &bits, sizeof bits);
  return x;
}
// sums [16, 8] += left [16, 8] * right [8, 8]. Where the threads' elements stand is what the PTX
// ISA says of mma.m16n8k8. The sum is cut off, as tensor cores do it.
inline void multiply_tf32(float (&sums)[4], const float (&left)[4], const float (&right)[2]) {
  float elements[6][emulator::kWarp];  // of all threads: four of the left matrix, two of the right
  for (int e = 0; e < 6; ++e) {
    const float mine = e < 4 ? left[e] : right[e - 4];
    if (mine == mine && to_tf32(mine) != mine) emulator::stop("a product of what is not tf32");
    const uint64_t *const all = emulator::exchange(mine);
    for (int lane = 0; lane < emulator::kWarp; ++lane)
      memcpy(&elements[e][lane], all + lane, sizeof(float));
  }
  const int lane = emulator::block->current % emulator::kWarp;
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    double sum = sums[i];
    for (int k = 0; k < 8; ++k)
      sum += double(elements[row / 8 + k / 4 * 2][row % 8 * 4 + k % 4]) *
             elements[4 + k / 4][column * 4 + k % 4];
    sums[i] = float(sum);
    if (fabs(double(sums[i])) > fabs(sum)) sums[i] = nextafterf(sums[i], 0.0f);
  }
}
inline unsigned atomicOr(unsigned *at, unsigned value) {
  const unsigned before = *at;
  *at |= value;
  return before;
}
inline float __uint_as_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
inline uint32_t __float_as_uint(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

// What launchers use of it.

template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *config, void (*kernel)(P...),
                               A &&...args) {
  emulator::run<P...>(config->gridDim, config->blockDim, config->dynamicSmemBytes, kernel,
                      P(args)...);
  return cudaSuccess;
}
inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char *cudaGetErrorString(cudaError_t) { return "an error"; }
inline cudaError_t cudaMemsetAsync(void *at, int value, size_t bytes, cudaStream_t) {
  memset(at, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t bytes, cudaMemcpyKind,
                                   cudaStream_t) {
  memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaGetDevice(int *device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int *value, cudaDeviceAttr attribute, int) {
  *value = attribute == cudaDevAttrMultiProcessorCount ? emulator::kMultiprocessors
                                                       : emulator::kMostShared;
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel kernel, cudaFuncAttribute, int bytes) {
  if (bytes > emulator::kMostShared) emulator::stop("more shared memory than a GPU has");
  emulator::asked_for[reinterpret_cast<void *>(kernel)] = bytes;
  return cudaSuccess;
}
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, Kernel, int, size_t) {
  *blocks = 1;
  return cudaSuccess;
}
