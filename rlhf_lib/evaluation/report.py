"""The evaluation as a page that stands alone (HTML, plots inside) and as Markdown. All model text is escaped."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf_lib.evaluation.comparison import Comparison
from rlhf_lib.evaluation.page import markdown, page, shortened
from rlhf_lib.evaluation.probes import ProbeResult
from rlhf_lib.evaluation.words import Shift, shifts


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
class Report:
    """What both forms of the report show."""

    title: str
    comparison: Comparison
    rows: list[Row]
    groups: dict[str, list[Sample]]
    notes: list[str]
    perplexity: Mapping[str, float] | None
    probes: Sequence[ProbeResult]
    shifts: Sequence[Shift]

    def html(self, pictures: Mapping[str, Path]) -> str:
        """One file, no scripts, nothing fetched; `pictures` are PNG files by their captions."""
        return page(_HTML, pictures, title=self.title, report=self, c=self.comparison)

    def markdown(self) -> str:
        """For a terminal, a tracker's artifact page or a model card."""
        return markdown(_MARKDOWN, report=self, c=self.comparison)


def build_report(
    title: str,
    comparison: Comparison,
    perplexity: Mapping[str, float] | None = None,
    notes: Sequence[str] = (),
    *,
    probes: Sequence[ProbeResult] = (),
    samples: int = 5,
    seed: int = 0,
) -> Report:
    """Collect the figures, and the samples with the largest gain, the largest loss, and drawn at random.

    `perplexity`: reference, policy, mean_per_text_reference, mean_per_text_policy; None where there is no set.
    `notes`: how it was measured, in sentences. `probes`: what `evaluation.probes` found.
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
    order = sorted(range(len(c.queries)), key=lambda i: -c.deltas[i])
    most = min(samples, max(1, len(order) // 2))
    drawn = random.Random(seed).sample(order, min(samples, len(order)))
    groups = {
        "Drawn at random": [_sample(c, i) for i in drawn],
        "Largest gains": [_sample(c, i) for i in order[:most]],
        "Largest losses": [_sample(c, i) for i in reversed(order[-most:])],
    }
    moved = shifts(c.reference.texts, c.policy.texts)
    definitions = [*_DEFINITIONS, *([_PROBES] if probes else []), *([_SHIFTS] if moved else [])]
    return Report(title, comparison, rows, groups, [*notes, *definitions], perplexity, probes, moved)


def _sample(c: Comparison, i: int) -> Sample:
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
    "Scores are the reward's raw output. The interval is a paired bootstrap's over prompts, 95%; ties count half in "
    "the win rate.",
    "KL(policy || reference), estimated on the policy's own responses: the log-ratio summed over a response's tokens.",
    "Distinct-n (Li et al. 2016): different n-grams of all the responses over their number of words. Repeated bigrams: "
    "the share inside one response that occurred in it before.",
]

_PROBES = (
    "Next token: the logit of the first word less that of the second, as the token after the prompt; of a word that "
    "the tokenizer splits, its first token's."
)
_SHIFTS = (
    "Words that moved: z-scores of the log-odds ratio under a Dirichlet prior (Monroe et al. 2008), those beyond 1.96; "
    "with many words some pass by chance."
)

_MARKDOWN = """\
# {{ report.title }}

{% set r = c.reward %}
Reward **{{ r.reference|number }} -> {{ r.policy|number }}**: {{ r.delta|number(true) }} \
(95% interval {{ r.ci95[0]|number(true) }} to {{ r.ci95[1]|number(true) }}), better on \
{{ "%.0f"|format(100 * r.win_rate) }}% of {{ c.queries|length }} held-out prompts, for a KL of {{ c.kl|number }} nats \
per response (standard error {{ c.kl_error|number }}).

| | before | after |
|---|---:|---:|
{% for row in report.rows %}
| {{ row.name }} | {{ row.before|number }} | {{ row.after|number }} |
{% endfor %}
{% if report.probes %}

## Next token

| prompt | word (+) | against (-) | before | after |
|---|---|---|---:|---:|
{% for p in report.probes %}
| {{ p.prompt|cell }} | {{ p.token|cell }} | {{ p.against|cell }} | {{ p.reference|number(true) }} | \
{{ p.policy|number(true) }} |
{% endfor %}
{% endif %}
{% if report.shifts %}

## Words that moved

| word | before | after | z |
|---|---:|---:|---:|
{% for s in report.shifts %}
| {{ s.word|cell }} | {{ s.before }} | {{ s.after }} | {{ s.z|number(true) }} |
{% endfor %}
{% endif %}
{% for title, samples in report.groups.items() %}

## {{ title }}

| query | before | after | score |
|---|---|---|---:|
{% for s in samples %}
| {{ s.query|cell }} | {{ s.before|cell }} | {{ s.after|cell }} | {{ s.score_before|number }} -> \
{{ s.score_after|number }} |
{% endfor %}
{% endfor %}

## How it was measured

{% for note in report.notes %}
- {{ note }}
{% endfor %}
"""

_HTML = """\
{% extends "page.html" %}
{% block body %}
{% from "parts.html" import response, plots, notes %}
{% macro change(value) %}
<span class="{{ 'good' if value > 0 else 'bad' if value < 0 else '' }}">{{ value|number(true) }}</span>
{%- endmacro %}
{% set r = c.reward %}
<h1>{{ report.title }}</h1>
<p class="lead">Reference (before) against policy (after) on {{ c.queries|length }} held-out prompts, the same prompts
and seeds for both.</p>

<section class="cards">
  <div class="card"><span class="name">Reward gained</span>
    <b class="{{ 'good' if r.ci95[0] > 0 else 'bad' if r.ci95[1] < 0 else '' }}">{{ r.delta|number(true) }}</b>
    <span>95% interval {{ r.ci95[0]|number(true) }} to {{ r.ci95[1]|number(true) }}</span></div>
  <div class="card"><span class="name">Better than before</span>
    <b>{{ "%.0f"|format(100 * r.win_rate) }}%</b><span>of the prompts</span></div>
  <div class="card"><span class="name">KL to the reference</span>
    <b>{{ c.kl|number }}</b><span>nats per response, standard error {{ c.kl_error|number }}</span></div>
  {% if report.perplexity %}
  <div class="card"><span class="name">Perplexity</span>
    <b>{{ report.perplexity["policy"]|number }}</b><span>was {{ report.perplexity["reference"]|number }}</span></div>
  {% endif %}
  <div class="card"><span class="name">Distinct-2</span>
    <b>{{ c.diversity["distinct_2_policy"]|number }}</b>
    <span>was {{ c.diversity["distinct_2_reference"]|number }}</span></div>
</section>

{{ plots(images) }}

<h2>Figures</h2>
<table>
  <thead><tr><th></th><th class="n">before</th><th class="n">after</th><th class="n">change</th></tr></thead>
  {% for row in report.rows %}
  <tr><td>{{ row.name }}</td><td class="n">{{ row.before|number }}</td><td class="n">{{ row.after|number }}</td>
  <td class="n">{% if row.before is not none and row.after is not none %}{{ (row.after - row.before)|number(true) }}
  {%- endif %}</td></tr>
  {% endfor %}
</table>

{% if report.probes %}
<h2>Next token</h2>
<table>
  <thead><tr><th>after</th><th>word (+)</th><th>against (-)</th><th class="n">before</th><th class="n">after</th>
    <th class="n">change</th></tr></thead>
  {% for p in report.probes %}
  <tr><td>{{ p.prompt }}</td><td>{{ p.token.strip() }}</td><td>{{ p.against.strip() }}</td>
  <td class="n">{{ p.reference|number(true) }}</td><td class="n">{{ p.policy|number(true) }}</td>
  <td class="n">{{ (p.policy - p.reference)|number(true) }}</td></tr>
  {% endfor %}
</table>
{% endif %}
{% if report.shifts %}
<h2>Words that moved</h2>
<p class="words">
{% for s in report.shifts %}
  <span class="{{ 'gained' if s.z > 0 else 'lost' }}" title="z {{ s.z|number(true) }}">{{ s.word }}
    <small>{{ s.before }} &rarr; {{ s.after }}</small></span>
{% endfor %}
</p>
{% endif %}

{% for title, samples in report.groups.items() %}
<h2>{{ title }}</h2>
<table class="samples">
  <colgroup><col style="width: 30%"><col style="width: 31%"><col style="width: 31%"><col style="width: 8%"></colgroup>
  <thead><tr><th>query</th><th>before</th><th>after</th><th class="n">gain</th></tr></thead>
  {% for s in samples %}
  <tr><td class="text query">{{ s.query.strip() }}</td>
  {{ response(s.before, s.score_before, s.cut_before, "before") }}
  {{ response(s.after, s.score_after, s.cut_after, "after") }}
  <td class="n">{{ change(s.delta) }}</td></tr>
  {% endfor %}
</table>
{% endfor %}

{{ notes(report.notes) }}
{% endblock %}
"""
