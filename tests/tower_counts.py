"""What torch says of towers: FLOP of an image or a clip, and how many features come out.

Torch counts what our operations count: no attention of a tower is masked. Class by class its inputs
are built here in the shapes that the processors give them, which ``test_images`` and
``test_audio`` check on their own.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch_counts as counts
from family_cases import Case
from step_builders import prefill
from torch.utils.flop_counter import FlopCounterMode

from energymodel.deployment import Deployment
from energymodel.media import Layout, total
from energymodel.ops import Op, lower
from energymodel.towers import Tower
from energymodel.workload import Bin

Inputs = dict[str, object]
# What classes call their attention.
ATTENTION = (".self_attn", ".attention", ".attn")


def our_ops(case: Case, b: Bin, tower: Tower) -> tuple[Op, ...]:
    """What a tower of our reading does for a request like ``b``."""
    spec = counts.spec(case.full)
    tokens = b.input_tokens + sum(t.tokens(b) for t in spec.towers)
    ops = lower(spec, Deployment(), prefill(tokens), np.array([tokens]), [b])
    return tuple(op for op in ops if op.component == tower.component)


def our_flop(ops: tuple[Op, ...]) -> counts.Flop:
    """FLOP of projections and of attention."""
    linear = sum(op.count * op.flop.item() for op in ops if op.kind == "gemm")
    return counts.Flop(linear, sum(op.count * op.flop.item() for op in ops) - linear)


def torch_flop(case: Case, b: Bin, tower: Tower) -> tuple[counts.Flop, int]:
    """(FLOP as torch counts them, features that came out)."""
    model = counts.built(case)
    run = _eyes(model) if tower.images is not None else _ears(model)
    inputs = _INPUTS if tower.images is not None else _SOUND
    layout = tower.layout(b)
    made = inputs.get(case.family, _patches)(case, b, layout)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        out = run(**made)
    modules = counter.get_flop_counts()
    behind = _unused(case, tower)
    used = {name: flop for name, flop in modules.items() if not name.endswith(behind)}
    unused = sum(sum(modules[name].values()) for name in set(modules) - set(used))
    # Products of projections are batched too, where their input lies scattered in memory.
    attention = sum(
        count
        for name, flop in used.items()
        if name.endswith(ATTENTION) and not any(f"{end}." in name for end in behind)
        for op, count in flop.items()
        if "bmm" in str(op)
    )
    linear = sum(modules["Global"].values()) - unused - attention - _mask_flop(case, layout)
    features = out if isinstance(out, torch.Tensor) else out.pooler_output
    parts = features if isinstance(features, list | tuple) else [features]
    return counts.Flop(linear, attention), sum(part.numel() // part.shape[-1] for part in parts)


def _mask_flop(case: Case, layout: Layout) -> int:
    """The mask of a canvas is made by an outer product, which an engine looks up."""
    return 2 * total(layout.rows["positions"]) ** 2 if case.family == "mllama" else 0


def _eyes(model: "torch.nn.Module") -> Callable[..., object]:
    """What turns pixels into features."""
    if type(model).__name__ == "Llama4ForConditionalGeneration":
        return lambda pixel_values: model.multi_modal_projector(
            model.get_image_features(pixel_values).last_hidden_state
        )
    if hasattr(model, "get_image_features"):
        return model.get_image_features
    inner = model.model

    def run(**canvas: torch.Tensor) -> torch.Tensor:
        seen = inner.vision_model(**canvas).last_hidden_state
        return inner.multi_modal_projector(seen)

    return run


def _ears(model: "torch.nn.Module") -> Callable[..., object]:
    """What turns a spectrogram into features."""
    if hasattr(model, "get_audio_features"):
        return model.get_audio_features
    inner = model.model

    def run(input_features: torch.Tensor) -> torch.Tensor:
        return inner.multi_modal_projector(inner.audio_tower(input_features).last_hidden_state)

    return run


def torch_text_flop(case: Case, b: Bin) -> counts.Flop:
    """A forward pass over an image and a prompt, without what the tower does (Llama 3.2 Vision)."""
    model, spec = counts.built(case), counts.spec(case.full)
    (tower,) = spec.towers
    made = canvas(case, b, tower.layout(b))
    ids = counts.ids(b.input_tokens + 1)
    tiles = made["aspect_ratio_mask"].shape[-1]
    mask = torch.ones(1, ids.shape[1], 1, tiles, dtype=torch.long)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(ids, cross_attention_mask=mask, use_cache=False, **made)
    modules = counter.get_flop_counts()
    text = modules[next(name for name in modules if name.endswith(".language_model"))]
    attention = sum(n for op, n in text.items() if "bmm" in str(op))
    rotary = sum(sum(v.values()) for k, v in modules.items() if k.endswith("rotary_emb"))
    head = sum(modules[next(name for name in modules if name.endswith("lm_head"))].values())
    return counts.Flop(sum(text.values()) - attention + head, attention - rotary)


def _unused(case: Case, tower: Tower) -> tuple[str, ...]:
    """Ends of names of modules that engines do not run: layers behind the last that is used."""
    section = case.config.get("vision_config", {})
    depth = section.get("num_hidden_layers", 0)
    return tuple(f".encoder.layers.{i}" for i in range(tower.num_hidden_layers, depth))


def _tiles(case: Case, b: Bin, layout: Layout) -> Inputs:
    """A batch of square tiles."""
    side = case.config["vision_config"]["image_size"]
    return {"pixel_values": torch.zeros(layout.rows["patches"][0][0], 3, side, side)}


def _sized_tiles(case: Case, b: Bin, layout: Layout) -> Inputs:
    """Tiles of one image of a known size."""
    pixels = _tiles(case, b, layout)["pixel_values"]
    sizes = torch.tensor([[b.image_height, b.image_width]])
    return {"pixel_values": pixels[None], "image_sizes": sizes}


def _image(case: Case, b: Bin, layout: Layout) -> Inputs:
    """One image as it is."""
    if case.config["vision_config"]["model_type"] != "pixtral":
        return _tiles(case, b, layout)
    sizes = torch.tensor([[b.image_height, b.image_width]])
    return {
        "pixel_values": torch.zeros(1, 3, b.image_height, b.image_width),
        "image_sizes": sizes,
    }


def _batched_tiles(case: Case, b: Bin, layout: Layout) -> Inputs:
    """Tiles of one request."""
    return {"pixel_values": _tiles(case, b, layout)["pixel_values"][None] + 1.0}


def canvas(case: Case, b: Bin, layout: Layout) -> Inputs:
    """Tiles of a canvas, all of which hold something."""
    pixels = _tiles(case, b, layout)["pixel_values"]
    tiles = pixels.shape[0]
    return {
        "pixel_values": pixels[None, None],
        "aspect_ratio_ids": torch.tensor([[6]]),
        "aspect_ratio_mask": torch.ones(1, 1, tiles, dtype=torch.long),
    }


def _patches(case: Case, b: Bin, layout: Layout) -> Inputs:
    """Pixels patch by patch, and how many patches there are down and across."""
    vision = case.config["vision_config"]
    patch = vision["patch_size"]
    down, across = b.image_height // patch, b.image_width // patch
    return {
        "pixel_values": torch.zeros(down * across, 3 * 2 * patch**2),
        "image_grid_thw": torch.tensor([[1, down, across]]),
    }


def _spectrogram(case: Case, b: Bin, layout: Layout) -> Inputs:
    """All windows, padded."""
    audio = case.config["audio_config"]
    windows, frames = layout.rows["conv1"][0]
    return {"input_features": torch.zeros(windows, audio["num_mel_bins"], frames)}


def _heard_frames(case: Case, b: Bin, layout: Layout) -> Inputs:
    """As many frames as there are."""
    frames = round(100 * b.audio_s)
    bins = case.config["audio_config"]["num_mel_bins"]
    mask = torch.ones(1, frames, dtype=torch.long)
    return {"input_features": torch.zeros(1, bins, frames), "feature_attention_mask": mask}


_SOUND: Mapping[str, Callable[[Case, Bin, Layout], Inputs]] = {
    "qwen2_audio": _spectrogram,
    "voxtral": _spectrogram,
    "qwen2_5_omni_thinker": _heard_frames,
    "qwen3_omni_moe_thinker": _heard_frames,
}
_INPUTS: Mapping[str, Callable[[Case, Bin, Layout], Inputs]] = {
    "llava": _image,
    "llava_next": _sized_tiles,
    "llava_onevision": _sized_tiles,
    "gemma3": _tiles,
    "paligemma": _tiles,
    "mistral3": _image,
    "internvl": _tiles,
    "idefics3": _batched_tiles,
    "smolvlm": _batched_tiles,
    "aya_vision": _tiles,
    "cohere2_vision": _tiles,
    "llama4": _tiles,
    "mllama": canvas,
}
