"""``python -m tests.chaos --minutes 60 [--seed 7]``: starts a Hadoop of its own, hurts it, and ends it.

Exit code 0: the output was exact and nothing was left over. A failure names the seed.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

from tests.chaos.story import SHAPE, run_chaos
from tests.hadoop.conftest import running_cluster


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 31))
    arguments = parser.parse_args()
    if arguments.minutes <= 0:
        parser.error(f"--minutes is {arguments.minutes:g}; expected more than 0")
    print(f"seed {arguments.seed}", flush=True)

    def say(line: str) -> None:
        print(line, flush=True)

    with tempfile.TemporaryDirectory(prefix="chaos-") as folder, running_cluster(*SHAPE) as hadoop:
        try:
            num_faults = run_chaos(hadoop, Path(folder), seconds=arguments.minutes * 60, seed=arguments.seed, say=say)
        except AssertionError as error:
            print(f"failed with seed {arguments.seed}: {error}", file=sys.stderr)
            return 1
    print(f"{num_faults} faults, output exact, nothing left", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
