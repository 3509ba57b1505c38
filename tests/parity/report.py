"""What a parity run found: a line per case, and whether all of it is within bounds."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass
class Case:
    """One golden case. `equal` of `total` tokens; `largest` difference of each tensor; `lsb` of each 16-bit wave.

    `facts` counts plain values that were compared; `notes` say what was recorded and deliberately not run.
    """

    name: str
    equal: int = 0
    total: int = 0
    largest: dict[str, float] = field(default_factory=dict)
    lsb: dict[str, int] = field(default_factory=dict)
    facts: int = 0
    notes: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def tokens(self, name: str, ours: list[int], golden: list[int]) -> None:
        """Compare ids; a missing or surplus one counts as unequal."""
        same = sum(a == b for a, b in zip(ours, golden, strict=False))
        self.equal, self.total = self.equal + same, self.total + max(len(ours), len(golden))
        if same < max(len(ours), len(golden)):
            first = next((i for i, (a, b) in enumerate(zip(ours, golden, strict=False)) if a != b), len(ours))
            self.wrong.append(f"{name}: differs from token {first} on ({len(ours)} and {len(golden)} tokens)")

    def floats(self, name: str, ours, golden, most: float) -> None:
        """Compare float tensors."""
        self._compare(self.largest, name, ours, golden, most)

    def pcm(self, name: str, ours, golden, most: int) -> None:
        """Compare int16 waves."""
        self._compare(self.lsb, name, np.asarray(ours, np.int32), np.asarray(golden, np.int32), most)

    def fact(self, name: str, ours: Any, golden: Any) -> None:
        """Compare a plain value: a text, a count, bounds."""
        self.facts += 1
        if ours != golden:
            self.wrong.append(f"{name}: {str(ours)[:300]!r}, golden {str(golden)[:300]!r}")

    def _compare(self, found: dict, name: str, ours, golden, most) -> None:
        ours, golden = np.asarray(ours), np.asarray(golden)
        if ours.shape != golden.shape:
            self.wrong.append(f"{name}: shape {ours.shape}, golden {golden.shape}")
            return
        largest = np.abs(ours - golden).max().item() if ours.size else 0
        found[name] = max(largest, found.get(name, 0))
        if not largest <= most:  # so that NaN is wrong
            self.wrong.append(f"{name}: differs by {largest:g}, at most {most:g}")

    @property
    def ran(self) -> bool:
        """Whether anything was compared: a case that was not run is neither equal nor wrong."""
        return bool(self.total or self.largest or self.lsb or self.facts or self.wrong)

    def __str__(self) -> str:
        parts = [f"tokens {self.equal}/{self.total}"] if self.total else []
        parts += [f"{name} {value:.1e}" for name, value in self.largest.items()]
        parts += [f"{name} {value} LSB" for name, value in self.lsb.items()]
        parts += [f"facts {self.facts}"] if self.facts else []
        parts += self.notes
        verdict = "WRONG" if self.wrong else "ok   " if self.ran else "-----"
        lines = [f"{verdict} {self.name}: {', '.join(parts)}"]
        return "\n".join(lines + [f"      {line}" for line in self.wrong])
