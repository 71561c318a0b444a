// The TensorFlow ops of a fixed fan-in linear layer: thin calls into fanin's C interface (fanin.h),
// which checks the arguments, words the errors and does the work on a CPU or a GPU.
//
// compile_ops.py compiles this file against the installed TensorFlow. The fanin_* symbols are not
// linked; libfanin is in the process already. No CUDA headers are needed for the GPU kernels.
#include "fanin.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "xla/stream_executor/stream.h"

namespace {

using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

// Shapes -------------------------------------------------------------------------------------

struct LayerShapes {
  ShapeHandle features, connections, labels;
};

absl::Status layer_shapes(InferenceContext *c, int features_at, LayerShapes *shapes) {
  ShapeHandle indices, weights;
  TF_RETURN_IF_ERROR(c->WithRank(c->input(features_at), 2, &shapes->features));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(features_at + 1), 2, &indices));
  TF_RETURN_IF_ERROR(c->WithRank(c->input(features_at + 2), 2, &weights));
  TF_RETURN_IF_ERROR(c->Merge(indices, weights, &shapes->connections));
  shapes->labels = c->Vector(c->Dim(shapes->connections, 0));
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
      c->set_output(1, weights ? shapes.connections : nothing);
      c->set_output(2, bias ? shapes.labels : nothing);
      return absl::OkStatus();
    });

// Kernels ------------------------------------------------------------------------------------

int32_t dtype_of(const Tensor &tensor) {
  switch (tensor.dtype()) {
    case tensorflow::DT_FLOAT: return FANIN_FLOAT32;
    case tensorflow::DT_DOUBLE: return FANIN_FLOAT64;
    case tensorflow::DT_UINT16: return FANIN_UINT16;
    case tensorflow::DT_UINT32: return FANIN_UINT32;
    default: return FANIN_OTHER;  // the ops' type attributes let nothing else through
  }
}

fanin_tensor absent() {
  fanin_tensor described{};
  described.rank = -1;
  return described;
}

fanin_tensor describe(const Tensor &tensor, fanin_device device) {
  fanin_tensor described{};
  described.data = tensor.data();
  described.dtype = dtype_of(tensor);
  described.device = device;
  described.rank = tensor.dims();
  int64_t stride = 1;
  for (int d = tensor.dims() - 1; d >= 0; --d) {
    if (d < FANIN_MAX_RANK) {
      described.shape[d] = tensor.dim_size(d);
      described.strides[d] = stride;
    }
    stride *= tensor.dim_size(d);
  }
  return described;
}

// What the op kernels share: the attribute `threads`, scratch memory, the stream and errors.
template <fanin_device device>
class FaninKernel : public OpKernel {
 public:
  explicit FaninKernel(OpKernelConstruction *ctx) : OpKernel(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("threads", &threads_));
  }

 protected:
  static fanin_tensor input(OpKernelContext *ctx, int at) { return describe(ctx->input(at), device); }

  // True when the library's call succeeded; else the kernel fails with the library's own words.
  static bool succeeded(OpKernelContext *ctx, int32_t status, const char *message) {
    switch (status) {
      case FANIN_OK: return true;
      case FANIN_INVALID: ctx->CtxFailure(absl::InvalidArgumentError(message)); break;
      case FANIN_UNAVAILABLE: ctx->CtxFailure(absl::UnimplementedError(message)); break;
      default: ctx->CtxFailure(absl::InternalError(message));
    }
    return false;
  }

  // `scratch` has to outlive the call. (On a GPU it may go back before the queued work ran:
  // TensorFlow's allocator hands it on only to work queued later on the same stream.)
  template <class Params>
  void run(OpKernelContext *ctx, Params *params, Tensor *scratch, uint64_t scratch_bytes,
           int32_t (*call)(const Params *, char *, size_t)) const {
    if (scratch_bytes) {
      OP_REQUIRES_OK(ctx, ctx->allocate_temp(tensorflow::DT_UINT8,
                                             TensorShape({int64_t(scratch_bytes)}), scratch));
      params->workspace = scratch->data();
      params->workspace_bytes = scratch_bytes;
    }
    if (device == FANIN_CUDA)
      params->stream = ctx->op_device_context()->stream()->platform_specific_handle().stream;
    char message[512];
    const int32_t status = call(params, message, sizeof message);
    succeeded(ctx, status, message);
  }

  int32_t threads_;
};

template <fanin_device device>
class FanInLinear : public FaninKernel<device> {
 public:
  using FaninKernel<device>::FaninKernel;

  void Compute(OpKernelContext *ctx) override {
    fanin_linear_forward_params params{};
    params.features = this->input(ctx, 0);
    params.indices = this->input(ctx, 1);
    params.weights = this->input(ctx, 2);
    params.bias = ctx->num_inputs() > 3 ? this->input(ctx, 3) : absent();
    params.scores = absent();
    params.threads = this->threads_;
    // Checked before the output is allocated, since its shape is read off the inputs.
    char message[512];
    const int32_t status = fanin_linear_forward_check(&params, message, sizeof message);
    if (!this->succeeded(ctx, status, message)) return;

    Tensor *scores = nullptr, scratch;
    const TensorShape shape({ctx->input(0).dim_size(0), ctx->input(1).dim_size(0)});
    OP_REQUIRES_OK(ctx, ctx->allocate_output(0, shape, &scores));
    params.scores = describe(*scores, device);
    this->run(ctx, &params, &scratch, fanin_linear_forward_workspace(&params),
              fanin_linear_forward);
  }
};

template <fanin_device device>
class FanInLinearGrad : public FaninKernel<device> {
 public:
  explicit FanInLinearGrad(OpKernelConstruction *ctx) : FaninKernel<device>(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("want_features", &want_features_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("want_weights", &want_weights_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("want_bias", &want_bias_));
  }

  void Compute(OpKernelContext *ctx) override {
    const Tensor &features = ctx->input(1), &indices = ctx->input(2), &weights = ctx->input(3);
    fanin_linear_backward_params params{};
    params.grad_scores = this->input(ctx, 0);
    params.features = this->input(ctx, 1);
    params.indices = this->input(ctx, 2);
    params.weights = this->input(ctx, 3);
    params.threads = this->threads_;
    const TensorShape labels({indices.dims() ? indices.dim_size(0) : 0});
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

  bool want_features_, want_weights_, want_bias_;
};

using tensorflow::DEVICE_CPU;
using tensorflow::DEVICE_GPU;
REGISTER_KERNEL_BUILDER(Name("Fanin>FanInLinear").Device(DEVICE_CPU), FanInLinear<FANIN_CPU>);
REGISTER_KERNEL_BUILDER(Name("Fanin>FanInLinear").Device(DEVICE_GPU), FanInLinear<FANIN_CUDA>);
REGISTER_KERNEL_BUILDER(Name("Fanin>FanInLinearGrad").Device(DEVICE_CPU),
                        FanInLinearGrad<FANIN_CPU>);
REGISTER_KERNEL_BUILDER(Name("Fanin>FanInLinearGrad").Device(DEVICE_GPU),
                        FanInLinearGrad<FANIN_CUDA>);

}  // namespace
