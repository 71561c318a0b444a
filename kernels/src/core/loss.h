// The losses of one label in all lanes, and their gradients by its scores.
//
// To add one: its number in fanin.h, a function here, a case in loss_gradient, and the words that
// kernels/README.md lists.
#pragma once

#include "core/lanes.h"

namespace fanin {
namespace FANIN_TARGET {

// In the functions below, positives has a bit for each lane in which the label is true. scale is 1
// / (batch * labels that the loss is a mean over), and 0 for lanes beyond the batch. The loss is
// added to `loss`; the gradient is returned.

// max(0, 1 - y s)^2 with y = +1 for positives, else -1.
FANIN_FN Lanes<float> squared_hinge(const Lanes<float> &scores, uint32_t positives,
                                    const Lanes<float> &scale, Lanes<float> &loss) {
  // Written so that a NaN stays one.
  const auto margin = [](auto x) FANIN_INLINE { return x < decltype(x){} ? decltype(x){} : x; };
  const Lanes<float> y = positives ? from_mask(positives, 1.0f, -1.0f) : broadcast(-1.0f);
  const Lanes<float> part =
      map([&](auto s, auto sign, auto c) FANIN_INLINE { return c * margin(1.0f - sign * s); },
          scores, y, scale);
  loss = map([&](auto sum, auto s, auto sign, auto p)
                 FANIN_INLINE { return sum + p * margin(1.0f - sign * s); },
             loss, scores, y, part);
  return map([](auto sign, auto p) FANIN_INLINE { return -2.0f * sign * p; }, y, part);
}

// log(1 + exp(s)) - t s with t = 1 for positives, else 0. log(1 + e) = 2 atanh(e / (2 + e)).
FANIN_OUTLINED Lanes<float> cross_entropy(const Lanes<float> &scores, uint32_t positives,
                                          const Lanes<float> &scale, Lanes<float> &loss) {
  const Lanes<float> target = from_mask(positives, 1.0f, 0.0f);
  const Lanes<float> e =
      map([](auto s) FANIN_INLINE { return exponential(s < decltype(s){} ? s : -s); }, scores);
  loss = map(
      [](auto sum, auto s, auto x, auto t, auto c) FANIN_INLINE {
        const auto z = x / (2.0f + x), q = z * z;
        const auto series =
            1.0f +
            q * (1.0f / 3 +
                 q * (1.0f / 5 +
                      q * (1.0f / 7 +
                           q * (1.0f / 9 + q * (1.0f / 11 + q * (1.0f / 13 + q * (1.0f / 15)))))));
        const auto log1p = 2.0f * z * series;
        return sum + c * ((s < decltype(s){} ? decltype(s){} : s) - t * s + log1p);
      },
      loss, scores, e, target, scale);
  // The gradient is sigmoid(s), and for positives -sigmoid(-s), which is sigmoid(s) - 1 with all of
  // its digits.
  return map(
      [](auto s, auto x, auto t, auto c) FANIN_INLINE {
        const auto sign = 1.0f - 2.0f * t, logit = sign * s;
        return c * sign * (logit < decltype(s){} ? x : 0.0f * x + 1.0f) / (1.0f + x);
      },
      scores, e, target, scale);
}

FANIN_FN Lanes<float> loss_gradient(fanin_loss kind, const Lanes<float> &scores, uint32_t positives,
                                    const Lanes<float> &scale, Lanes<float> &loss) {
  switch (kind) {
    case FANIN_SQUARED_HINGE:
      return squared_hinge(scores, positives, scale, loss);
    default:
      return cross_entropy(scores, positives, scale, loss);
  }
}

}  // namespace FANIN_TARGET
}  // namespace fanin
