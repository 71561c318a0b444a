// How arguments are checked and errors worded: one place for both files of the C interface, so that
// every binding raises the same text.
#pragma once

#include <cinttypes>
#include <cstdarg>
#include <cstdio>
#include <string>
#include <type_traits>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "core/call.h"
#include "fanin.h"

namespace fanin {

struct Message {
  char *text;
  size_t bytes;
  __attribute__((format(printf, 3, 4))) int32_t say(fanin_status status, const char *format,
                                                    ...) const {
    if (text && bytes) {
      va_list arguments;
      va_start(arguments, format);
      vsnprintf(text, bytes, format, arguments);
      va_end(arguments);
    }
    return status;
  }
};

inline const char *name_of(int32_t dtype) {
  static const char *const names[] = {"an unsupported type", "float32", "float64", "uint16",
                                      "uint32", "float16", "bfloat16", "uint8", "uint64", "int8",
                                      "int16", "int32", "int64", "bool"};
  return dtype > 0 && dtype <= FANIN_BOOL ? names[dtype] : names[0];
}

inline std::string device_name(const fanin_tensor &t) {
  if (t.device == FANIN_CPU) return "cpu";
  if (t.device == FANIN_CUDA) return "cuda:" + std::to_string(t.device_index);
  return "a device that is neither cpu nor cuda";
}

inline std::string shape_of(const fanin_tensor &t) {
  std::string text = "[";
  for (int i = 0; i < t.rank && i < FANIN_MAX_RANK; ++i)
    text += (i ? ", " : "") + (t.shape[i] < 0 ? "?" : std::to_string(t.shape[i]));
  return text + "]";
}

// A size that tensors share; the first that knows it says what it is.
struct Dimension {
  const char *name;
  int64_t size;
  const char *said_by;
};

// Collects the first thing that is wrong with a call's tensors.
class Check {
 public:
  explicit Check(Message message) : message_(message) {}

  void tensor(const char *name, const fanin_tensor &t, std::initializer_list<Dimension *> dims,
              bool optional = false) {
    if (status_ != FANIN_OK || (optional && t.rank < 0)) return;
    std::string expected = "[";
    for (const Dimension *d : dims) expected += (expected.size() > 1 ? ", " : "") + std::string(d->name);
    expected += "]";
    if (t.rank != int(dims.size())) {
      if (t.rank < 0)
        wrong("%s is missing; expected %s", name, expected.c_str());
      else
        wrong("%s must be %s, got %d dimensions", name, expected.c_str(), t.rank);
      return;
    }
    int i = 0;
    for (Dimension *d : dims) {
      const int64_t size = t.shape[i++];
      if (size < 0) {
        unknown_ = true;
        continue;
      }
      if (d->size < 0) {
        d->size = size;
        d->said_by = name;
      } else if (d->size != size) {
        wrong("%s %s must be %s: %s is %" PRId64 " here but %" PRId64 " in %s", name,
              shape_of(t).c_str(), expected.c_str(), d->name, size, d->size, d->said_by);
        return;
      }
    }
    if (!first_) {
      first_ = &t;
      first_name_ = name;
    } else if (t.device != first_->device || t.device_index != first_->device_index) {
      wrong("%s is on %s but %s is on %s; move them to one device", name, device_name(t).c_str(),
            first_name_, device_name(*first_).c_str());
      return;
    } else if (t.device != FANIN_CPU && t.device != FANIN_CUDA) {
      wrong("%s is on %s", name, device_name(t).c_str());
      return;
    }
    // The stride of a size of 1 is meaningless, and an empty tensor has none that matters.
    for (int d = 0; d < t.rank; ++d)
      if (t.shape[d] <= 0) return;
    int64_t expected_stride = 1;
    for (int d = t.rank - 1; d >= 0; --d) {
      if (t.shape[d] > 1 && t.strides[d] != expected_stride) {
        wrong("%s %s is not contiguous (row-major); make a contiguous copy first", name,
              shape_of(t).c_str());
        return;
      }
      expected_stride *= t.shape[d];
    }
    if (!t.data && !without_data_) without_data_ = name;
  }

  void values(const char *name, const fanin_tensor &t, bool optional = false) {
    if (status_ != FANIN_OK || (optional && t.rank < 0)) return;
    if (t.dtype != FANIN_FLOAT32 && t.dtype != FANIN_FLOAT64)
      wrong("%s must be float32 or float64, got %s", name, name_of(t.dtype));
    else if (!value_name_)
      value_type_ = t.dtype, value_name_ = name;
    else if (t.dtype != value_type_)
      wrong("%s is %s but %s is %s; use one type for both", name, name_of(t.dtype), value_name_,
            name_of(value_type_));
  }

  // One of some types, each with its name in the message.
  void type(const char *name, const fanin_tensor &t, std::initializer_list<int32_t> allowed,
            bool optional = false) {
    if (status_ != FANIN_OK || (optional && t.rank < 0)) return;
    std::string names;
    for (const int32_t dtype : allowed) {
      if (dtype == t.dtype) return;
      names += (names.empty() ? "" : " or ") + std::string(name_of(dtype));
    }
    wrong("%s must be %s, got %s", name, names.c_str(), name_of(t.dtype));
  }

  void indices(const fanin_tensor &t) {
    if (status_ == FANIN_OK && t.dtype != FANIN_UINT16 && t.dtype != FANIN_UINT32)
      wrong("indices must be uint16 or uint32, got %s; convert them once, uint16 where inputs <= "
            "65536", name_of(t.dtype));
  }

  void sizes(const Dimension &inputs, const Dimension &labels, const Dimension &fan_in) {
    if (status_ != FANIN_OK) return;
    for (const Dimension *d : {&inputs, &labels, &fan_in})
      if (d->size == 0)
        return (void)wrong("%s must be at least 1, but %s is 0 in %s", d->name, d->name,
                           d->said_by);
    if (inputs.size > 0 && fan_in.size > inputs.size)
      return (void)wrong("fan_in %" PRId64 " is larger than the %" PRId64 " inputs", fan_in.size,
                         inputs.size);
    if (inputs.size > INT32_MAX)
      return (void)wrong("inputs must be below 2^31, got %" PRId64, inputs.size);
  }

  void threads(int32_t wanted) {
    // Many more than cores are of no use, and the OpenMP runtime ends a process that cannot have them.
    constexpr int32_t most = 1024;
    if (status_ == FANIN_OK && (wanted < 0 || wanted > most))
      wrong("threads must be 0 (all) or 1 to %d, got %d", most, wanted);
  }

  // For a call that is going to be made.
  void known() {
    if (status_ == FANIN_OK && unknown_) wrong("a size is not known at the time of the call");
    if (status_ == FANIN_OK && without_data_) wrong("%s has elements but no data", without_data_);
  }

  __attribute__((format(printf, 2, 3))) void wrong(const char *format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    status_ = message_.say(FANIN_INVALID, "%s", text);
  }

  int32_t status() const { return status_; }

 private:
  Message message_;
  int32_t status_ = FANIN_OK;
  const fanin_tensor *first_ = nullptr;
  const char *first_name_ = nullptr;
  const char *value_name_ = nullptr;
  int32_t value_type_ = 0;
  const char *without_data_ = nullptr;
  bool unknown_ = false;
};

// Whether this process was forked from one that has used the library. OpenMP's threads are not there
// in such a child, and to wait for them would be for ever, so it works with one.
bool is_forked();

inline int threads_for(int32_t wanted, int64_t labels) {
#if defined(_OPENMP)
  int64_t threads = is_forked() ? 1 : wanted > 0 ? wanted : omp_get_max_threads();
#else
  int64_t threads = 1;
#endif
  const int64_t tiles = (labels + 31) / 32;
  return int(threads < tiles ? threads : tiles);
}

inline int32_t require_workspace(uint64_t has, const void *workspace, uint64_t needs, Message message) {
  if (needs && (!workspace || has < needs))
    return message.say(FANIN_INVALID, "workspace has %" PRIu64 " bytes but %" PRIu64 " are needed",
                       workspace ? has : uint64_t(0), needs);
  return FANIN_OK;
}

template <class Call, class = void>
constexpr bool has_indices = false;
template <class Call>
constexpr bool has_indices<Call, std::void_t<decltype(Call::wide_indices)>> = true;

// The op's calls may be float64, those of training are float32.
template <class Call>
auto wide_values(const Call &call) -> decltype(call.wide_values) {
  return call.wide_values;
}
inline bool wide_values(...) { return false; }

template <class Call>
int32_t report_index(const Finding &found, const Call &call, Message message) {
  if constexpr (has_indices<Call>) {
    if (found.kind == Finding::bad_index) {
      const uint32_t value = call.wide_indices
                                 ? static_cast<const uint32_t *>(call.indices)[found.at]
                                 : static_cast<const uint16_t *>(call.indices)[found.at];
      // Unstructured connections are flat.
      const std::string place =
          call.fan_in ? std::to_string(found.at / call.fan_in) + ", " +
                            std::to_string(found.at % call.fan_in)
                      : std::to_string(found.at);
      return message.say(FANIN_INVALID,
                         "indices[%s] is %" PRIu32 ", out of range for %" PRId64 " inputs",
                         place.c_str(), value, call.inputs);
    }
  }
  if (found.kind == Finding::bad_tile)
    return message.say(FANIN_INVALID,
                       "tile_labels from flat position %" PRId64 " on are not those of a tile of this "
                       "layer; sort the connections for the inputs that features has", found.at);
  return message.say(FANIN_INVALID,
                     "tile_labels at flat position %" PRId64 " names a label beyond its tile; sort the "
                     "connections again", found.at);
}

// What a launcher found that is not in the data.
inline int32_t report_device(const Finding &found, Message message) {
  if (found.kind == Finding::nothing) return FANIN_OK;
  if (found.kind == Finding::unavailable) return message.say(FANIN_UNAVAILABLE, "%s", found.text);
  return message.say(FANIN_DEVICE_ERROR, "CUDA: %s", found.text);
}

template <class Call>
int32_t report(const Finding &found, const Call &call, Message message) {
  const void *const features = call.features;
  switch (found.kind) {
    case Finding::bad_index:
    case Finding::bad_tile_label:
    case Finding::bad_tile:
      return report_index(found, call, message);
    case Finding::bad_feature: {
      const double value = wide_values(call) ? static_cast<const double *>(features)[found.at]
                                             : static_cast<const float *>(features)[found.at];
      return message.say(FANIN_INVALID,
                         "features[%" PRId64 ", %" PRId64 "] is %s; all features must be finite",
                         found.at / call.inputs, found.at % call.inputs,
                         value != value ? "NaN" : value > 0 ? "inf" : "-inf");
    }
    default:
      return report_device(found, message);
  }
}

inline void *workspace_of(const void *workspace) {
  return workspace ? aligned(const_cast<void *>(workspace)) : nullptr;
}

inline void *data_of(const fanin_tensor &t) { return t.rank < 0 ? nullptr : t.data; }

// The CPU code in use, chosen at the first call.
int32_t current(const CpuTarget **target, Message message);

}  // namespace fanin
