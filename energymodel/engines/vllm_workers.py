"""What vLLM adds where several GPUs serve: a process for each GPU, and messages between them.

The engine hands every step to its workers through shared memory and takes the tokens back
(``MultiprocExecutor.execute_model`` in ``vllm/v1/executor/multiproc_executor.py`` of 0.24), and each
worker launches its own GPU's kernels, collectives among them. A layer then takes the host longer to
launch than in the one process of a single GPU; a step waits for its message, and for what has to be
said of each sequence. The numbers are measured on runs of several GPUs and are in the profile's
``fabric.workers``.
"""

from dataclasses import replace

from energymodel.engines.engine import EngineTime
from energymodel.engines.vllm_host import HostWork
from energymodel.profile import FabricProfile
from energymodel.steps import Floats, Steps
from energymodel.workload import Workload

WORKERS = ("launch_layer_s", "launch_graph_layer_s", "step_s", "sequence_s", "submit_request_s")
"""Seconds more: a layer launched kernel by kernel, or as graphs; a step, a sequence of a step; a
request at the start."""


def with_workers(
    alone: EngineTime,
    work: HostWork,
    steps: Steps,
    workload: Workload,
    fabric: FabricProfile | None,
) -> EngineTime:
    """What the engine adds to each step on several GPUs, given what it adds ``alone`` on one.

    ``work`` counts the layers that are launched.
    """
    if fabric is None or not fabric.workers:
        return alone
    numbers = {name: estimate.value for name, estimate in fabric.workers.items()}
    one_by_one, graphs = launched_layers(work)
    more_s = numbers["launch_layer_s"] * one_by_one + numbers["launch_graph_layer_s"] * graphs
    return replace(
        alone,
        launch_s=alone.launch_s + more_s,
        gap_s=alone.gap_s + numbers["step_s"] + numbers["sequence_s"] * steps.sequences,
        submit_s=alone.submit_s + numbers["submit_request_s"] * workload.requests,
    )


def launched_layers(work: HostWork) -> tuple[Floats, Floats]:
    """Layers that are launched (kernel by kernel, as graphs) in each step; [n_steps]."""
    return work.counts["launch_layer_s"], work.counts["launch_graph_layer_s"]
