"""`python -m tests.parity MODEL DIR`: run a folder of golden data and compare. Exit status 0 if all is equal."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from models import torchaudio_switch  # noqa: F401  (before anything that may import torchaudio)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument("model", choices=("mini_omni", "minicpm_o"))
    parser.add_argument("folder", type=Path, help="golden data: one variant's folder, or one that holds several")
    options = parser.parse_args()
    failed = ran = left = 0
    for case in importlib.import_module(f"tests.parity.{options.model}").run(options.folder):
        print(case, flush=True)
        ran, failed, left = ran + case.ran, failed + bool(case.wrong), left + (not case.ran)
    print(f"{ran - failed} of {ran} cases equal" + (f", {left} not run" if left else ""))
    return 0 if ran and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
