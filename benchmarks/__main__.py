"""Run every benchmark, print the table, write it into README: `python -m benchmarks` (or `make bench`).

`--only page,compact,live,mini_omni,minicpm_o` runs some of them, and then leaves README alone.
"""

from __future__ import annotations

import argparse
import os
from importlib import import_module

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as app.py does

from benchmarks.report import table, write_to_readme

SUITES = ("page", "compact", "live", "mini_omni", "minicpm_o")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", default=",".join(SUITES), help="suites, separated by commas")
    chosen = parser.parse_args().only.split(",")
    rows = []
    for suite in chosen:
        print(f"Running {suite} …", flush=True)
        rows += import_module(f"benchmarks.{suite}").rows()
    text = table(rows)
    print(text)
    if set(chosen) == set(SUITES):
        write_to_readme(text)


if __name__ == "__main__":
    main()
