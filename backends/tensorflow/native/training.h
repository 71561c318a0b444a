// What the ops of training and prediction share: variables that are updated in place, inputs by
// name.
#pragma once

#include <algorithm>
#include <cstring>
#include <future>
#include <iterator>
#include <string>
#include <vector>

#include "kernel.h"
#include "tensorflow/core/framework/resource_mgr.h"
#include "tensorflow/core/framework/resource_var.h"

namespace {

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
        names_.push_back(name);
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

  // The only variable of a name, or none where the list is empty.
  fanin_tensor describe(const std::string &name) const {
    for (size_t i = 0; i < names_.size(); ++i)
      if (names_[i] == name) return ::describe(*variables_[i]->tensor(), device);
    return absent();
  }
  // An array of this name with its moments.
  fanin_trained trained(const std::string &name) const {
    return {describe(name), describe(name + "_m"), describe(name + "_v")};
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
  std::vector<std::string> names_;  // of the inputs that they are
};

// Inputs by name, connections and outputs.
template <fanin_device device>
class FusedKernel : public FaninKernel<device> {
 public:
  explicit FusedKernel(OpKernelConstruction *ctx) : FaninKernel<device>(ctx) {
    // Of ops that have connections.
    if (ctx->HasAttr("group_size")) OP_REQUIRES_OK(ctx, ctx->GetAttr("group_size", &group_size_));
  }

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
  // int32 that TensorFlow has as uint32, the same bits for what they can be: it keeps int32
  // variables in the host's memory, from where they would be copied to a GPU at every step.
  static fanin_tensor signed_input(OpKernelContext *ctx, const char *name) {
    fanin_tensor given = named(ctx, name);
    if (given.rank >= 0) given.dtype = FANIN_INT32;
    return given;
  }
  fanin_connections connections(OpKernelContext *ctx) const {
    return {named(ctx, "indices"), signed_input(ctx, "starts"), named(ctx, "tile_labels"),
            group_size_};
  }
  static Tensor *output(OpKernelContext *ctx, int at, const TensorShape &shape) {
    Tensor *tensor = nullptr;
    const absl::Status status = ctx->allocate_output(at, shape, &tensor);
    if (!status.ok()) ctx->CtxFailure(status);
    return tensor;
  }

 private:
  int64_t group_size_ = 0;
};

template <fanin_device device>
class TrainingKernel : public FusedKernel<device> {
 public:
  explicit TrainingKernel(OpKernelConstruction *ctx) : FusedKernel<device>(ctx) {
    OP_REQUIRES_OK(ctx, ctx->GetAttr("seed", &seed_));
    // The first layer of a model hands on no gradient.
    if (ctx->HasAttr("want_grad")) OP_REQUIRES_OK(ctx, ctx->GetAttr("want_grad", &want_grad_));
  }

 protected:
  fanin_optimizer optimizer(OpKernelContext *ctx) const {
    fanin_optimizer optimizer{};
    optimizer.learning_rate = this->template scalar<double>(ctx, "learning_rate");
    double kind = 0;
    optimizer.step = this->template scalar<int64_t>(ctx, "step");
    optimizer.seed = uint64_t(seed_);
    // In the order of `Optimizer.numbers` (fanin.backends.optimizer).
    double *const fields[] = {&kind,
                              &optimizer.beta1,
                              &optimizer.beta2,
                              &optimizer.epsilon,
                              &optimizer.momentum,
                              &optimizer.weight_decay,
                              &optimizer.l2};
    constexpr int64_t count = std::size(fields);
    int start = 0, stop = 0;
    const absl::Status status = ctx->op_kernel().InputRange("optimizer", &start, &stop);
    if (!status.ok() || ctx->input(start).NumElements() != count) {
      ctx->CtxFailure(
          absl::InvalidArgumentError("optimizer must have " + std::to_string(count) + " numbers"));
      return optimizer;
    }
    for (int64_t i = 0; i < count; ++i) *fields[i] = ctx->input(start).flat<double>()(i);
    optimizer.kind = int32_t(kind);
    return optimizer;
  }

  int64_t seed_;
  bool want_grad_ = false;
};

}  // namespace
