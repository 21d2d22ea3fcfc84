"""The components of a transformers model, found by structure, with the inputs of one real pass.

The tree of modules is cut into parts that do not overlap: embeddings, attention, MLP or experts,
norms, head. What a pass computes outside of them (residual additions, positions, masks) is seen
as torch operations and becomes a component too, so that nothing of the pass is left out but the
Python around the parts.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WHOLE = "whole"
EMBEDDING, HEAD, NORM, RESIDUAL, OTHER = "embedding", "head", "norm", "residual", "other"
ATTENTION, PROJECTIONS, MLP, MOE = "attention", "attention_projections", "mlp", "moe"

_MLP_CLASS = re.compile(r"MLP|FeedForward|FFN|Dense\w*Act|GLU", re.IGNORECASE)
_LAYER = re.compile(r"^(?:.*?\.)?\d+(?=\.|$)")
# Operations whose result decides what the host does next; a CUDA graph cannot hold them.
_READS_BACK = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_dim")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A module or torch operation with the arguments that it had in the recorded pass."""

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What is measured: one ``call`` is a component in all its layers in turn, or the whole pass.

    ``part_of`` is the component that this one is a part of, so that it is not counted twice.
    ``layers`` are those that hold it; ``parts`` what it is made of, such as ``72 LlamaRMSNorm``.
    """

    phase: str
    component: str
    call: Callable[[], Any]
    layers: int
    flop: int
    parts: tuple[str, ...] = ()
    part_of: str | None = None


@dataclass(slots=True)
class Recording:
    """One pass: calls by component, in order, and what keeps it out of a CUDA graph."""

    calls: dict[str, list[Call]] = field(default_factory=dict)
    obstacles: list[str] = field(default_factory=list)

    def add(self, component: str, call: Call) -> None:
        """Append a call to its component."""
        self.calls.setdefault(component, []).append(call)


def components_of(model: Any) -> dict[str, str]:
    """The modules that a model is cut into, by name, with the component of each."""
    return dict(_cut("", model))


def _cut(name: str, module: Any) -> Iterator[tuple[str, str]]:
    component = _component(name, module) if name else None
    if component is not None:
        yield name, component
        return
    for child_name, child in module.named_children():
        yield from _cut(f"{name}.{child_name}" if name else child_name, child)


def _component(name: str, module: Any) -> str | None:
    """What a module is a component of, None where its children have to be looked at."""
    kind, within = type(module).__name__, _LAYER.sub("", name)
    in_layer, is_leaf = within != name, not list(module.children())
    below = [type(m).__name__ for m in module.modules()][1:]
    rules = (
        (MOE, hasattr(module, "experts")),
        (EMBEDDING, "Embedding" in kind),  # rotary ones as well
        (NORM, "Norm" in kind and is_leaf),
        (ATTENTION, "Attention" in kind and not any("Attention" in k for k in below)),
        (MLP, bool(_MLP_CLASS.search(kind)) and not any("Norm" in k for k in below)),
        (HEAD, not in_layer and kind.endswith(("Pooler", "Head"))),
    )
    component = next((c for c, holds in rules if holds), None)
    if component is not None or not is_leaf or kind in ("Dropout", "Identity", "ModuleList"):
        return component
    if not in_layer:
        return HEAD
    return ATTENTION if "att" in within.lower() else MLP


def record(model: Any, run: Callable[[], Any]) -> Recording:
    """Run one pass and keep the arguments of every component, as they were.

    Tensors are kept, not copied: layers that share one (masks, rotary angles) still do.
    """
    recording = Recording()
    with torch.no_grad(), _hooks(model, recording) as depth, _Operations(recording, depth):
        run()
    return recording


@contextmanager
def _hooks(model: Any, recording: Recording) -> Iterator[list[str]]:
    """Record calls of components; gives the stack of those that are running."""
    running: list[str] = []
    handles: list[Any] = []

    def watch(component: str, module: Any) -> None:
        def before(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            recording.add(component, Call(name=name, function=module, args=args, kwargs=kwargs))
            running.append(component)

        def after(*_: Any) -> None:
            running.pop()

        name = names[module]
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(module.register_forward_hook(after, always_call=True))

    names = {module: name for name, module in model.named_modules()}
    for name, component in components_of(model).items():
        module = model.get_submodule(name)
        watch(component, module)
        if component == ATTENTION:
            for part in module.modules():
                if _is_projection(part):
                    watch(PROJECTIONS, part)
    try:
        yield running
    finally:
        for handle in handles:
            handle.remove()


def _is_projection(module: Any) -> bool:
    return type(module).__name__ in ("Linear", "Conv1D")


class _Operations(TorchDispatchMode):  # type: ignore[misc]
    """Sees every torch operation; keeps those outside of components."""

    def __init__(self, recording: Recording, running: list[str]) -> None:
        super().__init__()
        self._recording, self._running = recording, running

    def __torch_dispatch__(
        self, func: Any, _: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        given, made = _tensors((args, kwargs)), _tensors(result)
        obstacle = _obstacle(name, given, made)
        if obstacle is not None:
            self._recording.obstacles.append(obstacle)
        elif not self._running and made and not _is_view(func):
            call = Call(name=name, function=func, args=args, kwargs=kwargs)
            self._recording.add(RESIDUAL if _is_residual(name, given) else OTHER, call)
        return result


def _tensors(values: Any) -> list[Any]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def _obstacle(name: str, given: list[Any], made: list[Any]) -> str | None:
    if name in _READS_BACK:
        return f"the host reads back a value ({name})"
    if name in ("_to_copy", "copy_") and given and given[-1].numel():
        devices = {t.device.type for t in (*given, *made)}
        if len(devices) > 1:
            return f"data move between host and device ({name})"
    return None


def _is_view(func: Any) -> bool:
    """Whether an operation only gives another view of its input, which costs the GPU nothing."""
    returned = [r.alias_info for r in func._schema.returns]
    return bool(returned) and all(a is not None and not a.is_write for a in returned)


def _is_residual(name: str, given: list[Any]) -> bool:
    """Two activations of one shape, (sequences, tokens, width), added."""
    if name not in ("add", "add_") or len(given) != 2:
        return False
    first, second = given
    same = first.shape == second.shape and first.is_floating_point() and second.is_floating_point()
    return bool(same and first.dim() >= 2)


def layer_of(name: str) -> str | None:
    """The layer that a module is in: ``model.layers.3`` for ``model.layers.3.mlp``."""
    found = _LAYER.match(name)
    return found[0] if found else None


def replay(calls: list[Call]) -> Callable[[], None]:
    """A function that makes recorded calls again, in order."""
    bound = [(c.function, c.args, c.kwargs) for c in calls]

    def run() -> None:
        for function, args, kwargs in bound:
            function(*args, **kwargs)

    return run
