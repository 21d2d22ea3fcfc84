"""Whole runs on transformers, on a CPU with a simulated sensor."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from calibration import measure as module
from calibration.measure import measure_all
from calibration.simulation.gpu import SimulatedGpu, SimulatedSensor
from energymodel import io
from energymodel.deployment import Deployment
from energymodel.errors import InputError, WorkError
from energymodel.workload import Bin, Workload

pytest.importorskip("torch")
pytest.importorskip("transformers")
from calibration.engines import transformers

DEPLOYMENT = Deployment(engine="transformers", max_num_seqs=2)
LLAMA: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2,
    "max_position_embeddings": 64,
}  # fmt: skip
T5: dict[str, Any] = {
    "model_type": "t5", "vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_heads": 4,
    "num_layers": 2, "num_decoder_layers": 2, "is_encoder_decoder": True,
}  # fmt: skip
BERT: dict[str, Any] = {
    "model_type": "bert", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48,
    "num_attention_heads": 4, "num_hidden_layers": 2, "architectures": ["BertModel"],
}  # fmt: skip


def started(config: dict[str, Any], most: int = 2) -> transformers.Engine:
    deployment = Deployment(engine="transformers", max_num_seqs=most)
    return transformers.Engine(config, deployment, max_model_len=0, device="cpu")


def workload(*bins: tuple[int, int, int]) -> Workload:
    return Workload(bins=tuple(Bin(input_tokens=i, output_tokens=o, count=n) for i, o, n in bins))


@pytest.mark.parametrize(
    ("config", "asked", "passes"),
    [
        # Three requests, two at a time: two batches of five tokens each.
        (LLAMA, workload((8, 5, 3)), 2 * 5),
        (LLAMA, workload((8, 0, 3), (4, 1, 1)), 2 + 1),
        (T5, workload((8, 3, 2)), 3),
        (T5, workload((8, 0, 2)), 1),
        (BERT, workload((8, 0, 5)), 3),
    ],
)
def test_passes_are_those_of_static_batches(
    config: dict[str, Any], asked: Workload, passes: int
) -> None:
    engine = started(config)
    seconds = engine.run(engine.prepare(asked, seed=0))
    assert len(seconds) == passes
    assert all(s > 0 for s in seconds)


def test_every_sequence_runs_to_its_full_length_whatever_ends_it() -> None:
    # All tokens but one would end it.
    engine = started({**LLAMA, "vocab_size": 32, "eos_token_id": list(range(31))})
    assert len(engine.run(engine.prepare(workload((4, 20, 2)), seed=0))) == 20


def test_lines_are_runs_of_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers, "MIN_RUN_S", 0.05)
    out, sensor = tmp_path / "runs.jsonl", SimulatedSensor(SimulatedGpu(name="NVIDIA H200"))
    start = partial(transformers.Engine, device="cpu")
    asked = workload((8, 3, 2))
    (record,) = measure_all(
        "llama", LLAMA, [asked], deployment=DEPLOYMENT, sensor=sensor, out=out, start=start
    )
    (run,) = io.read_runs(out)
    assert run.deployment == DEPLOYMENT
    assert run.workload == asked
    assert run.energy_j > 0
    assert len(record["step_us"]) == 3
    assert set(record["software"]) >= {"torch", "transformers"}


@pytest.mark.parametrize(
    "flags", [{"tensor_parallel_size": 2}, {"quantization": "fp8"}, {"gpu_memory_utilization": 0.5}]
)
def test_flags_that_it_would_not_heed_are_refused(flags: dict[str, Any], tmp_path: Path) -> None:
    sensor = SimulatedSensor(SimulatedGpu(name="NVIDIA H200"))
    deployment = Deployment(engine="transformers", **flags)
    with pytest.raises(InputError, match=f"{next(iter(flags))} must be left out"):
        measure_all(
            "llama",
            LLAMA,
            [workload((8, 3, 2))],
            deployment=deployment,
            sensor=sensor,
            out=tmp_path / "runs.jsonl",
        )


def test_without_transformers_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    sensor = SimulatedSensor(SimulatedGpu(name="NVIDIA H200"))
    with pytest.raises(WorkError, match=r"transformers is not installed here.*pip install"):
        measure_all(
            "llama",
            LLAMA,
            [workload((8, 3, 2))],
            deployment=DEPLOYMENT,
            sensor=sensor,
            out=tmp_path / "runs.jsonl",
        )
