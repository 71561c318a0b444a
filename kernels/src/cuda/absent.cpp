// Stands in for the GPU launchers where no CUDA compiler was found. Whoever hands over tensors on a
// GPU is told so.
#include "core/launchers.h"

namespace fanin {
namespace cuda {

static constexpr Finding kUnavailable = {
    Finding::unavailable, 0,
    "this build of fanin has no CUDA kernels; install it where nvcc is on the PATH"};

extern const char *const architectures = "";
Finding forward(const ForwardCall &) { return kUnavailable; }
Finding backward(const BackwardCall &) { return kUnavailable; }
Finding step(const StepCall &) { return kUnavailable; }
Finding grouped_step(const StepCall &) { return kUnavailable; }
Finding dense_step(const StepCall &) { return kUnavailable; }
Finding dense_forward(const DenseForwardCall &) { return kUnavailable; }
Finding dense_update(const DenseUpdateCall &) { return kUnavailable; }
Finding sparse_forward(const SparseForwardCall &) { return kUnavailable; }
Finding sparse_update(const SparseUpdateCall &) { return kUnavailable; }
Finding top_k(const TopKCall &) { return kUnavailable; }
Finding words_step(const WordsStepCall &) { return kUnavailable; }
Finding words_top_k(const WordsTopKCall &) { return kUnavailable; }
Finding label_sums(const LabelSumsCall &) { return kUnavailable; }
Finding choose_sources(const ChooseCall &) { return kUnavailable; }
Finding replace_sources(const ReplaceCall &) { return kUnavailable; }
Finding rewire(const RewireCall &, Rewired *) { return kUnavailable; }
Finding zero(void *, size_t, void *, size_t, void *) { return kUnavailable; }

}  // namespace cuda
}  // namespace fanin
