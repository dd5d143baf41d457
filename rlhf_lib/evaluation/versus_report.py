"""Several models beside each other, as a page that stands alone and as Markdown. All model text is escaped."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlhf_lib.evaluation.page import markdown, page, shortened
from rlhf_lib.evaluation.versus import Showing, Versus


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
class Report:
    """What both forms of the report show."""

    title: str
    versus: Versus
    rows: dict[str, list[float | None]]  # figure -> one value a model
    groups: dict[str, list[Asked]]
    notes: list[str]

    def html(self, pictures: Mapping[str, Path]) -> str:
        """One file, no scripts, nothing fetched; `pictures` are PNG files by their captions."""
        return page(_HTML, pictures, title=self.title, report=self, v=self.versus)

    def markdown(self) -> str:
        """For a terminal or a tracker's artifact page."""
        return markdown(_MARKDOWN, report=self, v=self.versus)


def build_report(title: str, versus: Versus, notes: Sequence[str] = (), *, samples: int = 5, seed: int = 0) -> Report:
    """Collect the figures, and the prompts drawn at random and those on which the models' scores are furthest apart."""
    shown = [showing.rows for showing in versus.showings]
    rows = {name: [row[name] for row in shown] for name in shown[0] if any(row[name] is not None for row in shown)}
    if "KL" in rows:
        rows = {f"KL to {versus.anchor}" if name == "KL" else name: values for name, values in rows.items()}
    scores = [showing.sampled.scores for showing in versus.showings]
    spread = [max(column) - min(column) for column in zip(*scores, strict=True)]
    order = sorted(range(len(spread)), key=lambda i: -spread[i])
    drawn = random.Random(seed).sample(order, min(samples, len(order)))
    groups = {
        "Drawn at random": [_asked(versus, i) for i in drawn],
        "Furthest apart": [_asked(versus, i) for i in order[:samples]],
    }
    told = [*notes, *_DEFINITIONS, *([] if versus.same_tokens else [_OTHER_TOKENS])]
    return Report(title, versus, rows, groups, told)


def _asked(versus: Versus, i: int) -> Asked:
    best = max(showing.sampled.scores[i] for showing in versus.showings)
    return Asked(shortened(versus.queries[i]), [_answer(showing, i, best) for showing in versus.showings])


def _answer(showing: Showing, i: int, best: float) -> Answer:
    sampled = showing.sampled
    cut = any(sampled.ended) and not sampled.ended[i]
    return Answer(sampled.texts[i], sampled.scores[i], cut, sampled.scores[i] == best)


_DEFINITIONS = [
    "Every model answers the same prompts, the i-th answers drawn from the same random numbers. Scores are the "
    "reward's raw output; intervals are bootstraps over prompts, 95%, a gain's paired; ties count half in a win rate.",
    "KL, nats per response, on the model's own responses; only where the tokenizers agree. Distinct-n: different "
    "n-grams of all the responses over their number of words.",
]
_OTHER_TOKENS = "The models have different tokenizers: lengths and perplexities by token don't compare between them."

_MARKDOWN = """\
# {{ report.title }}

{{ v.queries|length }} prompts, gains and wins against {{ v.showings[0].name|cell }}.

| |{% for s in v.showings %} {{ s.name|cell }} |{% endfor %}

|---|{% for s in v.showings %}---:|{% endfor %}

| gain |{% for s in v.showings %} {% if s.gain %}{{ s.gain.delta|number(true) }} \
({{ s.gain.ci95[0]|number(true) }} to {{ s.gain.ci95[1]|number(true) }}){% else %}-{% endif %} |{% endfor %}

{% for name, values in report.rows.items() %}
| {{ name|cell }} |{% for value in values %} {{ value|number }} |{% endfor %}

{% endfor %}

## Who beats whom

The share of the prompts on which the row's model scores higher than the column's.

| |{% for s in v.showings %} {{ s.name|cell }} |{% endfor %}

|---|{% for s in v.showings %}---:|{% endfor %}

{% for s in v.showings %}
{% set row = v.win_rates[loop.index0] %}
| {{ s.name|cell }} |{% for share in row %} {{ "-" if share is none else "%.0f%%"|format(100 * share) }} |{% endfor %}

{% endfor %}
{% for title, group in report.groups.items() %}

## {{ title }}

| query |{% for s in v.showings %} {{ s.name|cell }} |{% endfor %}

|---|{% for s in v.showings %}---|{% endfor %}

{% for asked in group %}
| {{ asked.query|cell }} |{% for a in asked.answers %} {{ a.score|number }}: {{ a.text|cell }} |{% endfor %}

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
<h1>{{ report.title }}</h1>
<p class="lead">{{ v.queries|length }} held-out prompts, the same prompts and seeds for all.</p>

<section class="cards">
{% for s in v.showings %}
  <div class="card"><span class="name">{{ s.name }}</span>
  {% if s.gain %}
    <b class="{{ 'good' if s.gain.ci95[0] > 0 else 'bad' if s.gain.ci95[1] < 0 else '' }}">
      {{- s.gain.delta|number(true) }}</b>
    <span>on {{ v.showings[0].name }}, 95% interval {{ s.gain.ci95[0]|number(true) }} to
      {{ s.gain.ci95[1]|number(true) }}; better on {{ "%.0f"|format(100 * s.gain.win_rate) }}%</span></div>
  {% else %}
    <b>{{ s.mean[0]|number }}</b><span>mean score, 95% interval {{ s.mean[1]|number }} to {{ s.mean[2]|number }}; the
      others are held against it</span></div>
  {% endif %}
{% endfor %}
</section>

{{ plots(images) }}

<h2>Figures</h2>
<div class="wide"><table>
  <thead><tr><th></th>{% for s in v.showings %}<th class="n">{{ s.name }}</th>{% endfor %}</tr></thead>
  {% for name, values in report.rows.items() %}
  <tr><td>{{ name }}</td>{% for value in values %}<td class="n">{{ value|number }}</td>{% endfor %}</tr>
  {% endfor %}
</table></div>

{% for title, group in report.groups.items() %}
<h2>{{ title }}</h2>
<div class="wide"><table class="samples">
  <thead><tr><th>query</th>{% for s in v.showings %}<th>{{ s.name }}</th>{% endfor %}</tr></thead>
  {% for asked in group %}
  <tr><td class="text query">{{ asked.query.strip() }}</td>
  {% for a in asked.answers %}
  {{ response(a.text, a.score, a.cut, "best" if a.best else "") }}
  {% endfor %}
  </tr>
  {% endfor %}
</table></div>
{% endfor %}

{{ notes(report.notes) }}
{% endblock %}
"""
