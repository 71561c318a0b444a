// The C interface of labels that are connected to words.
#include <cmath>

#include "api/layer.h"
#include "core/words_memory.h"

namespace fanin {
namespace {

// The sizes that both calls have.
struct WordsSizes {
  Dimension stored{"stored"}, bounds{"batch + 1"}, blocks{"blocks"}, word_bounds{"inputs + 1"};
  Dimension pairs{"pairs"}, labels{"labels"};
};

void check_pairs(Check &check, const fanin_word_pairs &p, WordsSizes &sizes, bool updated) {
  const auto weights = updated ? &Check::written : &Check::tensor;
  check.tensor("pair_starts", p.pair_starts, {&sizes.blocks, &sizes.word_bounds});
  check.type("pair_starts", p.pair_starts, {FANIN_INT64});
  check.tensor("pair_labels", p.pair_labels, {&sizes.pairs});
  check.type("pair_labels", p.pair_labels, {FANIN_UINT16});
  (check.*weights)("weights", p.weights, {&sizes.pairs}, Presence::required);
  check.type("weights", p.weights, {FANIN_FLOAT32});
  (check.*weights)("bias", p.bias, {&sizes.labels}, Presence::required);
  check.type("bias", p.bias, {FANIN_FLOAT32});
}

// What is left to be checked once all sizes are known.
void check_sizes(Check &check, int64_t block_labels, const WordsSizes &sizes) {
  constexpr int64_t most = 65536;
  if (!check.good()) return;
  const Dimension inputs{"inputs", sizes.word_bounds.size - 1, sizes.word_bounds.given_by};
  if (inputs.size < 0) return check.wrong("pair_starts must have at least 2 columns");
  check.sizes(inputs, sizes.labels, inputs);
  if (check.good() && (block_labels < 1 || block_labels > most))
    check.wrong("block_labels must be in 1..%" PRId64 ", got %" PRId64, most, block_labels);
  if (!check.good()) return;
  const int64_t blocks = (sizes.labels.size - 1) / block_labels + 1;
  if (blocks != sizes.blocks.size)
    check.wrong("pair_starts has %" PRId64 " blocks but %" PRId64 " labels are %" PRId64
                " blocks of %" PRId64,
                sizes.blocks.size, sizes.labels.size, blocks, block_labels);
  if (check.good() && sizes.bounds.size == 0) check.wrong("starts must have at least 1 element");
}

template <class Params>
void set_words(WordsCall *call, const Params &p, const WordsSizes &sizes) {
  call->batch = sizes.bounds.size - 1;
  call->inputs = sizes.word_bounds.size - 1;
  call->labels = sizes.labels.size;
  call->stored = sizes.stored.size;
  call->pairs = sizes.pairs.size;
  call->block_labels = p.block_labels;
  call->blocks = sizes.blocks.size;
  call->values = data_as<float>(p.values);
  call->starts = data_as<int64_t>(p.starts);
  call->columns = data_as<int32_t>(p.columns);
  call->pair_starts = data_as<int64_t>(p.pairs.pair_starts);
  call->pair_labels = data_as<uint16_t>(p.pairs.pair_labels);
  call->weights = data_as<float>(p.pairs.weights);
  call->bias = data_as<float>(p.pairs.bias);
}

int32_t prepare(const fanin_words_step_params *p, WordsStepCall *call, Message message) {
  if (!p) return message.say(FANIN_INVALID, "params is null");
  Check check(message);
  WordsSizes sizes;
  Dimension positives{"positives"}, one{"1", 1, "a loss"};
  check_csr(check, p->values, p->starts, p->columns, sizes.stored, sizes.bounds);
  check.tensor("positive_starts", p->positive_starts, {&sizes.bounds});
  check.type("positive_starts", p->positive_starts, {FANIN_INT64});
  check.tensor("positive_labels", p->positive_labels, {&positives});
  check.type("positive_labels", p->positive_labels, {FANIN_INT32, FANIN_INT64});
  check_pairs(check, p->pairs, sizes, true);
  check.written("squares", p->squares, {&sizes.pairs});
  check.type("squares", p->squares, {FANIN_FLOAT32});
  check.written("bias_squares", p->bias_squares, {&sizes.labels});
  check.type("bias_squares", p->bias_squares, {FANIN_FLOAT32});
  check.written("loss", p->loss, {&one});
  check.type("loss", p->loss, {FANIN_FLOAT32});
  check.rate("learning_rate", p->learning_rate);
  check.rate("bias_rate", p->bias_rate);
  check.loss_kind(p->loss_kind);
  check.threads(p->resources.threads);
  check.ready(p->resources);
  check_sizes(check, p->block_labels, sizes);
  if (check.good() && std::isnan(p->threshold)) check.wrong("threshold must not be NaN");
  if (check.good() && sizes.bounds.size == 1)
    check.wrong("a step needs at least one instance; the batch is empty");
  if (!check.good()) return check.status();
  // A thread takes a whole block.
  set_resources(call, p->resources, p->values, sizes.blocks.size * kGroup);
  set_words(call, *p, sizes);
  call->positives = positives.size;
  call->wide_positives = p->positive_labels.dtype == FANIN_INT64;
  call->positive_starts = data_as<int64_t>(p->positive_starts);
  call->positive_labels = data_of(p->positive_labels);
  call->squares = data_as<float>(p->squares);
  call->bias_squares = data_as<float>(p->bias_squares);
  call->loss = data_as<float>(p->loss);
  call->rate = float(p->learning_rate);
  call->bias_rate = float(p->bias_rate);
  call->threshold = float(p->threshold);
  call->loss_kind = p->loss_kind;
  return FANIN_OK;
}

int32_t prepare(const fanin_words_top_k_params *p, WordsTopKCall *call, Message message) {
  if (!p) return message.say(FANIN_INVALID, "params is null");
  Check check(message);
  WordsSizes sizes;
  Dimension batch{"batch"}, k{"k"};
  check_csr(check, p->values, p->starts, p->columns, sizes.stored, sizes.bounds);
  check_pairs(check, p->pairs, sizes, false);
  check.written("ids", p->ids, {&batch, &k});
  check.type("ids", p->ids, {FANIN_INT64});
  check.written("scores", p->scores, {&batch, &k}, kOptional);
  check.type("scores", p->scores, {FANIN_FLOAT32}, kOptional);
  check.threads(p->resources.threads);
  check.ready(p->resources);
  check_sizes(check, p->block_labels, sizes);
  check_bounds(check, "starts", sizes.bounds, batch);
  check.k(k, sizes.labels);
  if (!check.good()) return check.status();
  set_resources(call, p->resources, p->values, batch.size * sizes.blocks.size * kGroup);
  set_words(call, *p, sizes);
  call->k = k.size;
  call->ids = data_as<int64_t>(p->ids);
  call->scores = data_as<float>(p->scores);
  return FANIN_OK;
}

// On a CPU.
int32_t check_positives(const WordsStepCall &c, Message message) {
  if (const int32_t status =
          check_division("positive_starts", c.positive_starts, c.batch, c.positives, message))
    return status;
  const auto check_labels = [&](const auto *positive_labels) {
    return check_members("positive_labels", positive_labels, c.positive_starts[0],
                         c.positive_starts[c.batch], c.labels, "labels", message);
  };
  return c.wide_positives ? check_labels(static_cast<const int64_t *>(c.positive_labels))
                          : check_labels(static_cast<const int32_t *>(c.positive_labels));
}

// Reports what is wrong with pairs.
int32_t report_pairs(const Finding &finding, const WordsCall &c, Message message) {
  const int64_t at = finding.position;
  switch (finding.kind) {
    case Finding::bad_pair_start:
      return message.say(FANIN_INVALID,
                         "pair_starts[%" PRId64 ", %" PRId64 "] is %" PRId64
                         "; they must ascend, block after block, from 0 to at most %" PRId64,
                         at / (c.inputs + 1), at % (c.inputs + 1), c.pair_starts[at], c.pairs);
    case Finding::bad_pair_label:
      return message.say(FANIN_INVALID,
                         "pair_labels[%" PRId64 "] is %d; those of a word must ascend, each once, "
                         "and be labels of their block",
                         at, c.pair_labels[at]);
    default:
      return report(finding, {}, message);
  }
}

}  // namespace
}  // namespace fanin

using namespace fanin;

extern "C" {

uint64_t fanin_words_step_workspace(const fanin_words_step_params *params) {
  return workspace_of<WordsStepCall>(params, prepare);
}

int32_t fanin_words_step(const fanin_words_step_params *params, char *text, size_t bytes) {
  const Message message{text, bytes};
  WordsStepCall call;
  if (const int32_t status = prepare(params, &call, message)) return status;
  const auto on_cpu = [&](const CpuTarget &target) {
    if (const int32_t status = check_csr_data(call, message)) return status;
    if (const int32_t status = check_positives(call, message)) return status;
    return report_pairs(target.words_step(call), call, message);
  };
  return run(call, params->resources, message, on_cpu, [&] { return cuda::words_step(call); });
}

uint64_t fanin_words_top_k_workspace(const fanin_words_top_k_params *params) {
  return workspace_of<WordsTopKCall>(params, prepare);
}

int32_t fanin_words_top_k(const fanin_words_top_k_params *params, char *text, size_t bytes) {
  const Message message{text, bytes};
  WordsTopKCall call;
  if (const int32_t status = prepare(params, &call, message)) return status;
  const auto on_cpu = [&](const CpuTarget &target) {
    if (const int32_t status = check_csr_data(call, message)) return status;
    return report_pairs(target.words_top_k(call), call, message);
  };
  return run(call, params->resources, message, on_cpu,
             [&] { return call.batch ? cuda::words_top_k(call) : kNothing; });
}

}  // extern "C"
