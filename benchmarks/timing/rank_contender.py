"""One process of `ranks`: a rank, or one that has all labels.

`ranks` starts it as a child process and sends it a `RankContender`; the answer is the machine, as
this process sees it. Then it sends numbers of steps, and each answer is the seconds of so many
steps and the CPU time that they took, of all threads.
"""

from __future__ import annotations

import sys
import time

from fanin.backends.kinds import FixedFanIn
from fanin.backends.setup import LayerSetup
from fanin.benchmarks.measuring.machine import describe_machine
from fanin.benchmarks.measuring.process import Parent
from fanin.benchmarks.records.timing import RankContender
from fanin.benchmarks.timing.contender import batches


def main(parent: Parent, folder: str) -> None:
    """Make the layer, and train it as often as is asked. folder: where ranks find one another."""
    import torch
    import torch.distributed as dist

    from fanin.backends.torch.device import TorchDevice
    from fanin.backends.torch.sharded import ShardedFanIn

    contender = RankContender.model_validate(parent.receive())
    device = TorchDevice("cpu", contender.threads)
    if contender.ranks > 1:
        address = f"file://{folder}/ranks"
        dist.init_process_group("gloo", address, rank=contender.rank, world_size=contender.ranks)
    setup = LayerSetup(contender.inputs, contender.labels, FixedFanIn(contender.fan_in))
    layer = ShardedFanIn(setup.inputs, setup.labels, setup.output)
    stream = list(batches(setup, contender.batch, 4))
    parent.send(describe_machine(device, contender.threads).model_dump(mode="json"))
    while True:  # the end of the parent is the end of this process
        count = parent.receive()
        spent, start = time.process_time(), time.perf_counter()
        for step in range(count):
            batch = stream[step % len(stream)]
            features = torch.from_numpy(batch.features).requires_grad_()
            loss = layer.training_step(features, batch.positive_instances, batch.positive_labels)
            loss.backward()
        parent.send([time.perf_counter() - start, time.process_time() - spent])


if __name__ == "__main__":
    main(Parent(int(sys.argv[2])), sys.argv[1])
