"""Reports of a comparison, each as a page that stands alone (HTML, plots inside) and as Markdown. All model text is
escaped."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rlhf_lib.evaluation.baselines import Baselines
from rlhf_lib.evaluation.harness import TaskChange
from rlhf_lib.evaluation.judges import Judgement
from rlhf_lib.evaluation.measures import Shift, shifts
from rlhf_lib.evaluation.metrics import MetricChange
from rlhf_lib.evaluation.overoptimization import Course
from rlhf_lib.evaluation.page import markdown, page, shortened
from rlhf_lib.evaluation.phrases import Phrases
from rlhf_lib.evaluation.probes import ProbeResult
from rlhf_lib.evaluation.results import BeforeAfter, Comparison, ModelResult
from rlhf_lib.recipe import Recipe
from rlhf_lib.statistics import LEAST_FOR_INTERVAL


@dataclass(frozen=True)
class Row:
    """A figure of both models."""

    name: str
    before: float | None
    after: float | None


@dataclass(frozen=True)
class Sample:
    """One prompt with both responses."""

    query: str
    before: str
    after: str
    score_before: float
    score_after: float
    cut_before: bool
    cut_after: bool

    @property
    def delta(self) -> float:
        return self.score_after - self.score_before


@dataclass(frozen=True)
class BeforeAfterReport:
    """What both forms of the report show."""

    title: str
    comparison: BeforeAfter
    rows: list[Row]
    groups: dict[str, list[Sample]]
    notes: list[str]
    perplexity: Mapping[str, float] | None
    probes: Sequence[ProbeResult]
    shifts: Sequence[Shift]
    metrics: Sequence[MetricChange]
    baselines: Baselines
    judges: Sequence[Judgement] = ()
    warnings: Sequence[str] = ()
    tasks: Sequence[TaskChange] = ()
    phrases: Phrases = field(default_factory=Phrases)
    course: Course | None = None

    @property
    def told(self) -> list[str]:
        """What the judges say, a sentence each."""
        return [judged.told(self.comparison.reward) for judged in self.judges]

    def html(self, pictures: Mapping[str, Path]) -> str:
        """One file, no scripts, nothing fetched; `pictures` are PNG files by their captions."""
        return page("before_after.html", pictures, title=self.title, report=self, c=self.comparison)

    def markdown(self) -> str:
        """For a terminal, a tracker's artifact page or a model card."""
        return markdown("before_after.md", report=self, c=self.comparison)


def build_report(
    title: str,
    comparison: BeforeAfter,
    perplexity: Mapping[str, float] | None = None,
    notes: Sequence[str] = (),
    *,
    probes: Sequence[ProbeResult] = (),
    metrics: Sequence[MetricChange] = (),
    warnings: Sequence[str] = (),
    answer_perplexity: Mapping[str, float] | None = None,
    baselines: Baselines | None = None,
    judges: Sequence[Judgement] = (),
    tasks: Sequence[TaskChange] = (),
    phrases: Phrases | None = None,
    course: Course | None = None,
    samples: int = 5,
    seed: int = 0,
) -> BeforeAfterReport:
    """Collect the metrics, and the samples with the largest gain, the largest loss, and drawn at random.

    `perplexity`: reference, policy, mean_per_text_reference, mean_per_text_policy; None where there is no set.
    `answer_perplexity`: the same of the answers in these texts, given their prompts.
    `notes`: how it was measured, in sentences. `probes`: what `evaluation.probes` found.
    `metrics`: what changed in those of `evaluation.metrics`. `judges`: what those of `evaluation.judges` say.
    `baselines`: what cheaper methods get. `tasks`: what changed in those of `evaluation.lm_eval`. `phrases`: which
    carry the gain. `course`: what reward and judges gave while PPO learnt. `warnings`: what weakens the result, in
    sentences.
    """
    c, d = comparison, comparison.diversity
    rows = [
        Row("Mean score", c.reward.reference, c.reward.policy),
        Row("Distinct-1", d["distinct_1_reference"], d["distinct_1_policy"]),
        Row("Distinct-2", d["distinct_2_reference"], d["distinct_2_policy"]),
        Row("Repeated bigrams in a response", d["repetition_reference"], d["repetition_policy"]),
        Row("Response length, tokens", c.metrics()["length/reference"], c.metrics()["length/policy"]),
        Row("Responses that end themselves", c.metrics()["eos_rate/reference"], c.metrics()["eos_rate/policy"]),
    ]
    if perplexity:
        rows[1:1] = [
            Row("Perplexity, token-weighted", perplexity["reference"], perplexity["policy"]),
            Row(
                "Perplexity, mean per text",
                perplexity["mean_per_text_reference"],
                perplexity["mean_per_text_policy"],
            ),
        ]
        if answer_perplexity:
            answers = Row("Perplexity of answers", answer_perplexity["reference"], answer_perplexity["policy"])
            rows.insert(3, answers)
    order = sorted(range(len(c.queries)), key=lambda i: -c.deltas[i])
    most = min(samples, max(1, len(order) // 2))
    drawn = random.Random(seed).sample(order, min(samples, len(order)))
    groups = {
        "Drawn at random": [_sample(c, i) for i in drawn],
        "Largest gains": [_sample(c, i) for i in order[:most]],
        "Largest losses": [_sample(c, i) for i in reversed(order[-most:])],
    }
    moved = shifts(c.reference.texts, c.policy.texts)
    definitions = [
        *_DEFINITIONS,
        *([_JUDGES] if judges else []),
        *([_COMPARED] if any(judged.asked for judged in judges) else []),
        *([course.note] if course else []),
        *([_METRICS] if metrics else []),
        *([_TASKS] if tasks else []),
        *([_PROBES] if probes else []),
    ]
    definitions += [_SHIFTS] if moved else []
    phrases = phrases or Phrases()
    definitions += [_PHRASES] if phrases.phrases else []
    baselines = baselines or Baselines()
    told = [*notes, *baselines.notes(), *definitions]
    return BeforeAfterReport(
        title,
        comparison,
        rows,
        groups,
        told,
        perplexity,
        probes,
        moved,
        metrics,
        baselines,
        judges,
        warnings,
        tasks,
        phrases,
        course,
    )


def _sample(c: BeforeAfter, i: int) -> Sample:
    ends_matter = any(c.reference.ended) or any(c.policy.ended)
    return Sample(
        query=shortened(c.queries[i]),
        before=c.reference.texts[i],
        after=c.policy.texts[i],
        score_before=c.reference.scores[i],
        score_after=c.policy.scores[i],
        cut_before=ends_matter and not c.reference.ended[i],
        cut_after=ends_matter and not c.policy.ended[i],
    )


_DEFINITIONS = [
    "Scores are the reward's raw output. The interval is a paired bootstrap's over prompts, 95%, with all responses to "
    f"a prompt drawn together, and left out where there are fewer than {LEAST_FOR_INTERVAL} prompts; ties count half "
    "in the win rate.",
    "KL(policy || reference), estimated on the policy's own responses: the log-ratio summed over a response's tokens.",
    "Distinct-n (Li et al. 2016): different n-grams of all the responses over their number of words. Repeated bigrams: "
    "the share inside one response that occurred in it before.",
]

_JUDGES = (
    "Judges score the same responses as the reward, and PPO optimised none of them. Wins at equal length: a logistic "
    "regression of winning on the difference in length, at a difference of 0, as in AlpacaEval 2 (Dubois et al. 2024). "
    "Rank correlation: Spearman's, of what each prompt gained by the reward and by the judge. Accuracy: how often the "
    "judge prefers the chosen answer of a test pair."
)
_COMPARED = (
    "A judge that is a language model compares two answers, in both orders: one that wins in both scores 1 and the "
    "other 0; where the orders don't agree, or it sees a tie, both score 0.5. It has no opinion of the baselines."
)
_METRICS = (
    "Your metrics: means over the responses to which each applies; change and interval, a paired bootstrap's, over the "
    "prompts where it applies both before and after. There is no interval for a handful of prompts, nor for a metric "
    "with one value for all responses."
)
_TASKS = (
    "Tasks of lm-evaluation-harness: the mean of the metric over the documents; change and interval, a paired "
    "bootstrap's over the documents of both."
)
_PROBES = (
    "Next token: the logit of the first word less that of the second, as the token after the prompt; of a word that "
    "the tokenizer splits, its first token's."
)
_SHIFTS = (
    "Words that moved: z-scores of the log-odds ratio under a Dirichlet prior (Monroe et al. 2008), those beyond 1.96; "
    "with many words some pass by chance."
)
_PHRASES = (
    "Phrases behind the gain: the runs of four words whose share of the answers rose most. Earns: the slope of least "
    "squares, of what each prompt's score gained on which phrases came into its answer or left it; their share of the "
    "gain is the slopes times the changes in share, over the mean gain (Kitagawa 1955, Oaxaca 1973). A phrase stands "
    "for whatever comes with it."
)


@dataclass(frozen=True)
class Answer:
    """One model's response to a prompt; `best`: no other's scores higher."""

    text: str
    score: float
    cut: bool
    best: bool


@dataclass(frozen=True)
class Asked:
    """One prompt with every model's response, in the models' order."""

    query: str
    answers: list[Answer]


@dataclass(frozen=True)
class ComparisonReport:
    """What both forms of the report show."""

    title: str
    comparison: Comparison
    rows: dict[str, list[float | None]]  # figure -> one value a model
    groups: dict[str, list[Asked]]
    notes: list[str]
    told: Sequence[str] = ()  # what the judges say, a sentence a judge and model

    def html(self, pictures: Mapping[str, Path]) -> str:
        """One file, no scripts, nothing fetched; `pictures` are PNG files by their captions."""
        return page("comparison.html", pictures, title=self.title, report=self, c=self.comparison)

    def markdown(self) -> str:
        """For a terminal or a tracker's artifact page."""
        return markdown("comparison.md", report=self, c=self.comparison)


def build_comparison_report(
    title: str,
    comparison: Comparison,
    notes: Sequence[str] = (),
    *,
    judges: Mapping[str, Sequence[Judgement]] | None = None,
    samples: int = 5,
    seed: int = 0,
) -> ComparisonReport:
    """Collect the metrics, and the prompts drawn at random and those on which the models' scores are furthest apart.
    `judges`: what each says of every model against the first, by its name."""
    shown = [result.rows for result in comparison.results]
    rows = {name: [row[name] for row in shown] for name in shown[0] if any(row[name] is not None for row in shown)}
    if "KL" in rows:
        rows = {f"KL to {comparison.anchor}" if name == "KL" else name: values for name, values in rows.items()}
    for name, found in (judges or {}).items():
        gains = [judged.gained for judged in found]
        if found[0].asked is None:  # a language model's score is what it wins, which the next row tells
            first = gains[0].reference if gains[0] else None
            rows[f"judge {name}, mean score"] = [first, *(gained.policy if gained else None for gained in gains)]
        rows[f"judge {name}, wins"] = [None, *(gained.win_rate if gained else None for gained in gains)]
        rows[f"judge {name}, wins at equal length"] = [None, *(judged.length_controlled for judged in found)]
    results = comparison.results
    scores = [result.sampled.scores for result in results]
    ranges = [max(column) - min(column) for column in zip(*scores, strict=True)]
    order = sorted(range(len(ranges)), key=lambda i: -ranges[i])
    drawn = random.Random(seed).sample(order, min(samples, len(order)))
    groups = {
        "Drawn at random": [_asked(comparison, i) for i in drawn],
        "Furthest apart": [_asked(comparison, i) for i in order[:samples]],
    }
    told = [*notes, *_COMPARISON_DEFINITIONS, *([] if comparison.same_tokens else [_OTHER_TOKENS])]
    told += [_JUDGES] if judges else []
    told += [_COMPARED] if any(judged.asked for found in (judges or {}).values() for judged in found) else []
    verdicts = [
        judged.told(result.gain, result.name, results[0].name)
        for found in (judges or {}).values()
        for result, judged in zip(results[1:], found, strict=True)
        if result.gain is not None
    ]
    return ComparisonReport(title, comparison, rows, groups, told, verdicts)


def _asked(comparison: Comparison, i: int) -> Asked:
    best = max(result.sampled.scores[i] for result in comparison.results)
    return Asked(shortened(comparison.queries[i]), [_answer(result, i, best) for result in comparison.results])


def _answer(result: ModelResult, i: int, best: float) -> Answer:
    sampled = result.sampled
    cut = any(sampled.ended) and not sampled.ended[i]
    return Answer(sampled.texts[i], sampled.scores[i], cut, sampled.scores[i] == best)


_COMPARISON_DEFINITIONS = [
    "Every model answers the same prompts, the i-th answers drawn from the same random numbers. Scores are the "
    "reward's raw output; intervals are bootstraps over prompts, 95%, with all responses to a prompt drawn together, a "
    f"gain's paired, and left out where there are fewer than {LEAST_FOR_INTERVAL} prompts; ties count half in a win "
    "rate.",
    "KL, nats per response, on the model's own responses; only where the tokenizers agree. Distinct-n: different "
    "n-grams of all the responses over their number of words.",
]
_OTHER_TOKENS = "The models have different tokenizers: lengths and perplexities by token don't compare between them."


def how_sampled(recipe: Recipe) -> str:
    """A note on the responses: their sampling, length and seed."""
    g = recipe.generation
    length = f"at most {g.response_limit}"
    if g.length_sampler:
        length = f"{g.length_sampler.min} to {g.response_limit}"
    truncated = f", top-k {g.top_k}" * bool(g.top_k) + f", top-p {g.top_p}" * (g.top_p < 1)
    return f"Sampled at temperature {g.temperature:g}{truncated}, {length} tokens, seed {recipe.seed}."
