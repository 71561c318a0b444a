// The TensorFlow ops of a fixed fan-in linear layer and of its fused training: thin calls into fanin's C interface (fanin.h),
// which checks the arguments, words the errors and does the work on a CPU or a GPU.
//
// build.py compiles this file against the installed TensorFlow. The fanin_* symbols are not
// linked; libfanin is in the process already. No CUDA headers are needed for the GPU kernels.
#include <algorithm>
#include <cstring>
#include <future>
#include <string>
#include <vector>

#include "fanin.h"
#include "tensorflow/core/framework/device.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/resource_var.h"
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

// The fused execution. Resources are variables that the op updates in place; `bias` is a list of
// nothing or of bias, m and v. A gradient that is not wanted is an empty vector. `starts` are
// fanin.h's int32 as uint32, the same bits for what they can be: TensorFlow keeps int32 variables
// in the host's memory, from where they would be copied to a GPU at every step.
REGISTER_OP("Fanin>FusedStep")
    .Input("features: float")
    .Input("indices: num_indices * Tindices")
    .Input("starts: num_starts * uint32")
    .Input("tile_labels: num_tile_labels * uint16")
    .Input("weights: resource")
    .Input("weights_m: resource")
    .Input("weights_v: resource")
    .Input("bias: num_bias * resource")
    .Input("positive_instances: int32")
    .Input("positive_labels: int64")
    .Input("learning_rate: double")
    .Input("beta1: double")
    .Input("beta2: double")
    .Input("epsilon: double")
    .Input("step: int64")
    .Output("loss: float")
    .Output("grad_features: float")
    .Attr("Tindices: {uint16, uint32} = DT_UINT16")
    .Attr("num_indices: int >= 0")
    .Attr("num_starts: int >= 0")
    .Attr("num_tile_labels: int >= 0")
    .Attr("num_bias: int >= 0")
    .Attr("loss_kind: int")
    .Attr("seed: int = 0")
    .Attr("want_grad: bool")
    .Attr("threads: int = 0")
    .SetIsStateful()
    .SetShapeFn([](InferenceContext *c) -> absl::Status {
      bool want_grad;
      TF_RETURN_IF_ERROR(c->GetAttr("want_grad", &want_grad));
      c->set_output(0, c->Scalar());
      c->set_output(1, want_grad ? c->input(0) : c->Vector(0));
      return absl::OkStatus();
    });

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
    .Input("weights_m: resource")
    .Input("weights_v: resource")
    .Input("bias: num_bias * resource")
    .Input("learning_rate: double")
    .Input("beta1: double")
    .Input("beta2: double")
    .Input("epsilon: double")
    .Input("step: int64")
    .Output("grad_features: float")
    .Attr("num_bias: int >= 0")
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

REGISTER_OP("Fanin>TopK")
    .Input("features: float")
    .Input("indices: num_indices * Tindices")
    .Input("starts: num_starts * uint32")
    .Input("tile_labels: num_tile_labels * uint16")
    .Input("weights: Tweights")
    .Input("bias: num_bias * float")
    .Input("k: int64")
    .Output("scores: float")
    .Output("ids: int64")
    .Attr("Tindices: {uint16, uint32} = DT_UINT16")
    .Attr("Tweights: {float, bfloat16}")
    .Attr("num_indices: int >= 0")
    .Attr("num_starts: int >= 0")
    .Attr("num_tile_labels: int >= 0")
    .Attr("num_bias: int >= 0")
    .Attr("threads: int = 0")
    .SetShapeFn([](InferenceContext *c) -> absl::Status {
      tensorflow::shape_inference::DimensionHandle k;
      TF_RETURN_IF_ERROR(c->MakeDimForScalarInput(c->num_inputs() - 1, &k));
      for (int i = 0; i < 2; ++i) c->set_output(i, c->Matrix(c->Dim(c->input(0), 0), k));
      return absl::OkStatus();
    });

REGISTER_OP("Fanin>Rewire")
    .Input("indices: resource")
    .Input("weights: resource")
    .Input("weights_m: resource")
    .Input("weights_v: resource")
    .Input("inputs: int64")
    .Input("fraction: double")
    .Input("seed: int64")
    .Output("moved: int64")
    .Attr("threads: int = 0")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::ScalarShape);

REGISTER_OP("Fanin>SortConnections")
    .Input("indices: resource")
    .Input("tile_labels: resource")
    .Input("slots: resource")
    .Input("weights: resource")
    .Input("weights_m: resource")
    .Input("weights_v: resource")
    .Input("inputs: int64")
    .Attr("undo: bool")
    .Attr("threads: int = 0")
    .SetIsStateful()
    .SetShapeFn(tensorflow::shape_inference::NoOutputs);

// Kernels ------------------------------------------------------------------------------------

int32_t dtype_of(const Tensor &tensor) {
  switch (tensor.dtype()) {
    case tensorflow::DT_FLOAT: return FANIN_FLOAT32;
    case tensorflow::DT_DOUBLE: return FANIN_FLOAT64;
    case tensorflow::DT_UINT16: return FANIN_UINT16;
    case tensorflow::DT_UINT32: return FANIN_UINT32;
    case tensorflow::DT_UINT8: return FANIN_UINT8;
    case tensorflow::DT_INT32: return FANIN_INT32;
    case tensorflow::DT_INT64: return FANIN_INT64;
    case tensorflow::DT_BFLOAT16: return FANIN_BFLOAT16;
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
      params->resources.workspace = scratch->data();
      params->resources.workspace_bytes = scratch_bytes;
    }
    if (device == FANIN_CUDA)
      params->resources.stream = ctx->op_device_context()->stream()->platform_specific_handle().stream;
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
    params.resources.threads = this->threads_;
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
    params.resources.threads = this->threads_;
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

// Variables that an op updates in place: locked, and their memory nobody else's, while this lives.
template <fanin_device device>
class Variables {
 public:
  ~Variables() {
    for (tensorflow::mutex *mutex : locked_) mutex->unlock();
  }

  // The resource inputs of these names, one after the other.
  absl::Status open(OpKernelContext *ctx, std::initializer_list<const char *> names) {
    for (const char *name : names) {
      int start, stop;
      TF_RETURN_IF_ERROR(ctx->op_kernel().InputRange(name, &start, &stop));
      for (int i = start; i < stop; ++i) {
        tensorflow::core::RefCountPtr<tensorflow::Var> variable;
        TF_RETURN_IF_ERROR(
            tensorflow::LookupResource(ctx, tensorflow::HandleFromInput(ctx, i), &variable));
        variables_.push_back(std::move(variable));
      }
    }
    // In one order everywhere, so that two ops cannot wait for each other.
    for (const auto &variable : variables_) locked_.push_back(variable->mu());
    std::sort(locked_.begin(), locked_.end());
    locked_.erase(std::unique(locked_.begin(), locked_.end()), locked_.end());
    for (tensorflow::mutex *mutex : locked_) mutex->lock();
    for (const auto &variable : variables_) {
      Tensor *const tensor = variable->tensor();
      if (tensor->RefCountIsOne()) continue;
      // Somebody still holds the value that was read before: it has to stay what it was.
      Tensor copy;
      TF_RETURN_IF_ERROR(ctx->allocate_temp(tensor->dtype(), tensor->shape(), &copy));
      TF_RETURN_IF_ERROR(copy_values(ctx, *tensor, &copy));
      *tensor = copy;
    }
    return absl::OkStatus();
  }

  fanin_tensor describe_next() {
    if (next_ == variables_.size()) return absent();
    return describe(*variables_[next_++]->tensor(), device);
  }
  fanin_trained trained_next() {
    fanin_trained trained;
    trained.values = describe_next();
    trained.m = describe_next();
    trained.v = describe_next();
    return trained;
  }

 private:
  static absl::Status copy_values(OpKernelContext *ctx, const Tensor &from, Tensor *to) {
    if (device == FANIN_CPU) {
      std::memcpy(to->data(), from.data(), from.TotalBytes());
      return absl::OkStatus();
    }
    // Queued on the op's stream, as TensorFlow's own ReadVariableOp copies; only that it has been
    // queued is waited for.
    std::promise<absl::Status> queued;
    ctx->op_device_context()->CopyTensorInSameDevice(
        &from, static_cast<tensorflow::Device *>(ctx->device()), to,
        [&queued](const absl::Status &status) { queued.set_value(status); });
    return queued.get_future().get();
  }

  std::vector<tensorflow::core::RefCountPtr<tensorflow::Var>> variables_;
  std::vector<tensorflow::mutex *> locked_;
  size_t next_ = 0;
};

// What the ops of the fused execution share.
template <fanin_device device>
class FusedKernel : public FaninKernel<device> {
 public:
  using FaninKernel<device>::FaninKernel;

 protected:
  // The only input of a name, or none where the list is empty.
  static fanin_tensor named(OpKernelContext *ctx, const char *name) {
    int start = 0, stop = 0;
    if (!ctx->op_kernel().InputRange(name, &start, &stop).ok() || start == stop) return absent();
    return FusedKernel::input(ctx, start);
  }
  // Of an input in the host's memory, on a GPU too.
  template <class T>
  static T scalar(OpKernelContext *ctx, const char *name) {
    int start = 0, stop = 0;
    const absl::Status status = ctx->op_kernel().InputRange(name, &start, &stop);
    if (!status.ok() || ctx->input(start).NumElements() != 1) {
      ctx->CtxFailure(absl::InvalidArgumentError(std::string(name) + " must be a scalar"));
      return T();
    }
    return ctx->input(start).flat<T>()(0);
  }
  static fanin_connections connections(OpKernelContext *ctx) {
    fanin_tensor starts = named(ctx, "starts");
    if (starts.rank >= 0) starts.dtype = FANIN_INT32;
    return {named(ctx, "indices"), starts, named(ctx, "tile_labels")};
  }
  static Tensor *output(OpKernelContext *ctx, int at, const TensorShape &shape) {
    Tensor *tensor = nullptr;
    const absl::Status status = ctx->allocate_output(at, shape, &tensor);
    if (!status.ok()) ctx->CtxFailure(status);
    return tensor;
  }
};

template <fanin_device device>
class TrainingKernel : public FusedKernel<device> {
 public:
  explicit TrainingKernel(OpKernelConstruction *ctx) : FusedKernel<device>(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("seed", &seed_));
    OP_REQUIRES_OK(ctx, ctx->GetAttr("want_grad", &want_grad_));
  }

 protected:
  fanin_adam adam(OpKernelContext *ctx) const {
    const auto number = this->template scalar<double>;
    return {number(ctx, "learning_rate"), number(ctx, "beta1"), number(ctx, "beta2"),
            number(ctx, "epsilon"), this->template scalar<int64_t>(ctx, "step"), uint64_t(seed_)};
  }

  int64_t seed_;
  bool want_grad_;
};

template <fanin_device device>
class FusedStep : public TrainingKernel<device> {
 public:
  explicit FusedStep(OpKernelConstruction *ctx) : TrainingKernel<device>(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("loss_kind", &loss_kind_));
  }

  void Compute(OpKernelContext *ctx) override {
    Tensor scratch;
    Variables<device> variables;
    OP_REQUIRES_OK(ctx, variables.open(ctx, {"weights", "weights_m", "weights_v", "bias"}));
    Tensor *const loss = this->output(ctx, 0, TensorShape({}));
    Tensor *const grad = this->output(
        ctx, 1, this->want_grad_ ? ctx->input(0).shape() : TensorShape({0}));
    if (!ctx->status().ok()) return;
    fanin_step_params params{};
    params.features = this->named(ctx, "features");
    params.connections = this->connections(ctx);
    params.weights = variables.trained_next();
    params.bias = variables.trained_next();
    params.positive_instances = this->named(ctx, "positive_instances");
    params.positive_labels = this->named(ctx, "positive_labels");
    params.loss = describe(*loss, device);
    params.loss.rank = 1;
    params.loss.shape[0] = params.loss.strides[0] = 1;
    params.grad_features = this->want_grad_ ? describe(*grad, device) : absent();
    params.adam = this->adam(ctx);
    params.loss_kind = loss_kind_;
    params.resources.threads = this->threads_;
    if (!ctx->status().ok()) return;
    this->run(ctx, &params, &scratch, fanin_step_workspace(&params), fanin_step);
  }

 private:
  int loss_kind_;
};

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
    OP_REQUIRES_OK(ctx, variables.open(ctx, {"weights", "weights_m", "weights_v", "bias"}));
    Tensor *const grad = this->output(
        ctx, 0, this->want_grad_ ? ctx->input(2).shape() : TensorShape({0}));
    if (!grad) return;
    fanin_dense_update_params params{};
    params.grad_outputs = this->named(ctx, "grad_outputs");
    params.outputs = this->named(ctx, "outputs");
    params.features = this->named(ctx, "features");
    params.weights = variables.trained_next();
    params.bias = variables.trained_next();
    params.grad_features = this->want_grad_ ? describe(*grad, device) : absent();
    params.adam = this->adam(ctx);
    params.resources.threads = this->threads_;
    if (!ctx->status().ok()) return;
    this->run(ctx, &params, &scratch, fanin_dense_update_workspace(&params), fanin_dense_update);
  }
};

template <fanin_device device>
class TopK : public FusedKernel<device> {
 public:
  using FusedKernel<device>::FusedKernel;

  void Compute(OpKernelContext *ctx) override {
    const Tensor &features = ctx->input(0);
    const int64_t k = this->template scalar<int64_t>(ctx, "k");
    if (!ctx->status().ok()) return;
    OP_REQUIRES(ctx, features.dims() == 2,
                absl::InvalidArgumentError("features must be a matrix"));
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
    params.ids = describe(*ids, device);
    params.scores = describe(*scores, device);
    params.resources.threads = this->threads_;
    this->run(ctx, &params, &scratch, fanin_top_k_workspace(&params), fanin_top_k);
  }
};

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
    params.indices = variables.describe_next();
    params.weights = variables.trained_next();
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
    OP_REQUIRES_OK(ctx, variables.open(ctx, {"indices", "tile_labels", "slots", "weights", "weights_m",
                                             "weights_v"}));
    fanin_sort_params params{};
    params.indices = variables.describe_next();
    params.tile_labels = variables.describe_next();
    params.slots = variables.describe_next();
    params.weights = variables.trained_next();
    params.inputs = scalar<int64_t>(ctx, "inputs");
    params.undo = undo_;
    params.resources.threads = threads_;
    if (!ctx->status().ok()) return;
    run(ctx, &params, &scratch, fanin_sort_workspace(&params), fanin_sort);
  }

 private:
  bool undo_;
};

using tensorflow::DEVICE_CPU;
using tensorflow::DEVICE_GPU;
REGISTER_KERNEL_BUILDER(Name("Fanin>FanInLinear").Device(DEVICE_CPU), FanInLinear<FANIN_CPU>);
REGISTER_KERNEL_BUILDER(Name("Fanin>FanInLinear").Device(DEVICE_GPU), FanInLinear<FANIN_CUDA>);
REGISTER_KERNEL_BUILDER(Name("Fanin>FanInLinearGrad").Device(DEVICE_CPU),
                        FanInLinearGrad<FANIN_CPU>);
REGISTER_KERNEL_BUILDER(Name("Fanin>FanInLinearGrad").Device(DEVICE_GPU),
                        FanInLinearGrad<FANIN_CUDA>);

REGISTER_KERNEL_BUILDER(Name("Fanin>FusedStep").Device(DEVICE_CPU), FusedStep<FANIN_CPU>);
REGISTER_KERNEL_BUILDER(Name("Fanin>DenseRelu").Device(DEVICE_CPU), DenseRelu<FANIN_CPU>);
REGISTER_KERNEL_BUILDER(Name("Fanin>DenseReluUpdate").Device(DEVICE_CPU),
                        DenseReluUpdate<FANIN_CPU>);
REGISTER_KERNEL_BUILDER(Name("Fanin>TopK").Device(DEVICE_CPU), TopK<FANIN_CPU>);
REGISTER_KERNEL_BUILDER(Name("Fanin>Rewire").Device(DEVICE_CPU), Rewire<FANIN_CPU>);
REGISTER_KERNEL_BUILDER(Name("Fanin>SortConnections").Device(DEVICE_CPU), SortConnections);

// On a GPU the host reads scalars and variables' handles, and fanin_rewire returns what it counted
// to the host; everything else lies on the device.
REGISTER_KERNEL_BUILDER(Name("Fanin>FusedStep")
                            .Device(DEVICE_GPU)
                            .HostMemory("weights")
                            .HostMemory("weights_m")
                            .HostMemory("weights_v")
                            .HostMemory("bias")
                            .HostMemory("learning_rate")
                            .HostMemory("beta1")
                            .HostMemory("beta2")
                            .HostMemory("epsilon")
                            .HostMemory("step"),
                        FusedStep<FANIN_CUDA>);
REGISTER_KERNEL_BUILDER(Name("Fanin>DenseRelu").Device(DEVICE_GPU), DenseRelu<FANIN_CUDA>);
REGISTER_KERNEL_BUILDER(Name("Fanin>DenseReluUpdate")
                            .Device(DEVICE_GPU)
                            .HostMemory("weights")
                            .HostMemory("weights_m")
                            .HostMemory("weights_v")
                            .HostMemory("bias")
                            .HostMemory("learning_rate")
                            .HostMemory("beta1")
                            .HostMemory("beta2")
                            .HostMemory("epsilon")
                            .HostMemory("step"),
                        DenseReluUpdate<FANIN_CUDA>);
REGISTER_KERNEL_BUILDER(Name("Fanin>TopK").Device(DEVICE_GPU).HostMemory("k"), TopK<FANIN_CUDA>);
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

}  // namespace
