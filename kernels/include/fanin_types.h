/* What all calls of fanin's C interface share: the version, status codes, data types, tensors and
 * the resources of a call. The rules of the interface stand in fanin.h, which includes this. */
#ifndef FANIN_TYPES_H
#define FANIN_TYPES_H

#include <stddef.h>
#include <stdint.h>

/* This is raised whenever a struct or a meaning below changes. Both loaders compare it. */
#define FANIN_ABI_VERSION 13

typedef enum {
  FANIN_OK = 0,
  FANIN_INVALID = 1,     /* an argument is wrong; the message names it */
  FANIN_UNAVAILABLE = 2, /* not built in, or the machine lacks what was asked for */
  FANIN_DEVICE_ERROR = 3 /* the GPU runtime reported an error */
} fanin_status;

/* Data types that callers may hand over. Most are only here so that a message can name them. */
typedef enum {
  FANIN_OTHER = 0,
  FANIN_FLOAT32,
  FANIN_FLOAT64,
  FANIN_UINT16,
  FANIN_UINT32,
  FANIN_FLOAT16,
  FANIN_BFLOAT16,
  FANIN_UINT8,
  FANIN_UINT64,
  FANIN_INT8,
  FANIN_INT16,
  FANIN_INT32,
  FANIN_INT64,
  FANIN_BOOL
} fanin_dtype;

typedef enum { FANIN_DEVICE_OTHER = 0, FANIN_CPU = 1, FANIN_CUDA = 2 } fanin_device;

#define FANIN_MAX_RANK 4

/* A tensor as a framework holds it. Strides count elements. An absent tensor has rank -1. A size
 * that is not known yet (while tracing) is -1; then only fanin_linear_forward_check may be called.
 */
typedef struct {
  void *data;
  int32_t dtype;  /* fanin_dtype */
  int32_t device; /* fanin_device */
  int32_t rank;
  int32_t device_index;
  int64_t shape[FANIN_MAX_RANK];
  int64_t strides[FANIN_MAX_RANK];
} fanin_tensor;

/* What a call may use of the machine. Every parameter struct ends with it. */
typedef struct {
  void *workspace;          /* scratch memory on the device of the tensors */
  uint64_t workspace_bytes; /* its size, at least what fanin_*_workspace tells */
  void *stream;             /* cudaStream_t; a CPU ignores it */
  /* How many CPU threads to use, at most 1024; 0 stands for all that OpenMP offers. In a process
   * that was forked after the library was used, OpenMP's threads are gone, and one works alone. */
  int32_t threads;
} fanin_resources;

#endif
