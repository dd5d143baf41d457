"""Reference against policy with tiny random models, and the report made of it."""

import base64
import dataclasses
import html
import re

import pytest
import torch
from markupsafe import escape
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from rlhf_lib.conversation import Conversation
from rlhf_lib.drawing import save
from rlhf_lib.evaluation import plots
from rlhf_lib.evaluation.compare import compare_policy
from rlhf_lib.evaluation.measures import reward_delta, win_matrix
from rlhf_lib.evaluation.page import markdown_cell, number, turns
from rlhf_lib.evaluation.probes import ProbeResult
from rlhf_lib.evaluation.report import build_comparison_report, build_report
from rlhf_lib.evaluation.results import BeforeAfter, Comparison, ModelResult, Sampled
from rlhf_lib.ppo.rollout import sample_responses
from rlhf_lib.recipe import GenerationConfig

WORDS = ["<eos>", *"abcdefghijklmnopqrs"]
GENERATION = GenerationConfig(max_new_tokens=6, temperature=0.9)


@pytest.fixture(scope="module")
def tokenizer():
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<eos>"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>")


@pytest.fixture(scope="module")
def reference():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=20, n_positions=16, n_embd=16, n_layer=1, n_head=2)).eval()


@pytest.fixture(scope="module")
def policy(reference):
    """The reference with a taste for `a` (token 1): the final layer norm's bias leans towards its embedding."""
    model = GPT2LMHeadModel(reference.config).eval()
    model.load_state_dict(reference.state_dict())
    embedding = model.transformer.wte.weight[1]
    model.transformer.ln_f.bias.data += 2 * embedding.detach() / embedding.detach().square().sum()
    return model


def count_a(queries, responses):
    """A reward anybody can check: how many words of the response are `a`."""
    return [float(response.split().count("a")) for response in responses]


@pytest.fixture(scope="module")
def prompts():
    queries = [f"{first} {second}" for first in "bcdefghi" for second in "jklmnopq"]
    return queries, [[WORDS.index(word) for word in query.split()] for query in queries]


@pytest.fixture(scope="module")
def comparison(reference, policy, tokenizer, prompts):
    return compare_policy(reference, policy, tokenizer, count_a, *prompts, GENERATION, seed=3)


def test_a_policy_that_leans_towards_the_reward_gains(comparison):
    assert comparison.reward.ci95[0] > 0
    assert comparison.reward.win_rate > 0.5
    assert comparison.kl > 3 * comparison.kl_error > 0
    assert comparison.diversity["distinct_1_policy"] < 1
    assert comparison.diversity["repetition_policy"] > comparison.diversity["repetition_reference"]


def test_scores_are_the_rewards_own(comparison):
    assert comparison.policy.scores == count_a([], comparison.policy.texts)
    assert comparison.reward.delta == pytest.approx(sum(comparison.deltas) / 64)


def test_kl_is_that_of_the_tempered_distributions(comparison, reference, policy, tokenizer, prompts):
    """Exact KL of each next-token distribution along the policy's samples: same expectation as the log-ratios."""
    responses = sample_responses(policy, tokenizer, prompts[1], GENERATION, seed=3)
    exact = 0.0
    for prompt, response in zip(responses.prompt_ids, responses.response_ids, strict=True):
        with torch.no_grad():
            logits = [model(torch.tensor([prompt + response])).logits[0] / 0.9 for model in (policy, reference)]
        p, q = (one[len(prompt) - 1 : -1].log_softmax(-1) for one in logits)
        exact += float((p.exp() * (p - q)).sum()) / len(responses.response_ids)
    assert abs(comparison.kl - exact) < 3 * comparison.kl_error


def test_the_interval_is_shown_where_there_is_one(comparison):
    low, high = (number(end, signed=True) for end in comparison.reward.ci95)
    report = build_report("t", comparison)
    assert f"(95% interval {low} to {high}), better on" in report.markdown()
    assert f"<span>95% interval {low} to {high}</span>" in report.html({})


def test_a_policy_equal_to_its_reference_gains_nothing(reference, tokenizer, prompts):
    same = compare_policy(reference, reference, tokenizer, count_a, *prompts, GENERATION, seed=3)
    assert same.policy == same.reference
    assert same.reward.ci95 == (0, 0)
    assert same.reward.win_rate == 0.5
    assert same.kl == same.kl_error == 0


def test_metric_names(comparison):
    figures = comparison.metrics()
    sides = {f"{name}{side}" for side in ("reference", "policy") for name in ("reward/", "length/", "eos_rate/")}
    diversity = {
        f"diversity/{name}_{side}"
        for side in ("reference", "policy")
        for name in ("distinct_1", "distinct_2", "repetition")
    }
    interval = {"reward/delta", "reward/ci95_low", "reward/ci95_high", "reward/win_rate", "reward/reference_std"}
    assert set(figures) == sides | diversity | interval | {"kl", "kl_standard_error", "reward/prompts"}
    assert figures["length/policy"] == sum(comparison.policy.lengths) / 64
    assert figures["eos_rate/reference"] == sum(comparison.reference.ended) / 64


def test_table_has_a_row_a_prompt(comparison):
    table = comparison.table()
    assert list(table) == ["query", "response_before", "response_after", "score_before", "score_after"]
    assert {len(column) for column in table.values()} == {64}


HOSTILE = "<script>alert('x')</script> **b** | {{ 7*7 }}\nline"


@pytest.fixture
def small():
    before = Sampled(["fine", HOSTILE, ""], [0.0, 1.0, 2.0], [1, 9, 1], [True, False, True])
    after = Sampled(["better", "worse", "same"], [3.0, -4.0, 2.0], [1, 1, 1], [True, True, True])
    shared = {
        "perplexity": None,
        "mean_perplexity": None,
        "distinct_1": 0.5,
        "distinct_2": 0.5,
        "mean": 0.0,
        "ci95": None,
    }
    gain = reward_delta(before.scores, after.scores)
    results = [
        ModelResult("reference", before, gain=None, kl=None, kl_error=None, repetition=0.25, **shared),
        ModelResult("policy", after, gain=gain, kl=1.25, kl_error=None, repetition=None, **shared),
    ]
    queries = ["first", HOSTILE, "x" * 1000 + " end"]
    wins = win_matrix([before.scores, after.scores])
    return BeforeAfter(Comparison(queries, results, "reference", wins, True))


def test_page_stands_alone_and_escapes_model_text(small, tmp_path):
    figures = {
        "Scores": plots.score_histogram(small.reference.scores, small.policy.scores),
        "Gains": plots.delta_histogram(small.deltas, small.reward.ci95),
        "Lengths": plots.length_histogram(small.reference.lengths, small.policy.lengths),
    }
    page = build_report("A <b>title</b>", small, notes=["cut from the left"]).html(save(figures, tmp_path))
    images = re.findall(r"base64,([^\"]+)\"", page)
    assert [base64.b64decode(image)[:8] for image in images] == [b"\x89PNG\r\n\x1a\n"] * 3
    assert "<script" not in page
    assert "<b>title" not in page
    assert html.escape("{{ 7*7 }}") in page
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "cut from the left" in page
    assert "Perplexity" not in page  # no set, no figure
    assert "(empty)" in page
    assert page.count("[cut]") == 2  # the one cut response, drawn at random and among the losses
    assert "no 95% interval: 3 prompts are too few" in page


def test_samples_are_the_extremes(small):
    report = build_report("t", small, samples=1)
    assert [s.query for s in report.groups["Largest gains"]] == ["first"]
    assert [s.delta for s in report.groups["Largest losses"]] == [-5.0]
    everything = build_report("t", small, samples=9)
    assert len(everything.groups["Drawn at random"]) == 3
    long = next(s for s in everything.groups["Drawn at random"] if s.query.endswith(" end"))
    assert len(long.query) == 404


def test_what_weakens_the_result_is_said_in_both_forms_and_in_red(small):
    report = build_report("t", small, warnings=["The reward's gate min_accuracy is off: <none>."])
    assert f'<li class="bad">{html.escape("The reward")}' in report.html({})
    assert "is off: &lt;none&gt;." in report.html({})
    assert "\n- The reward's gate min_accuracy is off: " in report.markdown()


def test_markdown_holds_the_figures_and_keeps_its_tables(small):
    perplexity = {"reference": 10.0, "policy": 12.5, "mean_per_text_reference": 20.0, "mean_per_text_policy": 1234.5}
    text = build_report("t", small, perplexity).markdown()
    assert "| Perplexity, token-weighted | 10.0 | 12.5 |" in text
    assert "| Perplexity, mean per text | 20.0 | 1,234 |" in text
    assert "| Repeated bigrams in a response | 0.250 | n/a |" in text
    assert "Reward **1.00 -> 0.333**: -0.667 (no 95% interval: 3 prompts are too few)" in text
    assert "better on 50% of 3 held-out prompts" in text
    assert "<script" not in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {4, 5}


def test_warnings_come_before_the_figures(small):
    report = build_report("t", small, warnings=["step 6: the KL <jumped>"])
    page, text = report.html({}), report.markdown()
    assert page.index("step 6: the KL &lt;jumped&gt;") < page.index("Reward gained")
    assert text.index("- step 6: the KL <jumped>") < text.index("| Mean score")
    assert "Warnings" not in build_report("t", small).html({}) + build_report("t", small).markdown()


def test_cells_and_numbers():
    assert markdown_cell("a|b\n<i> *c*") == "a\\|b<br>&lt;i&gt; \\*c\\*"
    assert markdown_cell("  ") == "(empty)"
    assert markdown_cell("bill\x00\tpaid\x1b[0m") == "bill\ufffd\tpaid\ufffd\\[0m"
    assert [number(x) for x in (0.0, 427.1, 12345.6, -0.00142)] == ["0.00", "427", "12,346", "-0.00142"]
    assert number(None) == "n/a"
    assert number(2.0, signed=True) == "+2.00"


def test_histograms_take_constant_and_single_values():
    for figure in (
        plots.score_histogram([1.0], [1.0]),
        plots.delta_histogram([0.0, 0.0], (0.0, 0.0)),
        plots.length_histogram([5, 5], [5, 400]),
    ):
        figure.canvas.draw()
    heights = [bar.get_height() for bar in plots.length_histogram([3, 4, 4], [4, 5, 5]).axes[0].patches]
    assert heights == [1, 2, 0, 0, 1, 2]


LAMPS = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Where is <it>?"},
    {"role": "assistant", "content": "What is its *number*?"},
    {"role": "user", "content": "4711"},
]


def test_conversations_are_shown_turn_by_turn(small):
    queries = [Conversation(LAMPS), *small.queries[1:]]
    small = BeforeAfter(dataclasses.replace(small.comparison, queries=queries))
    probes = [ProbeResult(Conversation(LAMPS[1:2]), "yes", "no", 0.0, 1.0)]
    report = build_report("t", small, probes=probes)
    shown = [("System", "Be kind."), ("User", "Where is &lt;it&gt;?"), ("Assistant", "What is its *number*?")]
    blocks = "".join(f'<span class="turn"><b>{role}</b>{text}</span>' for role, text in [*shown, ("User", "4711")])
    assert f'<td class="text query">{blocks}</td>' in report.html({})
    assert '<td><span class="turn"><b>User</b>Where is &lt;it&gt;?</span></td>' in report.html({})
    assert f'<td class="text query">{escape(HOSTILE)}</td>' in report.html({})
    cell = "**System:** Be kind.<br>**User:** Where is &lt;it&gt;?<br>**Assistant:** What is its \\*number\\*?<br>"
    assert f"| {cell}**User:** 4711 | fine |" in report.markdown()
    compared = build_comparison_report("t", small.comparison)
    assert f'<td class="text query">{blocks}</td>' in compared.html({})
    assert f"| {cell}**User:** 4711 |" in compared.markdown()
    assert "Human:" not in report.html({}) + report.markdown()


def test_of_a_long_conversation_the_last_turns_are_shown():
    def ending(characters):
        said = [{"role": "user", "content": "a" * 300}, {"role": "assistant", "content": "b" * characters}]
        return turns(Conversation([*said, {"role": "user", "content": "c" * 100}]))

    b, c = ("Assistant", "b" * 250), ("User", "c" * 100)
    assert ending(250) == [("User", "... " + "a" * 50), b, c]
    assert ending(261) == [("", "..."), ("Assistant", "b" * 261), c]  # 39 characters would tell nothing
    assert ending(400) == [("Assistant", "... " + "b" * 300), c]
    assert turns("x" * 500) == [("", "x" * 500)]
