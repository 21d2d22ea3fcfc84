"""Speculative decoding in measured vLLM runs: draft models with random weights, counted drafts.

Random weights agree on nothing, so drafts are accepted by chance: vLLM 0.24 can draw the decision
instead (``rejection_sample_method="synthetic"`` in ``vllm/config/speculative.py``; the target still
verifies every draft). ``acceptance_rate`` A is the probability that a draft token is accepted where
those before it were, so that position i holds with A^i.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from energymodel.deployment import NGRAM

if TYPE_CHECKING:
    from collections.abc import Callable

    from energymodel.deployment import Deployment
    from energymodel.workload import Workload

# Longest and shortest run of tokens that is looked up. Random weights repeat single tokens.
LONGEST_MATCH, SHORTEST_MATCH = 4, 1


def settings(deployment: "Deployment", folder: Path) -> dict[str, Any]:
    """Keyword arguments of ``LLM`` for the deployment's speculative decoding; none where it is off.

    The configuration of a draft model is written to ``folder``.
    """
    model, drafted = deployment.speculative_model, deployment.num_speculative_tokens
    if model is None:
        return {}
    config: dict[str, Any] = {"num_speculative_tokens": drafted}
    if model == NGRAM:
        lookup = {"prompt_lookup_max": LONGEST_MATCH, "prompt_lookup_min": SHORTEST_MATCH}
        config |= {"method": NGRAM} | lookup
    else:
        from energymodel.find_model import find_config

        facts = find_config(model).config
        shown = {k: v for k, v in facts.items() if not k.startswith("_")}
        folder.mkdir()
        Path(folder, "config.json").write_text(json.dumps(shown), encoding="utf-8")
        config |= {"method": "draft_model", "model": str(folder)}
    if deployment.acceptance_rate is not None:
        rates = [deployment.acceptance_rate ** (i + 1) for i in range(drafted)]
        config |= {"rejection_sample_method": "synthetic", "synthetic_acceptance_rates": rates}
    return {"speculative_config": config}


def draft_model(worker: Any) -> Any:
    """The draft model of a vLLM worker; None where nothing, or no model, drafts."""
    drafter = getattr(worker.model_runner, "drafter", None)
    return getattr(drafter, "model", None)


def draft_rate(
    deployment: "Deployment", workload: "Workload", counts: Mapping[str, int], repeats: int
) -> dict[str, float]:
    """``draft_rate`` of a run with n-grams: the share of the steps of sequences that verified a draft.

    ``counts`` are of ``repeats`` passes.
    """
    if deployment.speculative_model != NGRAM or not counts:
        return {}
    tokens = sum((b.count or 0) * max(b.output_tokens - 1, 0) for b in workload.bins)
    steps = max(repeats * tokens - counts["accepted_tokens"], 1)
    return {"draft_rate": round(min(counts["drafts"] / steps, 1.0), 6)}


class DraftCounts:
    """Counts of drafts of a running engine, from its scheduler (one process)."""

    def __init__(self) -> None:
        self.drafts = 0
        self.draft_tokens = 0
        self.accepted_tokens = 0

    def reset(self) -> None:
        """Start again at 0."""
        self.drafts = self.draft_tokens = self.accepted_tokens = 0

    def watch(self, llm: Any) -> None:
        """Count whenever the scheduler of ``llm`` learns what was accepted."""
        scheduler = llm.llm_engine.engine_core.engine_core.scheduler
        original: Callable[..., Any] = scheduler.make_spec_decoding_stats

        def make_spec_decoding_stats(
            stats: Any, num_draft_tokens: int, num_accepted_tokens: int, **rest: Any
        ) -> Any:
            self.drafts += 1
            self.draft_tokens += num_draft_tokens
            self.accepted_tokens += num_accepted_tokens
            return original(
                stats,
                num_draft_tokens=num_draft_tokens,
                num_accepted_tokens=num_accepted_tokens,
                **rest,
            )

        scheduler.make_spec_decoding_stats = make_spec_decoding_stats

    def facts(self) -> Mapping[str, int]:
        """What was counted, by name; nothing where nothing was drafted."""
        if not self.drafts:
            return {}
        return {
            "drafts": self.drafts,
            "draft_tokens": self.draft_tokens,
            "accepted_tokens": self.accepted_tokens,
        }
