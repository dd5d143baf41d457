"""The evaluation as a page that stands alone (HTML, plots inside) and as Markdown. All model text is escaped."""

from __future__ import annotations

import base64
import html
import io
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from jinja2 import Environment
from matplotlib.figure import Figure

from rlhf_lib.evaluation.comparison import Comparison
from rlhf_lib.evaluation.probes import ProbeResult
from rlhf_lib.evaluation.words import Shift, shifts

QUERY_CHARS = 400  # a long dialogue shows its end, which is what the responses answer


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

    def html(self, figures: Mapping[str, Figure]) -> str:
        """One file, no scripts, nothing fetched; `figures` by their captions."""
        images = {caption: _png(figure) for caption, figure in figures.items()}
        return _TEMPLATES.from_string(_HTML).render(report=self, c=self.comparison, images=images)

    def markdown(self) -> str:
        """For a terminal, a tracker's artifact page or a model card."""
        return _MARKDOWN_TEMPLATES.from_string(_MARKDOWN).render(report=self, c=self.comparison)


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
    query = c.queries[i]
    ends_matter = any(c.reference.ended) or any(c.policy.ended)
    return Sample(
        query=query if len(query) <= QUERY_CHARS else "... " + query[-QUERY_CHARS:],
        before=c.reference.texts[i],
        after=c.policy.texts[i],
        score_before=c.reference.scores[i],
        score_after=c.policy.scores[i],
        cut_before=ends_matter and not c.reference.ended[i],
        cut_after=ends_matter and not c.policy.ended[i],
    )


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return base64.b64encode(buffer.getvalue()).decode()


def number(value: float | None, signed: bool = False) -> str:
    """Three digits that matter, no exponent for ordinary sizes; n/a for None."""
    if value is None:
        return "n/a"
    text = f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:#.3g}".rstrip(".")
    return f"+{text}" if signed and value > 0 else text


def markdown_cell(text: str) -> str:
    """Text as a Markdown table's cell shows it literally: HTML and Markdown marks escaped, line breaks kept."""
    escaped = html.escape(text.strip(), quote=False)
    for mark in "\\`*_{}[]#|~$":
        escaped = escaped.replace(mark, f"\\{mark}")
    return escaped.replace("\r", "").replace("\n", "<br>") or "(empty)"


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

_TEMPLATES = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
_MARKDOWN_TEMPLATES = Environment(trim_blocks=True, lstrip_blocks=True)
for _environment in (_TEMPLATES, _MARKDOWN_TEMPLATES):
    _environment.filters |= {"number": number, "cell": markdown_cell}

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
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ report.title }}</title>
<style>
  :root { --ink: #2b303b; --quiet: #687082; --line: #e3e6ec; --before: #8a94a6; --after: #d9622b; --good: #1d7f4e;
    --bad: #b3261e; }
  * { box-sizing: border-box; }
  body { font: 15px/1.5 system-ui, "Segoe UI", "Liberation Sans", Arial, sans-serif; color: var(--ink);
    background: #f6f7f9; margin: 0; }
  main { max-width: 1120px; margin: 0 auto; padding: 32px 24px 64px; }
  h1 { font-size: 26px; line-height: 1.25; margin: 0 0 6px; overflow-wrap: anywhere; }
  h2 { font-size: 18px; margin: 40px 0 12px; }
  .lead { color: var(--quiet); margin: 0 0 24px; }
  .cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); gap: 12px; }
  .card, figure, table { background: #fff; border: 1px solid var(--line); border-radius: 10px; }
  .card { padding: 14px 16px; }
  .card b { display: block; font-size: 27px; line-height: 1.2; font-variant-numeric: tabular-nums; }
  .card span { color: var(--quiet); font-size: 13px; }
  .card .name { display: block; font-size: 13px; color: var(--ink); }
  .good { color: var(--good); } .bad { color: var(--bad); }
  .plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(310px, 1fr)); gap: 12px; margin-top: 12px; }
  .plots.pairs { grid-template-columns: repeat(auto-fit, minmax(440px, 1fr)); }
  figure { margin: 0; padding: 8px; } figure img { width: 100%; display: block; }
  table { border-collapse: separate; border-spacing: 0; width: 100%; overflow: hidden; }
  th { text-align: left; font-size: 12px; color: var(--quiet); font-weight: 600; background: #fafbfc; }
  th, td { padding: 9px 14px; border-bottom: 1px solid var(--line); vertical-align: top; }
  tr:last-child td { border-bottom: 0; }
  .n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
  .samples { table-layout: fixed; } .samples td { font-size: 14px; }
  .samples .text { white-space: pre-wrap; overflow-wrap: anywhere; }
  .query { color: var(--quiet); }
  .score { display: block; font-size: 12px; font-weight: 600; font-variant-numeric: tabular-nums; margin-bottom: 2px; }
  .before .score { color: var(--before); } .after .score { color: var(--after); }
  .mark { color: var(--quiet); font-size: 12px; font-style: italic; }
  .words { display: flex; flex-wrap: wrap; gap: 8px; margin: 0; }
  .words span { background: #fff; border: 1px solid var(--line); border-radius: 14px; padding: 3px 12px; }
  .words small { color: var(--quiet); margin-left: 4px; font-variant-numeric: tabular-nums; }
  .words .gained { border-color: var(--after); } .words .lost { border-color: var(--before); border-style: dashed; }
  ul { padding-left: 20px; color: var(--quiet); font-size: 14px; } li { margin-bottom: 4px; }
  @media print { body { background: #fff; } tr, figure { break-inside: avoid; } }
</style>
</head>
<body>
<main>
{% macro change(value) %}
<span class="{{ 'good' if value > 0 else 'bad' if value < 0 else '' }}">{{ value|number(true) }}</span>
{%- endmacro %}
{% macro response(text, score, cut, side) %}
<td class="{{ side }}"><span class="score">{{ score|number }}</span><span class="text">{{ text.strip() }}</span>
{% if not text.strip() %}<span class="mark">(empty)</span>{% endif %}
{% if cut %}<span class="mark" title="reached the length limit">[cut]</span>{% endif %}</td>
{% endmacro %}
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

<section class="plots{{ ' pairs' if images|length == 4 }}">
{% for caption, image in images.items() %}
  <figure><img alt="{{ caption }}" src="data:image/png;base64,{{ image }}"></figure>
{% endfor %}
</section>

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

<h2>How it was measured</h2>
<ul>
{% for note in report.notes %}
  <li>{{ note }}</li>
{% endfor %}
</ul>
</main>
</body>
</html>
"""
