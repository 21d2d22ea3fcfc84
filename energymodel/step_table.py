"""What a step takes, by look-up: for simulations and searches that ask for millions of steps.

The operations of a step fall into parts, each of which depends on few numbers:

- those of all tokens of the step, on their number T (rows of products, norms, experts);
- those of the sampled rows, on their number;
- those of decoding sequences, on how many there are and the mean number of keys that one of them
  sees (in layers with a window of W no more than W);
- those of prompt chunks, on how many there are, their new tokens and what the cache holds of them;
- what the engine adds, on T, and linearly on sequences, chunks and sampled rows.

``step_table`` prices synthetic steps on the nodes of each with the exact path (``costs.priced``)
once; between the nodes values are linear (of chunks, per token). Sequences that differ are priced
like as many that all see the mean; chunks that differ, like the mean over steps of equal chunks.
Which operation belongs to which part is found by probing (``step_parts.py``), so a table knows
nothing of families; a model with an operation that fits none (images, encoder-decoders, sparse
attention) has no table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from energymodel.costs import Demand, priced, with_energy, with_engine
from energymodel.deployment import Deployment
from energymodel.engines import EngineTime, engine_of
from energymodel.lattice import Lattice, nodes
from energymodel.model import ModelSpec
from energymodel.ops import Op
from energymodel.power import StepLoad
from energymodel.profile import Profile
from energymodel.step_parts import (
    LONG,
    MIXED,
    ONE,
    TWO,
    UNFINISHED,
    Parts,
    decode_steps,
    parts_of,
    probes,
    prompt_steps,
    window_probes,
    windows_of,
)
from energymodel.steps import Floats, Ints, Steps
from energymodel.timing import OpTime
from energymodel.workload import Bin, Workload

# Contexts of models that do not say how long theirs may be, and the longest of any.
USUAL_CONTEXT, LONGEST_CONTEXT = 131_072, 1_048_576
# Shortest context of a chunk beside none at all.
LEAST_CACHED = 64.0
# Load of a step without the engine: columns of every lattice of loads.
LOAD = 4
# Steps that are looked up at a time, so that what lies between stays in the cache of a core.
BLOCK_STEPS = 16_384
PLAIN = Workload(bins=(Bin(input_tokens=1, output_tokens=1, count=1),))


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """Nodes of each axis: whole numbers up to the first, so many to a doubling from there."""

    tokens: tuple[int, int]
    sampled: tuple[int, int]
    sequences: tuple[int, int]
    keys: tuple[int, int]
    prompts: tuple[int, int] = (2, 1)
    chunks: tuple[int, int]
    cached: tuple[int, int] = (1, 1)


FINE = Nodes(tokens=(1024, 32), sampled=(256, 16), sequences=(16, 8), keys=(16, 6), chunks=(8, 4))
COARSE = Nodes(tokens=(64, 8), sampled=(16, 4), sequences=(8, 3), keys=(2, 2), chunks=(2, 2))
"""For searches over many tables: built in a tenth of the time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSums:
    """What a table needs to know of steps; arrays of shape [n_steps] and, of chunks, [n_chunks].

    ``visible``: keys that the new tokens of all decoding sequences see, for each window of the
    model, [n_windows, n_steps]. ``chunk_*`` are rows of ``steps.Chunks`` in the order of steps,
    ``chunks`` their number in each step.
    """

    decoding: Floats
    visible: Floats
    tokens: Floats
    sampled: Floats
    chunks: Floats
    chunk_step: Ints
    chunk_tokens: Floats
    chunk_context: Floats
    chunk_count: Floats

    def part(self, rows: slice) -> "StepSums":
        """Some of the steps; chunks must be in the order of steps."""
        first, last = np.searchsorted(self.chunk_step, (rows.start, rows.stop))
        chunks = slice(int(first), int(last))
        return StepSums(
            decoding=self.decoding[rows],
            visible=self.visible[:, rows],
            tokens=self.tokens[rows],
            sampled=self.sampled[rows],
            chunks=self.chunks[rows],
            chunk_step=self.chunk_step[chunks] - rows.start,
            chunk_tokens=self.chunk_tokens[chunks],
            chunk_context=self.chunk_context[chunks],
            chunk_count=self.chunk_count[chunks],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Operations (indices) that depend on the same numbers, on a lattice of those.

    ``load`` has fixed_s, clocked_s, core_j, hbm_j of all of them; ``times`` seconds and clocked
    seconds of one call of each.
    """

    ops: tuple[int, ...]
    load: Lattice
    times: Lattice


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTable:
    """Steps of one model on one deployment and profile.

    ``engine``: over T, what the engine adds to steps with one chunk (outside_s, launch_s, gap_s) and to
    steps of pure decode; ``engine_each``: more of it for each further chunk, decoding sequence and
    sampled row, [3, 3]. ``prompts`` is of one token of a chunk.
    """

    model: ModelSpec
    deployment: Deployment
    profile: Profile
    windows: tuple[int | None, ...]
    tokens: Part
    sampled: Part
    decode: tuple[tuple[int, Part], ...]
    prompts: Part | None
    engine: Lattice
    engine_each: Floats
    outside_w: float


def step_table(
    model: ModelSpec, deployment: Deployment, profile: Profile, grid: Nodes = FINE
) -> StepTable | None:
    """The table of a model without images and sound; None where its steps cannot be tabulated."""
    if model.encoder is not None or deployment.pipeline_parallel_size > 1:
        return None
    if deployment.server or deployment.sampling == "filtered":
        return None  # what they add to a step is no sum over its tokens, chunks and rows
    make = _Maker(model, deployment, profile, grid)
    windows = windows_of(model)
    probe = probes()
    parts = parts_of(make.lower(probe), make.lower(window_probes(windows)), windows)
    if parts is None:
        return None
    seqs, budget = deployment.max_num_seqs, deployment.max_num_batched_tokens
    longest = min(model.max_position_embeddings or USUAL_CONTEXT, LONGEST_CONTEXT)
    t = nodes(budget, *grid.tokens)
    s = nodes(seqs, *grid.sampled)
    one = np.ones_like
    return StepTable(
        model=model,
        deployment=deployment,
        profile=profile,
        windows=windows,
        tokens=make.part(parts.tokens, (t,), prompt_steps(one(t), t, 0 * t)),
        sampled=make.part(parts.sampled, (s,), prompt_steps(s, one(s), 0 * s)),
        decode=tuple(
            (windows.index(window), make.decode_part(ops, window, seqs, longest))
            for window, ops in parts.decode.items()
        ),
        prompts=_prompts(make, parts, min(seqs, budget), budget, longest),
        engine=Lattice(
            axes=(t,),
            values=np.concatenate(
                [make.engine(prompt_steps(one(t), t, 0 * t)), make.engine(decode_steps(t, one(t)))],
                axis=1,
            ),
        ),
        engine_each=_each(make.engine(probe)),
        outside_w=make.time(probe).outside_w,
    )


def _prompts(make: "_Maker", parts: Parts, most: int, budget: int, longest: int) -> Part | None:
    if not parts.prompts:
        return None
    n, tokens = nodes(most, *make.grid.prompts), nodes(budget, *make.grid.chunks)
    after = nodes(longest / LEAST_CACHED, *make.grid.cached)
    cached = np.concatenate([[0.0], LEAST_CACHED * after])
    axes = (n, tokens, cached)
    grid = [axis.ravel() for axis in np.meshgrid(*axes, indexing="ij")]
    part = make.part(parts.prompts, axes, prompt_steps(*grid))
    scale = tokens[None, :, None, None]
    return Part(
        ops=part.ops,
        load=Lattice(axes=axes, values=part.load.values / scale),
        times=Lattice(axes=axes, values=part.times.values / scale),
    )


def _each(probed: Floats) -> Floats:
    """What one more chunk, decoding sequence and sampled row add, from ``probes``; [3, 3]."""
    row = probed[ONE] - probed[UNFINISHED]
    return np.stack([probed[TWO] - probed[ONE] - row, probed[MIXED] - probed[ONE] - row, row])


@dataclass(frozen=True, slots=True)
class _Maker:
    """Prices synthetic steps with the exact path."""

    model: ModelSpec
    deployment: Deployment
    profile: Profile
    grid: Nodes

    def lower(self, steps: Steps) -> tuple[Op, ...]:
        lower = engine_of(self.deployment).lower
        return lower(self.model, self.deployment, steps, np.ones(1, np.int64), PLAIN.bins)

    def time(self, steps: Steps) -> EngineTime:
        time = engine_of(self.deployment).time
        return time(self.model, self.deployment, steps, self.profile, PLAIN)

    def engine(self, steps: Steps) -> Floats:
        """(outside_s, launch_s, gap_s) of each step; [n_steps, 3]."""
        found = self.time(steps)
        gap_s = np.broadcast_to(found.gap_s, steps.size)
        return np.stack([found.outside_s, found.launch_s, gap_s], axis=1)

    def part(self, indices: Sequence[int], axes: tuple[Floats, ...], steps: Steps) -> Part:
        padded = engine_of(self.deployment).padded
        ops = self.lower(steps)
        chosen = tuple(ops[i] for i in indices)
        found = priced(chosen, self.deployment, self.profile, lambda n: padded(n, self.deployment))
        shape = tuple(len(axis) for axis in axes)
        zeros = [np.zeros(steps.size)]
        load = found.load() if chosen else None
        loads = (
            zeros * LOAD
            if load is None
            else [load.fixed_s, load.clocked_s, load.core_j, load.hbm_j]
        )
        times = [x for time in found.times for x in (time.seconds, time.clocked)] or zeros
        return Part(
            ops=tuple(indices),
            load=Lattice(axes=axes, values=np.stack(loads, axis=1).reshape(*shape, -1)),
            times=Lattice(axes=axes, values=np.stack(times, axis=1).reshape(*shape, -1)),
        )

    def decode_part(
        self, indices: Sequence[int], window: int | None, most: int, longest: int
    ) -> Part:
        """Sequences x keys that one sees, to the window, where contexts go far beyond it."""
        n = nodes(most, *self.grid.sequences)
        keys = nodes(longest if window is None else window, *self.grid.keys)
        context = keys - 1.0
        if window is not None:
            keys = np.append(keys[keys < window], float(window))
            context = np.append(keys[:-1] - 1.0, float(LONG))
        grid = [axis.ravel() for axis in np.meshgrid(n, context, indexing="ij")]
        return self.part(indices, (n, keys), decode_steps(*grid))


def step_sums(steps: Steps, windows: Sequence[int | None]) -> StepSums:
    """What a table needs to know of ``steps``."""
    seen = [np.inf if w is None else float(w) for w in windows]
    keys = steps.decodes.context + 1.0
    order = np.argsort(steps.chunks.step, kind="stable")
    return StepSums(
        decoding=steps.decoding,
        visible=np.stack([steps.sum_decodes(np.minimum(keys, w)) for w in seen]),
        tokens=steps.tokens,
        sampled=steps.sampled,
        chunks=steps.sum_chunks(np.ones_like(steps.chunks.tokens)),
        chunk_step=steps.chunks.step[order],
        chunk_tokens=steps.chunks.tokens[order].astype(np.float64),
        chunk_context=steps.chunks.context[order].astype(np.float64),
        chunk_count=steps.chunks.count[order].astype(np.float64),
    )


def engine_times(table: StepTable, sums: StepSums) -> EngineTime:
    """What the engine adds to each step."""
    found = table.engine.at(sums.tokens)
    prompts = sums.chunks > 0
    more = np.stack([sums.chunks - 1.0, sums.decoding, sums.sampled - 1.0], axis=1)
    added = np.where(prompts[:, None], found[:, :3] + more @ table.engine_each, found[:, 3:])
    return EngineTime(
        outside_s=added[:, 0],
        launch_s=added[:, 1],
        gap_s=added[:, 2],
        submit_s=0.0,
        outside_w=table.outside_w,
    )


def step_loads(table: StepTable, sums: StepSums) -> StepLoad:
    """What each step asks of the GPU at full clock, with what the engine adds."""
    whole = np.empty((LOAD, len(sums.tokens)))
    for start in range(0, len(sums.tokens), BLOCK_STEPS):
        rows = slice(start, start + BLOCK_STEPS)
        found = _loads(table, sums.part(rows))
        whole[:, rows] = found.fixed_s, found.clocked_s, found.core_j, found.hbm_j
    fixed_s, clocked_s, core_j, hbm_j = whole
    return StepLoad(fixed_s=fixed_s, clocked_s=clocked_s, core_j=core_j, hbm_j=hbm_j)


def _loads(table: StepTable, sums: StepSums) -> StepLoad:
    total = table.tokens.load.at(sums.tokens)
    total += _sampled(table.sampled.load, sums)
    for window, part in table.decode:
        total += _decoded(part.load, sums, window)
    if table.prompts is not None:
        total += _prompted(table.prompts.load, sums)
    fixed_s, clocked_s, core_j, hbm_j = total.T
    load = StepLoad(fixed_s=fixed_s, clocked_s=clocked_s, core_j=core_j, hbm_j=hbm_j)
    return with_engine(load, engine_times(table, sums))[0]


def _sampled(lattice: Lattice, sums: StepSums) -> Floats:
    return _where(sums.sampled, lattice.at(sums.sampled))


def _decoded(lattice: Lattice, sums: StepSums, window: int) -> Floats:
    keys = sums.visible[window] / np.maximum(sums.decoding, 1.0)
    return _where(sums.decoding, lattice.at(sums.decoding, keys))


def _where(number: Floats, values: Floats) -> Floats:
    """``values`` [n, n_values], but nothing where there is nothing."""
    none = number <= 0
    if none.any():
        values[none] = 0.0
    return values


def _prompted(lattice: Lattice, sums: StepSums) -> Floats:
    """Sum over chunks of what each takes beside others like it."""
    total = np.zeros((len(sums.tokens), lattice.values.shape[-1]))
    if not len(sums.chunk_step):
        return total
    beside = sums.chunks[sums.chunk_step]
    found = lattice.at(beside, sums.chunk_tokens, sums.chunk_context)
    found *= (sums.chunk_tokens * sums.chunk_count / np.maximum(beside, 1.0))[:, None]
    for column in range(found.shape[1]):
        total[:, column] = np.bincount(sums.chunk_step, found[:, column], minlength=len(total))
    return total


def demand(table: StepTable, steps: Steps, bins: Sequence[Bin]) -> Demand:
    """The operations of ``steps`` as ``costs.demand`` gives them, with times from the table."""
    sums = step_sums(steps, table.windows)
    lower = engine_of(table.deployment).lower
    prompt_tokens = np.array([b.input_tokens for b in bins], dtype=np.int64)
    ops = lower(table.model, table.deployment, steps, prompt_tokens, bins)
    found: dict[int, OpTime] = {}
    found |= _times(table.tokens, table.tokens.times.at(sums.tokens))
    found |= _times(table.sampled, _sampled(table.sampled.times, sums))
    for window, part in table.decode:
        found |= _times(part, _decoded(part.times, sums, window))
    if table.prompts is not None:
        found |= _times(table.prompts, _prompted(table.prompts.times, sums))
    nothing = OpTime(seconds=np.zeros(steps.size), clocked=np.zeros(steps.size))
    times = [found.get(i, nothing) for i in range(len(ops))]
    padded = engine_of(table.deployment).padded
    return with_energy(
        ops, times, table.deployment, table.profile, lambda rows: padded(rows, table.deployment)
    )


def _times(part: Part, values: Floats) -> Mapping[int, OpTime]:
    columns = values.T
    return {
        op: OpTime(seconds=columns[2 * k], clocked=columns[2 * k + 1])
        for k, op in enumerate(part.ops)
    }
