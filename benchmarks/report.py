"""Rows of figures with their targets, as a Markdown table, and its place in README."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"
START, END = "<!-- bench:start -->", "<!-- bench:end -->"


@dataclass(frozen=True)
class Row:
    """One figure. `target` is the most it may be, None where none was set; `note` says how it was taken, or why not."""

    what: str
    value: float | None
    target: float | None
    unit: str
    note: str = ""

    def cells(self) -> str:
        bound = "–" if self.target is None else f"≤ {self.target:g} {self.unit}"
        if self.value is None:
            return f"| {self.what} | not measured | {bound} | {self.note} |"
        over = None if self.target is None else self.value - self.target
        kept = "" if over is None else "kept. " if over <= 0 else f"missed by {over:.2g} {self.unit}. "
        return f"| {self.what} | {self.value:.3g} {self.unit} | {bound} | {kept}{self.note} |"


def machine() -> str:
    """The processor and its cores, as the table's caption."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        name = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores, no GPU"


def table(rows: list[Row]) -> str:
    """The Markdown table of `rows`."""
    head = [f"Measured on {machine()} (`make bench`).", "", "| what | measured | target | |", "|---|---|---|---|"]
    return "\n".join([*head, *(row.cells() for row in rows)])


def write_to_readme(text: str) -> None:
    """Put `text` between README's marks."""
    readme = README.read_text(encoding="utf-8")
    before, _, rest = readme.partition(START)
    _, _, after = rest.partition(END)
    README.write_text(f"{before}{START}\n{text}\n{END}{after}", encoding="utf-8")
