"""What a judge is, a reward or a language model, and its opinion of two models' responses."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlhf_lib.errors import JudgeFailed
from rlhf_lib.evaluation.llm.endpoint import Endpoint
from rlhf_lib.evaluation.llm.judge import LLMJudge
from rlhf_lib.evaluation.llm.verdicts import Verdicts
from rlhf_lib.evaluation.measures import RewardDelta, reward_delta
from rlhf_lib.evaluation.results import Comparison, Sampled
from rlhf_lib.recipe.judges import JudgeConfig
from rlhf_lib.rewards import Reward
from rlhf_lib.rewards.build import build_reward, check_reward
from rlhf_lib.rewards.calling import Columns
from rlhf_lib.rewards.columns import with_ids
from rlhf_lib.rewards.judging import ask, judging

if TYPE_CHECKING:
    import torch

Judge = Reward | LLMJudge


def scorers(judges: Mapping[str, Judge | JudgeFailed]) -> dict[str, Reward]:
    """Those that score one answer alone."""
    return {name: judge for name, judge in judges.items() if not isinstance(judge, LLMJudge | JudgeFailed)}


def build_judge(
    name: str,
    judge: JudgeConfig,
    model: str | None = None,
    device: torch.device | str | None = None,
    *,
    verdicts: Callable[[], Verdicts] | None = None,
    run: str = "",
) -> Judge:
    """The judge that the section describes. `model`: where it was trained. A language model keeps its verdicts in
    `verdicts` and spends the budget of the `run`. Raises what `build_reward` and `LLMJudge` raise."""
    if judge.kind == "llm":
        assert verdicts is not None, "a language model needs a file for its verdicts"
        return LLMJudge(name, judge, verdicts(), run)
    with judging(name):
        return build_reward(judge, model, device)


def check_judge(name: str, judge: JudgeConfig) -> str:
    """Raise what building and asking the judge would, as far as that is known without weights and at most one small
    request. Returns what should make people wonder, empty if nothing."""
    if judge.kind == "llm":
        return Endpoint(f"evaluation.judges.{name}", judge.model or "", judge.endpoint).look()
    with judging(name):
        check_reward(judge, trained_here=judge.pairs is not None)
    return ""


@dataclass(frozen=True)
class Opinion:
    """A judge's scores of two answers to each of N prompts, None where it has none; of a language model, what each
    wins against the other."""

    before: list[float | None]
    after: list[float | None]
    asked: Mapping[str, int] | None = None

    @property
    def rows(self) -> list[int]:
        """Those that have scores."""
        return [i for i, score in enumerate(self.after) if score is not None]

    @property
    def scores(self) -> tuple[list[float], list[float]]:
        """Of these rows."""
        return tuple([side[i] for i in self.rows] for side in (self.before, self.after))  # type: ignore[return-value]


def opinion(
    judge: Judge, name: str, queries: Sequence[str], before: Sampled, after: Sampled, columns: Columns | None = None
) -> Opinion:
    """What the judge thinks of two models' responses to N queries, and the prompts' other `columns`. Raises ModelError,
    and JudgeFailed for a language model that couldn't be asked or says too little (see `LLMJudge.check`)."""
    if isinstance(judge, LLMJudge):
        shares = judge.compare(queries, before.texts, after.texts)
        judge.check(shares)
        others = [None if share is None else 1 - share for share in shares.values]
        return Opinion(others, shares.values, shares.record)
    first, second = (_scores(judge, name, queries, side, columns) for side in (before, after))
    return Opinion([*first], [*second])


def opinions(judge: Judge, name: str, comparison: Comparison) -> list[Opinion]:
    """The same of each further model of a comparison against the first."""
    first, *others = [result.sampled for result in comparison.results]
    if isinstance(judge, LLMJudge):
        return [opinion(judge, name, comparison.queries, first, other) for other in others]
    queries, columns = comparison.queries, comparison.columns
    before, *after = (_scores(judge, name, queries, side, columns) for side in (first, *others))
    return [Opinion([*before], [*scores]) for scores in after]


def _scores(judge: Reward, name: str, queries: Sequence[str], side: Sampled, columns: Columns | None) -> list[float]:
    return ask(judge, name, queries, side.texts, side.ended, with_ids(columns, side.ids))


def gain(judge: Judge, name: str, comparison: Comparison, *, seed: int = 0) -> RewardDelta:
    """What the second of a comparison's models gains on the first by the judge. Raises what `opinion` does."""
    before, after = (result.sampled for result in comparison.results[:2])
    found = opinion(judge, name, comparison.queries, before, after, comparison.columns)
    return reward_delta(*found.scores, prompts=[comparison.queries[i] for i in found.rows], seed=seed)
