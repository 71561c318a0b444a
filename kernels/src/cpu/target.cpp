// The table of this instruction set's launchers.
#include "core/launchers.h"

namespace fanin {
namespace FANIN_TARGET {

Finding forward(const ForwardCall &);
Finding backward(const BackwardCall &);
Finding step(const StepCall &);
Finding sorted_step(const StepCall &);
Finding grouped_step(const StepCall &);
Finding dense_step(const StepCall &);
Finding dense_forward(const DenseForwardCall &);
Finding dense_update(const DenseUpdateCall &);
Finding sparse_forward(const SparseForwardCall &);
Finding sparse_update(const SparseUpdateCall &);
Finding top_k(const TopKCall &);
Finding words_step(const WordsStepCall &);
Finding words_top_k(const WordsTopKCall &);
Finding label_sums(const LabelSumsCall &);
Finding choose_sources(const ChooseCall &);
Finding replace_sources(const ReplaceCall &);

#define FANIN_STRING(x) #x
#define FANIN_NAME(x) FANIN_STRING(x)

extern const CpuTarget target = {FANIN_NAME(FANIN_TARGET),
                                 forward,
                                 backward,
                                 step,
                                 sorted_step,
                                 grouped_step,
                                 dense_step,
                                 dense_forward,
                                 dense_update,
                                 sparse_forward,
                                 sparse_update,
                                 top_k,
                                 words_step,
                                 words_top_k,
                                 label_sums,
                                 choose_sources,
                                 replace_sources};

}  // namespace FANIN_TARGET
}  // namespace fanin
