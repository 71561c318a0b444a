/* The parameters of everything that trains: arrays with their moments, the optimiser, the loss, how
 * labels are connected, and the steps. The rules of the interface stand in fanin.h, which includes
 * this. */
#ifndef FANIN_TRAINING_H
#define FANIN_TRAINING_H

#include "fanin_types.h"

/* An array that is trained, with the moments that the optimiser keeps (see fanin_optimizer); others
 * are absent. All are updated in place. Values are float32 or bfloat16, and so are the moments,
 * which share one type; a bfloat16 is rounded stochastically. A bias is float32 throughout. A layer
 * without bias has all three absent.
 *
 * Values of labels with a fixed fan-in, grouped ones included, may also be in float8: then they
 * are [labels, fan_in + 1] uint8. A label's row has a byte for each weight, in E4M3 (OCP 8-bit
 * floating point specification, 2023: largest number 448, 0x7f is NaN, no infinity), and then one
 * for its scale, 2^(byte - 127). A weight is the product of both. A step rounds a row
 * stochastically, with the smallest scale, but at least 2^-100, in which no |weight| is above 448;
 * what is not finite becomes NaN. */
typedef struct {
  fanin_tensor values;
  fanin_tensor m;
  fanin_tensor v;
} fanin_trained;

typedef enum { FANIN_ADAM = 1, FANIN_SGD = 2, FANIN_MOMENTUM = 3 } fanin_optimizer_kind;

/* One step of an optimiser. With g as gradient,
 *   FANIN_ADAM      keeps m and v, as Keras defines it: m += (1 - beta1) (g - m),
 *                   v += (1 - beta2) (g^2 - v), w -= learning_rate sqrt(1 - beta2^step) /
 *                   (1 - beta1^step) * m / (sqrt(v) + epsilon)
 *   FANIN_SGD       keeps nothing: w -= learning_rate * g
 *   FANIN_MOMENTUM  keeps m alone: m = momentum * m + g, w -= learning_rate * m
 *
 * Two terms hold weights small, but not biases. Both read w as it is before the step. l2 is a part
 * of the gradient, before it reaches any moment: g += l2 * w. weight_decay is decoupled from the
 * gradient, beside the step: w -= learning_rate * weight_decay * w (AdamW; Loshchilov & Hutter,
 * "Decoupled weight decay regularization", ICLR 2019). Of weights that read sparse features, both
 * change only the rows of the words in the batch. */
typedef struct {
  double learning_rate;
  double beta1, beta2, epsilon; /* of Adam */
  double momentum;              /* of FANIN_MOMENTUM: at least 0, below 1 */
  double weight_decay;          /* at least 0 */
  double l2;                    /* at least 0 */
  int64_t step;                 /* counts from 1 */
  uint64_t seed;                /* the seed of stochastic rounding */
  int32_t kind;                 /* fanin_optimizer_kind */
} fanin_optimizer;

typedef enum { FANIN_SQUARED_HINGE = 1, FANIN_BINARY_CROSS_ENTROPY = 2 } fanin_loss;

/* How labels are connected to inputs. There are five kinds:
 *   dense         indices, starts and tile_labels are absent; weights are [labels, inputs]
 *   fixed fan-in  indices are [labels, fan_in] uint16 or uint32; weights are [labels, fan_in]
 *   grouped       indices are [label groups, fan_in]; group_size (2 to 64) labels, one after the
 *                 other, are a group and share a row of them (the last group may be smaller);
 *                 weights are [labels, fan_in].
 *   sorted        a fixed fan-in with tile_labels [labels, fan_in] uint16. The labels are divided
 *                 into tiles of fanin_sorted_labels labels (the last may be smaller). All
 *                 connections of a tile stand together in the order of their source, and
 *                 tile_labels holds the label of each, counted within its tile. This kind is for
 *                 features that do not fit a core's cache.
 *   unstructured  starts are [labels + 1] int32 and ascend; indices are [connections] and weights
 *                 [connections]; those of label l stand at starts[l] to starts[l + 1] - 1 */
typedef struct {
  fanin_tensor indices;
  fanin_tensor starts;
  fanin_tensor tile_labels;
  int64_t group_size; /* 0 for all kinds but grouped */
} fanin_connections;

/* One training step of an output layer: scores, loss (the mean over labels, then over the batch),
 * all gradients and the optimiser. The step never holds all scores, nor all gradients of weights.
 */
typedef struct {
  fanin_tensor features; /* [batch, inputs] float32 */
  fanin_connections connections;
  fanin_trained weights;
  fanin_trained bias;              /* [labels], or absent */
  fanin_tensor positive_instances; /* [positives] int32; each is an instance of the batch */
  fanin_tensor positive_labels;    /* [positives] int64; the label of each positive */
  fanin_tensor loss;               /* [1] float32; written */
  fanin_tensor grad_features;      /* [batch, inputs] float32, or absent; written as a whole */
  fanin_optimizer optimizer;
  int64_t mean_labels;  /* how many labels the loss is a mean over: more than the layer has where it
                           is a part of a larger one; 0: those of the layer */
  int64_t first_weight; /* where the first of the weights stands in a larger layer that this is a
                           part of, counted in weights; else 0. Random numbers of stochastic
                           rounding follow from positions in the larger layer, so its parts are
                           rounded as it would be as a whole */
  int32_t loss_kind;    /* fanin_loss */
  fanin_resources resources;
} fanin_step_params;

/* The backward pass of a dense layer, and the optimiser. */
typedef struct {
  fanin_tensor grad_outputs; /* [batch, units] float32 */
  fanin_tensor outputs;      /* what the forward pass with relu gave; absent without relu */
  fanin_tensor features;
  fanin_trained weights;
  fanin_trained bias;
  fanin_tensor grad_features; /* or absent */
  fanin_optimizer optimizer;
  fanin_resources resources;
} fanin_dense_update_params;

/* The backward pass of a dense layer over sparse features (fanin_sparse_forward_params), with the
 * optimiser on the rows of the words in the batch alone: weights and moments of all other rows stay
 * as they are. The bias is updated as a whole. The features are in the order of their words: those
 * of words[i] are the values from word_starts[i] to word_starts[i + 1] - 1, each with its instance;
 * a word's gradient is the sum over them, in that order, of value * the instance's grad_outputs.
 * The result does not depend on the number of threads.
 *
 * Moments have the shape of the weights. Or Adam keeps one number for each row: then weights.m is
 * absent and weights.v is [inputs] float32, the running mean of the gradient's mean square over the
 * row: v += (1 - beta2) * (mean(gradient^2) - v), w -= learning_rate sqrt(1 - beta2^step) *
 * gradient / (sqrt(v) + epsilon).
 *
 * On a CPU nothing has been updated where anything is wrong. On a GPU a word that is out of range
 * or does not ascend is left out, and one with a start or instance out of range has NaN weights. */
typedef struct {
  fanin_tensor grad_outputs; /* [batch, units] float32 */
  fanin_tensor outputs;      /* what the forward pass with relu gave; absent without relu */
  fanin_tensor words;        /* [words] int32; each below inputs; they ascend strictly */
  fanin_tensor word_starts;  /* [words + 1] int64; ascends from 0 or more to at most `stored` */
  fanin_tensor instances;    /* [stored] int32; each is an instance of the batch */
  fanin_tensor values;       /* [stored] float32 */
  fanin_trained weights;     /* [inputs, units] */
  fanin_trained bias;        /* [units], or absent */
  fanin_optimizer optimizer;
  fanin_resources resources;
} fanin_sparse_update_params;

#endif
