// The fused training step of an output layer.
#include "training.h"

namespace {

// The fused execution. Resources are variables that the op updates in place; `bias` is a list of
// nothing or of bias, m and v. A gradient that is not wanted is an empty vector. `starts` are
// fanin.h's int32 as uint32 (`signed_input`).
REGISTER_OP("Fanin>FusedStep")
    .Input("features: float")
    .Input("indices: num_indices * Tindices")
    .Input("starts: num_starts * uint32")
    .Input("tile_labels: num_tile_labels * uint16")
    .Input("weights: resource")
    .Input("weights_m: num_weights_m * resource")
    .Input("weights_v: num_weights_v * resource")
    .Input("bias: num_bias * resource")
    .Input("bias_m: num_bias_m * resource")
    .Input("bias_v: num_bias_v * resource")
    .Input("positive_instances: int32")
    .Input("positive_labels: int64")
    .Input("optimizer: double")
    .Input("learning_rate: double")
    .Input("step: int64")
    .Output("loss: float")
    .Output("grad_features: float")
    .Attr("Tindices: {uint16, uint32} = DT_UINT16")
    .Attr("num_indices: int >= 0")
    .Attr("num_starts: int >= 0")
    .Attr("num_tile_labels: int >= 0")
    .Attr("num_weights_m: int >= 0")
    .Attr("num_weights_v: int >= 0")
    .Attr("num_bias: int >= 0")
    .Attr("num_bias_m: int >= 0")
    .Attr("num_bias_v: int >= 0")
    .Attr("loss_kind: int")
    .Attr("seed: int = 0")
    .Attr("want_grad: bool")
    .Attr("group_size: int = 0")
    .Attr("mean_labels: int = 0")
    .Attr("threads: int = 0")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext *c) -> absl::Status {
      bool want_grad;
      TF_RETURN_IF_ERROR(c->GetAttr("want_grad", &want_grad));
      c->set_output(0, c->Scalar());
      c->set_output(1, want_grad ? c->input(0) : c->Vector(0));
      return absl::OkStatus();
    });

template <fanin_device device>
class FusedStep : public TrainingKernel<device> {
 public:
  explicit FusedStep(OpKernelConstruction *ctx) : TrainingKernel<device>(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("loss_kind", &loss_kind_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("mean_labels", &mean_labels_));
  }

  void Compute(OpKernelContext *ctx) override {
    Tensor scratch;
    Variables<device> variables;
    OP_REQUIRES_OK(ctx, variables.open(ctx, {"weights", "weights_m", "weights_v", "bias", "bias_m",
                                             "bias_v"}));
    Tensor *const loss = this->output(ctx, 0, TensorShape({}));
    Tensor *const grad =
        this->output(ctx, 1, this->want_grad_ ? ctx->input(0).shape() : TensorShape({0}));
    if (!ctx->status().ok()) return;
    fanin_step_params params{};
    params.features = this->named(ctx, "features");
    params.connections = this->connections(ctx);
    params.weights = variables.trained("weights");
    params.bias = variables.trained("bias");
    params.positive_instances = this->named(ctx, "positive_instances");
    params.positive_labels = this->named(ctx, "positive_labels");
    params.loss = describe(*loss, device);
    params.loss.rank = 1;
    params.loss.shape[0] = params.loss.strides[0] = 1;
    params.grad_features = this->want_grad_ ? describe(*grad, device) : absent();
    params.optimizer = this->optimizer(ctx);
    params.mean_labels = mean_labels_;
    params.loss_kind = loss_kind_;
    params.resources.threads = this->threads_;
    if (!ctx->status().ok()) return;
    this->run(ctx, &params, &scratch, fanin_step_workspace(&params), fanin_step);
  }

 private:
  int loss_kind_;
  int64_t mean_labels_;
};

// On a GPU the host reads scalars and the handles of variables; everything else lies on the device.
REGISTER_KERNEL_BUILDER(Name("Fanin>FusedStep").Device(DEVICE_CPU), FusedStep<FANIN_CPU>);
REGISTER_KERNEL_BUILDER(Name("Fanin>FusedStep")
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
                        FusedStep<FANIN_CUDA>);

}  // namespace
