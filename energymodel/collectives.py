"""Collective operations of the GPUs that share a model: which ones a step makes, and of what size.

A message is counted as nccl-tests counts it: of an all-reduce the buffer of each GPU, of an
all-gather what each ends with, of a reduce-scatter what each begins with, of an all-to-all what each
sends, of a send the message. ``fabric.py`` times them.

Where they stand (vLLM 0.24): one all-reduce behind every block whose last product is cut along its
inputs (``RowParallelLinear`` in ``model_executor/layers/linear.py``), behind the embedding
(``VocabParallelEmbedding``) and behind routed and shared experts together
(``MoERunner._maybe_reduce_final_output``); an all-gather of the logits
(``LogitsProcessor._gather_logits``). With data parallel, experts see the tokens of all copies: an
all-gather before them and a reduce-scatter behind (``AgRsAll2AllManager``, the default of
``all2all_backend``). Stages of a pipeline send the hidden state and the residual
(``GroupCoordinator.isend_tensor_dict``), each GPU of a stage its part, and gather them again.
"""

from dataclasses import replace

import numpy as np

from energymodel.op_kinds import Context, Op, elementwise
from energymodel.parallel import Parallel
from energymodel.steps import Floats

COMPONENT = "collective"
KINDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send_recv")
BUBBLE = "pipeline_bubble"
DISPATCH = "experts_dispatch"
# What the routing of a token takes on its way to other GPUs: a float32 weight and an int32 expert
# for each choice (``AgRsAll2AllManager.dispatch``).
CHOICE_BYTES = 8
# Values that one block of a plain copy moves.
COPIED = 4096


def wire_share(kind: str, gpus: int) -> float:
    """Bytes on the links of one GPU over the bytes of the message (nccl-tests, PERFORMANCE.md)."""
    if kind == "send_recv":
        return 1.0
    return (2.0 if kind == "all_reduce" else 1.0) * (gpus - 1) / gpus


def collective(
    ctx: Context,
    name: str,
    kind: str,
    *,
    gpus: int,
    row_bytes: float,
    rows: Floats | None = None,
    graph: bool = True,
    across: int = 1,
    asked: tuple[Floats, Floats] | None = None,
) -> Op:
    """A collective of ``gpus`` GPUs over ``rows`` (all tokens) of ``row_bytes`` of message each.

    ``graph``: rows are padded to the captured sizes, as those of the layers are. ``across``: its
    GPUs are so far apart in the order of GPUs. ``hbm_bytes`` is what one GPU reads and writes;
    ``shape["node_link_bytes_per_s"]`` is 0 on one node.
    """
    message = (ctx.tokens if rows is None else rows) * row_bytes
    groups = ctx.parallel
    slow = groups.node_link_bytes_per_s if gpus * across > groups.node else 0.0
    local = {"all_gather": 1.0 + 1.0 / gpus, "reduce_scatter": 1.0 + 1.0 / gpus, "send_recv": 1.0}
    return Op(
        name=name,
        kind=kind,
        component=COMPONENT,
        dtype=ctx.dtype,
        stored=ctx.dtype,
        count=ctx.count,
        flop=np.zeros_like(message),
        hbm_bytes=message * local.get(kind, 2.0),
        weight_bytes=np.zeros_like(message),
        shape={
            "rows": message / row_bytes,
            "row_bytes": float(row_bytes),
            "gpus": float(gpus),
            "graph": float(graph),
            "node_link_bytes_per_s": slow,
        },
        asked=asked,
    )


def all_reduce(ctx: Context, name: str, *, graph: bool = True) -> list[Op]:
    """The sum of what the GPUs of a tensor-parallel group computed of each token's hidden state."""
    gpus, row_bytes = ctx.parallel.tensor, ctx.hidden_size * ctx.wide
    if gpus == 1:
        return []
    return [collective(ctx, name, "all_reduce", gpus=gpus, row_bytes=row_bytes, graph=graph)]


def gathered_logits(ctx: Context, vocab_size: int) -> list[Op]:
    """All logits of the sampled rows on every GPU of the group; NCCL, outside of CUDA graphs.

    They come GPU by GPU and are copied into rows (``DeviceCommunicatorBase.all_gather``).
    """
    gpus = ctx.parallel.tensor
    if gpus == 1:
        return []
    op = collective(
        ctx,
        "logits_all_gather",
        "all_gather",
        gpus=gpus,
        row_bytes=vocab_size * ctx.wide,
        rows=ctx.sampled,
        graph=False,
        asked=_sampled(ctx),
    )
    # A copy is cut into pieces, whatever the rows are.
    pieces = ctx.sampled * (vocab_size / COPIED)
    copy = elementwise(
        ctx,
        "logits_rows",
        "lm_head",
        width=COPIED,
        row_bytes=2 * COPIED * ctx.wide,
        rows=pieces,
        asked=_sampled(ctx),
    )
    return [op, copy]


def _sampled(ctx: Context) -> tuple[Floats, Floats]:
    """One for each request that samples."""
    steps = ctx.steps
    decodes = steps.decodes
    each = np.full_like(decodes.context, decodes.samples)
    return steps.chunks.last.astype(np.float64), each


def dispatched(ctx: Context, top_k: int) -> tuple[list[Op], list[Op]]:
    """(Before the experts, behind them) where copies of the model share experts; ``ctx``: one copy's.

    Every GPU sees all tokens of the group, and gets back the sums of its own.
    """
    groups = ctx.parallel
    if groups.data == 1:
        return [], []
    gpus = groups.expert_gpus if groups.sequence_parallel else groups.data
    # GPUs of a data-parallel group are a whole copy of the model apart.
    apart = 1 if groups.sequence_parallel else groups.tensor * groups.pipeline
    hidden, rows = ctx.hidden_size * ctx.wide, ctx.tokens * groups.data
    gather = collective(
        ctx,
        DISPATCH,
        "all_gather",
        gpus=gpus,
        row_bytes=hidden + top_k * CHOICE_BYTES,
        rows=rows,
        across=apart,
    )
    scatter = collective(
        ctx,
        "experts_combine",
        "reduce_scatter",
        gpus=gpus,
        row_bytes=hidden,
        rows=rows,
        across=apart,
    )
    behind = [scatter]
    if groups.sequence_parallel:
        behind.append(
            collective(ctx, "tokens_all_gather", "all_gather", gpus=groups.tensor, row_bytes=hidden)
        )
    return [gather], behind


def handed_on(ctx: Context) -> list[Op]:
    """Hidden state and residual from each stage of a pipeline to the next, all hand-overs."""
    groups = ctx.parallel
    if groups.pipeline == 1:
        return []
    every = ctx.within(count=groups.pipeline - 1, formats=(), norm_vectors=1)
    both = 2.0 * ctx.hidden_size * ctx.wide
    far = hops_between_nodes(groups)
    ops = [
        collective(
            replace(every, count=hops),
            name,
            "send_recv",
            gpus=2,
            row_bytes=both / groups.tensor,
            across=across,
        )
        for name, hops, across in (
            ("stage_send", groups.pipeline - 1 - far, 1),
            ("stage_send_between_nodes", far, groups.node),
        )
        if hops
    ]
    if groups.tensor > 1:
        ops.append(
            collective(every, "stage_all_gather", "all_gather", gpus=groups.tensor, row_bytes=both)
        )
    return ops


def hops_between_nodes(groups: Parallel) -> int:
    """Hand-overs of a pipeline in which a GPU sends to one on another node.

    GPU g sends to g + tensor; the first stage begins on the first GPU of a node.
    """
    sender = np.arange(groups.tensor * (groups.pipeline - 1))
    crosses = sender // groups.node != (sender + groups.tensor) // groups.node
    return int(crosses.reshape(-1, groups.tensor).any(axis=1).sum())
