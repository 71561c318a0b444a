// What passes between the C interface (api.cpp, which checks everything) and the launchers (which
// then trust it): one struct per op, and the launchers' signatures.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace fanin {

constexpr int64_t kGroup = 32;  // instances worked on together

struct ForwardCall {
  int64_t batch, inputs, labels, fan_in;
  bool wide_values;   // float64 rather than float32
  bool wide_indices;  // uint32 rather than uint16
  const void *features, *indices, *weights, *bias;
  void *scores;
  void *workspace;
  void *stream;
  int threads;
};

struct BackwardCall {
  int64_t batch, inputs, labels, fan_in;
  bool wide_values, wide_indices;
  const void *grad_scores, *features, *indices, *weights;
  void *grad_features, *grad_weights, *grad_bias;
  void *workspace;
  void *stream;
  int threads;
};

#if defined(__CUDACC__)
__host__ __device__
#endif
inline int64_t groups_of(int64_t batch) { return (batch + kGroup - 1) / kGroup; }

// What a launcher found in the data itself; `at` is a flat position in the array concerned.
struct Finding {
  enum Kind { nothing, bad_index, bad_feature, device_error } kind;
  int64_t at;
  const char *text;  // of a device error
};

// One per compiled instruction set.
struct CpuTarget {
  const char *name;
  Finding (*forward)(const ForwardCall &);
  Finding (*backward)(const BackwardCall &);
};

namespace baseline { extern const CpuTarget target; }
namespace avx2 { extern const CpuTarget target; }
namespace avx512 { extern const CpuTarget target; }

// Bytes of scratch memory. The CPU's backward pass holds one accumulator per thread.
constexpr uint64_t kCacheLine = 64;  // rows of 32 lanes must not straddle more lines than they fill
inline uint64_t forward_workspace(const ForwardCall &c) {
  return kCacheLine +
         uint64_t(groups_of(c.batch) * c.inputs * kGroup) * (c.wide_values ? 8 : 4);
}
inline uint64_t backward_workspace(const BackwardCall &c, int accumulators) {
  return kCacheLine +
         uint64_t((groups_of(c.batch) + accumulators) * c.inputs * kGroup) * (c.wide_values ? 8 : 4);
}
inline void *aligned(void *workspace) {
  return reinterpret_cast<void *>((reinterpret_cast<uintptr_t>(workspace) + kCacheLine - 1) &
                                  ~uintptr_t(kCacheLine - 1));
}

namespace cuda {
Finding forward(const ForwardCall &);
Finding backward(const BackwardCall &);
Finding zero(void *a, size_t a_bytes, void *b, size_t b_bytes, void *stream);
extern const char *const architectures;  // "80, 90"
}  // namespace cuda

}  // namespace fanin
