"""What one step asks of the GPU, by itself: what a simulation in time asks at every event."""

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np

from energymodel.costs import demand, with_engine
from energymodel.deployment import Deployment
from energymodel.engines import engine_of
from energymodel.lattice import Curve, Lattice, Lookup
from energymodel.model import ModelSpec
from energymodel.profile import Profile
from energymodel.step_table import StepTable
from energymodel.steps import Chunks, Decodes, Steps
from energymodel.workload import Bin, Workload

# A chunk of a step: (tokens, context, samples: 1 or 0, bin).
Chunk = tuple[int, int, int, int]
# fixed_s, clocked_s, core_j, hbm_j, as of ``power.StepLoad``.
Load = tuple[float, float, float, float]
# Where a step is priced with the exact path, contexts are rounded to so many tokens.
CONTEXT_STEP = 64
EXACT_STEPS = 100_000


class TableLoad:
    """Steps of a table; the same numbers as ``step_loads``."""

    def __init__(self, table: StepTable) -> None:
        self._tokens = _curve(table.tokens.load)
        self._sampled = _curve(table.sampled.load)
        axis, engine = table.engine.axes[0], table.engine.values
        # Beside a chunk and in pure decode: GPU and launches, then gaps.
        self._engine, self._gap = (
            Curve(axis, engine[:, (0, 1, 3, 4)]),
            Curve(axis, engine[:, (2, 5, 2, 5)]),
        )
        self._decode = [(window, part.load) for window, part in table.decode]
        self._prompts = None if table.prompts is None else Lookup(table.prompts.load)
        self._each: list[list[float]] = table.engine_each.tolist()
        self._outside_w = table.outside_w
        # By the number of decoding sequences: the step without their attention and its launches,
        # and what that attention takes over the keys that one of them sees, for each window.
        self._alone: dict[int, tuple[tuple[float, ...], float, float]] = {}
        self._curves: dict[int, list[tuple[int, Curve]]] = {}

    def __call__(
        self, decoding: int, visible: Sequence[float], chunks: Sequence[Chunk] = ()
    ) -> Load:
        """Of a step of ``decoding`` sequences that see ``visible`` keys, and ``chunks``."""
        if chunks:
            load, launch_s, gap_s = self._with_chunks(decoding, chunks)
        else:
            if decoding not in self._alone:
                self._alone[decoding] = self._of_decoding(decoding)
            load, launch_s, gap_s = self._alone[decoding]
        fixed_s, clocked_s, core_j, hbm_j = load
        if decoding:
            if decoding not in self._curves:
                self._curves[decoding] = self._attention(decoding)
            for window, curve in self._curves[decoding]:
                more = curve.at(visible[window] / decoding)
                fixed_s += more[0]
                clocked_s += more[1]
                core_j += more[2]
                hbm_j += more[3]
        fixed_s += max(launch_s - fixed_s - clocked_s, 0.0) + gap_s
        return fixed_s, clocked_s, core_j, hbm_j

    def _of_decoding(self, decoding: int) -> tuple[tuple[float, ...], float, float]:
        load = _sum(self._tokens.at(decoding), self._sampled.at(decoding))
        _, _, outside_s, launch_s = self._engine.at(decoding)
        gap_s = self._gap.at(decoding)[1]
        outside = outside_s, 0.0, self._outside_w * outside_s, 0.0
        return _sum(load, outside), launch_s, gap_s

    def _attention(self, decoding: int) -> list[tuple[int, Curve]]:
        found = []
        for window, lattice in self._decode:
            keys = lattice.axes[1]
            values = lattice.at(np.full_like(keys, decoding), keys)
            found.append((window, Curve(keys, values)))
        return found

    def _with_chunks(
        self, decoding: int, chunks: Sequence[Chunk]
    ) -> tuple[tuple[float, ...], float, float]:
        beside = len(chunks)
        tokens = decoding + sum(chunk[0] for chunk in chunks)
        sampled = decoding + sum(chunk[2] for chunk in chunks)
        load: tuple[float, ...] = self._tokens.at(tokens)
        if sampled:
            load = _sum(load, self._sampled.at(sampled))
        if self._prompts is not None:
            for length, context, _, _ in chunks:
                share = length / beside
                found = self._prompts.at(beside, length, context)
                load = _sum(load, [share * value for value in found])
        outside_s, launch_s, _, _ = self._engine.at(tokens)
        gap_s = self._gap.at(tokens)[0]
        for number, (more_s, more_launch_s, more_gap_s) in zip(
            (beside - 1, decoding, sampled - 1), self._each, strict=True
        ):
            outside_s += number * more_s
            launch_s += number * more_launch_s
            gap_s += number * more_gap_s
        outside = outside_s, 0.0, self._outside_w * outside_s, 0.0
        return _sum(load, outside), launch_s, gap_s


def _curve(lattice: Lattice) -> Curve:
    return Curve(lattice.axes[0], lattice.values)


def _sum(a: Sequence[float], b: Sequence[float]) -> tuple[float, ...]:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3]


class ExactLoad:
    """Steps of a model without a table, or that shows images: lowered and priced one by one.

    Decoding sequences are taken to be of the first bin, and to see the mean.
    """

    def __init__(
        self,
        model: ModelSpec,
        deployment: Deployment,
        profile: Profile,
        bins: tuple[Bin, ...],
    ) -> None:
        self._asked = (model, deployment, profile)
        self._bins = bins
        self._known = lru_cache(maxsize=EXACT_STEPS)(self._price)

    def __call__(
        self, decoding: int, visible: Sequence[float], chunks: Sequence[Chunk] = ()
    ) -> Load:
        """As of ``TableLoad``."""
        keys = visible[0] / decoding if decoding else 1.0
        rounded = max(round(keys / CONTEXT_STEP) * CONTEXT_STEP, 1)
        return self._known(decoding, rounded, tuple(chunks))

    def _price(self, decoding: int, keys: int, chunks: tuple[Chunk, ...]) -> Load:
        model, deployment, profile = self._asked
        columns = np.array(chunks, dtype=np.int64).reshape(-1, 4).T
        steps = Steps(
            weight=np.ones(1),
            chunks=Chunks(
                step=np.zeros(len(chunks), np.int64),
                tokens=columns[0],
                context=columns[1],
                count=np.ones(len(chunks), np.int64),
                last=columns[2],
                bin=columns[3],
            ),
            decodes=Decodes(
                step=np.zeros(1, np.int64),
                context=np.array([keys - 1.0]),
                count=np.array([decoding]),
                bin=np.zeros(1, np.int64),
            ),
        )
        wanted = demand(model, deployment, steps, profile, self._bins).load()
        time = engine_of(deployment).time
        added = time(model, deployment, steps, profile, Workload(bins=self._bins))
        # Each step stands alone here, but does not find the GPU idle.
        load, _ = with_engine(wanted, replace(added, lead_s=0.0))
        return (
            float(load.fixed_s[0]),
            float(load.clocked_s[0]),
            float(load.core_j[0]),
            float(load.hbm_j[0]),
        )
