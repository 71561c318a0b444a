// All op files as one to compile: TensorFlow's headers take the compiler longer than the ops.
//
// build.py compiles it against the installed TensorFlow. The fanin_* symbols are not linked, since
// libfanin is in the process already. The GPU kernels need no CUDA headers.
#include "connections.cc"
#include "dense.cc"
#include "linear.cc"
#include "sparse.cc"
#include "step.cc"
#include "top_k.cc"
