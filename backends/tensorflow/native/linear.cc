// The ops of the fixed fan-in layer: its forward and its backward pass.
#include "kernel.h"

namespace {

struct LayerShapes {
  ShapeHandle features, weights, labels;
};

absl::Status layer_shapes(InferenceContext *c, int features_at, LayerShapes *shapes) {
  ShapeHandle indices, weights;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(features_at), 2, &shapes->features));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(features_at + 1), 2, &indices));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(features_at + 2), 2, &weights));
  int64_t group_size;
  TF_RETURN_IF_ERROR(c->GetAttr("group_size", &group_size));
  // Labels that share a row of indices have a row of weights each.
  const DimensionHandle labels = group_size ? c->UnknownDim() : c->Dim(indices, 0);
  const ShapeHandle expected = c->Matrix(labels, c->Dim(indices, 1));
  TF_RETURN_IF_ERROR(c->Merge(expected, weights, &shapes->weights));
  shapes->labels = c->Vector(c->Dim(shapes->weights, 0));
  return absl::OkStatus();
}

// `bias` is a list of no or one tensor.
REGISTER_OP("Fanin>FanInLinear")
    .Input("features: T")
    .Input("indices: Tindices")
    .Input("weights: T")
    .Input("bias: num_bias * T")
    .Output("scores: T")
    .Attr("T: {float, double}")
    .Attr("Tindices: {uint16, uint32}")
    .Attr("group_size: int = 0")
    .Attr("num_bias: int >= 0")
    .Attr("threads: int = 0")
    .SetShapeFn([](InferenceContext *c) -> absl::Status {
      LayerShapes shapes;
      TF_RETURN_IF_ERROR(layer_shapes(c, 0, &shapes));
      for (int i = 3; i < c->num_inputs(); ++i)
        TF_RETURN_IF_ERROR(c->Merge(shapes.labels, c->input(i), &shapes.labels));
      c->set_output(0, c->Matrix(c->Dim(shapes.features, 0), c->Dim(shapes.labels, 0)));
      return absl::OkStatus();
    });

// A gradient that is not wanted is an empty vector.
REGISTER_OP("Fanin>FanInLinearGrad")
    .Input("grad_scores: T")
    .Input("features: T")
    .Input("indices: Tindices")
    .Input("weights: T")
    .Output("grad_features: T")
    .Output("grad_weights: T")
    .Output("grad_bias: T")
    .Attr("T: {float, double}")
    .Attr("Tindices: {uint16, uint32}")
    .Attr("group_size: int = 0")
    .Attr("want_features: bool")
    .Attr("want_weights: bool")
    .Attr("want_bias: bool")
    .Attr("threads: int = 0")
    .SetShapeFn([](InferenceContext *c) -> absl::Status {
      LayerShapes shapes;
      TF_RETURN_IF_ERROR(layer_shapes(c, 1, &shapes));
      bool features, weights, bias;
      TF_RETURN_IF_ERROR(c->GetAttr("want_features", &features));
      TF_RETURN_IF_ERROR(c->GetAttr("want_weights", &weights));
      TF_RETURN_IF_ERROR(c->GetAttr("want_bias", &bias));
      const ShapeHandle nothing = c->Vector(0);
      c->set_output(0, features ? shapes.features : nothing);
      c->set_output(1, weights ? shapes.weights : nothing);
      c->set_output(2, bias ? shapes.labels : nothing);
      return absl::OkStatus();
    });

template <fanin_device device>
class FanInLinear : public FaninKernel<device> {
 public:
  explicit FanInLinear(OpKernelConstruction *ctx) : FaninKernel<device>(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("group_size", &group_size_));
  }

  void Compute(OpKernelContext *ctx) override {
    fanin_linear_forward_params params{};
    params.features = this->input(ctx, 0);
    params.indices = this->input(ctx, 1);
    params.weights = this->input(ctx, 2);
    params.bias = ctx->num_inputs() > 3 ? this->input(ctx, 3) : absent();
    params.scores = absent();
    params.group_size = group_size_;
    params.resources.threads = this->threads_;
    // Checked before the output is allocated, since its shape is read off the inputs.
    char message[512];
    const int32_t status = fanin_linear_forward_check(&params, message, sizeof message);
    if (!this->succeeded(ctx, status, message)) return;

    Tensor *scores = nullptr, scratch;
    const TensorShape shape({ctx->input(0).dim_size(0), ctx->input(2).dim_size(0)});
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, shape, &scores));
    params.scores = describe(*scores, device);
    this->run(ctx, &params, &scratch, fanin_linear_forward_workspace(&params),
              fanin_linear_forward);
  }

 private:
  int64_t group_size_;
};

template <fanin_device device>
class FanInLinearGrad : public FaninKernel<device> {
 public:
  explicit FanInLinearGrad(OpKernelConstruction *ctx) : FaninKernel<device>(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("group_size", &group_size_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("want_features", &want_features_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("want_weights", &want_weights_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("want_bias", &want_bias_));
  }

  void Compute(OpKernelContext *ctx) override {
    const Tensor &features = ctx->input(1), &weights = ctx->input(3);
    fanin_linear_backward_params params{};
    params.grad_scores = this->input(ctx, 0);
    params.features = this->input(ctx, 1);
    params.indices = this->input(ctx, 2);
    params.weights = this->input(ctx, 3);
    params.group_size = group_size_;
    params.resources.threads = this->threads_;
    const TensorShape labels({weights.dims() ? weights.dim_size(0) : 0});
    Tensor scratch;
    if (!output(ctx, 0, want_features_, features.shape(), &params.grad_features) ||
        !output(ctx, 1, want_weights_, weights.shape(), &params.grad_weights) ||
        !output(ctx, 2, want_bias_, labels, &params.grad_bias))
      return;
    this->run(ctx, &params, &scratch, fanin_linear_backward_workspace(&params),
              fanin_linear_backward);
  }

 private:
  static bool output(OpKernelContext *ctx, int at, bool wanted, const TensorShape &shape,
                     fanin_tensor *described) {
    Tensor *tensor = nullptr;
    const absl::Status status =
        ctx->allocate_output(at, wanted ? shape : TensorShape({0}), &tensor);
    if (!status.ok()) {
      ctx->CtxFailure(status);
      return false;
    }
    *described = wanted ? describe(*tensor, device) : absent();
    return true;
  }

  int64_t group_size_;
  bool want_features_, want_weights_, want_bias_;
};

REGISTER_KERNEL_BUILDER(Name("Fanin>FanInLinear").Device(DEVICE_CPU), FanInLinear<FANIN_CPU>);
REGISTER_KERNEL_BUILDER(Name("Fanin>FanInLinear").Device(DEVICE_GPU), FanInLinear<FANIN_CUDA>);
REGISTER_KERNEL_BUILDER(Name("Fanin>FanInLinearGrad").Device(DEVICE_CPU),
                        FanInLinearGrad<FANIN_CPU>);
REGISTER_KERNEL_BUILDER(Name("Fanin>FanInLinearGrad").Device(DEVICE_GPU),
                        FanInLinearGrad<FANIN_CUDA>);

}  // namespace
