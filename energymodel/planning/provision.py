"""What power to set aside for a fleet: by its mean, a percentile of it, its worst case, its nameplate.

Replicas are not synchronous, so the power of a fleet varies less than that of its replicas: at any
instant each replica is somewhere else in its own course. A replica's course is its power over time
in slots of equal length; the fleet's at an instant is the sum of one draw from each course, and its
change from slot to slot the sum of independent changes. Of many like replicas the sum is normal with
the moments of the course (central limit); of few it is drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from energymodel.steps import Floats

# Draws of the fleet's power at an instant, and replicas of one kind up to which each is drawn.
DRAWS, FEW = 4096, 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """``count`` like replicas: the power of one in slots of ``slot_s`` seconds, [n_slots].

    ``most_w`` is the highest power of any of its steps, ``nameplate_w`` what its GPUs and its share
    of the server are rated at.
    """

    count: int
    slot_s: float
    power_w: Floats
    most_w: float
    nameplate_w: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Provisioning:
    """Watts to set aside by each rule; ``ramp_w_per_s`` is exceeded by one change in a hundred."""

    mean: float
    percentile: float
    worst: float
    nameplate: float
    ramp_w_per_s: float


def provisioning(courses: Sequence[Course], *, percentile: float, seed: int = 0) -> Provisioning:
    """Power of all replicas together.

    Args:
        courses: The kinds of replicas.
        percentile: Share of the time that the fleet stays below ``Provisioning.percentile``.
        seed: Of the draws.
    """
    present = [course for course in courses if course.count]
    if not present:
        return Provisioning(mean=0.0, percentile=0.0, worst=0.0, nameplate=0.0, ramp_w_per_s=0.0)
    rng = np.random.default_rng(seed)
    drawn = sum(draws(course, rng) for course in present)
    return Provisioning(
        mean=sum(c.count * float(c.power_w.mean()) for c in present),
        percentile=float(np.quantile(drawn, percentile)),
        worst=sum(c.count * c.most_w for c in present),
        nameplate=sum(c.count * c.nameplate_w for c in present),
        ramp_w_per_s=_ramp(present),
    )


def draws(course: Course, rng: np.random.Generator) -> Floats:
    """Power of all replicas of one kind at ``DRAWS`` instants."""
    power_w, count = course.power_w, course.count
    if count <= FEW:
        return np.asarray(rng.choice(power_w, size=(count, DRAWS)).sum(axis=0))
    mean_w, deviation_w = count * power_w.mean(), np.sqrt(count) * power_w.std()
    return np.asarray(rng.normal(mean_w, deviation_w, DRAWS))


def _ramp(courses: Sequence[Course]) -> float:
    """Change of power per second that the fleet exceeds in 1 % of its slots, either way.

    Changes of independent replicas add in variance; 2.576 deviations hold 99 % of a normal.
    """
    variance = sum(
        c.count * float(np.var(np.diff(c.power_w, append=c.power_w[0]))) / c.slot_s**2
        for c in courses
    )
    return 2.576 * float(np.sqrt(variance))


def course_of(seconds: Floats, joules: Floats, slot_s: float) -> Floats:
    """Mean power in slots of ``slot_s`` of a run of steps in order, [n_slots]; energy is conserved.

    Args:
        seconds: Duration of each step, [n_steps].
        joules: Energy of each step, [n_steps].
        slot_s: Length of a slot; what is left behind the last whole slot is dropped.
    """
    ends = np.concatenate([[0.0], np.cumsum(seconds)])
    spent = np.concatenate([[0.0], np.cumsum(joules)])
    slots = max(int(ends[-1] / slot_s + 1e-9), 1)
    edges = np.linspace(0.0, min(slots * slot_s, ends[-1]), slots + 1)
    return np.asarray(np.diff(np.interp(edges, ends, spent)) / np.diff(edges))


def together(course: Course, seconds: float, seed: int = 0) -> Floats:
    """Power of all replicas of one kind over time, each beginning somewhere in its course.

    At most ``FEW`` are played; of more, the sum is scaled so that mean and deviation are right.
    """
    rng = np.random.default_rng(seed)
    slots = max(round(seconds / course.slot_s), 1)
    played = min(course.count, FEW)
    starts = rng.integers(0, course.power_w.size, played)
    at = (starts[:, None] + np.arange(slots)) % course.power_w.size
    sums = course.power_w[at].sum(axis=0)
    mean_w = float(course.power_w.mean())
    wider = np.sqrt(course.count / played) if played else 0.0
    return np.asarray(course.count * mean_w + (sums - played * mean_w) * wider)
