// What layer.h promises.
#include "api/layer.h"

#include <cmath>

#include "core/rewire.h"

namespace fanin {

int64_t connection_count(const fanin_connections &c) {
  if (c.indices.rank < 0) return 0;
  return c.indices.shape[0] * (c.indices.rank > 1 ? c.indices.shape[1] : 1);
}

OptimizerCall optimizer_call(const fanin_optimizer &optimizer) {
  const double t = double(optimizer.step);
  const double of_v = std::sqrt(1 - std::pow(optimizer.beta2, t));
  // Neighbouring seeds must not be one stream a step apart, so the step is added to a mixed seed.
  uint64_t seed = optimizer.seed;
  uint64_t step_seed = split_mix(seed) + uint64_t(optimizer.step);
  OptimizerCall call;
  const Moments moments(optimizer);
  call.kept = int(moments.m) + int(moments.v);
  const bool is_adam = optimizer.kind == FANIN_ADAM;
  call.rate =
      float(optimizer.learning_rate * (is_adam ? of_v / (1 - std::pow(optimizer.beta1, t)) : 1.0));
  call.row_rate = float(optimizer.learning_rate * of_v);
  call.rest1 = float(1 - optimizer.beta1);
  call.rest2 = float(1 - optimizer.beta2);
  call.epsilon = float(optimizer.epsilon);
  call.momentum = float(optimizer.momentum);
  call.decay = float(optimizer.learning_rate * optimizer.weight_decay);
  call.l2 = float(optimizer.l2);
  call.seed = uint32_t(split_mix(step_seed) >> 32);
  call.first = 0;
  return call;
}

int32_t check_starts(const int32_t *starts, int64_t labels, int64_t connections, Message message) {
  if (!starts) return FANIN_OK;
  bool good = starts[0] == 0 && starts[labels] == connections;
  for (int64_t l = 0; l < labels; ++l) good &= starts[l] <= starts[l + 1];
  if (good) return FANIN_OK;
  return message.say(FANIN_INVALID, "starts must ascend from 0 to the %" PRId64 " connections",
                     connections);
}

int32_t check_division(const char *name, const int64_t *starts, int64_t count, int64_t size,
                       Message message) {
  for (int64_t i = 0; i <= count; ++i) {
    const int64_t least = i ? starts[i - 1] : 0;
    if (starts[i] < least || starts[i] > size)
      return message.say(FANIN_INVALID,
                         "%s[%" PRId64 "] is %" PRId64
                         "; they must ascend from 0 to at most %" PRId64,
                         name, i, starts[i], size);
  }
  return FANIN_OK;
}

template <class I>
int32_t check_members(const char *name, const I *members, int64_t begin, int64_t end, int64_t bound,
                      const char *things, Message message) {
  for (int64_t i = begin; i < end; ++i)
    if (members[i] < 0 || members[i] >= bound)
      return message.say(FANIN_INVALID,
                         "%s[%" PRId64 "] is %" PRId64 ", out of range for %" PRId64 " %s", name, i,
                         int64_t(members[i]), bound, things);
  return FANIN_OK;
}
template int32_t check_members(const char *, const int32_t *, int64_t, int64_t, int64_t,
                               const char *, Message);
template int32_t check_members(const char *, const int64_t *, int64_t, int64_t, int64_t,
                               const char *, Message);

void check_bounds(Check &check, const char *name, const Dimension &bounds,
                  const Dimension &things) {
  if (check.good() && bounds.size != things.size + 1)
    check.wrong("%s has %" PRId64 " elements but must have %" PRId64 " (%s + 1)", name, bounds.size,
                things.size + 1, things.name);
}

void check_csr(Check &check, const fanin_tensor &values, const fanin_tensor &starts,
               const fanin_tensor &columns, Dimension &stored, Dimension &bounds) {
  check.tensor("values", values, {&stored});
  check.type("values", values, {FANIN_FLOAT32});
  check.tensor("starts", starts, {&bounds});
  check.type("starts", starts, {FANIN_INT64});
  check.tensor("columns", columns, {&stored});
  check.type("columns", columns, {FANIN_INT32});
}

int32_t check_values(const float *values, int64_t begin, int64_t end, Message message) {
  for (int64_t i = begin; i < end; ++i)
    if (!std::isfinite(values[i]))
      return message.say(FANIN_INVALID, "values[%" PRId64 "] is %s; all values must be finite", i,
                         name_of_non_finite(values[i]));
  return FANIN_OK;
}

}  // namespace fanin
