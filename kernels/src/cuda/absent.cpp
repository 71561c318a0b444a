// Stands in for the GPU launchers where no CUDA compiler was at hand: whoever hands over tensors on a
// GPU is told so.
#include "core/call.h"
#include "core/rewire.h"

namespace fanin {
namespace cuda {
namespace {

constexpr Finding kUnavailable = {
    Finding::unavailable, 0,
    "this build of fanin has no CUDA kernels; install it where nvcc is on the PATH"};

}  // namespace

Finding forward(const ForwardCall &) { return kUnavailable; }
Finding backward(const BackwardCall &) { return kUnavailable; }
Finding step(const StepCall &) { return kUnavailable; }
Finding dense_forward(const DenseForwardCall &) { return kUnavailable; }
Finding dense_update(const DenseUpdateCall &) { return kUnavailable; }
Finding top_k(const TopKCall &) { return kUnavailable; }
Finding rewire(const RewireCall &, Rewired *) { return kUnavailable; }
uint64_t rewire_workspace() { return 0; }
Finding zero(void *, size_t, void *, size_t, void *) { return kUnavailable; }
extern const char *const architectures = "";

}  // namespace cuda
}  // namespace fanin
