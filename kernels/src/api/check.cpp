// The checks of check.h.
#include "api/check.h"

#include <cmath>
#include <cstdarg>
#include <cstdio>

#include "core/memory.h"

namespace fanin {

int32_t Message::say(fanin_status status, const char *format, ...) const {
  if (text && bytes) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, bytes, format, arguments);
    va_end(arguments);
  }
  return status;
}

// The data types, in the order of fanin_dtype.
static constexpr struct {
  const char *name;
  int size;  // bytes of an element
} kTypes[] = {{"an unsupported type", 1},
              {"float32", 4},
              {"float64", 8},
              {"uint16", 2},
              {"uint32", 4},
              {"float16", 2},
              {"bfloat16", 2},
              {"uint8", 1},
              {"uint64", 8},
              {"int8", 1},
              {"int16", 2},
              {"int32", 4},
              {"int64", 8},
              {"bool", 1}};
static const auto &type_of(int32_t dtype) {
  return kTypes[dtype > 0 && dtype <= FANIN_BOOL ? dtype : FANIN_OTHER];
}
const char *name_of(int32_t dtype) { return type_of(dtype).name; }

static std::string device_name(const fanin_tensor &t) {
  if (t.device == FANIN_CPU) return "cpu";
  if (t.device == FANIN_CUDA) return "cuda:" + std::to_string(t.device_index);
  return "a device that is neither cpu nor cuda";
}

static std::string shape_of(const fanin_tensor &t) {
  std::string text = "[";
  for (int i = 0; i < t.rank && i < FANIN_MAX_RANK; ++i)
    text += (i ? ", " : "") + (t.shape[i] < 0 ? "?" : std::to_string(t.shape[i]));
  return text + "]";
}

void Check::wrong(const char *format, ...) {
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  status_ = message_.say(FANIN_INVALID, "%s", text);
}

void Check::tensor(const std::string &tensor_name, const fanin_tensor &t, Dimensions dims,
                   Presence presence) {
  if (!good() || (presence == kOptional && t.rank < 0)) return;
  const char *const name = tensor_name.c_str();
  std::string expected = "[";
  for (const Dimension *d : dims)
    expected += (expected.size() > 1 ? ", " : "") + std::string(d->name);
  expected += "]";
  if (t.rank < 0) return wrong("%s is missing; expected %s", name, expected.c_str());
  if (t.rank != int(dims.size()))
    return wrong("%s must be %s, got %d dimensions", name, expected.c_str(), t.rank);
  int i = 0;
  for (Dimension *d : dims) {
    const int64_t size = t.shape[i++];
    if (size < 0) {
      unknown_ = true;
    } else if (d->size < 0) {
      d->size = size;
      d->given_by = name;
    } else if (d->size != size) {
      return wrong("%s %s must be %s: %s is %" PRId64 " here but %" PRId64 " in %s", name,
                   shape_of(t).c_str(), expected.c_str(), d->name, size, d->size,
                   d->given_by.c_str());
    }
  }
  if (!first_) {
    first_ = &t;
    first_name_ = name;
  } else if (t.device != first_->device || t.device_index != first_->device_index) {
    return wrong("%s is on %s but %s is on %s; move them to one device", name,
                 device_name(t).c_str(), first_name_.c_str(), device_name(*first_).c_str());
  } else if (t.device != FANIN_CPU && t.device != FANIN_CUDA) {
    return wrong("%s is on %s", name, device_name(t).c_str());
  }
  // The stride of a size of 1 is meaningless, and an empty tensor has none that matters.
  for (int d = 0; d < t.rank; ++d)
    if (t.shape[d] <= 0) return;
  const int64_t element = type_of(t.dtype).size;
  int64_t expected_stride = 1, bytes = element;
  for (int d = t.rank - 1; d >= 0; --d) {
    if (t.shape[d] > 1 && t.strides[d] != expected_stride)
      return wrong("%s %s is not contiguous (row-major); make a contiguous copy first", name,
                   shape_of(t).c_str());
    if (__builtin_mul_overflow(bytes, t.shape[d], &bytes))
      return wrong("%s %s is larger than any memory", name, shape_of(t).c_str());
    expected_stride *= t.shape[d];
  }
  arguments_.push_back({tensor_name, reinterpret_cast<uintptr_t>(t.data), uint64_t(bytes),
                        uint64_t(element), false});
}

void Check::written(const std::string &name, const fanin_tensor &t, Dimensions dims,
                    Presence presence) {
  const size_t before = arguments_.size();
  tensor(name, t, dims, presence);
  if (arguments_.size() > before) arguments_.back().written = true;
}

void Check::values(const std::string &name, const fanin_tensor &t, Presence presence) {
  if (!good() || (presence == kOptional && t.rank < 0)) return;
  if (t.dtype != FANIN_FLOAT32 && t.dtype != FANIN_FLOAT64) {
    wrong("%s must be float32 or float64, got %s", name.c_str(), name_of(t.dtype));
  } else if (value_name_.empty()) {
    value_type_ = t.dtype;
    value_name_ = name;
  } else if (t.dtype != value_type_) {
    wrong("%s is %s but %s is %s; use one type for both", name.c_str(), name_of(t.dtype),
          value_name_.c_str(), name_of(value_type_));
  }
}

void Check::type(const std::string &name, const fanin_tensor &t,
                 std::initializer_list<int32_t> allowed, Presence presence) {
  if (!good() || (presence == kOptional && t.rank < 0)) return;
  std::string names;
  for (const int32_t dtype : allowed) {
    if (dtype == t.dtype) return;
    names += (names.empty() ? "" : " or ") + std::string(name_of(dtype));
  }
  wrong("%s must be %s, got %s", name.c_str(), names.c_str(), name_of(t.dtype));
}

void Check::indices(const fanin_tensor &t) {
  if (good() && t.dtype != FANIN_UINT16 && t.dtype != FANIN_UINT32)
    wrong("indices must be uint16 or uint32, got %s; convert them once, uint16 where inputs <= "
          "65536",
          name_of(t.dtype));
}

void Check::moment(const std::string &name, const fanin_tensor &t, Dimensions dims, bool is_kept) {
  if (is_kept) return written(name, t, dims);
  if (good() && t.rank >= 0)
    wrong("%s is of no use: this optimizer keeps no such moments; leave it out", name.c_str());
}

void Check::stored(const std::string &name, const fanin_tensor &t, Dimensions dims,
                   bool allows_rows, bool is_written) {
  if (!good()) return;
  const auto check = [&](Dimensions own) {
    is_written ? written(name, t, own) : tensor(name, t, own);
  };
  if (!allows_rows || !is_float8(t)) {
    check(dims);
    return type(name, t, kStored);
  }
  Dimension *const labels = dims.begin()[0], *const fan_in = dims.begin()[1];
  Dimension bytes{"fan_in + 1", fan_in->size < 0 ? -1 : fan_in->size + 1, fan_in->given_by};
  check({labels, &bytes});
}

void Check::trained(const std::string &name, const fanin_trained &t, Dimensions dims,
                    const Moments &moments, bool is_bias, bool allows_rows) {
  const std::string m = name + ".m", v = name + ".v";
  if (is_bias && t.values.rank < 0 && t.m.rank < 0 && t.v.rank < 0) return;
  if (is_bias)
    written(name, t.values, dims);
  else
    stored(name, t.values, dims, allows_rows, true);
  moment(m, t.m, dims, moments.m);
  moment(v, t.v, dims, moments.v);
  if (is_bias) {
    type(name, t.values, {FANIN_FLOAT32});
    type(m, t.m, {FANIN_FLOAT32}, kOptional);
    type(v, t.v, {FANIN_FLOAT32}, kOptional);
  } else {
    type(m, t.m, kStored, kOptional);
    if (t.m.rank >= 0)
      type(v, t.v, {t.m.dtype}, kOptional);
    else
      type(v, t.v, kStored, kOptional);
  }
}

void Check::trained_rows(const std::string &name, const fanin_trained &t, Dimension &rows,
                         Dimension &columns, const Moments &moments) {
  if (t.m.rank >= 0 || !moments.v) return trained(name, t, {&rows, &columns}, moments);
  written(name, t.values, {&rows, &columns});
  type(name, t.values, kStored);
  written(name + ".v", t.v, {&rows});
  type(name + ".v", t.v, {FANIN_FLOAT32});
}

void Check::rate(const char *name, double rate) {
  // The kernels have these numbers in float32.
  if (good() && (!(rate >= 0) || std::isinf(float(rate))))
    wrong("%s must be finite and at least 0, got %g", name, rate);
}

void Check::loss_kind(int32_t kind) {
  if (good() && kind != FANIN_SQUARED_HINGE && kind != FANIN_BINARY_CROSS_ENTROPY)
    wrong("loss_kind %d is unknown", kind);
}

void Check::optimizer(const fanin_optimizer &o) {
  rate("learning_rate", o.learning_rate);
  rate("weight_decay", o.weight_decay);
  rate("l2", o.l2);
  rate("learning_rate * weight_decay", o.learning_rate * o.weight_decay);
  if (!good()) return;
  if (o.kind != FANIN_ADAM && o.kind != FANIN_SGD && o.kind != FANIN_MOMENTUM)
    wrong("optimizer kind %d is unknown", o.kind);
  else if (o.step < 1)
    wrong("step counts from 1, got %" PRId64, o.step);
  else if (o.kind == FANIN_MOMENTUM && !(o.momentum >= 0 && o.momentum < 1))
    wrong("momentum must be in [0, 1), got %g", o.momentum);
  else if (o.kind == FANIN_ADAM && !(o.beta1 >= 0 && o.beta1 < 1 && o.beta2 >= 0 && o.beta2 < 1))
    wrong("beta1 and beta2 must be in [0, 1), got %g and %g", o.beta1, o.beta2);
  else if (o.kind == FANIN_ADAM && (!(float(o.epsilon) > 0) || std::isinf(float(o.epsilon))))
    // With 0, a weight without gradients would become 0 / 0.
    wrong("epsilon must be finite and above 0, got %g", o.epsilon);
}

void Check::sizes(const Dimension &inputs, const Dimension &labels, const Dimension &fan_in) {
  if (!good()) return;
  for (const Dimension *d : {&inputs, &labels, &fan_in})
    if (d->size == 0)
      return wrong("%s must be at least 1, but %s is 0 in %s", d->name, d->name,
                   d->given_by.c_str());
  if (inputs.size > 0 && fan_in.size > inputs.size)
    return wrong("fan_in %" PRId64 " is larger than the %" PRId64 " inputs", fan_in.size,
                 inputs.size);
  if (inputs.size > INT32_MAX) wrong("inputs must be below 2^31, got %" PRId64, inputs.size);
}

void Check::k(const Dimension &k, const Dimension &labels) {
  if (good() && (k.size < 1 || k.size > labels.size))
    wrong("k must be in 1..%" PRId64 " (the labels), got %" PRId64, labels.size, k.size);
}

void Check::threads(int32_t wanted) {
  // Many more than cores are of no use, and the OpenMP runtime ends a process that cannot have
  // them.
  constexpr int32_t most = 1024;
  if (good() && (wanted < 0 || wanted > most))
    wrong("threads must be 0 (all) or 1 to %d, got %d", most, wanted);
}

void Check::ready(const fanin_resources &resources) {
  if (!good()) return;
  if (unknown_) return wrong("a size is not known at the time of the call");
  for (const Argument &a : arguments_) {
    if (!a.begin) return wrong("%s has elements but no data", a.name.c_str());
    if (a.begin % a.alignment)
      return wrong("%s is not aligned to its elements; make an aligned copy first", a.name.c_str());
  }
  if (resources.workspace && resources.workspace_bytes)
    arguments_.push_back({"workspace", reinterpret_cast<uintptr_t>(resources.workspace),
                          resources.workspace_bytes, 1, true});
  for (const Argument &a : arguments_)
    for (const Argument &b : arguments_)
      // Each pair once: of two that are written, the first is named first.
      if (a.written && (!b.written || &a < &b) && a.shares_memory_with(b))
        return wrong("%s and %s share memory; each needs its own", a.name.c_str(), b.name.c_str());
}

void Check::dense(const fanin_connections &c, const Dimension &inputs, Dimension &fan_in) {
  if (!good()) return;
  if (c.starts.rank >= 0 || c.tile_labels.rank >= 0)
    return wrong("starts and tile_labels have no meaning without indices");
  if (c.group_size) return wrong("group_size has no meaning without indices");
  fan_in.size = inputs.size;
  fan_in.given_by = "features";
}

void Check::unstructured(const fanin_connections &c, Dimension &labels, Dimension &count) {
  if (good() && c.tile_labels.rank >= 0)
    return wrong("connections are either unstructured or sorted");
  if (good() && c.group_size) return wrong("connections are either unstructured or grouped");
  Dimension bounds{"labels + 1"};
  tensor("starts", c.starts, {&bounds});
  type("starts", c.starts, {FANIN_INT32});
  tensor("indices", c.indices, {&count});
  indices(c.indices);
  if (!good()) return;
  if (bounds.size < 2) return wrong("starts must have at least 2 elements");
  if (count.size == 0) return wrong("a layer needs at least one connection");
  labels.size = bounds.size - 1;
  labels.given_by = "starts";
}

void Check::fixed_fan_in(const fanin_connections &c, Dimension &labels, Dimension &fan_in) {
  tensor("indices", c.indices, {&labels, &fan_in});
  indices(c.indices);
  tensor("tile_labels", c.tile_labels, {&labels, &fan_in}, kOptional);
  type("tile_labels", c.tile_labels, {FANIN_UINT16}, kOptional);
  if (good() && c.tile_labels.rank >= 0 && c.tile_labels.device == FANIN_CUDA)
    wrong("sorted connections (tile_labels) are for CPUs only");
}

void Check::sources(const fanin_tensor &rows, const fanin_tensor &weights, int64_t group_size,
                    Dimension &labels, Dimension &fan_in) {
  Dimension label_groups{"label groups"};
  tensor("indices", rows, {group_size ? &label_groups : &labels, &fan_in});
  indices(rows);
  tensor("weights", weights, {&labels, &fan_in});
  if (group_size) grouped(rows, group_size, label_groups, labels);
}

void Check::grouped(const fanin_tensor &rows, int64_t group_size, const Dimension &label_groups,
                    const Dimension &labels) {
  if (!good()) return;
  if (group_size < 2 || group_size > kMostGroupSize)
    return wrong("group_size must be 2 to %" PRId64 ", got %" PRId64, kMostGroupSize, group_size);
  const int64_t wanted = (labels.size + group_size - 1) / group_size;
  if (labels.size >= 0 && label_groups.size >= 0 && label_groups.size != wanted)
    wrong("indices have %" PRId64 " rows but must have %" PRId64 ", one for each group of %" PRId64
          " of the %" PRId64 " labels",
          label_groups.size, wanted, group_size, labels.size);
}

}  // namespace fanin
