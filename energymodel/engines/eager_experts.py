"""Experts as transformers 5.17 runs them (``integrations/moe.py``): grouped, and batched to decode."""

from dataclasses import replace

import numpy as np

from energymodel.engines.eager_rows import joined_rows
from energymodel.op_kinds import Op
from energymodel.steps import Floats

# Bytes for each value. Of hidden width: rows gathered, masked twice, weighed, put in order, added
# up; of inner width: masked (gate and up), activated, multiplied. The rest sorts and counts.
GROUPED_OUTER, GROUPED_INNER, GROUPED_SMALL = (4.0, 4.0, 4.0, 4.0, 4.0, 2.0), (8.0, 4.0, 6.0), 13
BATCHED_OUTER, BATCHED_INNER = (4.0, 4.0, 2.0), (4.0, 6.0)
SMALL_BYTES = 8.0


def experts(op: Op, decoding: Floats) -> list[Op]:
    """Prompts: sorted by expert, two grouped products. Decoding: weights gathered, batched products.

    ``generate`` changes over (``GenerationMixin._optimize_model_for_decode``): the weights of every
    expert that a token chose are copied to it, whether another token chose the same or not, and the
    products read the copies. The law of fused experts stands for the grouped products.
    """
    rows = np.asarray(op.shape["tokens"], dtype=np.float64) * float(op.shape["top_k"])
    prompts, decodes = np.where(decoding > 0, 0.0, rows), np.where(decoding > 0, rows, 0.0)
    hidden, inner = float(op.shape["hidden_size"]), float(op.shape["intermediate_size"])
    matrices = hidden * (float(op.shape["up_size"]) + inner)
    reads = np.where(prompts > 0, 1.0, 0.0)
    grouped = replace(
        op,
        name="grouped_experts",
        flop=op.flop * reads,
        hbm_bytes=op.hbm_bytes * reads,
        weight_bytes=op.weight_bytes * reads,
    )

    def on(name: str, work: Floats, width: float, value_bytes: tuple[float, ...]) -> Op:
        made = joined_rows(op, name, rows=work, width=width, value_bytes=value_bytes)
        return replace(made, kind="elementwise")

    # Gate and up, then down: gathered, which writes a copy for each choice of what is read from the
    # memory once, then multiplied.
    touched = np.where(decodes > 0, np.asarray(op.shape["experts_touched"], dtype=np.float64), 0.0)
    each = matrices / 2 / hidden  # rows of the weights of an expert, in each of the two products
    gathered = on("gathered_weights", 0.5 * (decodes + touched) * each, hidden, (4.0, 4.0))
    batched = on("batched_experts", decodes * each, hidden, (2.0, 2.0))
    return [
        grouped,
        replace(on("grouped_rows", prompts, hidden, GROUPED_OUTER), kernel="experts"),
        replace(on("grouped_inner", prompts, inner, GROUPED_INNER), kernel="experts"),
        replace(
            on("grouped_order", prompts, 1.0, (SMALL_BYTES,) * GROUPED_SMALL), kernel="experts"
        ),
        replace(gathered, kind="copy"),
        replace(batched, flop=matrices * decodes),
        on("batched_rows", decodes, hidden, BATCHED_OUTER),
        on("batched_inner", decodes, inner, BATCHED_INNER),
    ]
