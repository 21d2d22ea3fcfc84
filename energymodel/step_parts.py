"""Which numbers of a step the time of each operation depends on, found by probing."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from energymodel.blocks import SoftmaxAttention
from energymodel.model import ModelSpec
from energymodel.ops import Op
from energymodel.steps import Chunks, Decodes, Floats, Steps

# Steps of so many tokens in all, of one prompt, of two prompts, of a prompt that goes on, of a prompt
# and a decoding sequence, of decoding sequences alone.
PROBE_TOKENS = 64
ONE, TWO, UNFINISHED, MIXED, DECODE = range(5)
# A context beyond every window, and how many steps a row of decode stands for: a mean over blocks.
LONG, SPAN = 2**20, 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Indices of operations by what they depend on; ``decode`` by the window of their layers.

    Operations that do nothing on any step without images and sound are in none.
    """

    tokens: tuple[int, ...]
    sampled: tuple[int, ...]
    prompts: tuple[int, ...]
    decode: Mapping[int | None, tuple[int, ...]]


def prompt_steps(prompts: Floats, tokens: Floats, context: Floats, last: int = 1) -> Steps:
    """Steps of ``prompts`` equal chunks of ``tokens`` each after ``context`` cached ones."""
    size = len(tokens)
    return Steps(
        weight=np.ones(size),
        chunks=_chunks(np.arange(size), tokens, context, prompts, last),
        decodes=_decodes(0, np.zeros(0), np.zeros(0)),
    )


def decode_steps(sequences: Floats, context: Floats) -> Steps:
    """Steps of ``sequences`` that decode after ``context`` cached tokens, means over ``SPAN`` steps.

    A kernel walks whole blocks of keys, so that a mean over a block is what a table can hold.
    """
    size, none = len(sequences), np.zeros(0)
    return Steps(
        weight=np.minimum(SPAN, 2.0 * context + 1.0),
        chunks=_chunks(np.zeros(0, np.int64), none, none, none, 0),
        decodes=_decodes(size, sequences, context),
    )


def _chunks(
    step: NDArray[np.int64], tokens: Floats, context: Floats, count: Floats, last: int
) -> Chunks:
    return Chunks(
        step=step,
        tokens=tokens.astype(np.int64),
        context=context.astype(np.int64),
        count=count.astype(np.int64),
        last=np.full(len(step), last),
        bin=np.zeros(len(step), np.int64),
    )


def _decodes(size: int, sequences: Floats, context: Floats) -> Decodes:
    return Decodes(
        step=np.arange(size),
        context=context.astype(np.float64),
        count=sequences.astype(np.int64),
        bin=np.zeros(size, np.int64),
    )


def probes() -> Steps:
    """The steps that tell parts apart; ``ONE`` ... ``DECODE`` are their rows."""
    tokens = np.array([64, 32, 64, 63])
    return Steps(
        weight=np.ones(5),
        chunks=Chunks(
            step=np.arange(4),
            tokens=tokens,
            context=np.array([0, 300, 300, 0]),
            count=np.array([1, 2, 1, 1]),
            last=np.array([1, 1, 0, 1]),
            bin=np.zeros(4, np.int64),
        ),
        decodes=_decodes_at([MIXED, DECODE], [1, PROBE_TOKENS], [200, 200]),
    )


def _decodes_at(step: list[int], count: list[int], context: list[float]) -> Decodes:
    return Decodes(
        step=np.array(step),
        context=np.array(context, dtype=np.float64),
        count=np.array(count),
        bin=np.zeros(len(step), np.int64),
    )


def window_probes(windows: tuple[int | None, ...]) -> Steps:
    """One decoding sequence that fills each window, and in the last row one far beyond all."""
    context = np.array([LONG if w is None else w - 1 for w in (*windows, None)], dtype=np.float64)
    return decode_steps(np.ones(len(context)), context)


def windows_of(model: ModelSpec) -> tuple[int | None, ...]:
    """Windows of the attention layers; None, for all that is not windowed, is always the first."""
    found = {
        leaf.sliding_window
        for layer, _ in model.layer_groups()
        for leaf in layer.leaves
        if isinstance(leaf, SoftmaxAttention) and leaf.sliding_window is not None
    }
    return (None, *sorted(found))


def parts_of(
    ops: tuple[Op, ...], far: tuple[Op, ...], windows: tuple[int | None, ...]
) -> Parts | None:
    """Sort operations by what they depend on; None where one depends on more than a part may.

    Args:
        ops: Of ``probes``.
        far: Of ``window_probes``.
        windows: Of the model.
    """
    tokens, sampled, prompts = [], [], []
    decode: dict[int | None, list[int]] = {window: [] for window in windows}
    for index, op in enumerate(ops):
        rows = _numbers(op)
        if not op.hbm_bytes.any():
            continue
        if (rows == rows[:, :1]).all():
            tokens.append(index)
        elif (rows[:, TWO] == rows[:, MIXED]).all() and op.hbm_bytes[UNFINISHED] == 0:
            sampled.append(index)
        elif op.hbm_bytes[DECODE] == 0 and (rows[:, MIXED] != rows[:, TWO]).any():
            prompts.append(index)
        elif not op.hbm_bytes[[ONE, TWO, UNFINISHED]].any():
            decode[_window(far[index], windows)].append(index)
        else:
            return None
    return Parts(
        tokens=tuple(tokens),
        sampled=tuple(sampled),
        prompts=tuple(prompts),
        decode={window: tuple(found) for window, found in decode.items() if found},
    )


def _numbers(op: Op) -> Floats:
    """All that an operation has of each probe: what it does and its shape; [n_numbers, n_probes]."""
    values = [op.flop, op.hbm_bytes, op.weight_bytes, *op.shape.values()]
    return np.stack([np.broadcast_to(v, op.hbm_bytes.shape) for v in values])


def _window(op: Op, windows: tuple[int | None, ...]) -> int | None:
    """The narrowest window beyond which an operation of a decoding sequence does not grow."""
    beyond = op.hbm_bytes[-1]
    grown = zip(windows[1:], op.hbm_bytes[1:-1], strict=True)
    return next((w for w, b in grown if abs(b - beyond) <= 1e-9 * beyond), None)
