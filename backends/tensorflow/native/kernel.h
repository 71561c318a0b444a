// What the op kernels share: how they describe tensors to fanin's C interface (fanin.h), and how
// they call it. The C interface checks the arguments, words the errors and does the work, on a CPU
// or a GPU.
#pragma once

#include <string>

#include "fanin.h"
#include "tensorflow/core/framework/device.h"
#include "tensorflow/core/framework/op.h"
#include "tensorflow/core/framework/op_kernel.h"
#include "tensorflow/core/framework/shape_inference.h"
#include "xla/stream_executor/stream.h"

namespace {

using tensorflow::DEVICE_CPU;
using tensorflow::DEVICE_GPU;
using tensorflow::OpKernel;
using tensorflow::OpKernelConstruction;
using tensorflow::OpKernelContext;
using tensorflow::Tensor;
using tensorflow::TensorShape;
using tensorflow::shape_inference::DimensionHandle;
using tensorflow::shape_inference::InferenceContext;
using tensorflow::shape_inference::ShapeHandle;

int32_t dtype_of(const Tensor &tensor) {
  switch (tensor.dtype()) {
    case tensorflow::DT_FLOAT:
      return FANIN_FLOAT32;
    case tensorflow::DT_DOUBLE:
      return FANIN_FLOAT64;
    case tensorflow::DT_UINT16:
      return FANIN_UINT16;
    case tensorflow::DT_UINT32:
      return FANIN_UINT32;
    case tensorflow::DT_UINT8:
      return FANIN_UINT8;
    case tensorflow::DT_INT32:
      return FANIN_INT32;
    case tensorflow::DT_INT64:
      return FANIN_INT64;
    case tensorflow::DT_BFLOAT16:
      return FANIN_BFLOAT16;
    default:
      return FANIN_OTHER;  // the ops' type attributes let nothing else through
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
  static fanin_tensor input(OpKernelContext *ctx, int at) {
    return describe(ctx->input(at), device);
  }

  // True when the library's call succeeded; else the kernel fails with the library's own words.
  static bool succeeded(OpKernelContext *ctx, int32_t status, const char *message) {
    switch (status) {
      case FANIN_OK:
        return true;
      case FANIN_INVALID:
        ctx->CtxFailure(absl::InvalidArgumentError(message));
        break;
      case FANIN_UNAVAILABLE:
        ctx->CtxFailure(absl::UnimplementedError(message));
        break;
      default:
        ctx->CtxFailure(absl::InternalError(message));
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
      params->resources.stream =
          ctx->op_device_context()->stream()->platform_specific_handle().stream;
    char message[512];
    const int32_t status = call(params, message, sizeof message);
    succeeded(ctx, status, message);
  }

  int32_t threads_;
};

}  // namespace
