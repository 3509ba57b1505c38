"""What the benchmarks of the big models share: a process of its own for every measurement, and how time is taken."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.report import Row, table

Measure = Callable[[Path, str, int], "dict[str, float]"]
"""The checkpoint's folder, a precision, a number of threads → figures by name."""


def main(suite: str, description: str | None, measure: Measure, rows: Callable[[], list[Row]]) -> None:
    """The command line of a suite: its table, or in a process of its own what one run measured, as JSON."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{suite}", description=description)
    parser.add_argument("--measure", nargs=2, metavar=("PRECISION", "THREADS"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.folder, options.measure[0], int(options.measure[1]))))
    else:
        print(table(rows()))


def in_own_process(suite: str, folder: Path, precision: str, threads: int) -> dict[str, float]:
    """What a suite measures in a fresh process with so many threads."""
    command = [sys.executable, "-m", f"benchmarks.{suite}", "--folder", str(folder)]
    command += ["--measure", precision, str(threads)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def median_ms(action: Callable[[], Any], clock: Callable[[], float], rounds: int) -> float:
    """Milliseconds of `action`, after a first time that does not count."""
    action()
    return statistics.median(elapsed(action, clock) for _ in range(rounds))


def elapsed(action: Callable[[], Any], clock: Callable[[], float]) -> float:
    """Milliseconds."""
    start = clock()
    action()
    return (clock() - start) * 1000
