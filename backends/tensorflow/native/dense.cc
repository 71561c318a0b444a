// Dense layers with ReLU: the forward pass, and the backward pass with the optimiser.
#include "training.h"

namespace {

REGISTER_OP("Fanin>DenseRelu")
    .Input("features: float")
    .Input("weights: Tweights")
    .Input("bias: num_bias * float")
    .Output("outputs: float")
    .Attr("Tweights: {float, bfloat16}")
    .Attr("num_bias: int >= 0")
    .Attr("threads: int = 0")
    .SetShapeFn([](InferenceContext *c) -> absl::Status {
      ShapeHandle features, weights;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(0), 2, &features));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 2, &weights));
      c->set_output(0, c->Matrix(c->Dim(features, 0), c->Dim(weights, 0)));
      return absl::OkStatus();
    });

REGISTER_OP("Fanin>DenseReluUpdate")
    .Input("grad_outputs: float")
    .Input("outputs: float")
    .Input("features: float")
    .Input("weights: resource")
    .Input("weights_m: num_weights_m * resource")
    .Input("weights_v: num_weights_v * resource")
    .Input("bias: num_bias * resource")
    .Input("bias_m: num_bias_m * resource")
    .Input("bias_v: num_bias_v * resource")
    .Input("optimizer: double")
    .Input("learning_rate: double")
    .Input("step: int64")
    .Output("grad_features: float")
    .Attr("num_weights_m: int >= 0")
    .Attr("num_weights_v: int >= 0")
    .Attr("num_bias: int >= 0")
    .Attr("num_bias_m: int >= 0")
    .Attr("num_bias_v: int >= 0")
    .Attr("seed: int = 0")
    .Attr("want_grad: bool")
    .Attr("threads: int = 0")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext *c) -> absl::Status {
      bool want_grad;
      TF_RETURN_IF_ERROR(c->GetAttr("want_grad", &want_grad));
      c->set_output(0, want_grad ? c->input(2) : c->Vector(0));
      return absl::OkStatus();
    });

template <fanin_device device>
class DenseRelu : public FusedKernel<device> {
 public:
  using FusedKernel<device>::FusedKernel;

  void Compute(OpKernelContext *ctx) override {
    const Tensor &features = ctx->input(0), &weights = ctx->input(1);
    OP_REQUIRES(ctx, features.dims() == 2 && weights.dims() == 2,
                absl::InvalidArgumentError("features and weights must be matrices"));
    Tensor scratch;
    Tensor *const outputs =
        this->output(ctx, 0, TensorShape({features.dim_size(0), weights.dim_size(0)}));
    if (!outputs) return;
    fanin_dense_forward_params params{};
    params.features = this->named(ctx, "features");
    params.weights = this->named(ctx, "weights");
    params.bias = this->named(ctx, "bias");
    params.outputs = describe(*outputs, device);
    params.relu = 1;
    params.resources.threads = this->threads_;
    this->run(ctx, &params, &scratch, fanin_dense_forward_workspace(&params), fanin_dense_forward);
  }
};

template <fanin_device device>
class DenseReluUpdate : public TrainingKernel<device> {
 public:
  using TrainingKernel<device>::TrainingKernel;

  void Compute(OpKernelContext *ctx) override {
    Tensor scratch;
    Variables<device> variables;
    OP_REQUIRES_OK(ctx, variables.open(ctx, {"weights", "weights_m", "weights_v", "bias", "bias_m",
                                             "bias_v"}));
    Tensor *const grad =
        this->output(ctx, 0, this->want_grad_ ? ctx->input(2).shape() : TensorShape({0}));
    if (!grad) return;
    fanin_dense_update_params params{};
    params.grad_outputs = this->named(ctx, "grad_outputs");
    params.outputs = this->named(ctx, "outputs");
    params.features = this->named(ctx, "features");
    params.weights = variables.trained("weights");
    params.bias = variables.trained("bias");
    params.grad_features = this->want_grad_ ? describe(*grad, device) : absent();
    params.optimizer = this->optimizer(ctx);
    params.resources.threads = this->threads_;
    if (!ctx->status().ok()) return;
    this->run(ctx, &params, &scratch, fanin_dense_update_workspace(&params), fanin_dense_update);
  }
};

REGISTER_KERNEL_BUILDER(Name("Fanin>DenseRelu").Device(DEVICE_CPU), DenseRelu<FANIN_CPU>);
REGISTER_KERNEL_BUILDER(Name("Fanin>DenseRelu").Device(DEVICE_GPU), DenseRelu<FANIN_CUDA>);
// On a GPU the host reads scalars and the handles of variables.
REGISTER_KERNEL_BUILDER(Name("Fanin>DenseReluUpdate").Device(DEVICE_CPU),
                        DenseReluUpdate<FANIN_CPU>);
REGISTER_KERNEL_BUILDER(Name("Fanin>DenseReluUpdate")
                            .Device(DEVICE_GPU)
                            .HostMemory("weights")
                            .HostMemory("weights_m")
                            .HostMemory("weights_v")
                            .HostMemory("bias")
                            .HostMemory("bias_m")
                            .HostMemory("bias_v")
                            .HostMemory("optimizer")
                            .HostMemory("learning_rate")
                            .HostMemory("step"),
                        DenseReluUpdate<FANIN_CUDA>);

}  // namespace
