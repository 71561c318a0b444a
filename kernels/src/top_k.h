// The k best labels of each instance, kept while scores pass by and are forgotten. For CPUs.
#pragma once

#include "lanes.h"

namespace fanin {
namespace FANIN_TARGET {

// The best so far of the 32 instances of one group, best first; scores[lane][k], ids[lane][k].
// Labels have to come in ascending order: of equal scores the earlier one stays.
struct Best {
  int64_t k;
  int64_t *ids;
  float *scores;
  float *thresholds;  // [32]: a score above its lane's gets in
  int64_t count;      // labels seen, at most k

  // memory: as call.h lays it out, aligned to a cache line. seen: labels offered before.
  FANIN_FN Best(char *memory, int64_t wanted, int64_t seen = 0)
      : k(wanted),
        ids(reinterpret_cast<int64_t *>(memory)),
        scores(reinterpret_cast<float *>(ids + kLanes * k)),
        thresholds(scores + kLanes * k),
        count(seen) {}

  FANIN_FN void clear() { store(thresholds, broadcast(-__builtin_inff())); }

  FANIN_FN void offer(int64_t label, const Lanes<float> &values, int lanes) {
    if (count == k) {
      // Most labels are below all thresholds. NaN is not above anything.
      const Lanes<float> above = map([](auto s, auto t) FANIN_INLINE {
        return s > t ? decltype(s){} + 1.0f : decltype(s){}; }, values, load(thresholds));
      if (!any(above)) return;
    }
    float row[kLanes];
    store(row, values);
    for (int lane = 0; lane < lanes; ++lane) {
      // A NaN ranks last; whoever trains hears of it by the loss.
      const float value = row[lane] == row[lane] ? row[lane] : -__builtin_inff();
      if (count == k && !(value > thresholds[lane])) continue;
      float *const s = scores + lane * k;
      int64_t *const i = ids + lane * k;
      int64_t at = count < k ? count : k - 1;
      for (; at > 0 && s[at - 1] < value; --at) {
        s[at] = s[at - 1];
        i[at] = i[at - 1];
      }
      s[at] = value;
      i[at] = label;
      if (count >= k - 1) thresholds[lane] = s[k - 1];
    }
    if (count < k) ++count;
  }
};

}  // namespace FANIN_TARGET
}  // namespace fanin
