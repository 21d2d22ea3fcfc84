"""One calibration from the grid to the profile and its report: what ``energymodel calibrate`` does.

grid -> observations.jsonl -> fit -> profile and report, all in one folder.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

from calibration import grid as grids
from calibration import jsonl, observations
from calibration.files import write_whole
from calibration.fit import Fit, fit_all
from calibration.fit_collectives import with_fabric
from calibration.gpu import datasheet
from calibration.report import evidence, write_report
from calibration.sensors import Sensor
from calibration.simulation.gpu import DRIVER as SIMULATED
from calibration.simulation.gpu import SimulatedBench, SimulatedSensor
from calibration.simulation.recovery import Recovered, recovered
from calibration.simulation.truth import declared, law
from calibration.sweep import Progress, Report, sweep
from energymodel import hardware, io
from energymodel.errors import InputError

OBSERVATIONS = "observations.jsonl"
GRIDS: dict[str, Callable[[str], list[grids.Point]]] = {
    "quick": grids.quick,
    "full": grids.full,
    "wide": grids.wide,
}
BUDGET_S = 600.0
# Operations whose vLLM kernel is FlashAttention 3.
FLASH_3 = ("attention", "mla")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The files that a calibration wrote, and the fit behind them."""

    profile: Path
    report_text: Path
    report_html: Path
    fit: Fit
    recovered: tuple[Recovered, ...] = ()


def start(folder: Path, gpu: str, *, resume: bool, simulated: bool) -> Path:
    """The observation file of ``folder``, ready to be written to.

    Raises:
        InputError: there are observations already and ``resume`` is off, or none and it is on; or
            what would be resumed is of another GPU, or simulated where this one is not.
    """
    file = folder / OBSERVATIONS
    if file.exists() and not resume:
        raise InputError(
            f"{file} holds observations already: add --resume to continue them, or choose another "
            "--out."
        )
    if resume and not file.exists():
        raise InputError(f"--resume finds no {file}: leave it out to begin.")
    if resume:
        _check_same(file, gpu, simulated=simulated)
    return file


def _check_same(file: Path, gpu: str, *, simulated: bool) -> None:
    """Refuse to mix what no fit could take apart again."""
    name = hardware.load(gpu).full_name
    seen = tuple(observations.read(file))
    wrong = sorted(name for name in {o.gpu for o in seen} if datasheet(name) != gpu)
    if wrong:
        raise InputError(f"--resume: {file} is of '{wrong[0]}', not {name}: choose another --out.")
    if any((o.driver == SIMULATED) != simulated for o in seen):
        kind = "measured" if simulated else "simulated"
        raise InputError(f"--resume: {file} was {kind}: choose another --out.")


def measure(
    file: Path,
    sensor: Sensor,
    *,
    grid: str,
    library: str | None = None,
    cache: str = "cold",
    budget_s: float = BUDGET_S,
    report: Report,
    progress: Progress,
) -> int:
    """Measure a grid on this GPU; returns how many observations were added.

    Args:
        file: observations.jsonl, appended to.
        sensor: the GPU that torch uses (``calibration.gpu.find_gpu``).
        grid: quick, full or wide.
        library: whose kernels, vllm or torch; vllm where it is installed unless given.
        cache: cold, or warm: one copy of every operand, which no profile is fitted to.
        budget_s: time after which no further point is begun.
        report: gets a line for each point that was left out.
        progress: gets how far the sweep is.
    """
    library = library or ("vllm" if find_spec("vllm") else "torch")
    points = [replace(p, cache=cache) for p in GRIDS[grid](library)]
    if library == "vllm" and not _flash_attention_3():
        report(
            "FlashAttention 3 does not run on this GPU: attention is measured with torch's kernels"
        )
        points = [replace(p, library="torch") if p.op in FLASH_3 else p for p in points]
    with jsonl.owned(file):
        return sweep(points, sensor, file, budget_s=budget_s, report=report, progress=progress)


def _flash_attention_3() -> bool:
    """Whether vLLM's kernels of attention run here; they need a Hopper GPU."""
    try:
        from vllm.vllm_flash_attn import is_fa_version_supported

        return bool(is_fa_version_supported(3))
    except (ImportError, OSError, RuntimeError):
        return False


def simulate(file: Path, gpu: str, *, grid: str, report: Report, progress: Progress) -> int:
    """Measure a grid on a simulated GPU with declared coefficients; no time budget."""
    truth = declared(hardware.load(gpu))
    sensor = SimulatedSensor(truth.simulated_gpu())
    bench = SimulatedBench(sensor, law(truth))
    points = GRIDS[grid]("vllm")
    with jsonl.owned(file):
        return sweep(
            points, sensor, file, budget_s=1e9, bench=bench, report=report, progress=progress
        )


def conclude(
    file: Path,
    folder: Path,
    gpu: str,
    *,
    runs: Path | None = None,
    simulated: bool = False,
    report: Report,
) -> Outcome:
    """Fit a profile and write it with its report into ``folder``; needs no GPU.

    Args:
        file: what was measured.
        folder: where ``<gpu>.json``, report.txt and report.html go.
        gpu: name of the datasheet.
        runs: whole-model runs to fit the engine on; those shipped for this GPU unless given.
        simulated: the file is of ``simulate``.
        report: gets a line as each part of the fit begins.
    """
    if runs is None and not simulated:
        runs = shipped_runs(gpu)
    fit = fit_all(file, runs, gpu, kind="simulated" if simulated else "measured", report=report)
    fit = replace(fit, profile=with_fabric(fit.profile, file, gpu, simulated=simulated))
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{gpu}.json"
    write_whole(target, io.dumps(fit.profile, indent=None) + "\n")
    text, html = write_report(evidence(fit), folder)
    rows = recovered(fit.components, declared(hardware.load(gpu))) if simulated else ()
    return Outcome(profile=target, report_text=text, report_html=html, fit=fit, recovered=rows)


def is_simulated(file: Path) -> bool:
    """Whether a file of observations came from a simulated GPU."""
    return any(o.driver == SIMULATED for o in observations.read(file))


def shipped_runs(gpu: str) -> Path | None:
    """The whole-model runs that come with this package for a GPU, if any."""
    file = resources.files("calibration").joinpath("data", gpu, "runs.jsonl")
    return Path(str(file)) if file.is_file() else None
