"""What an engine is to a prediction: a handful of functions, one file for each engine."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from energymodel.context_sums import ContextSums
from energymodel.deployment import Deployment
from energymodel.hardware import GpuSpec
from energymodel.model import ModelSpec
from energymodel.ops import Op
from energymodel.profile import Estimate, Profile
from energymodel.scheduler import Scheduler
from energymodel.serving import Schedule
from energymodel.steps import Floats, Ints, Steps
from energymodel.workload import Bin, Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTime:
    """What the engine adds to each step, shape [n_steps], and to the run.

    ``outside_s`` are GPU seconds outside the operations, at ``outside_w`` above static power (and
    at full clock); ``launch_s`` what the host takes to launch the step. ``submit_s`` passes once,
    before the first step, while requests are taken in and the GPU has nothing to do; ``gap_s``
    before each step, where the host prepares it only then. ``lead_s`` is what of ``launch_s`` passes
    before the first launch, in steps that find the GPU idle.
    """

    outside_s: Floats
    launch_s: Floats
    submit_s: float
    outside_w: float = 0.0
    gap_s: Floats | float = 0.0
    lead_s: Floats | float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """How one engine serves.

    ``schedule`` turns the requests, as the model sees them, into steps; ``lower`` turns steps into
    operations (arguments as of ``ops.lower``); ``padded`` maps rows of an operation to what the
    engine really runs; ``time`` is what it adds; ``online``, if it serves requests as they come,
    gives its scheduler for requests of these bins, before any has arrived, and ``request_s`` is what
    such a request takes beside its steps. ``several_gpus``: whether GPUs can share a model. Each
    raises ``InputError`` for what the engine cannot do.
    """

    schedule: Callable[[ModelSpec, Deployment, Workload, GpuSpec], Schedule]
    lower: Callable[[ModelSpec, Deployment, Steps, Ints, Sequence[Bin]], tuple[Op, ...]]
    padded: Callable[[Floats, Deployment], Floats]
    time: Callable[[ModelSpec, Deployment, Steps, Profile, Workload], EngineTime]
    online: (
        Callable[[ModelSpec, Deployment, Workload, GpuSpec, Ints, ContextSums], Scheduler] | None
    ) = None
    request_s: Callable[[Deployment, Mapping[str, Estimate]], float] = lambda *_: 0.0
    several_gpus: bool = False
