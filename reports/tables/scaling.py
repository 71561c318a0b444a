"""What a step takes with the labels of a layer on several ranks: computed from measured kernels and
a stated network; and what was measured of it, beside what is computed.

Every rank has all features of a batch and a range of the labels. It computes its own labels' step,
and then the ranks add up their gradients of the features: the only large thing that is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from fanin.benchmarks.records.timing import FloorStep, FloorTimes, RankTimes
from fanin.reports.format import GAP, milliseconds_with_quartiles, number, percent
from fanin.reports.table import Table, text_table

RANKS = (1, 2, 4, 8, 16, 32, 64)
# Labels of Amazon-3M, of the 8.6 million of LF-Paper2Keywords-8.6M, and a round number beyond.
LABELS = (2_812_281, 8_623_847, 100_000_000)
_FLOAT32 = 4
# Of 1,538 bytes on an Ethernet, 1,448 are what TCP carries: a frame has its preamble, header,
# checksum and gap (38 bytes), and within the usual 1,500 the headers of IP and TCP with its time
# stamps (52; RFC 894, RFC 7323).
_CARRIED = 1448 / 1538


@dataclass(frozen=True)
class Network:
    """What each rank can send while it receives as much, and what a message costs besides."""

    bits_per_second: float
    message_seconds: float = 20e-6

    @property
    def name(self) -> str:
        return f"{self.bits_per_second / 1e9:g} Gbit/s"


NETWORKS = tuple(Network(gigabits * 1e9) for gigabits in (10, 100, 400))


def reduced_bytes(batch: int, inputs: int, ranks: int) -> float:
    """Bytes that each rank sends, and gets, while the gradients of the features, float32 [batch,
    inputs], are added up in a ring: twice all but one of as many parts as there are ranks
    (Patarasuk & Yuan, J. Parallel Distrib. Comput. 69, 2009)."""
    return 2 * (ranks - 1) / ranks * batch * inputs * _FLOAT32


def communication_seconds(batch: int, inputs: int, ranks: int, network: Network) -> float:
    """Of the ring: its bytes as TCP sends them, and its 2 (ranks - 1) messages one after the
    other, after (ranks - 1) small ones in which the ranks compare their batches."""
    sent = 8 * reduced_bytes(batch, inputs, ranks) / (_CARRIED * network.bits_per_second)
    return sent + 3 * (ranks - 1) * network.message_seconds


def kernel_seconds(times: FloorTimes, step: FloorStep, labels: int, ranks: int) -> float:
    """Of the fused step of a rank's labels, which takes as long for each label as it was measured.
    A rank has the threads of that measurement."""
    return median(step.seconds) * labels / (times.labels * ranks)


def usual_steps(times: FloorTimes) -> list[FloorStep]:
    """The layer of the paper, and the one that needs fewest bytes: of each number of inputs."""
    wanted = {("float32", "adam", 0), ("bfloat16", "sgd", 32)}
    return [step for step in times.steps if (step.dtype, step.optimizer, step.group_size) in wanted]


def scaling_introduction(times: FloorTimes) -> str:
    machine, message = times.machine, 1e6 * NETWORKS[0].message_seconds
    return (
        f"Computed, not measured: milliseconds of a step with kernels as measured on "
        f"{machine.processor},\n{machine.threads} threads a rank, fan-in {times.fan_in}, batch "
        f"{times.batch}, random (synthetic) data; {message:g} µs a message. In parentheses: the\n"
        "share that is communication."
    )


def scaling_table(times: FloorTimes) -> Table:
    """Milliseconds of a step by labels, layer, network and ranks."""

    def cell(labels: int, step: FloorStep, network: Network, ranks: int) -> str:
        kernels = kernel_seconds(times, step, labels, ranks)
        sent = communication_seconds(times.batch, step.inputs, ranks, network)
        share = f" ({percent(sent / (kernels + sent))})" if ranks > 1 else ""
        return f"{_milliseconds(kernels + sent)}{share}"

    rows = [
        (
            f"{labels:,}",
            f"{step.inputs:,}",
            *_layer(step),
            network.name,
            *(cell(labels, step, network, ranks) for ranks in RANKS),
        )
        for labels in LABELS
        for step in usual_steps(times)
        for network in NETWORKS
    ]
    heads = (f"{ranks} rank{'s' * (ranks > 1)}" for ranks in RANKS)
    return text_table(
        ("labels", "inputs", "weights", "optimizer", "group", "network", *heads), rows
    )


def limits_table(times: FloorTimes) -> Table:
    """Bytes that a rank sends in a step, and from how many ranks on communication takes longer than
    the kernels."""

    def limit(labels: int, step: FloorStep, network: Network) -> str:
        ranks = 2
        while ranks <= labels:
            sent = communication_seconds(times.batch, step.inputs, ranks, network)
            if sent > kernel_seconds(times, step, labels, ranks):
                return f"{ranks:,}"
            ranks += 1
        return GAP

    rows = [
        (
            f"{step.inputs:,}",
            *_layer(step),
            network.name,
            number(reduced_bytes(times.batch, step.inputs, 2) / 2**20, 2),
            number(2 * reduced_bytes(times.batch, step.inputs, 2) / 2**20, 2),
            *(limit(labels, step, network) for labels in LABELS),
        )
        for step in usual_steps(times)
        for network in NETWORKS
    ]
    heads = (
        "inputs",
        "weights",
        "optimizer",
        "group",
        "network",
        "MiB sent, 2 ranks",
        "many ranks",
    )
    return text_table((*heads, *(f"{labels:,} labels" for labels in LABELS)), rows)


def links_introduction(results: Sequence[RankTimes]) -> str:
    """What the figures of the links were made on and what they mean."""
    machine, first = results[0].machine, results[0]
    return (
        f"Random (synthetic) data, {machine.processor}, {machine.cores} cores, {machine.kernels}, "
        f"{first.labels:,} labels,\nfan-in {first.fan_in}, batch {first.batch}: medians of "
        f"{len(first.seconds['one'])} rounds (with the quartiles), in which one process and the "
        "ranks took turns.\nComputed: the communication, and what one process takes with as many "
        "threads; or what ranks within\nthe machine take, which share its memory and caches, too."
    )


def links_table(results: Sequence[RankTimes]) -> Table:
    """A line for each measured link, with what is computed for it."""

    def row(times: RankTimes) -> tuple[str, ...]:
        assert times.bits_per_second is not None
        network = Network(times.bits_per_second)
        sent = communication_seconds(times.batch, times.inputs, times.ranks, network)
        linked = median(times.seconds["several"])
        within = times.seconds.get("within")
        computed = median(times.seconds["one"]) + sent
        return (
            network.name,
            str(times.ranks),
            f"{times.inputs:,}",
            milliseconds_with_quartiles(times.seconds["one"], 1),
            milliseconds_with_quartiles(within, 1) if within else GAP,
            milliseconds_with_quartiles(times.seconds["several"], 1),
            _milliseconds(sent),
            _milliseconds(computed),
            number(linked / computed, 2),
            number(linked / (median(within) + sent), 2) if within else GAP,
        )

    heads = (
        *("link", "ranks", "inputs", "one process, ms", "ranks within, ms", "ranks, ms"),
        *("communication, ms", "computed, ms", "measured / computed", "of ranks within"),
    )
    return text_table(heads, map(row, (times for times in results if times.bits_per_second)))


def _layer(step: FloorStep) -> tuple[str, str, str]:
    return step.dtype, step.optimizer, str(step.group_size or "none")


def _milliseconds(seconds: float) -> str:
    """With three digits, or whole ones."""
    value = 1e3 * seconds
    return number(value, 0 if value >= 100 else 1 if value >= 10 else 2)
