"""Tiny models of every architecture, and a simulated GPU that runs their components."""

import json
from collections.abc import Mapping
from pathlib import Path

from calibration.components.find import Piece
from calibration.simulation.gpu import CHUNK_S, SimulatedGpu, SimulatedOp, SimulatedSensor
from calibration.window import Work

DECODER = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
T5 = {
    "d_model": 64,
    "d_ff": 96,
    "d_kv": 16,
    "num_heads": 4,
    "num_layers": 3,
    "vocab_size": 128,
    "is_encoder_decoder": True,
}
CONFIGS: dict[str, dict[str, object]] = {
    "llama": DECODER,
    "gemma3_text": DECODER | {"sliding_window": 8},
    "qwen3_moe": DECODER | EXPERTS,
    "mixtral": DECODER | {"num_local_experts": 8, "num_experts_per_tok": 2},
    "bert": {k: v for k, v in DECODER.items() if k not in ("head_dim", "num_key_value_heads")},
    "modernbert": {
        **{k: v for k, v in DECODER.items() if k not in ("head_dim", "num_key_value_heads")},
        "cls_token_id": 1,
        "sep_token_id": 2,
        "local_attention": 8,
    },
    "t5": T5,
    "bart": {
        "d_model": 64,
        "encoder_layers": 3,
        "decoder_layers": 3,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 96,
        "decoder_ffn_dim": 96,
        "vocab_size": 128,
        "max_position_embeddings": 64,
        "is_encoder_decoder": True,
    },
}
BATCH, PROMPT = 2, 16


def config(family: str) -> dict[str, object]:
    return {"model_type": family, **CONFIGS[family]}


def written(folder: Path, family: str) -> str:
    """The path of a config.json."""
    path = folder / f"tiny-{family}.json"
    path.write_text(json.dumps(config(family)), encoding="utf-8")
    return str(path)


class ComponentsOnSimulatedGpu:
    """Each component costs what ``costs`` says (seconds a call, at ``POWER_W`` above static).

    The whole costs ``overhead`` times their sum. ``cannot`` gives the reason why a component does
    not run in a mode.
    """

    POWER_W = 200.0

    def __init__(
        self,
        sensor: SimulatedSensor,
        *,
        costs: Mapping[str, float],
        overhead: float = 1.0,
        cannot: Mapping[tuple[str, str], str] | None = None,
    ) -> None:
        self.sensor, self.costs, self.overhead = sensor, costs, overhead
        self.clock = sensor.clock
        self.cannot = cannot or {}
        self.prepared: list[tuple[str, str, str]] = []

    def work(self, piece: Piece, mode: str) -> Work:
        if (piece.component, mode) in self.cannot:
            raise RuntimeError(self.cannot[piece.component, mode])
        self.prepared.append((piece.phase, mode, piece.component))
        return self.sensor.work(SimulatedOp(time_s=self.cost_s(piece), power_w=self.POWER_W))

    def cost_s(self, piece: Piece) -> float:
        if piece.component != "whole":
            return self.costs[piece.component]
        parts = {c: s for c, s in self.costs.items() if c != "attention_projections"}
        return self.overhead * sum(parts.values())

    def idle(self) -> Work:
        return self.sensor.work(SimulatedOp(time_s=CHUNK_S, power_w=0.0))


def quiet_gpu() -> SimulatedSensor:
    return SimulatedSensor(SimulatedGpu())
