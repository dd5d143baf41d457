"""A recipe's plan: its rows, lengths, parameters, memory, steps, time and gates, with nothing trained."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from rlhf_lib.conversation import prompts_of
from rlhf_lib.data.losses import Loss, cut, data_losses
from rlhf_lib.data.prepare import Prepared, prepare
from rlhf_lib.data.prompts import draw_prompts
from rlhf_lib.data.sources import load_sources
from rlhf_lib.evaluation.llm.judge import requests_at_most, where_texts_go
from rlhf_lib.evaluation.sample_size import check_sample_sizes
from rlhf_lib.models.chat import policy_tokenizer, set_template
from rlhf_lib.models.device import pick_device, pick_dtype
from rlhf_lib.models.loading import load_config, load_tokenizer, positions
from rlhf_lib.plan import memory, timing
from rlhf_lib.plan.memory import Batch
from rlhf_lib.plan.trial import can_try, leaves, try_judges, try_metrics, try_reward
from rlhf_lib.recipe import JudgeConfig, Recipe, RewardConfig
from rlhf_lib.recipe.judges import held_out_shares
from rlhf_lib.rewards.check_texts import has_answers
from rlhf_lib.rewards.classifier import encode_answers

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

LOOKED_AT = 2000  # texts of a set whose tokens are counted
_ASKED = {
    "reference": "for the evaluation",
    "champion": "for the comparison with a champion",
    "pairs": "for test pairs",
}
TOKENIZER_TEXTS = 20_000  # texts that a tokenizer is made from here; the run itself uses all of them
CONDITIONS = {
    "min_pairs": "pairs",
    "min_accuracy": "pairs",
    "min_gain_over_length": "judged",
    "min_gain_over_ngrams": "judged",
    "min_transfer_accuracy": "transfer",
    "min_prompt_sensitivity": "judged",
    "min_probe_accuracy": "probes",
    "max_calibration_error": "calibrated",
    "max_length_correlation": "answers",
    "max_degenerate_win_rate": "answers",
    "max_phrase_win_rate": "judged",
}


class Size(BaseModel):
    """What PPO learns with. Memory in bytes at PPO's peak, by part; `free`: what the device has, None: unknown."""

    parameters: dict[str, int]
    memory: dict[str, float]
    free: float | None
    device: str
    dtype: str


class Lengths(BaseModel):
    """Tokens of one kind of text; `limit`: what the model takes of them, `cut`: the share that is longer."""

    mean: float
    longest: int
    limit: int
    cut: float
    looked_at: int


class Plan(BaseModel):
    """`rows`: read, dropped by reason and kept, by set. `losses`: a line each, `warnings` the worrying ones among
    them. `scores`: the reward's on real texts, None where it was not tried. `seconds`: by stage, and of a step of PPO;
    None: unknown."""

    recipe: str
    rows: dict[str, Any]
    perplexity_texts: int | None
    losses: list[str]
    warnings: list[str]
    lengths: dict[str, Lengths]
    size: Size | None
    steps: int
    batch_size: int
    scores: list[float] | None
    reward: str
    judges: dict[str, str] = {}
    judge_scores: dict[str, list[float] | None] = {}
    checks: dict[str, float]
    gates: dict[str, float]
    seconds: dict[str, float] | None


def make_plan(recipe: Recipe) -> Plan:
    """Read everything, try the reward, measure a few passes. Raises RLHFError for what would stop the run before its
    first training."""
    from rlhf_lib.plan.requirements import check_requirements

    remarks = check_requirements(recipe)
    tokenizer, longest = None, 0
    if recipe.policy.model is not None:
        tokenizer = policy_tokenizer(recipe.policy)
        longest = positions(load_config(recipe.policy.model, recipe.policy.trust_remote_code))
    made = prepare(recipe, load_sources(recipe), (tokenizer, longest) if tokenizer else None)
    scores, took = _timed_trial(recipe, made.pairs.test if made.pairs else None)
    losses = data_losses(made.report)
    if tokenizer is None:
        tokenizer, made, lost = _with_new_tokenizer(recipe, made)
        losses += lost
    assert made.tokenized is not None
    small = check_sample_sizes(recipe, len(made.tokenized["test"]), len(made.pairs.test) if made.pairs else None)
    lengths = _lengths(recipe, made, tokenizer)
    for stage, setting, name in (
        ("base_model", "policy.train.max_length", "sampled texts of the base model"),
        ("reward_model", "reward.train.max_length", "sampled dialogues of the reward model"),
    ):
        if (found := lengths.get(stage)) is not None:
            losses += cut(name, found.looked_at, round(found.cut * found.looked_at), setting)

    config = memory.policy_config(recipe, len(tokenizer))
    batch = Batch.of(recipe, lengths["prompt"].longest)
    typical = Batch.of(recipe, max(1, round(lengths["prompt"].mean)))
    size = measure_size(recipe, batch)
    rates = timing.measure(recipe, config, tokenizer, size.parameters["policy"], typical) if size else None
    seconds = None
    if rates is not None:
        seconds = timing.estimate(recipe, rates, typical, _work(recipe, made, lengths, took))
    evaluated = len(draw_prompts(made.tokenized["test"], recipe))
    return Plan(
        recipe=recipe.name,
        rows=made.report,
        perplexity_texts=_perplexity_texts(recipe),
        losses=[*remarks, *small, *map(str, losses)],
        warnings=[*remarks, *small, *(str(loss) for loss in losses if loss.worrying)],
        lengths=lengths,
        size=size,
        steps=recipe.ppo.steps,
        batch_size=recipe.ppo.batch_size,
        scores=scores,
        reward=describe_reward(recipe),
        judges={
            name: describe_judge(judge, evaluated, len(made.pairs.test) if made.pairs else 0)
            for name, judge in recipe.evaluation.judges.items()
        },
        judge_scores=try_judges(recipe, made.pairs.test if made.pairs else None),
        checks=check_thresholds(recipe),
        gates=gate_thresholds(recipe),
        seconds=seconds,
    )


def measure_size(recipe: Recipe, batch: Batch) -> Size | None:
    """Parameters and memory for batches of that form, from configurations alone; None where these don't tell."""
    device = pick_device(recipe.compute)
    dtype = pick_dtype(recipe.compute, device)
    config = memory.policy_config(recipe)
    try:
        policy = memory.policy_outline(recipe, config)
        asked = (recipe.reward, *recipe.judges_in_ppo.values())
        scoring = sum(memory.reward_parameters(recipe, one, config) for one in asked)
        counted = memory.count(policy, scoring)
        needed = memory.estimate(recipe, policy, counted, batch, dtype)
    except (memory.NoOutline, AttributeError, NotImplementedError):
        return None
    return Size(
        parameters=vars(counted),
        memory=needed.as_dict(),
        free=memory.available(device),
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
    )


def describe_reward(recipe: Recipe) -> str:
    """Where the scores come from."""
    reward = recipe.reward
    if reward.kind == "preference":
        return "trained here on the pairs" + (f", from {reward.model}" if reward.model else "")
    if recipe.data.labelled is not None:
        return "a classifier trained here on the labelled texts"
    if reward.learned():
        which = "one of them trained here on the pairs" if reward.kind == "sum" else "trained here on the pairs"
        return f"{_existing(reward)}, {which}" + (f", from {reward.model}" if reward.model else "")
    return _existing(reward)


def describe_judge(judge: JudgeConfig, prompts: int, pairs: int) -> str:
    """Where a judge's scores come from; of a language model, what it may cost for so many evaluation prompts and test
    pairs, and where the texts go."""
    if judge.kind == "llm":
        wanted = requests_at_most(judge, prompts, pairs)
        parts = [f"{count:,} {_ASKED[what]}" for what, count in wanted.items() if count]
        return (
            f"{judge.model} at {judge.endpoint.host}; {where_texts_go(judge)}; {sum(wanted.values()):,} requests "
            f"({', '.join(parts)}), more for replies that can't be read, never more than max_requests "
            f"({judge.endpoint.max_requests:,})"
        )
    if judge.pairs is None:
        return _existing(judge)
    start = f", from {judge.model}" if judge.model else ""
    several = f"{_existing(judge)}, " if judge.kind == "ensemble" else ""
    return f"{several}trained here on {judge.share:.0%} of the pairs' prompts, which the reward model won't see{start}"


def _existing(reward: RewardConfig) -> str:
    if reward.kind == "sum":
        return f"a sum of {len(reward.terms or [])} rewards"
    if reward.kind == "ensemble":
        return f"an ensemble of {len(reward.parts)} models, combined by {reward.combine}"
    return f"function {reward.function}" if reward.kind == "function" else f"{reward.kind} {reward.model}"


def check_thresholds(recipe: Recipe) -> dict[str, float]:
    """The reward checks that apply, under their keys in `reward.checks`."""
    checks = recipe.reward.checks
    applies = {
        "pairs": recipe.data.preferences is not None,
        "transfer": recipe.data.preferences is not None and recipe.data.preferences.transfer is not None,
        "probes": bool(checks.probes),
        "judged": recipe.data.preferences is not None and checks.min_accuracy is not None,
        "calibrated": recipe.reward.kind == "preference" and recipe.data.preferences is not None,
        "answers": recipe.data.preferences is not None or has_answers(recipe),
    }
    found = _thresholds(checks)
    return {key: value for key, value in found.items() if applies.get(CONDITIONS.get(key, ""), True)}


def gate_thresholds(recipe: Recipe) -> dict[str, float]:
    """The gates that a version must pass to become champion, under their keys in `registration.gates`."""
    unmeasured = {"max_perplexity_ratio"} if recipe.evaluation.perplexity is None else set()
    unmeasured |= set() if recipe.evaluation.judges else {"min_judge_delta"}
    unmeasured |= set() if recipe.evaluation.lm_eval else {"min_lm_eval_delta"}
    unmeasured |= {"min_prompts"} if recipe.data.prompts.unheld else set()
    return {key: value for key, value in _thresholds(recipe.registration.gates).items() if key not in unmeasured}


def _thresholds(section: BaseModel) -> dict[str, float]:
    given = section.model_dump()
    return {
        key: float(value)
        for key, value in given.items()
        if key.startswith(("min_", "max_")) and isinstance(value, int | float)
    }


def _timed_trial(recipe: Recipe, pairs: Dataset | None) -> tuple[list[float] | None, float | None]:
    """The scores, and the seconds that one takes; None where it wasn't tried."""
    try_metrics(recipe, pairs)
    if not can_try(recipe):
        return None, None
    start = time.perf_counter()
    scores = try_reward(recipe, pairs)
    return scores, (time.perf_counter() - start) / max(1, len(scores or []))


def _with_new_tokenizer(recipe: Recipe, made: Prepared) -> tuple[PreTrainedTokenizerBase, Prepared, list[Loss]]:
    """A tokenizer like the one that the base model will get, and the prompts in its tokens."""
    from dataclasses import replace

    from rlhf_lib.data.losses import tokenized_losses
    from rlhf_lib.data.prompt_tokens import tokenize_splits
    from rlhf_lib.training.scratch import train_tokenizer

    size = recipe.policy.train.from_scratch if recipe.policy.train else None
    assert size is not None, "the recipe requires a model, or one from scratch"
    rows = _learnt(made)
    some = rows.select(range(min(len(rows), TOKENIZER_TEXTS)))
    texts = (text for row in some for text in (row["prompt"] + row["chosen"], row.get("rejected")) if text)
    tokenizer = train_tokenizer(texts, size.vocab_size, size.positions, append_eos=size.architecture == "t5")
    set_template(tokenizer, recipe.policy)
    train, test, counts = tokenize_splits(made.texts["train"], made.texts["test"], recipe, tokenizer, size.positions)
    losses = [loss for split, found in counts.items() for loss in tokenized_losses(split, found)]
    report = made.report | {"tokenized": counts}
    return tokenizer, replace(made, tokenized={"train": train, "test": test}, report=report), losses


def _learnt(made: Prepared) -> Dataset:
    """What the base model is trained on: prompt and chosen, of pairs rejected too."""
    learned = made.corpus or made.pairs
    assert learned is not None, "the recipe requires a corpus or pairs here"
    return learned.train


def _lengths(recipe: Recipe, made: Prepared, tokenizer: PreTrainedTokenizerBase) -> dict[str, Lengths]:
    """In tokens of the policy's tokenizer, or for a reward model that starts from another model in its own."""
    assert made.tokenized is not None
    config = memory.policy_config(recipe, len(tokenizer))
    own = positions(config)
    prompts = [len(ids) for split in made.tokenized.values() for ids in split["input_ids"]]
    found = {"prompt": _summary(prompts, own - recipe.generation.response_limit)}
    if recipe.policy.train is not None:
        limit = min(recipe.policy.train.max_length or own, own)
        found["base_model"] = _summary(_counted(_learnt(made), tokenizer, ["chosen"]), limit)
    reward = next(iter(recipe.reward.learned().values()), None)
    if reward is not None and made.pairs is not None:
        theirs, most = tokenizer, own
        if reward.model is not None and reward.model != recipe.policy.model:
            theirs = load_tokenizer(reward.model, reward.trust_remote_code)
            most = positions(load_config(reward.model, reward.trust_remote_code))
        limit = min(reward.train.max_length or reward.max_length or most, most)
        found["reward_model"] = _summary(_counted(made.pairs.train, theirs, ["chosen", "rejected"]), limit)
    return found


def _counted(rows: Dataset, tokenizer: PreTrainedTokenizerBase, sides: Sequence[str]) -> list[int]:
    some = rows.select(range(min(len(rows), LOOKED_AT)))
    prompts = prompts_of(some, "prompt")
    return [
        len(ids)
        for side in sides
        for ids in encode_answers(tokenizer, prompts, list(some[side]), 1 << 20, append_eos=True)["input_ids"]
    ]


def _summary(lengths: list[int], limit: int) -> Lengths:
    return Lengths(
        mean=sum(lengths) / len(lengths),
        longest=max(lengths),
        limit=limit,
        cut=sum(length > limit for length in lengths) / len(lengths),
        looked_at=len(lengths),
    )


def _perplexity_texts(recipe: Recipe) -> int | None:
    from rlhf_lib.data.sources import load_split

    wanted = recipe.evaluation.perplexity
    if wanted is None:
        return None
    count = len(load_split(wanted, recipe.data.prompts.dataset, "evaluation.perplexity"))
    return min(count, wanted.limit or count)


def _work(recipe: Recipe, made: Prepared, lengths: Mapping[str, Lengths], reward: float | None) -> timing.Work:
    """Tokens to learn from, by stage."""

    def passes(train: Any, rows: float) -> float:
        return train.max_steps * train.batch_size if train.max_steps else train.epochs * rows

    base = scored = 0.0
    if recipe.policy.train is not None:
        both = recipe.policy.train.answers == "both" and made.corpus is None
        rows = len(_learnt(made)) * (2 if both else 1)
        base = passes(recipe.policy.train, rows) * min(lengths["base_model"].mean, lengths["base_model"].limit)
    if "reward_model" in lengths and made.pairs is not None:
        mean = min(lengths["reward_model"].mean, lengths["reward_model"].limit)
        pairs, shares = len(made.pairs.train), held_out_shares(recipe.evaluation.judges)
        learners = [(section, 1 - sum(shares.values())) for section in recipe.reward.learned().values()]
        judges = recipe.evaluation.judges
        learners += [(section, share) for name, share in shares.items() for section in judges[name].learned().values()]
        scored = 2 * sum(passes(learner.train, share * pairs) for learner, share in learners) * mean
    texts = (_perplexity_texts(recipe) or 0) * (lengths["base_model"].mean if "base_model" in lengths else 256)
    models = sum(leaf.kind != "function" for leaf in leaves(recipe.reward))
    return timing.Work(base_model=base, reward_model=scored, evaluation=texts, reward=reward, models=max(1, models))
