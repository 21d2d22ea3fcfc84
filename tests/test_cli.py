import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import jsonschema
import pytest
from click.testing import CliRunner
from prediction_builders import a_prediction

import energymodel.predict
import energymodel.profile
from energymodel import __version__, hardware, io
from energymodel.cli import cli, main
from energymodel.deployment import Deployment
from energymodel.errors import InputError, WorkError

BINS = {"schema_version": 1, "bins": [{"input_tokens": 8, "output_tokens": 2, "count": 3}]}
RUN = {
    **BINS,
    "model": "qwen3-8b",
    "gpu": "h200",
    "engine": "vllm",
    "energy_j": 90,
    "duration_s": 1,
}
OBSERVATION = {
    "op": "gemm",
    "shape": {"m": 1, "n": 8, "k": 8},
    "mode": "burst",
    "trial": 0,
    "call_s": 1e-5,
    "gpu": "NVIDIA H200",
    "board": "b",
    "driver": "580",
    "stack": "torch",
    "data": "normal",
    "time_s": 1.0,
}
EVIL = "\x1b]0;owned\x07\x9b31m<b>[bold]\u202e\n\udcff"


@dataclass(frozen=True)
class FakeProfile:
    """As much of a profile as the command line looks at."""

    name: str = "h200"
    kind: str = "measured"

    @property
    def gpu(self) -> hardware.GpuSpec:
        return hardware.load("h200")

    @property
    def provenance(self) -> dict[str, object]:
        return {"profile": self.name, "kind": self.kind}


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any) -> Run:
    """Run a command in an empty folder that has a bins.json and a runs.jsonl."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    Path("bins.json").write_text(json.dumps(BINS))
    Path("runs.jsonl").write_text(json.dumps(RUN) + "\n")

    def load(gpu: str | None, path: str | None) -> FakeProfile:
        if path is None and gpu != "h200":
            raise InputError(f"GPU '{gpu}' is unknown; profiles exist for: h200.")
        return FakeProfile()

    monkeypatch.setattr(energymodel.profile, "load", load)
    monkeypatch.setattr(energymodel.profile, "available", lambda: ("h200",))
    monkeypatch.setattr(energymodel.predict, "predict", lambda *_, **__: a_prediction())

    def go(*args: str) -> tuple[int, str, str]:
        status = main(list(args))
        out, err = capsys.readouterr()
        return status, out, err

    return go


PREDICT = ("predict", "--model", "qwen3-8b", "--gpu", "h200", "--workload", "bins.json")


def one_sentence(err: str) -> str:
    assert err.startswith("energymodel: ")
    assert err.endswith((".\n", "?\n"))
    assert err.count("\n") == 1
    assert err.strip().isprintable()
    assert "Traceback" not in err
    return err


# What is printed -----------------------------------------------------------------------------


def test_help_and_version(run: Run) -> None:
    status, out, err = run()
    assert (status, err) == (0, "")
    assert out == run("--help")[1]
    for name in cli.commands:
        assert name in out
        assert run(name, "--help")[0] == 0
    assert run("--version") == (0, f"energymodel {__version__}\n", "")
    assert CliRunner().invoke(cli, ["-h"], prog_name="energymodel").output == out


def test_predict_prints_a_table_or_one_json_document(run: Run, monkeypatch: Any) -> None:
    status, out, err = run(*PREDICT)
    assert (status, err) == (0, "")
    assert out.startswith("Qwen/Qwen3-8B on h200, vllm\n")
    assert all(line == line.rstrip() and len(line) <= 80 for line in out.splitlines())
    status, out, err = run(*PREDICT, "--json")
    assert (status, err) == (0, "")
    assert json.loads(out) == json.loads(io.dumps(a_prediction()))


def test_warnings_go_under_the_table_and_beside_the_json(run: Run, monkeypatch: Any) -> None:
    warned = replace(a_prediction(), warnings=("outside of what was calibrated",))
    monkeypatch.setattr(energymodel.predict, "predict", lambda *_, **__: warned)
    unknown = ("predict", "--model", "internlm2-7b", *PREDICT[3:])
    _, out, err = run(*unknown)
    assert out.index("Warning: internlm/internlm2-7b") < out.index("Warning: outside of what was")
    assert err == ""
    _, out, err = run(*unknown, "--json")
    assert len(json.loads(out)["warnings"]) == 2
    assert err.count("Warning: ") == err.count("\n") == 2


def test_flags_become_a_deployment(run: Run, monkeypatch: Any) -> None:
    seen = []

    def predict(model: Any, deployment: Deployment, *rest: Any, **_: Any) -> Any:
        seen.append((model.name, deployment))
        return a_prediction()

    monkeypatch.setattr(energymodel.predict, "predict", predict)
    run(*PREDICT)
    run(*PREDICT, "--dtype", "auto")
    flags = (
        "--engine vllm --tensor-parallel-size 2 --pipeline-parallel-size 3 --dtype float16 "
        "--quantization fp8 --kv-cache-dtype fp8 --max-num-seqs 8 --max-num-batched-tokens 512 "
        "--gpu-memory-utilization 0.5 --power-limit-w 450"
    )
    run(*PREDICT, *flags.split())
    assert seen == [
        ("Qwen/Qwen3-8B", Deployment()),
        ("Qwen/Qwen3-8B", Deployment(dtype="auto")),
        (
            "Qwen/Qwen3-8B",
            Deployment(
                tensor_parallel_size=2,
                pipeline_parallel_size=3,
                dtype="float16",
                quantization="fp8",
                kv_cache_dtype="fp8",
                max_num_seqs=8,
                max_num_batched_tokens=512,
                gpu_memory_utilization=0.5,
                power_limit_w=450.0,
            ),
        ),
    ]


def test_lists(run: Run) -> None:
    status, out, err = run("models")
    assert (status, err) == (0, "")
    assert all(len(line) <= 80 for line in out.splitlines())
    rows = json.loads(run("models", "--json")[1])["models"]
    assert len(out.splitlines()) == len(rows) + 1
    by_name = {r["name"]: r for r in rows}
    assert by_name["mistralai/Mixtral-8x7B-Instruct-v0.1"]["kind"] == "moe"
    llama = by_name["meta-llama/Llama-3.1-8B-Instruct"]
    # 32 layers x 8 KV heads x 128 x (K, V) x 2 bytes; 8.03 B parameters of 2 bytes.
    assert llama["kind"] == "dense"
    assert llama["kv_bytes_per_token"] == 131072
    assert llama["param_count"] == 8_030_261_248
    assert llama["weight_bytes"] == 2 * llama["param_count"]
    oss = by_name["openai/gpt-oss-20b"]
    assert (oss["kind"], oss["weight_formats"]) == ("moe", ["mxfp4"])
    assert oss["weight_bytes"] < oss["param_count"]
    kinds = {r["kind"] for r in rows}
    assert kinds == {"dense", "moe", "encoder", "encoder-decoder", "image", "video"}
    assert by_name["Qwen/Qwen2.5-VL-7B-Instruct"]["inputs"] == ["text", "image"]
    assert by_name["mistralai/Mamba-Codestral-7B-v0.1"]["state_bytes"] > 0
    [gpu] = [g for g in json.loads(run("gpus", "--json")[1])["gpus"] if g["name"] == "h200"]
    assert gpu["profile"] is True
    assert "989 TFLOP/s" in run("gpus")[1]
    assert json.loads(run("profiles", "--json")[1]) == {
        "profiles": [
            {
                "name": "h200",
                "gpu": "h200",
                "kind": "measured",
                "provenance": {"profile": "h200", "kind": "measured"},
            }
        ]
    }
    assert run("profiles")[1].split() == ["profile", "gpu", "kind", "h200", "h200", "measured"]


@pytest.mark.parametrize(
    ("kind", "document"),
    [
        ("workload", BINS),
        ("runs", {k: v for k, v in RUN.items() if k != "schema_version"}),
        ("prediction", json.loads(io.dumps(a_prediction()))),
        ("profile", None),
        ("observations", OBSERVATION),
        ("bins", None),
        ("validation", None),
        ("plan", None),
    ],
)
def test_schemas(run: Run, kind: str, document: Any) -> None:
    status, out, err = run("schema", kind)
    assert (status, err) == (0, "")
    schema = json.loads(out)
    jsonschema.Draft202012Validator.check_schema(schema)
    if document is not None:
        jsonschema.validate(document, schema)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({}, schema)


def test_validate(run: Run) -> None:
    status, out, err = run("validate", "runs.jsonl", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["bias"] == pytest.approx(100 / 90 - 1)
    assert "median error of energy" in run("validate", "runs.jsonl")[1]
    lines = [RUN, RUN | {"engine": "sglang"}, RUN | {"model": "org/unknown"}]
    Path("runs.jsonl").write_text("\n".join(map(json.dumps, lines)))
    status, out, err = run("validate", "runs.jsonl", "--json")
    assert status == 0
    assert [s["rows"] for s in json.loads(out)["skipped"]] == [1, 1]
    assert err.count("\n") == 2
    assert "2 runs skipped" in run("validate", "runs.jsonl")[1]
    Path("runs.jsonl").write_text(json.dumps(lines[1]))
    status, out, err = run("validate", "runs.jsonl", "--json")
    assert (status, out) == (1, "")
    assert "No run can be predicted" in one_sentence(err)


def a_module(monkeypatch: pytest.MonkeyPatch, name: str, **members: object) -> None:
    module = ModuleType(name)
    vars(module).update(members)
    monkeypatch.setitem(sys.modules, name, module)


def test_measure_hands_over_to_the_measurement(run: Run, monkeypatch: Any) -> None:
    seen: dict[str, Any] = {}

    def measure(*args: Any, report: Any, **options: Any) -> None:
        report(f"one {EVIL}")
        seen.update(options, args=args)

    a_module(
        monkeypatch,
        "calibration.gpu",
        find_gpu=lambda gpu: f"sensor of {gpu}",
        find_gpus=lambda gpu, count: [f"sensor {i} of {gpu}" for i in range(count)],
    )
    a_module(monkeypatch, "calibration.measure", measure_all=measure)
    command = ("measure", *PREDICT[1:], "--out", "new.jsonl", "--max-num-seqs", "8")
    status, out, err = run(*command)
    assert (status, out) == (0, "")
    assert err.startswith("one \\x1b]0;owned")
    assert err.count("\n") == 1
    assert seen["sensor"] == "sensor of h200"
    assert seen["deployment"] == Deployment(max_num_seqs=8)
    assert seen["out"] == Path("new.jsonl")
    assert seen["args"][0] == "Qwen/Qwen3-8B"
    assert seen["args"][1]["hidden_size"] == 4096
    assert [w.requests for w in seen["args"][2]] == [3]
    assert run(*command, "--tensor-parallel-size", "2")[0] == 0
    assert [seen["sensor"], *seen["others"]] == ["sensor 0 of h200", "sensor 1 of h200"]
    for out_path in (".", "absent/new.jsonl"):
        status, _, err = run(*command, "--out", out_path)
        assert status == 2
        assert out_path in one_sentence(err)


def test_the_gpu_of_this_machine(run: Run, monkeypatch: Any) -> None:
    from calibration import sensors

    class Sensor:
        name = "NVIDIA H200"

        def identity(self) -> Any:
            return type("Identity", (), {"gpu_name": self.name})

    monkeypatch.setattr(sensors, "NvmlSensor", Sensor)
    auto = (*PREDICT[:3], "--gpu", "auto", *PREDICT[5:])
    assert run(*auto)[0] == 0
    Sensor.name = "NVIDIA B9000"
    status, _, err = run(*auto)
    assert status == 2
    assert "'NVIDIA B9000', which is not known" in one_sentence(err)


# What is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        (["nonsense"], "No such command 'nonsense'"),
        (["--nonsense"], "No such option"),
        (["predict"], "Missing option '--model'"),
        ([*PREDICT, "extra"], "unexpected extra argument"),
        ([*PREDICT[:3], *PREDICT[5:]], "--gpu is missing: it must be one of h200"),
        ([*PREDICT[:4], "tpu", *PREDICT[5:]], "profiles exist for: h200"),
        ([*PREDICT[:2], "qwen3-8bb", *PREDICT[3:]], "the closest are Qwen/Qwen3-8B"),
        (
            [*PREDICT, "--engine", "sglang"],
            "'--engine': 'sglang' is not one of 'vllm', 'transformers'",
        ),
        ([*PREDICT, "--max-num-seqs", "0"], "'--max-num-seqs'"),
        ([*PREDICT, "--max-num-seqs", "1.5"], "not a valid integer"),
        ([*PREDICT, "--tensor-parallel-size", "-1"], "'--tensor-parallel-size'"),
        ([*PREDICT, "--max-num-batched-tokens", "9" * 5000], "'--max-num-batched-tokens'"),
        ([*PREDICT, "--gpu-memory-utilization", "1.1"], "'--gpu-memory-utilization'"),
        ([*PREDICT, "--gpu-memory-utilization", "nan"], "'--gpu-memory-utilization'"),
        ([*PREDICT, "--power-limit-w", "nan"], "'--power-limit-w'"),
        ([*PREDICT, "--power-limit-w", "inf"], "'--power-limit-w'"),
        ([*PREDICT, "--power-limit-w", "0"], "'--power-limit-w'"),
        ([*PREDICT, "--dtype", "int8"], "'--dtype'"),
        ([*PREDICT, "--workload", "absent.json"], "absent.json cannot be read: no such file"),
        ([*PREDICT, "--workload", "."], ". cannot be read: is a directory"),
        ([*PREDICT, "--workload", EVIL], "cannot be read"),
        ([*PREDICT, "--model", EVIL], "is not in the zoo"),
        ([*PREDICT, "--engine", EVIL], "'--engine'"),
        (["validate", "absent.jsonl"], "absent.jsonl cannot be read"),
        (["validate"], "Missing argument"),
        (["schema", "nonsense"], "'nonsense' is not one of"),
    ],
)
def test_bad_usage_is_one_sentence(run: Run, args: list[str], reason: str) -> None:
    before = sorted(os.listdir())  # noqa: PTH208
    status, out, err = run(*args)
    assert (status, out) == (2, "")
    assert reason in one_sentence(err)
    assert sorted(os.listdir()) == before  # noqa: PTH208


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "must be JSON"),
        (b"\x7fELF\x02\x01\x01\x00\xff", "UTF-8"),
        (b'{"schema_version": 1, "bins": [', "line 1, column"),
        (b'{"schema_version": 1, "bins": []}', "bins must be a list of 1 to"),
        (b'{"schema_version": 1, "bins": [{"input_tokens": -5, "output_tokens": 1, "count": 1}]}', "-5"),
        (b'{"schema_version": 1, "bins": [{"input_tokens": 1e99, "output_tokens": 1, "count": 1}]}', "input_tokens"),
        (b'{"schema_version": 1, "\\u001b[31m<b>": 1, "bins": [{"input_tokens": 1, "output_tokens": 1, "count": 1}]}', "unknown field"),
        (b'{"schema_version": 2, "bins": []}', "schema_version"),
        (b"[" * 100_000, "nested less deeply"),
        (b"NaN", "NaN"),
    ],
)  # fmt: skip
def test_unusable_workloads(run: Run, content: bytes, reason: str) -> None:
    Path("bad.json").write_bytes(content)
    status, out, err = run(*PREDICT, "--workload", "bad.json", "--json")
    assert (status, out) == (2, "")
    assert err.startswith("energymodel: bad.json")
    assert reason in one_sentence(err)


@pytest.mark.parametrize(
    ("error", "status", "sentence"),
    [
        (InputError("field x must be y"), 2, "energymodel: field x must be y."),
        (WorkError("It failed."), 1, "energymodel: It failed."),
        (OSError(28, "No space left", "f.json"), 1, "energymodel: f.json: no space left."),
        (OSError("strange"), 1, "energymodel: the output: strange."),
        (MemoryError(), 1, "energymodel: there is not enough memory for this."),
        (KeyboardInterrupt(), 130, "energymodel: interrupted."),
        (KeyError(EVIL), 1, "energymodel: internal error at test_cli:"),
    ],
)
def test_every_failure_is_one_sentence(
    run: Run, monkeypatch: Any, error: BaseException, status: int, sentence: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(energymodel.predict, "predict", fail)
    found, out, err = run(*PREDICT, "--json")
    assert (found, out) == (status, "")
    assert one_sentence(err.lstrip("\n")).startswith(sentence)


def test_a_result_that_is_not_finite_prints_nothing(run: Run, monkeypatch: Any) -> None:
    broken = replace(a_prediction(), energy_j=float("nan"))
    monkeypatch.setattr(energymodel.predict, "predict", lambda *_, **__: broken)
    status, out, err = run(*PREDICT, "--json")
    assert (status, out) == (1, "")
    assert "energy_j is nan" in one_sentence(err)


def test_escape_sequences_do_not_reach_the_terminal(run: Run, monkeypatch: Any) -> None:
    evil = replace(a_prediction(), model=EVIL, warnings=(EVIL,), provenance={"profile": EVIL})
    monkeypatch.setattr(energymodel.predict, "predict", lambda *_, **__: evil)
    for args in (PREDICT, (*PREDICT, "--json")):
        status, out, err = run(*args)
        assert status == 0
        assert all(c.isprintable() or c == "\n" for c in out + err)
    assert json.loads(out)["model"].startswith(EVIL[:5])


# Real processes ------------------------------------------------------------------------------

SHIM = "import sys; from energymodel.cli import main; sys.exit(main())"


def start(*args: str, **options: Any) -> subprocess.Popen[bytes]:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen((sys.executable, "-c", SHIM, *args), **pipes)  # noqa: S603


def test_importing_the_command_line_imports_no_heavy_package() -> None:
    code = "import sys, energymodel.cli; print(*sys.modules)"
    done = subprocess.run(  # noqa: S603
        (sys.executable, "-c", code), capture_output=True, text=True, check=True
    )
    loaded = set(done.stdout.split())
    assert loaded.isdisjoint({"numpy", "rich", "msgspec", "torch", "pynvml", "calibration"})


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_locale(encoding: str, tmp_path: Path) -> None:
    env = os.environ | {"LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": encoding}
    process = start("models", env=env)
    out, err = process.communicate()
    assert (process.returncode, err) == (0, b"")
    assert out.isascii()
    process = start(
        "predict", "--model", "mod\u00e9le", "--gpu", "h200", "--workload", "x", env=env
    )
    out, err = process.communicate()
    assert process.returncode == 2
    assert err.count(b"\n") == 1
    assert b"Traceback" not in err


def test_colours_only_on_a_terminal() -> None:
    out, _ = start("gpus", env=os.environ | {"TERM": "xterm-256color"}).communicate()
    assert b"\x1b" not in out


def test_a_reader_that_goes_away_is_no_error() -> None:
    process = start("models", "--json")
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert (process.wait(), err) == (141, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("args", [("models",), ("models", "--json"), ("--help",)])
def test_a_full_disk(args: tuple[str, ...]) -> None:
    with Path("/dev/full").open("wb") as full:
        process = start(*args, stdout=full)
        _, err = process.communicate()
    assert process.returncode == 1
    assert one_sentence(err.decode()) == "energymodel: the output: no space left on device.\n"


def _written(pipe: Path, process: "subprocess.Popen[bytes]") -> int:
    """The pipe, opened for writing once the program reads it."""
    while process.poll() is None:
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads yet
            time.sleep(0.01)
    pytest.fail(f"the program ended with {process.returncode} before it read")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_an_interrupt(tmp_path: Path) -> None:
    pipe = tmp_path / "runs.jsonl"
    os.mkfifo(pipe)
    process = start("validate", str(pipe))
    with os.fdopen(_written(pipe, process), "wb"):
        # A signal just before a read that waits is only seen after it: Python cannot close this gap,
        # and a person presses ctrl-C again.
        for _ in range(60):
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.5)
                break
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.strip() == b"energymodel: interrupted."
