// Layers with ReLU that read sparse features: the forward pass, and the backward pass with the
// optimiser on the rows of words that occur.
#include "training.h"

namespace {

REGISTER_OP("Fanin>SparseRelu")
    .Input("values: float")
    .Input("starts: int64")
    .Input("columns: int32")
    .Input("weights: Tweights")
    .Input("bias: num_bias * float")
    .Output("outputs: float")
    .Attr("Tweights: {float, bfloat16}")
    .Attr("num_bias: int >= 0")
    .Attr("threads: int = 0")
    .SetShapeFn([](InferenceContext *c) -> absl::Status {
      ShapeHandle starts, weights;
      TF_RETURN_IF_ERROR(c->WithRank(c->input(1), 1, &starts));
      TF_RETURN_IF_ERROR(c->WithRank(c->input(3), 2, &weights));
      tensorflow::shape_inference::DimensionHandle batch;
      TF_RETURN_IF_ERROR(c->Subtract(c->Dim(starts, 0), 1, &batch));
      c->set_output(0, c->Matrix(batch, c->Dim(weights, 1)));
      return absl::OkStatus();
    });

// The lists of moments are empty for those that are not kept: with row moments that of m.
REGISTER_OP("Fanin>SparseReluUpdate")
    .Input("grad_outputs: float")
    .Input("outputs: float")
    .Input("words: int32")
    .Input("word_starts: int64")
    .Input("instances: int32")
    .Input("values: float")
    .Input("weights: resource")
    .Input("weights_m: num_weights_m * resource")
    .Input("weights_v: num_weights_v * resource")
    .Input("bias: num_bias * resource")
    .Input("bias_m: num_bias_m * resource")
    .Input("bias_v: num_bias_v * resource")
    .Input("optimizer: double")
    .Input("learning_rate: double")
    .Input("step: int64")
    .Attr("num_weights_m: int >= 0")
    .Attr("num_weights_v: int >= 0")
    .Attr("num_bias: int >= 0")
    .Attr("num_bias_m: int >= 0")
    .Attr("num_bias_v: int >= 0")
    .Attr("seed: int = 0")
    .Attr("threads: int = 0")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::NoOutputs);

template <fanin_device device>
class SparseRelu : public FusedKernel<device> {
 public:
  using FusedKernel<device>::FusedKernel;

  void Compute(OpKernelContext *ctx) override {
    const Tensor &starts = ctx->input(1), &weights = ctx->input(3);
    OP_REQUIRES(
        ctx, starts.dims() == 1 && starts.dim_size(0) > 0 && weights.dims() == 2,
        absl::InvalidArgumentError("starts must be [batch + 1] and weights [inputs, units]"));
    Tensor scratch;
    Tensor *const outputs =
        this->output(ctx, 0, TensorShape({starts.dim_size(0) - 1, weights.dim_size(1)}));
    if (!outputs) return;
    fanin_sparse_forward_params params{};
    params.values = this->named(ctx, "values");
    params.starts = this->named(ctx, "starts");
    params.columns = this->named(ctx, "columns");
    params.weights = this->named(ctx, "weights");
    params.bias = this->named(ctx, "bias");
    params.outputs = describe(*outputs, device);
    params.relu = 1;
    params.resources.threads = this->threads_;
    this->run(ctx, &params, &scratch, fanin_sparse_forward_workspace(&params),
              fanin_sparse_forward);
  }
};

template <fanin_device device>
class SparseReluUpdate : public TrainingKernel<device> {
 public:
  using TrainingKernel<device>::TrainingKernel;

  void Compute(OpKernelContext *ctx) override {
    Tensor scratch;
    Variables<device> variables;
    OP_REQUIRES_OK(ctx, variables.open(ctx, {"weights", "weights_m", "weights_v", "bias", "bias_m",
                                             "bias_v"}));
    fanin_sparse_update_params params{};
    params.grad_outputs = this->named(ctx, "grad_outputs");
    params.outputs = this->named(ctx, "outputs");
    params.words = this->named(ctx, "words");
    params.word_starts = this->named(ctx, "word_starts");
    params.instances = this->named(ctx, "instances");
    params.values = this->named(ctx, "values");
    params.weights = variables.trained("weights");
    params.bias = variables.trained("bias");
    params.optimizer = this->optimizer(ctx);
    params.resources.threads = this->threads_;
    if (!ctx->status().ok()) return;
    this->run(ctx, &params, &scratch, fanin_sparse_update_workspace(&params), fanin_sparse_update);
  }
};

REGISTER_KERNEL_BUILDER(Name("Fanin>SparseRelu").Device(DEVICE_CPU), SparseRelu<FANIN_CPU>);
REGISTER_KERNEL_BUILDER(Name("Fanin>SparseRelu").Device(DEVICE_GPU), SparseRelu<FANIN_CUDA>);
// On a GPU the host reads scalars and the handles of variables.
REGISTER_KERNEL_BUILDER(Name("Fanin>SparseReluUpdate").Device(DEVICE_CPU),
                        SparseReluUpdate<FANIN_CPU>);
REGISTER_KERNEL_BUILDER(Name("Fanin>SparseReluUpdate")
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
                        SparseReluUpdate<FANIN_CUDA>);

}  // namespace
