"""What the state of a GPU and of its host means: pure functions from facts to findings."""

from collections.abc import Iterator

from calibration.doctor.facts import GpuFacts
from calibration.doctor.finding import NOTE, OK, PROBLEM, WARNING, Finding, finding
from calibration.doctor.host import HostFacts

THERMAL = {"software thermal slowdown", "hardware thermal slowdown"}
HARDWARE = {"hardware slowdown", "power brake"}
# More memory in use than this share, or a GPU busier than this, has a user even if none is listed.
HIDDEN_MEMORY = 0.05
HIDDEN_UTILIZATION = 0.05


def of_gpu(facts: GpuFacts) -> Iterator[Finding]:
    """Findings on what the driver says of one GPU."""
    yield from _sharing(facts)
    yield from _health(facts)
    yield from _limits(facts)
    yield from _clocks(facts)
    if facts.persistence is False:
        yield finding(
            NOTE,
            "persistence mode is off",
            "the driver may unload between programs, which resets counters and slows first calls",
            "nvidia-smi -pm 1, as root",
        )


def of_host(host: HostFacts) -> Iterator[Finding]:
    """Findings on what the GPUs are in."""
    if host.container:
        yield finding(
            NOTE,
            f"this is a container ({host.container})",
            "processes of other containers may be invisible, though their energy is counted",
            "make sure that no other container was given the same GPU",
        )
    if host.virtual_machine:
        yield finding(
            NOTE,
            f"this is a virtual machine ({host.virtual_machine})",
            "the host may launch work later than on bare metal, and CPU energy may be hidden",
        )
    if not host.energy_domains:
        yield finding(
            NOTE,
            "no CPU energy counters (powercap)",
            "only the GPU's energy can be measured, boundary gpu",
        )
    closed = [d for d in host.energy_domains if d.remedy]
    if closed:
        yield finding(
            NOTE,
            "not readable: CPU energy of " + ", ".join(d.name for d in closed),
            "boundaries cpu_package and dram cannot be measured",
            closed[0].remedy,
        )


def _sharing(facts: GpuFacts) -> Iterator[Finding]:
    if facts.mig:
        yield finding(
            PROBLEM,
            "MIG is on",
            "energy is counted for the whole GPU, not for a slice of it",
            "nvidia-smi -mig 0, as root",
        )
    if facts.virtualization == "vgpu":
        yield finding(
            PROBLEM,
            "this is a virtual GPU",
            "energy is counted for the board, which others share",
            "measure where the whole GPU is passed through",
        )
    if facts.virtualization == "passthrough":
        yield finding(NOTE, "the GPU is passed through to a virtual machine", "it is wholly ours")
    if facts.other_pids:
        yield finding(
            PROBLEM,
            "other processes compute on it: pid " + ", ".join(map(str, facts.other_pids)),
            "their energy would be counted",
            "wait for them to end or choose another GPU",
        )
    elif facts.graphics_pids:
        yield finding(
            WARNING,
            "it draws graphics: pid " + ", ".join(map(str, facts.graphics_pids)),
            "the energy of that would be counted",
            "stop the display server or choose another GPU",
        )
    else:
        yield from _hidden_users(facts)
    if facts.other_pids is None:
        yield finding(
            WARNING,
            "processes on the GPU cannot be listed",
            "others may use it without being seen",
            "check with nvidia-smi on the host",
        )


def _hidden_users(facts: GpuFacts) -> Iterator[Finding]:
    used = (facts.memory_used_bytes or 0.0) / (facts.memory_bytes or 1.0)
    busy = facts.utilization or 0.0
    if used > HIDDEN_MEMORY or busy > HIDDEN_UTILIZATION:
        yield finding(
            WARNING,
            f"{100 * used:.0f} % of its memory is used and it is {100 * busy:.0f} % busy, "
            "though no process is listed",
            "a process that cannot be seen from here may use it",
            "look for one on the host, or in other containers",
        )


def _health(facts: GpuFacts) -> Iterator[Finding]:
    if facts.uncorrected_errors:
        yield finding(
            PROBLEM,
            f"{facts.uncorrected_errors} uncorrected memory errors since its last reset",
            "results and timings may be wrong",
            "reset or replace the GPU",
        )
    if facts.remap_failed:
        yield finding(
            PROBLEM,
            "a faulty memory row could not be remapped",
            "its memory is failing",
            "replace the GPU",
        )
    if facts.remap_pending or facts.retirement_pending:
        yield finding(
            WARNING,
            "faulty memory waits to be retired or remapped",
            "errors may come back until the GPU is reset",
            "reset the GPU",
        )
    if facts.corrected_errors:
        yield finding(
            NOTE,
            f"{facts.corrected_errors} corrected memory errors since its last reset",
            "results are right; many of them would cost time",
        )
    if facts.remapped_rows or facts.retired_pages:
        count = (facts.remapped_rows or 0) + (facts.retired_pages or 0)
        yield finding(NOTE, f"{count} memory rows or pages were retired", "done with, no effect")
    if facts.ecc is False:
        yield finding(
            NOTE,
            "ECC is off",
            "memory may be faster than on boards with ECC, and faults go unseen",
        )


def _limits(facts: GpuFacts) -> Iterator[Finding]:
    limit_w, default_w = facts.power_limit_w, facts.default_power_limit_w
    if limit_w is None or default_w is None or abs(limit_w - default_w) < 1.0:
        return
    side = "below" if limit_w < default_w else "above"
    yield finding(
        WARNING if side == "below" else NOTE,
        f"the power limit is {limit_w:.0f} W, {side} the default of {default_w:.0f} W",
        "clocks under load, and so time and energy, differ from those of other boards",
        f"nvidia-smi -pl {default_w:.0f}, as root, unless this limit is meant",
    )


def _clocks(facts: GpuFacts) -> Iterator[Finding]:
    set_hz, default_hz = facts.application_sm_clock_hz, facts.default_application_sm_clock_hz
    if set_hz is not None and default_hz is not None and abs(set_hz - default_hz) > 1e6:
        yield finding(
            WARNING,
            f"application clocks are set: {set_hz / 1e6:.0f} MHz, default "
            f"{default_hz / 1e6:.0f} MHz",
            "time and energy are those of that clock",
            "nvidia-smi -rac, as root, unless this clock is meant",
        )
    reasons = set(facts.throttle_reasons or ())
    if reasons & (THERMAL | HARDWARE):
        yield finding(
            WARNING,
            "the clock is lowered now: " + ", ".join(sorted(reasons & (THERMAL | HARDWARE))),
            "measurements would be of a GPU that is too hot or short of power",
            "let it cool, check cooling and power supply",
        )
    if "sync boost" in reasons:
        yield finding(NOTE, "sync boost ties its clock to other GPUs", "their load slows this one")


def unknown_gpu(facts: GpuFacts, known: tuple[str, ...]) -> Iterator[Finding]:
    """A note where there is no data sheet for this GPU."""
    if facts.gpu not in known:
        yield finding(
            NOTE,
            f"no data sheet for {facts.name}",
            "it can be looked at, but not calibrated",
            "add one to energymodel/gpus",
        )


def fit(facts: GpuFacts) -> Iterator[Finding]:
    """Says that nothing is in the way, where nothing is."""
    if facts.mig is not True and not facts.other_pids and not facts.uncorrected_errors:
        yield finding(OK, "the whole GPU is ours", "no MIG, no other process, no memory errors")
