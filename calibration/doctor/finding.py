"""One thing that a doctor says, and the verdict on a GPU that follows from all of them."""

from collections.abc import Iterable
from dataclasses import dataclass

OK, NOTE, WARNING, PROBLEM = LEVELS = ("ok", "note", "warning", "problem")
VERDICTS = {PROBLEM: "not usable", WARNING: "with care"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was seen, what it means for a measurement, and what helps; ``gpu`` None is the host."""

    level: str
    what: str
    meaning: str
    remedy: str | None = None
    gpu: int | None = None


def verdict(findings: Iterable[Finding]) -> str:
    """What findings add up to: with a warning "with care", with a problem "not usable"."""
    levels = {finding.level for finding in findings}
    return next((v for level, v in VERDICTS.items() if level in levels), "trustworthy")


def finding(level: str, what: str, meaning: str, remedy: str | None = None) -> Finding:
    """A finding of which the GPU is filled in later."""
    return Finding(level=level, what=what, meaning=meaning, remedy=remedy)
