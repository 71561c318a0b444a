"""How a torch layer holds the sources of its connections, and how it notices their averaging.

The kernels read uint16 or uint32, which much of torch does not know: gloo and NCCL cannot send them
(nor int16), plain pickle cannot read them again. So the buffer holds the same memory as bytes.

A source is a name: the mean of two sources is another input. Tools that average all buffers of a
model do not know that. So a stamp goes with the connections: two numbers that no average of stamps
has.
"""

from __future__ import annotations

import secrets

import numpy as np
import torch
from torch import Tensor

from fanin.backends import checks
from fanin.backends.kinds import index_dtype


def index_type(inputs: int) -> torch.dtype:
    """uint16 where it can name all inputs, else uint32."""
    dtype: torch.dtype = getattr(torch, index_dtype(inputs).__name__)
    return dtype


def as_bytes(indices: Tensor) -> Tensor:
    """Indices [labels, fan_in] as a buffer holds them: uint8 [labels, bytes], the same memory."""
    return indices.view(torch.uint8)


def read(buffer: Tensor, fan_in: int) -> Tensor:
    """A buffer as the kernels read it, uint16 or uint32 [labels, fan_in]; the same memory."""
    return buffer.view(torch.uint16 if buffer.shape[-1] == 2 * fan_in else torch.uint32)


def loaded(given: Tensor, shape: tuple[int, int], inputs: int) -> Tensor:
    """Indices that come from elsewhere as a buffer holds them; shape: [labels, fan_in]. They are
    those of a buffer, of whichever index type, or integers of any type. ValueError for others."""
    values = np.asarray(given.detach().cpu().numpy(), order="C")
    if values.dtype == np.uint8 and values.ndim == 2:
        by_width = {2 * shape[1]: np.uint16, 4 * shape[1]: np.uint32}
        values = values.view(by_width.get(values.shape[1], np.uint8))
    sources = checks.connections(values, shape, inputs).astype(index_dtype(inputs))
    return as_bytes(torch.from_numpy(sources)).to(given.device)


def new_stamp() -> Tensor:
    """A number and its square modulo 2^63, int64 [2]. The mean of two such pairs is no such
    pair. Nor is an average of equal pairs in floating point: their last digits are rounded off."""
    number = secrets.randbits(62) | 1
    return torch.tensor([number, number**2 % 2**63], device="cpu")


def is_readable(pair: Tensor) -> bool:
    """Whether its numbers can be read now, and torch counts how often they are written."""
    is_traced = torch._C._functorch.is_functorch_wrapped_tensor(pair)
    return not (is_traced or pair.is_meta or pair.is_inference())


def is_stamp(pair: Tensor) -> bool:
    """Whether nobody has averaged it."""
    number, square = pair.tolist()
    return bool(number**2 % 2**63 == square)
