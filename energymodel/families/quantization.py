"""What a checkpoint stores in narrow formats, read from its ``quantization_config``.

Only layers of text are narrowed: embeddings, LM head, norms, routers and towers keep 16 bits, as
engines keep them. A fused weight of which one module stays wide is counted wide.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from energymodel.dtypes import GROUPS
from energymodel.errors import InputError
from energymodel.families.module_names import (
    Name,
    Names,
    check_tries,
    module_names,
    read_names,
)
from energymodel.families.parts import shared
from energymodel.fields import MAX_LAYERS, Fields
from energymodel.model import LayerSpec, ModelSpec, Stack
from energymodel.weights import Role

Patterns = Sequence[object]

# Checkpoints have a handful. What names modules is looked up for each layer.
_MOST_GROUPS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """How a checkpoint is stored.

    ``groups``: patterns of modules (None: all) and their format; the first that names a module
    holds. What ``kept`` names stays wide whatever the groups say.
    """

    groups: tuple[tuple[Patterns | None, str], ...]
    kept: Patterns = ()
    roles: tuple[Role, ...] = ("linear", "expert")
    kv_cache_dtype: str | None = None
    warnings: tuple[str, ...] = ()


def stored_formats(spec: ModelSpec, f: Fields) -> tuple[ModelSpec, list[str]]:
    """The model with the formats of its checkpoint, and warnings.

    Raises:
        InputError: a method or format that is not known.
    """
    config = _section(f)
    if config is None:
        return spec, []
    method = config.text("quant_method")
    reader = METHODS.get(method)
    if reader is None:
        raise InputError(
            f"{config.where}: field 'quant_method' is {method[:40]!r}, which is not supported; "
            f"supported are {', '.join(sorted(METHODS))}"
        )
    scheme = reader(config)
    text = _narrowed(spec.text, scheme, config.where)
    encoder = spec.encoder and _narrowed(spec.encoder, scheme, config.where)
    mtp = spec.mtp and _narrowed(spec.mtp, scheme, config.where, first=len(spec.layers))
    spec = replace(spec, text=text, encoder=encoder, mtp=mtp, quantization=method)
    return replace(spec, kv_cache_dtype=scheme.kv_cache_dtype), [
        f"{spec.name}: {warning}" for warning in scheme.warnings
    ]


def _section(f: Fields) -> Fields | None:
    """Where engines look for it: the model, its text part, the name that compressed-tensors had."""
    text = f.section("text_config") if isinstance(f.config.get("text_config"), Mapping) else None
    for place in (f, text):
        for key in ("quantization_config", "compression_config"):
            found = place.section(key) if place else None
            if found is not None:
                return found
    return None


# --- which weights --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rules:
    """A scheme whose patterns are ready to be looked up."""

    roles: tuple[Role, ...]
    kept: Names
    groups: tuple[tuple[Names | None, str], ...]

    def stored(self, layer: int, role: Role, names: set[Name]) -> str | None:
        """Format of a weight that is called one of ``names`` in that layer; None: wide."""
        if role not in self.roles or any(self.kept.match(layer, name) for name in names):
            return None
        for group, stored in self.groups:
            if group is None or any(group.match(layer, name) for name in names):
                return stored
        return None


def _narrowed(stack: Stack, scheme: Scheme, where: str, first: int = 0) -> Stack:
    """The stack with the formats of a scheme; ``first`` is the number of its first layer."""
    layers = len(stack.layers)
    in_group = f"{where}: the list of modules of a group"
    rules = _Rules(
        roles=scheme.roles,
        kept=read_names(scheme.kept, f"{where}: the list of modules to leave out", layers),
        groups=tuple(
            (None if p is None else read_names(p, in_group, layers), s) for p, s in scheme.groups
        ),
    )
    lists = [rules.kept, *(names for names, _ in rules.groups if names is not None)]
    check_tries(sum(names.tries for names in lists), f"{where}: the lists of modules", layers)
    if (len(lists) - 1) * layers > MAX_LAYERS:
        raise InputError(
            f"{where} has {len(lists) - 1} groups of modules for {layers} layers; "
            f"at most {MAX_LAYERS // layers} are read"
        )
    # Most layers are one object, whose names are worked out once.
    modules = {
        key: [
            (weight.name, weight.role, module_names(block, weight))
            for block in layer.blocks
            for weight in block.weights(stack.hidden_size, layer.norm_vectors)
        ]
        for key, layer in {id(layer): layer for layer in stack.layers}.items()
    }

    def formats(layer: LayerSpec, number: int) -> Iterator[tuple[str, str]]:
        for name, role, names in modules[id(layer)]:
            stored = rules.stored(number, role, names)
            if stored is not None:
                yield name, stored

    narrowed = (
        replace(layer, formats=tuple(formats(layer, number)))
        for number, layer in enumerate(stack.layers, first)
    )
    return replace(stack, layers=shared(tuple(narrowed)))


# --- methods --------------------------------------------------------------------------------------


def _fp8(f: Fields) -> Scheme:
    """Scales for tensors, or for blocks; activations are scaled on the fly or by fixed scales."""
    blocks = f.sequence("weight_block_size")
    kept = _kept(f, "modules_to_not_convert", "ignored_layers")
    return Scheme(groups=((None, "fp8" if blocks is None else _fp8_block(f, blocks)),), kept=kept)


def _fp8_block(f: Fields, blocks: Sequence[object]) -> str:
    if list(blocks) != [128, 128]:
        raise InputError(f"{f.where}: the blocks of fp8 scales must be [128, 128]")
    return "fp8_block"


def _fbgemm_fp8(f: Fields) -> Scheme:
    """A scale for each output channel."""
    return Scheme(groups=((None, "fp8"),), kept=_kept(f, "modules_to_not_convert"))


def _gptq(f: Fields) -> Scheme:
    """Weights alone, without zero points unless ``sym`` is off."""
    zeros = not f.flag("sym", default=True)
    stored = _grouped(f, f.integer("bits", high=16), f.integer("group_size", 128, low=-1), zeros)
    chosen: list[object] = []
    for names in f.sequence("modules_in_block_to_quantize") or ():
        chosen += names if isinstance(names, list) else [names]
    kept = []
    for pattern, changes in ((f.section("dynamic") or Fields({}, f.where)).config).items():
        if not pattern.startswith("-:"):
            raise InputError(
                f"{f.where}: field 'dynamic' sets {str(changes)[:40]} for {pattern[:40]!r}; only "
                "what is left out ('-:') is read"
            )
        kept.append(f"re:{pattern[2:]}")
    return Scheme(groups=((chosen or None, stored),), kept=kept, warnings=_head(f))


def _awq(f: Fields) -> Scheme:
    """Weights alone, with zero points."""
    zeros = f.flag("zero_point", default=True)
    stored = _grouped(f, f.integer("bits", 4, high=16), f.integer("group_size", 128, low=-1), zeros)
    kept = _kept(f, "modules_to_not_convert")
    return Scheme(groups=((None, stored),), kept=kept, warnings=_head(f))


def _head(f: Fields) -> tuple[str, ...]:
    if not f.flag("lm_head", default=False):
        return ()
    return ("the LM head is counted in 16 bits, though the checkpoint stores it narrower",)


def _grouped(f: Fields, bits: int, group: int, zeros: bool) -> str:
    """Format of weights that are widened in the kernel."""
    names = {(4, False): "int4", (4, True): "uint4", (8, False): "w8a16"}
    if (bits, zeros) not in names or group not in GROUPS:
        raise InputError(
            f"{f.where}: weights of {bits} bits in groups of {group}, with zero points or not, must "
            f"be of 4 bits or, without, of 8, in groups of {', '.join(map(str, sorted(GROUPS)))}"
        )
    return names[bits, zeros] + GROUPS[group]


def _bitsandbytes(f: Fields) -> Scheme:
    """NF4 and FP4 in blocks of 64 (one format here), or LLM.int8()."""
    kept = _kept(f, "llm_int8_skip_modules")
    if not f.flag("load_in_8bit", f.flag("_load_in_8bit", default=False)):
        return Scheme(groups=((None, "nf4"),), kept=kept)
    warning = "products of outlying activations, which bitsandbytes keeps in 16 bits, are neglected"
    return Scheme(groups=((None, "llm_int8"),), kept=kept, warnings=(warning,))


def _mxfp4(_: Fields) -> Scheme:
    """Routed experts, and nothing else (gpt-oss)."""
    return Scheme(groups=((None, "mxfp4"),), roles=("expert",))


def _modelopt(f: Fields) -> Scheme:
    inner = f.section("quantization") or f
    algorithm = inner.text("quant_algo").upper()
    formats = {
        "FP8": "fp8",
        "FP8_PER_CHANNEL_PER_TOKEN": "fp8",
        "FP8_PB_WO": "fp8_block",
        "NVFP4": "nvfp4",
        "W4A16_NVFP4": "nvfp4",
    }
    if algorithm not in formats:
        raise InputError(
            f"{inner.where}: field 'quant_algo' is {algorithm[:40]!r}; it must be one of "
            f"{', '.join(formats)}"
        )
    stored = formats[algorithm]
    cache = inner.text("kv_cache_quant_algo") if inner.has("kv_cache_quant_algo") else ""
    return Scheme(
        groups=((None, stored),),
        kept=_kept(inner, "exclude_modules", "ignore"),
        kv_cache_dtype="fp8" if cache.upper() == "FP8" else _kv_cache_dtype(inner),
        warnings=_four_bits(stored),
    )


def _compressed_tensors(f: Fields) -> Scheme:
    sparsity = f.section("sparsity_config")
    if sparsity is not None and sparsity.value("format") not in (None, "dense"):
        raise InputError(f"{sparsity.where}: field 'format' must be 'dense', not a sparse one")
    groups = f.section("config_groups")
    if groups is None or not groups.config:
        raise InputError(f"{f.where}: field 'config_groups' is missing; it must be an object")
    if len(groups.config) > _MOST_GROUPS:
        raise InputError(
            f"{f.where}: field 'config_groups' has {len(groups.config)} groups; "
            f"it must have at most {_MOST_GROUPS}"
        )
    found: list[tuple[Patterns | None, str]] = []
    for name in groups.config:
        group = groups.section(name)
        if group is not None:
            targets = group.sequence("targets") or ("Linear",)
            # A class of modules; experts are such modules each.
            everything = any(target in ("Linear", "FusedMoE") for target in targets)
            found.append((None if everything else targets, _compressed_format(group)))
    if sum(len(targets or ()) for targets, _ in found) > MAX_LAYERS:
        raise InputError(f"{groups.where}: all 'targets' must hold at most {MAX_LAYERS} entries")
    # A group that names modules comes before one of everything.
    found.sort(key=lambda item: item[0] is None)
    return Scheme(
        groups=tuple(found),
        kept=_kept(f, "ignore"),
        kv_cache_dtype=_kv_cache_dtype(f),
        warnings=tuple({w for _, stored in found for w in _four_bits(stored)}),
    )


def _compressed_format(group: Fields) -> str:
    """Format of one group: how its weights and the activations that meet them are stored."""
    weights = group.section("weights")
    if weights is None:
        raise InputError(f"{group.where}: field 'weights' is missing; it must be an object")
    inputs = group.section("input_activations")
    kind, bits = weights.text("type"), weights.integer("num_bits", high=16)
    strategy = weights.text("strategy") if weights.has("strategy") else "tensor"
    size = weights.integer("group_size", -1, low=-1)
    if kind == "float" and bits == 4:
        return "mxfp4" if size == 32 else "nvfp4"
    if inputs is None:
        zeros = kind == "int" and not weights.flag("symmetric", default=True)
        return _grouped(weights, bits, size if strategy == "group" else -1, zeros)
    if bits != 8 or (inputs.value("type"), inputs.value("num_bits")) != (kind, 8):
        raise InputError(
            f"{group.where}: weights of {bits} bits ({kind[:20]!r}) and inputs must both be of 8 bits "
            "and one type, or only the weights narrow"
        )
    if strategy == "block":
        return _fp8_block(weights, weights.sequence("block_structure") or ())
    return "int8" if kind == "int" else "fp8"


def _four_bits(stored: str) -> tuple[str, ...]:
    if stored != "nvfp4":
        return ()
    return ("nvfp4 is predicted as on a GPU that lacks its arithmetic and widens the weights",)


def _kv_cache_dtype(f: Fields) -> str | None:
    """Format of cached keys and values that the checkpoint has scales for: engines then use it."""
    scheme = f.section("kv_cache_scheme")
    if scheme is None:
        return None
    if (scheme.value("type"), scheme.value("num_bits")) != ("float", 8):
        raise InputError(f"{scheme.where}: cached keys and values must be of 8 bits, type float")
    return "fp8"


def _kept(f: Fields, *keys: str) -> Patterns:
    """The first of the lists that is there."""
    return next((found for key in keys if (found := f.sequence(key)) is not None), ())


METHODS: Mapping[str, Callable[[Fields], Scheme]] = {
    "awq": _awq,
    "bitsandbytes": _bitsandbytes,
    "compressed-tensors": _compressed_tensors,
    "fbgemm_fp8": _fbgemm_fp8,
    "fp8": _fp8,
    "gptq": _gptq,
    "modelopt": _modelopt,
    "modelopt_fp4": _modelopt,
    "mxfp4": _mxfp4,
}
