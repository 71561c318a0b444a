// The launchers' signatures: what the C interface calls on a CPU, once per instruction set, and on
// a GPU.
#pragma once

#include "core/call.h"

namespace fanin {

// The functions of one instruction set. Each stands in the file of cpu/ that has its name.
struct CpuTarget {
  const char *name;
  Finding (*forward)(const ForwardCall &);
  Finding (*backward)(const BackwardCall &);
  Finding (*step)(const StepCall &);  // a fixed fan-in in label order, or unstructured
  Finding (*sorted_step)(const StepCall &);
  Finding (*grouped_step)(const StepCall &);
  Finding (*dense_step)(const StepCall &);
  Finding (*dense_forward)(const DenseForwardCall &);
  Finding (*dense_update)(const DenseUpdateCall &);
  Finding (*sparse_forward)(const SparseForwardCall &);
  Finding (*sparse_update)(const SparseUpdateCall &);
  Finding (*top_k)(const TopKCall &);
  Finding (*words_step)(const WordsStepCall &);
  Finding (*words_top_k)(const WordsTopKCall &);
  Finding (*label_sums)(const LabelSumsCall &);
  Finding (*choose_sources)(const ChooseCall &);
  Finding (*replace_sources)(const ReplaceCall &);
};

namespace baseline { extern const CpuTarget target; }
namespace avx2 { extern const CpuTarget target; }
namespace avx512 { extern const CpuTarget target; }

// These have no arithmetic that SIMD would speed up, and are compiled once.
Rewired rewire(const RewireCall &);
Finding sort(const SortCall &);

// On a GPU. cuda/absent.cpp stands in where there is no CUDA compiler.
namespace cuda {
extern const char *const architectures;  // "80, 90"
Finding forward(const ForwardCall &);
Finding backward(const BackwardCall &);
Finding step(const StepCall &);  // a fixed fan-in, or unstructured
Finding grouped_step(const StepCall &);
Finding dense_step(const StepCall &);
Finding dense_forward(const DenseForwardCall &);
Finding dense_update(const DenseUpdateCall &);
Finding sparse_forward(const SparseForwardCall &);
Finding sparse_update(const SparseUpdateCall &);
Finding top_k(const TopKCall &);
Finding words_step(const WordsStepCall &);
Finding words_top_k(const WordsTopKCall &);
Finding label_sums(const LabelSumsCall &);
Finding choose_sources(const ChooseCall &);
Finding replace_sources(const ReplaceCall &);
Finding rewire(const RewireCall &, Rewired *);  // waits for the stream
Finding zero(void *a, size_t a_bytes, void *b, size_t b_bytes, void *stream);
}  // namespace cuda

}  // namespace fanin
