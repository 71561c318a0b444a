// What changes connections: rewiring and sorting.
#include "training.h"

namespace {

REGISTER_OP("Fanin>Rewire")
    .Input("indices: resource")
    .Input("weights: resource")
    .Input("weights_m: num_weights_m * resource")
    .Input("weights_v: num_weights_v * resource")
    .Input("inputs: int64")
    .Input("fraction: double")
    .Input("seed: int64")
    .Output("moved: int64")
    .Attr("num_weights_m: int >= 0")
    .Attr("num_weights_v: int >= 0")
    .Attr("threads: int = 0")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::ScalarShape);

REGISTER_OP("Fanin>SortConnections")
    .Input("indices: resource")
    .Input("tile_labels: resource")
    .Input("slots: resource")
    .Input("weights: resource")
    .Input("weights_m: num_weights_m * resource")
    .Input("weights_v: num_weights_v * resource")
    .Input("inputs: int64")
    .Attr("num_weights_m: int >= 0")
    .Attr("num_weights_v: int >= 0")
    .Attr("undo: bool")
    .Attr("threads: int = 0")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::NoOutputs);

int32_t rewire(const fanin_rewire_params *params, char *message, size_t bytes) {
  return fanin_rewire(const_cast<fanin_rewire_params *>(params), message, bytes);
}

template <fanin_device device>
class Rewire : public FusedKernel<device> {
 public:
  using FusedKernel<device>::FusedKernel;

  void Compute(OpKernelContext *ctx) override {
    Tensor scratch;
    Variables<device> variables;
    OP_REQUIRES_OK(ctx, variables.open(ctx, {"indices", "weights", "weights_m", "weights_v"}));
    Tensor *const moved = this->output(ctx, 0, TensorShape({}));
    fanin_rewire_params params{};
    params.indices = variables.describe("indices");
    params.weights = variables.trained("weights");
    params.inputs = this->template scalar<int64_t>(ctx, "inputs");
    params.fraction = this->template scalar<double>(ctx, "fraction");
    params.seed = uint64_t(this->template scalar<int64_t>(ctx, "seed"));
    params.resources.threads = this->threads_;
    if (!ctx->status().ok()) return;
    this->run(ctx, &params, &scratch, fanin_rewire_workspace(&params), rewire);
    moved->scalar<int64_t>()() = params.moved;
  }
};

// For a CPU's caches alone.
class SortConnections : public FusedKernel<FANIN_CPU> {
 public:
  explicit SortConnections(OpKernelConstruction *ctx) : FusedKernel<FANIN_CPU>(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("undo", &undo_));
  }

  void Compute(OpKernelContext *ctx) override {
    Tensor scratch;
    Variables<FANIN_CPU> variables;
    OP_REQUIRES_OK(ctx, variables.open(ctx, {"indices", "tile_labels", "slots", "weights",
                                             "weights_m", "weights_v"}));
    fanin_sort_params params{};
    params.indices = variables.describe("indices");
    params.tile_labels = variables.describe("tile_labels");
    params.slots = variables.describe("slots");
    params.weights = variables.trained("weights");
    params.inputs = scalar<int64_t>(ctx, "inputs");
    params.undo = undo_;
    params.resources.threads = threads_;
    if (!ctx->status().ok()) return;
    run(ctx, &params, &scratch, fanin_sort_workspace(&params), fanin_sort);
  }

 private:
  bool undo_;
};

// fanin_rewire returns what it counted to the host.
REGISTER_KERNEL_BUILDER(Name("Fanin>Rewire").Device(DEVICE_CPU), Rewire<FANIN_CPU>);
REGISTER_KERNEL_BUILDER(Name("Fanin>Rewire")
                            .Device(DEVICE_GPU)
                            .HostMemory("indices")
                            .HostMemory("weights")
                            .HostMemory("weights_m")
                            .HostMemory("weights_v")
                            .HostMemory("inputs")
                            .HostMemory("fraction")
                            .HostMemory("seed")
                            .HostMemory("moved"),
                        Rewire<FANIN_CUDA>);
REGISTER_KERNEL_BUILDER(Name("Fanin>SortConnections").Device(DEVICE_CPU), SortConnections);

}  // namespace
