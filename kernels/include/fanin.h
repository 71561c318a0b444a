/* The C interface of fanin's kernels: fixed fan-in linear layers, and their fused training, on a
 * CPU or a GPU.
 *
 * Rules of this boundary. Parameters are plain structs. Tensors are described, never owned; what is
 * written shares memory with no other argument. Every call returns a status; where that is not
 * FANIN_OK, it writes one sentence for a person into `message`, which may be null. Nothing is
 * thrown, and no bad argument is dereferenced. Scratch memory comes from the caller, who asks
 * fanin_*_workspace how much. On a GPU all work is queued on a stream and nothing waits.
 *
 * The layer: scores[b, l] = bias[l] + sum_k weights[l, k] * features[b, indices[l, k]].
 */
#ifndef FANIN_H
#define FANIN_H

#include "fanin_training.h"
#include "fanin_types.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The forward pass of the layer. With a group_size, labels share their sources in groups, as in
 * fanin_connections. */
typedef struct {
  fanin_tensor features; /* [batch, inputs] float32 or float64 */
  fanin_tensor indices;  /* [labels, fan_in] uint16 or uint32, each below inputs; with a group_size
                            [label groups, fan_in] */
  fanin_tensor weights;  /* [labels, fan_in] of the type of features */
  fanin_tensor bias;     /* [labels] of the type of features, or absent */
  fanin_tensor scores;   /* [batch, labels] of the type of features; written as a whole */
  int64_t group_size;    /* labels that share a row of indices: 2 to 64, or 0 */
  fanin_resources resources;
} fanin_linear_forward_params;

/* The backward pass of the layer. */
typedef struct {
  fanin_tensor grad_scores; /* [batch, labels] float32 or float64 */
  fanin_tensor features;    /* features, indices and weights are those of the forward pass */
  fanin_tensor indices;
  fanin_tensor weights;
  fanin_tensor grad_features; /* [batch, inputs], or absent; written as a whole */
  fanin_tensor grad_weights;  /* [labels, fan_in], or absent; written as a whole */
  fanin_tensor grad_bias;     /* [labels], or absent; written as a whole */
  int64_t group_size;         /* that of the forward pass */
  fanin_resources resources;
} fanin_linear_backward_params;

/* A dense layer: outputs[b, u] = bias[u] + sum_i weights[u, i] * features[b, i]. With relu, 0 takes
 * the place of negative outputs. */
typedef struct {
  fanin_tensor features; /* [batch, inputs] float32 */
  fanin_tensor weights;  /* [units, inputs] float32 or bfloat16 */
  fanin_tensor bias;     /* [units] float32, or absent */
  fanin_tensor outputs;  /* [batch, units] float32; written as a whole */
  int32_t relu;
  fanin_resources resources;
} fanin_dense_forward_params;

/* A dense layer over sparse features, which are stored by rows (CSR): those of instance b are the
 * values from starts[b] to starts[b + 1] - 1, each in its column. A column is a word.
 * outputs[b, u] = bias[u] + sum over them of value * weights[column, u]; with relu, 0 takes the
 * place of negative outputs. Weights are [inputs, units], so that a word's weights, its row, stand
 * side by side. Columns need not ascend; one that stands twice counts twice. On a CPU a column out
 * of range or a value that is not finite is FANIN_INVALID. On a GPU an instance has NaN as outputs
 * where one of its starts or columns is out of range. */
typedef struct {
  fanin_tensor values;  /* [stored] float32 */
  fanin_tensor starts;  /* [batch + 1] int64; ascends from 0 or more to at most `stored` */
  fanin_tensor columns; /* [stored] int32; each below inputs */
  fanin_tensor weights; /* [inputs, units] float32 or bfloat16 */
  fanin_tensor bias;    /* [units] float32, or absent */
  fanin_tensor outputs; /* [batch, units] float32; written as a whole */
  int32_t relu;
  fanin_resources resources;
} fanin_sparse_forward_params;

/* The k highest scored labels of each instance, best first. Equal scores stand in the order of
 * their labels' ids. A NaN ranks last, after -inf, and comes out as a NaN. The call never holds
 * more than k scores of an instance per thread. The id of the label at position p is label_ids[p],
 * or p where they are absent. On a CPU an id out of range is FANIN_INVALID, and the outputs are
 * then unspecified; a GPU writes it as it is. Whether one stands twice is not checked. */
typedef struct {
  fanin_tensor features; /* [batch, inputs] float32 */
  fanin_connections connections;
  fanin_tensor weights;   /* float32 or bfloat16, or float8 as in fanin_trained */
  fanin_tensor bias;      /* [labels] float32, or absent */
  fanin_tensor label_ids; /* [labels] int32, each in 0 to labels - 1, or absent */
  fanin_tensor ids;       /* [batch, k] int64; written as a whole */
  fanin_tensor scores;    /* [batch, k] float32, or absent */
  fanin_resources resources;
} fanin_top_k_params;

/* Labels that are connected to words of sparse features (CSR, see fanin_sparse_forward_params). A
 * score is the label's bias + the sum over the instance's values of value * the weight of the pair
 * (label, word); where there is no such pair, nothing is added. Labels are cut into blocks of
 * block_labels neighbours; the last may be smaller. The pairs of word w in block b stand from
 * pair_starts[b, w] to pair_starts[b, w + 1] - 1, and a block's pairs behind those of the block
 * before. On a CPU the pairs of the words that occur are checked before anything else is done. */
typedef struct {
  fanin_tensor pair_starts; /* [blocks, inputs + 1] int64; ascends to at most `pairs` */
  fanin_tensor pair_labels; /* [pairs] uint16: counted within the block; a word's ascend strictly */
  fanin_tensor weights;     /* [pairs] float32 */
  fanin_tensor bias;        /* [labels] float32 */
} fanin_word_pairs;

/* Trains such labels on one instance after the other, with AdaGrad (Duchi et al., JMLR 2011). Of an
 * instance only its positives and the labels whose score is above the threshold are looked at. For
 * each of these and each value of the instance: G = the loss's gradient by the score * value,
 * squares += G^2, weights -= learning_rate * G / sqrt(squares), or no step where squares is 0; the
 * bias likewise, with bias_rate and 1 as value. A word that stands twice is two values. The loss is
 * the mean over the instances of the sum over the labels looked at, each before its update. The
 * result does not depend on the number of threads, which divide the blocks of labels. On a GPU what
 * is out of range is left out, and the loss is NaN. */
typedef struct {
  fanin_tensor values, starts, columns;
  fanin_tensor positive_starts; /* [batch + 1] int64; ascends */
  fanin_tensor positive_labels; /* [positives] int32 or int64; one that stands twice counts once */
  fanin_word_pairs pairs;       /* weights and bias are updated */
  fanin_tensor squares, bias_squares; /* like weights and bias; updated; they begin above 0 */
  fanin_tensor loss;                  /* [1] float32, written */
  int64_t block_labels;               /* 1 to 65536 */
  double learning_rate, bias_rate, threshold;
  int32_t loss_kind;
  fanin_resources resources;
} fanin_words_step_params;

/* The best of such labels, as in fanin_top_k_params; on a GPU NaN from what is out of range. */
typedef struct {
  fanin_tensor values, starts, columns;
  fanin_word_pairs pairs;
  fanin_tensor ids, scores; /* [batch, k] int64; and float32, or absent; written as a whole */
  int64_t block_labels;
  fanin_resources resources;
} fanin_words_top_k_params;

/* Rewiring: connections whose |weight| is strictly below the threshold get a new source and lose
 * their moments; their weight stays. The threshold is the value at rank (int)(fraction * count)
 * among all |weight|, counted from the smallest, which has rank 0. The new source of the connection
 * at flat position p is (z >> 32) * inputs >> 32, where z is SplitMix64's output number p + 1 from
 * the state `seed` (Steele, Lea & Flood, 2014). Sorted connections cannot be rewired. */
typedef struct {
  fanin_tensor indices; /* uint16 or uint32, of the shape of weights; updated */
  fanin_trained weights;
  int64_t inputs;
  double fraction; /* at least 0, below 1 */
  uint64_t seed;
  double threshold; /* written */
  int64_t moved;    /* written: how many connections got a new source */
  fanin_resources resources;
} fanin_rewire_params;

/* Sorts the connections of a fixed fan-in layer in place, or brings them back into the order of
 * their labels. A slot is the place of a connection within its label. tile_labels and slots are
 * written when sorting and read when undoing it; all other arrays move along. inputs is the width
 * of the features that the layer is given afterwards, since the tiles depend on it. CPU only. */
typedef struct {
  fanin_tensor indices;     /* [labels, fan_in] uint16 or uint32 */
  fanin_tensor tile_labels; /* [labels, fan_in] uint16 */
  fanin_tensor slots;       /* [labels, fan_in] uint8 where fan_in <= 256, else uint32 */
  fanin_trained weights;
  int64_t inputs;
  int32_t undo;
  fanin_resources resources;
} fanin_sort_params;

/* Adds the features of a block of instances to the sums of a block of labels: to sums[l, i] the sum
 * of positive_weights[j] * features[positive_instances[j], i] over the label's positives in that
 * block, j from positive_starts[l] to positive_starts[l + 1] - 1. They are added in that order,
 * whatever the number of threads. Features are [instances, inputs], or stored by rows (CSR): then
 * they are the stored values, those of instance p from starts[p] to starts[p + 1] - 1, each in its
 * column. Features and weights that are not finite propagate as IEEE 754 says, on a CPU too. On a
 * GPU a label whose positives or features cannot be followed gets NaN. */
typedef struct {
  fanin_tensor features;           /* [instances, inputs] float32, or [stored] float32 */
  fanin_tensor starts;             /* [instances + 1] int64, or absent; ascends */
  fanin_tensor columns;            /* [stored] int32, or absent; each below inputs */
  fanin_tensor positive_starts;    /* [labels + 1] int64; ascends */
  fanin_tensor positive_instances; /* [positives] int32; each is an instance of the block */
  fanin_tensor positive_weights;   /* [positives] float32, or absent: 1 */
  fanin_tensor sums;               /* [labels, inputs] float32; updated */
  fanin_resources resources;
} fanin_label_sums_params;

/* Chooses the sources of a block of labels: the inputs i of the largest |value|, where
 * value(l, i) = (sums[l, i] / counts[l] - mean[i]) * scale[i]. Of equal ones the lower input is
 * taken; NaN counts as 0. They stand in the order of the inputs, and no label has one twice. The
 * last `random` slots of a label, or all where its count is 0, are random: the number that rewiring
 * draws for their position (first_label + l) * fan_in + slot, or the next higher input (after the
 * last, 0) that the label does not have yet. Labels without positives have 0 as values. */
typedef struct {
  fanin_tensor sums;    /* [labels, inputs] float32 */
  fanin_tensor counts;  /* [labels] int64: how many positives a label has in all */
  fanin_tensor mean;    /* [inputs] float32 */
  fanin_tensor scale;   /* [inputs] float32, or absent: 1 */
  fanin_tensor indices; /* [labels, fan_in] uint16 or uint32; written as a whole */
  fanin_tensor values;  /* [labels, fan_in] float32, or absent; written as a whole */
  int64_t first_label;  /* how many labels stand before this block */
  int64_t random;       /* 0 to fan_in */
  uint64_t seed;
  fanin_resources resources;
} fanin_choose_sources_params;

/* Gives a block of labels better sources, as RigL does (Evci et al., "Rigging the lottery", ICML
 * 2020). Of each label, the `replaced` connections of smallest |weight| move to the inputs of
 * largest |gradient| that are no source of the label yet. Of equal weights that in the lower slot
 * moves (a NaN counts as infinite); of equal gradients the lower input is taken. An input whose
 * gradient is 0 or NaN is never taken, so fewer connections may move. In ascending order, the slots
 * that move get the inputs that are taken. What moved has 0 as m, as v and, unless keep_weights, as
 * weight. The result of a label depends on its own rows alone. A label with an index out of range
 * stays as it is; on a CPU it is FANIN_INVALID, and other labels may have been updated. The
 * connections must not be sorted (see fanin_connections). */
typedef struct {
  fanin_tensor
      gradients;         /* [labels, inputs] float32: of the loss by each weight of a dense layer */
  fanin_tensor indices;  /* [labels, fan_in] uint16 or uint32; updated */
  fanin_trained weights; /* [labels, fan_in]; updated */
  fanin_tensor moved;    /* [labels] int32, or absent; written: how many connections moved */
  int64_t replaced;      /* 0 to fan_in */
  int32_t keep_weights;
  fanin_resources resources;
} fanin_replace_sources_params;

#if defined(__GNUC__)
#define FANIN_API __attribute__((visibility("default")))
#else
#define FANIN_API
#endif

/* The version of this interface, and that of the library ("0.1.0"). */
FANIN_API int32_t fanin_abi_version(void);
FANIN_API const char *fanin_version(void);

/* What was built and what is used here, as one line of JSON:
 * {"cuda": [..architectures], "openmp": true,
 *  "instruction_sets": [..usable here, best first], "instruction_set": ".."}
 * The last one is null where FANIN_INSTRUCTION_SET names no set that runs here. */
FANIN_API const char *fanin_build_info(void);

/* How many labels a tile of sorted connections has (see fanin_connections), in a layer with so many
 * inputs and labels. */
FANIN_API int64_t fanin_sorted_labels(int64_t inputs, int64_t labels);

/* Chooses the CPU code: "avx512", "avx2", "baseline", or "auto" for the best this machine runs. */
FANIN_API int32_t fanin_set_instruction_set(const char *name, char *message, size_t message_bytes);

/* Checks everything about the arguments that shapes and types tell. Reads no data. */
FANIN_API int32_t fanin_linear_forward_check(const fanin_linear_forward_params *params,
                                             char *message, size_t message_bytes);

/* The scratch memory in bytes that the call needs; 0 where the arguments are wrong. */
FANIN_API uint64_t fanin_linear_forward_workspace(const fanin_linear_forward_params *params);
FANIN_API uint64_t fanin_linear_backward_workspace(const fanin_linear_backward_params *params);

/* On a CPU an index out of range or a feature that is not finite is FANIN_INVALID, and the outputs
 * are then unspecified. On a GPU, where nothing may wait, all labels of a tile with a bad index
 * have NaN as score, and features that are not finite propagate as IEEE 754 says. */
FANIN_API int32_t fanin_linear_forward(const fanin_linear_forward_params *params, char *message,
                                       size_t message_bytes);
FANIN_API int32_t fanin_linear_backward(const fanin_linear_backward_params *params, char *message,
                                        size_t message_bytes);

/* The same holds for the calls below. Where a step finds an index or an element of tile_labels out
 * of range, it has updated part of the labels; where it finds anything else wrong, it has updated
 * nothing. On a GPU the loss is NaN where connections cannot be followed, and where a positive
 * names no instance or label; such a positive is left out. Labels of connections that cannot be
 * followed rank last in top-k. On a GPU only fanin_rewire waits for the stream, since it returns
 * two results. All other calls can be captured in a CUDA graph; a replayed step uses the step
 * number, rate and seed with which it was captured. */
FANIN_API uint64_t fanin_step_workspace(const fanin_step_params *params);
FANIN_API int32_t fanin_step(const fanin_step_params *params, char *message, size_t message_bytes);
FANIN_API uint64_t fanin_dense_forward_workspace(const fanin_dense_forward_params *params);
FANIN_API int32_t fanin_dense_forward(const fanin_dense_forward_params *params, char *message,
                                      size_t message_bytes);
FANIN_API uint64_t fanin_dense_update_workspace(const fanin_dense_update_params *params);
FANIN_API int32_t fanin_dense_update(const fanin_dense_update_params *params, char *message,
                                     size_t message_bytes);
FANIN_API uint64_t fanin_sparse_forward_workspace(const fanin_sparse_forward_params *params);
FANIN_API int32_t fanin_sparse_forward(const fanin_sparse_forward_params *params, char *message,
                                       size_t message_bytes);
FANIN_API uint64_t fanin_sparse_update_workspace(const fanin_sparse_update_params *params);
FANIN_API int32_t fanin_sparse_update(const fanin_sparse_update_params *params, char *message,
                                      size_t message_bytes);
FANIN_API uint64_t fanin_top_k_workspace(const fanin_top_k_params *params);
FANIN_API int32_t fanin_top_k(const fanin_top_k_params *params, char *message,
                              size_t message_bytes);
FANIN_API uint64_t fanin_words_step_workspace(const fanin_words_step_params *params);
FANIN_API int32_t fanin_words_step(const fanin_words_step_params *params, char *message,
                                   size_t message_bytes);
FANIN_API uint64_t fanin_words_top_k_workspace(const fanin_words_top_k_params *params);
FANIN_API int32_t fanin_words_top_k(const fanin_words_top_k_params *params, char *message,
                                    size_t message_bytes);
FANIN_API uint64_t fanin_rewire_workspace(const fanin_rewire_params *params);
FANIN_API int32_t fanin_rewire(fanin_rewire_params *params, char *message, size_t message_bytes);
FANIN_API uint64_t fanin_sort_workspace(const fanin_sort_params *params);
FANIN_API int32_t fanin_sort(const fanin_sort_params *params, char *message, size_t message_bytes);
FANIN_API uint64_t fanin_label_sums_workspace(const fanin_label_sums_params *params);
FANIN_API int32_t fanin_label_sums(const fanin_label_sums_params *params, char *message,
                                   size_t message_bytes);
FANIN_API uint64_t fanin_choose_sources_workspace(const fanin_choose_sources_params *params);
FANIN_API int32_t fanin_choose_sources(const fanin_choose_sources_params *params, char *message,
                                       size_t message_bytes);
FANIN_API uint64_t fanin_replace_sources_workspace(const fanin_replace_sources_params *params);
FANIN_API int32_t fanin_replace_sources(const fanin_replace_sources_params *params, char *message,
                                        size_t message_bytes);

#ifdef __cplusplus
}
#endif
#endif
