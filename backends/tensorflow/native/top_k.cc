// The best labels of each instance.
#include "training.h"

namespace {

REGISTER_OP("Fanin>TopK")
    .Input("features: float")
    .Input("indices: num_indices * Tindices")
    .Input("starts: num_starts * uint32")
    .Input("tile_labels: num_tile_labels * uint16")
    .Input("weights: Tweights")
    .Input("bias: num_bias * float")
    .Input("label_ids: num_label_ids * uint32")
    .Input("k: int64")
    .Output("scores: float")
    .Output("ids: int64")
    .Attr("Tindices: {uint16, uint32} = DT_UINT16")
    .Attr("Tweights: {float, bfloat16, uint8}")
    .Attr("num_indices: int >= 0")
    .Attr("num_starts: int >= 0")
    .Attr("num_tile_labels: int >= 0")
    .Attr("num_bias: int >= 0")
    .Attr("num_label_ids: int >= 0")
    .Attr("group_size: int = 0")
    .Attr("threads: int = 0")
    .SetShapeFn([](InferenceContext *c) -> absl::Status {
      tensorflow::shape_inference::DimensionHandle k;
      TF_RETURN_IF_ERROR(c->MakeDimForScalarInput(c->num_inputs() - 1, &k));
      for (int i = 0; i < 2; ++i) c->set_output(i, c->Matrix(c->Dim(c->input(0), 0), k));
      return absl::OkStatus();
    });

template <fanin_device device>
class TopK : public FusedKernel<device> {
 public:
  using FusedKernel<device>::FusedKernel;

  void Compute(OpKernelContext *ctx) override {
    const Tensor &features = ctx->input(0);
    const int64_t k = this->template scalar<int64_t>(ctx, "k");
    if (!ctx->status().ok()) return;
    OP_REQUIRES(ctx, features.dims() == 2, absl::InvalidArgumentError("features must be a matrix"));
    fanin_top_k_params params{};
    params.features = this->named(ctx, "features");
    params.connections = this->connections(ctx);
    params.weights = this->named(ctx, "weights");
    // The library checks it, too, but by then there is memory for so many.
    const fanin_tensor &starts = params.connections.starts, &weights = params.weights;
    const int64_t labels = starts.rank == 1   ? starts.shape[0] - 1
                           : weights.rank > 0 ? weights.shape[0]
                                              : 0;
    OP_REQUIRES(ctx, k >= 1 && k <= labels,
                absl::InvalidArgumentError(
                    absl::StrCat("k must be in 1..", labels, " (the labels), got ", k)));
    Tensor scratch;
    const TensorShape shape({features.dim_size(0), k});
    Tensor *const scores = this->output(ctx, 0, shape), *const ids = this->output(ctx, 1, shape);
    if (!ctx->status().ok()) return;
    params.bias = this->named(ctx, "bias");
    params.label_ids = this->signed_input(ctx, "label_ids");
    params.ids = describe(*ids, device);
    params.scores = describe(*scores, device);
    params.resources.threads = this->threads_;
    this->run(ctx, &params, &scratch, fanin_top_k_workspace(&params), fanin_top_k);
  }
};

REGISTER_KERNEL_BUILDER(Name("Fanin>TopK").Device(DEVICE_CPU), TopK<FANIN_CPU>);
REGISTER_KERNEL_BUILDER(Name("Fanin>TopK").Device(DEVICE_GPU).HostMemory("k"), TopK<FANIN_CUDA>);

}  // namespace
