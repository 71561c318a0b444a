/* The C interface of fanin's kernels: fixed fan-in linear layers on a CPU or a GPU.
 *
 * Rules of this boundary. Parameters are plain structs; tensors are described, never owned. Every
 * call returns a status and, when it is not FANIN_OK, writes one sentence for a person into
 * `message`; nothing is thrown and no bad argument is dereferenced. Scratch memory comes from the
 * caller (ask fanin_*_workspace). On a GPU all work is queued on `stream` and nothing waits.
 *
 * The layer: scores[b, l] = bias[l] + sum_k weights[l, k] * features[b, indices[l, k]].
 */
#ifndef FANIN_H
#define FANIN_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Raised whenever a struct or a meaning below changes; both loaders compare it. */
#define FANIN_ABI_VERSION 1

typedef enum {
  FANIN_OK = 0,
  FANIN_INVALID = 1,     /* an argument is wrong; the message names it */
  FANIN_UNAVAILABLE = 2, /* not built in, or the machine lacks what was asked for */
  FANIN_DEVICE_ERROR = 3 /* the GPU runtime reported an error */
} fanin_status;

/* Data types that callers may hand over. Most are only here so that a message can name them. */
typedef enum {
  FANIN_OTHER = 0,
  FANIN_FLOAT32,
  FANIN_FLOAT64,
  FANIN_UINT16,
  FANIN_UINT32,
  FANIN_FLOAT16,
  FANIN_BFLOAT16,
  FANIN_UINT8,
  FANIN_UINT64,
  FANIN_INT8,
  FANIN_INT16,
  FANIN_INT32,
  FANIN_INT64,
  FANIN_BOOL
} fanin_dtype;

typedef enum { FANIN_DEVICE_OTHER = 0, FANIN_CPU = 1, FANIN_CUDA = 2 } fanin_device;

#define FANIN_MAX_RANK 4

/* A tensor as a framework holds it. Strides count elements. A tensor that is absent has rank -1;
 * a size that is not known yet (while tracing) is -1, and then only fanin_linear_check may be
 * called. */
typedef struct {
  void *data;
  int32_t dtype;  /* fanin_dtype */
  int32_t device; /* fanin_device */
  int32_t rank;
  int32_t device_index;
  int64_t shape[FANIN_MAX_RANK];
  int64_t strides[FANIN_MAX_RANK];
} fanin_tensor;

typedef struct {
  fanin_tensor features; /* [batch, inputs] float32 or float64 */
  fanin_tensor indices;  /* [labels, fan_in] uint16 or uint32, each below inputs */
  fanin_tensor weights;  /* [labels, fan_in] like features */
  fanin_tensor bias;     /* [labels] like features, or absent */
  fanin_tensor scores;   /* [batch, labels] like features; written whole */
  void *workspace;
  uint64_t workspace_bytes;
  void *stream;    /* cudaStream_t; unused on a CPU */
  int32_t threads; /* CPU threads; 0 for all that OpenMP offers */
} fanin_linear_forward_params;

typedef struct {
  fanin_tensor grad_scores;   /* [batch, labels] float32 or float64 */
  fanin_tensor features;      /* as in the forward pass, like the next two */
  fanin_tensor indices;
  fanin_tensor weights;
  fanin_tensor grad_features; /* [batch, inputs], or absent; written whole */
  fanin_tensor grad_weights;  /* [labels, fan_in], or absent; written whole */
  fanin_tensor grad_bias;     /* [labels], or absent; written whole */
  void *workspace;
  uint64_t workspace_bytes;
  void *stream;
  int32_t threads;
} fanin_linear_backward_params;

#if defined(__GNUC__)
#define FANIN_API __attribute__((visibility("default")))
#else
#define FANIN_API
#endif

/* Version of this interface, and of the library ("0.1.0"). */
FANIN_API int32_t fanin_abi_version(void);
FANIN_API const char *fanin_version(void);

/* What was built and what is used here, as one line of JSON:
 * {"cuda": [..architectures], "openmp": true, "instruction_sets": [..usable here, best first],
 *  "instruction_set": ".."}. */
FANIN_API const char *fanin_build_info(void);

/* Choose the CPU code: "avx512", "avx2", "baseline", or "auto" for the best this machine runs. */
FANIN_API int32_t fanin_set_instruction_set(const char *name, char *message, size_t message_bytes);

/* Check everything about the arguments that shapes and types tell; reads no data. */
FANIN_API int32_t fanin_linear_forward_check(const fanin_linear_forward_params *params,
                                             char *message, size_t message_bytes);

/* Scratch memory in bytes that the call needs; 0 where the arguments are wrong. */
FANIN_API uint64_t fanin_linear_forward_workspace(const fanin_linear_forward_params *params);
FANIN_API uint64_t fanin_linear_backward_workspace(const fanin_linear_backward_params *params);

/* On a CPU an index out of range or a feature that is not finite is FANIN_INVALID, and the outputs
 * are then unspecified. On a GPU, where nothing may wait, the scores of labels beside a bad index
 * are NaN and features propagate as IEEE 754 has it. */
FANIN_API int32_t fanin_linear_forward(const fanin_linear_forward_params *params, char *message,
                                       size_t message_bytes);
FANIN_API int32_t fanin_linear_backward(const fanin_linear_backward_params *params, char *message,
                                        size_t message_bytes);

#ifdef __cplusplus
}
#endif
#endif
