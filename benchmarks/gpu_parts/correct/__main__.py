"""The process of part `correct`: `python -m fanin.benchmarks.gpu_parts.correct`."""

from __future__ import annotations

import sys

from fanin.benchmarks.gpu_parts import part
from fanin.benchmarks.gpu_parts.correct.cases import cases, failed, jobs


def main() -> int:
    options = part.read_options()
    print(f"seed {options.seed}", flush=True)
    chosen = jobs(options.torch_device, options.seed, cases(options.dry_run))
    return part.conduct("correct", options, chosen, failed)


if __name__ == "__main__":
    sys.exit(main())
