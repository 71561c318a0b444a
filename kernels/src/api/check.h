// How arguments are checked and errors worded: one place for all files of the C interface, so that
// every binding raises the same text.
#pragma once

#include <cinttypes>
#include <initializer_list>
#include <string>
#include <vector>

#include "core/call.h"
#include "fanin.h"

namespace fanin {

// Where a call's message goes.
struct Message {
  char *text;
  size_t bytes;
  // Writes the message and returns the status.
  __attribute__((format(printf, 3, 4))) int32_t say(fanin_status status, const char *format,
                                                    ...) const;
};

const char *name_of(int32_t dtype);

// A size that tensors share. The first tensor that has it gives the size and its name.
struct Dimension {
  const char *name;
  int64_t size = -1;
  std::string given_by = "";
};
typedef std::initializer_list<Dimension *> Dimensions;

inline constexpr auto kStored = {int32_t(FANIN_FLOAT32), int32_t(FANIN_BFLOAT16)};

// Whether a tensor may be absent.
enum class Presence { required, optional };
constexpr Presence kOptional = Presence::optional;

// Which moments an optimiser keeps for each value.
struct Moments {
  bool m, v;

  explicit Moments(const fanin_optimizer &optimizer)
      : m(optimizer.kind != FANIN_SGD), v(m && optimizer.kind != FANIN_MOMENTUM) {}
  // Those that stand beside the array: of calls that only move values.
  explicit Moments(const fanin_trained &trained) : m(trained.m.rank >= 0), v(trained.v.rank >= 0) {}
};

// Collects the first thing that is wrong with the arguments of a call. Once something is wrong, the
// functions do nothing.
class Check {
 public:
  explicit Check(Message message) : message_(message) {}

  // A tensor that is read: its shape, layout and device. The first tensor decides on the device of
  // all.
  void tensor(const std::string &name, const fanin_tensor &t, Dimensions dims,
              Presence presence = Presence::required);
  // The same for one that is written, or updated.
  void written(const std::string &name, const fanin_tensor &t, Dimensions dims,
               Presence presence = Presence::required);
  // The types of the op's values: float32 or float64, the same for all.
  void values(const std::string &name, const fanin_tensor &t,
              Presence presence = Presence::required);
  // One of some types.
  void type(const std::string &name, const fanin_tensor &t, std::initializer_list<int32_t> allowed,
            Presence presence = Presence::required);
  void indices(const fanin_tensor &t);
  // Weights that are stored as float32 or bfloat16; or, where rows are allowed, with the dimensions
  // labels and fan_in, in float8.
  void stored(const std::string &name, const fanin_tensor &t, Dimensions dims, bool allows_rows,
              bool is_written);
  // An array with its moments, all updated; a bias may be absent.
  void trained(const std::string &name, const fanin_trained &t, Dimensions dims,
               const Moments &moments, bool is_bias = false, bool allows_rows = false);
  // The same for a matrix where Adam's moments may be one number for each row: then m is absent and
  // v is [rows] float32.
  void trained_rows(const std::string &name, const fanin_trained &t, Dimension &rows,
                    Dimension &columns, const Moments &moments);
  void optimizer(const fanin_optimizer &optimizer);
  void rate(const char *name, double rate);
  void loss_kind(int32_t kind);
  // Indices and weights of labels that have rows of their own, or, with a group_size, share them.
  void sources(const fanin_tensor &indices, const fanin_tensor &weights, int64_t group_size,
               Dimension &labels, Dimension &fan_in);
  void sizes(const Dimension &inputs, const Dimension &labels, const Dimension &fan_in);
  // How many labels are asked for.
  void k(const Dimension &k, const Dimension &labels);
  void threads(int32_t wanted);
  // For a call that is going to be made: all sizes have to be known and all data there, and what is
  // written shares memory with nothing else.
  void ready(const fanin_resources &resources);

  // Connections of any kind. `weights(dims, allows_rows)` checks the weights, of the shape that
  // fits them; they may be rows in float8 where labels have a fixed fan-in. fan_in is set to 0 for
  // unstructured connections.
  template <class CheckWeights>
  void connections(const fanin_connections &c, Dimension &inputs, Dimension &labels,
                   Dimension &fan_in, const CheckWeights &weights) {
    if (c.indices.rank < 0) {
      dense(c, inputs, fan_in);
      weights(Dimensions{&labels, &inputs}, false);
    } else if (c.starts.rank >= 0) {
      Dimension count{"connections"};
      unstructured(c, labels, count);
      weights(Dimensions{&count}, false);
    } else if (c.group_size) {
      Dimension label_groups{"label groups"};
      tensor("indices", c.indices, {&label_groups, &fan_in});
      indices(c.indices);
      weights(Dimensions{&labels, &fan_in}, true);
      if (good() && c.tile_labels.rank >= 0) wrong("connections are either grouped or sorted");
      grouped(c.indices, c.group_size, label_groups, labels);
    } else {
      fixed_fan_in(c, labels, fan_in);
      weights(Dimensions{&labels, &fan_in}, c.tile_labels.rank < 0);
    }
    sizes(inputs, labels, fan_in);
    if (c.starts.rank >= 0) fan_in.size = 0;
  }

  bool good() const { return status_ == FANIN_OK; }
  int32_t status() const { return status_; }
  __attribute__((format(printf, 2, 3))) void wrong(const char *format, ...);

 private:
  void moment(const std::string &name, const fanin_tensor &t, Dimensions dims, bool is_kept);
  void dense(const fanin_connections &c, const Dimension &inputs, Dimension &fan_in);
  void unstructured(const fanin_connections &c, Dimension &labels, Dimension &count);
  void fixed_fan_in(const fanin_connections &c, Dimension &labels, Dimension &fan_in);
  void grouped(const fanin_tensor &indices, int64_t group_size, const Dimension &label_groups,
               const Dimension &labels);

  // The memory of an argument.
  struct Argument {
    std::string name;
    uintptr_t begin;
    uint64_t bytes, alignment;
    bool written;

    bool shares_memory_with(const Argument &other) const {
      return begin < other.begin ? other.begin - begin < bytes : begin - other.begin < other.bytes;
    }
  };

  Message message_;
  int32_t status_ = FANIN_OK;
  // Names are kept as strings, since those of moments are put together while they are checked.
  const fanin_tensor *first_ = nullptr;  // and its name: it decides on the device
  std::string first_name_;
  std::string value_name_;  // the first of the op's values, and its type
  int32_t value_type_ = 0;
  std::vector<Argument> arguments_;  // those that have elements
  bool unknown_ = false;
};

inline void *data_of(const fanin_tensor &t) { return t.rank < 0 ? nullptr : t.data; }
template <class T>
T *data_as(const fanin_tensor &t) {
  return static_cast<T *>(data_of(t));
}
inline bool is_bf16(const fanin_tensor &t) { return t.dtype == FANIN_BFLOAT16; }
// Of weights: uint8 is for rows in float8 alone.
inline bool is_float8(const fanin_tensor &t) { return t.dtype == FANIN_UINT8; }

}  // namespace fanin
