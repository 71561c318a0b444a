/* The C interface of fanin's kernels: fixed fan-in linear layers, and their fused training, on a CPU
 * or a GPU.
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
#define FANIN_ABI_VERSION 3

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
 * a size that is not known yet (while tracing) is -1, and then only fanin_linear_forward_check may
 * be called. */
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
  int32_t threads; /* CPU threads, at most 1024; 0 for all that OpenMP offers. A process forked from
                    * one that has used the library works with one: the others are not there. */
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

/* Training. An array that is trained, with Adam's moments; all three are updated in place. Values
 * and moments are each float32 or bfloat16; a bfloat16 is rounded stochastically. A bias is float32
 * throughout. Without an array all three are absent. */
typedef struct {
  fanin_tensor values;
  fanin_tensor m;
  fanin_tensor v;
} fanin_trained;

/* Adam as Keras has it: w -= learning_rate sqrt(1 - beta2^step) / (1 - beta1^step)
 * * m / (sqrt(v) + epsilon). step counts from 1. seed: of stochastic rounding. */
typedef struct {
  double learning_rate;
  double beta1;
  double beta2;
  double epsilon;
  int64_t step;
  uint64_t seed;
} fanin_adam;

typedef enum { FANIN_SQUARED_HINGE = 1, FANIN_BINARY_CROSS_ENTROPY = 2 } fanin_loss;

/* How labels are connected to inputs:
 *   dense           indices, starts and rows absent; weights are [labels, inputs]
 *   fixed fan-in    indices [labels, fan_in] uint16 or uint32; weights [labels, fan_in]
 *   sorted          fixed fan-in with rows [labels, fan_in] uint16: in each tile of
 *                   fanin_sorted_labels labels (the last may be smaller) all connections
 *                   are together in order of their source, and rows holds the label of each,
 *                   counted within the tile. For features that do not fit a core's cache.
 *   unstructured    starts [labels + 1] int32, ascending; indices [connections], weights
 *                   [connections]; those of label l from starts[l] to starts[l + 1] - 1 */
typedef struct {
  fanin_tensor indices;
  fanin_tensor starts;
  fanin_tensor rows;
} fanin_connections;

/* One training step of an output layer: scores, loss (mean over labels, then over the batch), all
 * gradients and Adam, without ever holding scores or gradients of weights. */
typedef struct {
  fanin_tensor features; /* [batch, inputs] float32 */
  fanin_connections connections;
  fanin_trained weights;
  fanin_trained bias;            /* [labels], or absent */
  fanin_tensor positive_rows;    /* [positives] int32, an instance of the batch each */
  fanin_tensor positive_labels;  /* [positives] int64 */
  fanin_tensor loss;             /* [1] float32; written */
  fanin_tensor grad_features;    /* [batch, inputs] float32, or absent; written whole */
  fanin_adam adam;
  int32_t loss_kind; /* fanin_loss */
  int32_t threads;
  void *workspace;
  uint64_t workspace_bytes;
  void *stream;
} fanin_step_params;

/* outputs[b, u] = bias[u] + sum_i weights[u, i] * features[b, i], 0 where that is negative if relu. */
typedef struct {
  fanin_tensor features; /* [batch, inputs] float32 */
  fanin_tensor weights;  /* [units, inputs] float32 or bfloat16 */
  fanin_tensor bias;     /* [units] float32, or absent */
  fanin_tensor outputs;  /* [batch, units] float32; written whole */
  int32_t relu;
  int32_t threads;
  void *workspace;
  uint64_t workspace_bytes;
  void *stream;
} fanin_dense_forward_params;

/* Backward pass and Adam of that layer. outputs: what its forward pass with relu gave; absent where
 * there was no relu. */
typedef struct {
  fanin_tensor grad_outputs; /* [batch, units] float32 */
  fanin_tensor outputs;
  fanin_tensor features;
  fanin_trained weights;
  fanin_trained bias;
  fanin_tensor grad_features; /* or absent */
  fanin_adam adam;
  int32_t threads;
  void *workspace;
  uint64_t workspace_bytes;
  void *stream;
} fanin_dense_update_params;

/* The k highest scored labels of each instance, best first, equal scores in order of their label;
 * no more than k scores an instance are ever held. A NaN ranks last, after -inf, and comes out as
 * one. */
typedef struct {
  fanin_tensor features; /* [batch, inputs] float32 */
  fanin_connections connections;
  fanin_tensor weights; /* float32 or bfloat16 */
  fanin_tensor bias;    /* [labels] float32, or absent */
  fanin_tensor ids;     /* [batch, k] int64; written whole */
  fanin_tensor scores;  /* [batch, k] float32, or absent */
  int32_t threads;
  void *workspace;
  uint64_t workspace_bytes;
  void *stream;
} fanin_top_k_params;

/* Rewiring: connections whose |weight| is strictly below the threshold get a new source and lose
 * their moments; their weight stays. The threshold is the value at rank (int)(fraction * count) of
 * all |weight|, from the smallest (0 the first). The new source of the connection at flat position
 * p is (z >> 32) * inputs >> 32, where z is SplitMix64's output number p + 1 from the state `seed`
 * (Steele, Lea & Flood, 2014). Not for sorted connections. */
typedef struct {
  fanin_tensor indices; /* uint16 or uint32, like weights; updated */
  fanin_trained weights;
  int64_t inputs;
  double fraction; /* at least 0, below 1 */
  uint64_t seed;
  int32_t threads;
  double threshold; /* written */
  int64_t moved;    /* written: how many connections */
  void *workspace;
  uint64_t workspace_bytes;
  void *stream;
} fanin_rewire_params;

/* Sorts the connections of a fixed fan-in layer, in place, or brings them back into the order of
 * their labels. rows and slots (a connection's place within its label) are written when sorting and
 * read when undoing it; everything else moves along. inputs: those of the features that the layer is
 * then given, since the tiles depend on it. CPU only. */
typedef struct {
  fanin_tensor indices; /* [labels, fan_in] uint16 or uint32 */
  fanin_tensor rows;    /* [labels, fan_in] uint16 */
  fanin_tensor slots;   /* [labels, fan_in] uint8 where fan_in <= 256, else uint32 */
  fanin_trained weights;
  int64_t inputs;
  int32_t undo;
  int32_t threads;
  void *workspace;
  uint64_t workspace_bytes;
  void *stream;
} fanin_sort_params;

#if defined(__GNUC__)
#define FANIN_API __attribute__((visibility("default")))
#else
#define FANIN_API
#endif

/* Version of this interface, and of the library ("0.1.0"). */
FANIN_API int32_t fanin_abi_version(void);
FANIN_API const char *fanin_version(void);

/* What was built and what is used here, as one line of JSON:
 * {"cuda": [..architectures], "openmp": true,
 *  "instruction_sets": [..usable here, best first], "instruction_set": ".."}; the last one is null
 * where FANIN_INSTRUCTION_SET names none of them. */
FANIN_API const char *fanin_build_info(void);

/* Labels in a tile of sorted connections (see fanin_connections) of a layer with so many of both. */
FANIN_API int64_t fanin_sorted_labels(int64_t inputs, int64_t labels);

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

/* As above. Where a step finds an index or a sorted connection's row out of range, part of the labels
 * has been updated; where it finds anything else wrong, nothing has. On a GPU the loss is NaN where
 * connections cannot be followed or a positive names no instance or label (and is left out), labels
 * of such connections rank last in top-k, and only fanin_rewire waits for the stream, for its two
 * results. All others can be captured in a CUDA graph; a replayed step goes on with the step number,
 * rate and seed it was captured with. */
FANIN_API uint64_t fanin_step_workspace(const fanin_step_params *params);
FANIN_API int32_t fanin_step(const fanin_step_params *params, char *message, size_t message_bytes);
FANIN_API uint64_t fanin_dense_forward_workspace(const fanin_dense_forward_params *params);
FANIN_API int32_t fanin_dense_forward(const fanin_dense_forward_params *params, char *message,
                                      size_t message_bytes);
FANIN_API uint64_t fanin_dense_update_workspace(const fanin_dense_update_params *params);
FANIN_API int32_t fanin_dense_update(const fanin_dense_update_params *params, char *message,
                                     size_t message_bytes);
FANIN_API uint64_t fanin_top_k_workspace(const fanin_top_k_params *params);
FANIN_API int32_t fanin_top_k(const fanin_top_k_params *params, char *message,
                              size_t message_bytes);
FANIN_API uint64_t fanin_rewire_workspace(const fanin_rewire_params *params);
FANIN_API int32_t fanin_rewire(fanin_rewire_params *params, char *message, size_t message_bytes);
FANIN_API uint64_t fanin_sort_workspace(const fanin_sort_params *params);
FANIN_API int32_t fanin_sort(const fanin_sort_params *params, char *message, size_t message_bytes);

#ifdef __cplusplus
}
#endif
#endif
