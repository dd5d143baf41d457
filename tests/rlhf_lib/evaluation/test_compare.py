"""Models beside each other: the matrix and intervals by hand, and tiny models."""

import json
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from tiny_models import one_thread, remainder_reward, three_folders, tiny_gpt2, word_tokenizer  # noqa: F401

from rlhf_lib.drawing import save
from rlhf_lib.evaluation import plots
from rlhf_lib.evaluation.compare import compare_folders, compare_policy
from rlhf_lib.evaluation.measures import win_matrix
from rlhf_lib.evaluation.promotion import compare_policies
from rlhf_lib.evaluation.report import build_comparison_report
from rlhf_lib.evaluation.results import Comparison, ModelResult, ModelSource, Sampled
from rlhf_lib.recipe import GenerationConfig

CPU, GENERATION = torch.device("cpu"), GenerationConfig(max_new_tokens=5)


def result(name, scores, first=None, text="a b"):
    sampled = Sampled([text] * len(scores), scores, [2] * len(scores), [True] * len(scores))
    return ModelResult.of(name, sampled, first=first, kl=(1.5, 0.1) if first else None)


def compared(times):
    """b gains 0.5 on every prompt; c gains 1, 0, -1, 1; each so many times."""
    scores = {"a": [1.0, 2.0, 3.0, 4.0], "b 1": [1.5, 2.5, 3.5, 4.5], "<c>": [2.0, 2.0, 2.0, 5.0]}
    scores = {name: s * times for name, s in scores.items()}
    results = [result(name, s, scores["a"] if name != "a" else None) for name, s in scores.items()]
    return Comparison([f"q{i}" for i in range(4 * times)], results, "a", win_matrix(list(scores.values())), True)


@pytest.fixture
def by_hand():
    return compared(16)


def test_the_matrix_counts_ties_half(by_hand):
    # c beats a on prompts 1 and 4 and ties on 2; it beats b on 1 and 4
    assert by_hand.win_rates == [[None, 0.0, 0.375], [1.0, None, 0.5], [0.625, 0.5, None]]


def test_intervals_are_paired(by_hand):
    metrics = by_hand.metrics()
    assert [metrics[f"reward/{key}/b-1"] for key in ("delta", "ci95_low", "ci95_high")] == [0.5, 0.5, 0.5]
    assert metrics["reward/delta/-c-"] == 0.25
    # the mean of 64 draws from 1, 0, -1, 1 is close to normal: 0.25 +- 1.96 sqrt(11/16 / 64)
    interval = [metrics["reward/ci95_low/-c-"], metrics["reward/ci95_high/-c-"]]
    assert interval == pytest.approx([0.25 - 0.203, 0.25 + 0.203], abs=0.02)
    assert metrics["wins/-c-/a"] == 0.625
    assert "reward/delta/a" not in metrics
    assert "perplexity/b-1" not in metrics
    assert metrics["kl/b-1"] == 1.5


def test_the_report_shows_all_and_escapes_it(by_hand, tmp_path):
    drawings = {
        "scores": plots.score_boxes(by_hand),
        "gains": plots.gain_intervals(by_hand),
        "wins": plots.win_map(by_hand),
    }
    report = build_comparison_report("a against <c>", by_hand, ["A note."])
    page, text = report.html(save(drawings, tmp_path)), report.markdown()
    assert page.count("data:image/png;base64,") == 3
    assert "<c>" not in page
    assert "&lt;c&gt;" in page
    for line in ("| gain | - | +0.500 (+0.500 to +0.500) | +0.250 (+0.04", "| a | - | 0% | 38% |"):
        assert line in text
    assert "64 held-out prompts, gains and wins against a." in text
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert widths == {5}  # whole tables: a heading and three models
    assert "KL to a" in text


def test_a_handful_of_prompts_gets_no_intervals(tmp_path):
    few = compared(1)
    assert not [name for name in few.metrics() if "ci95" in name or "mean_low" in name]
    assert few.metrics()["reward/delta/-c-"] == 0.25
    report = build_comparison_report("a few", few)
    assert "4 held-out prompts, gains and wins against a (no 95% interval: 4 prompts are too few)." in report.markdown()
    assert "| gain | - | +0.500 | +0.250 |" in report.markdown()
    page = report.html(save({"gains": plots.gain_intervals(few)}, tmp_path))
    assert page.count("no 95% interval: 4 prompts are too few") == 3
    assert "95% interval +" not in page


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return three_folders(tmp_path_factory.mktemp("models"))


def sources(folders, *names):
    return [ModelSource(name, str(folders / name)) for name in names]


def test_one_of_several_is_the_comparison_of_two(folders):
    queries = [row["text"] for row in map(json.loads, (folders / "prompts.jsonl").read_text().splitlines())][:20]
    prompts = Dataset.from_dict({"query": queries, "prompt": queries})
    tokenizer = word_tokenizer()
    ids = [tokenizer(query).input_ids for query in queries]
    expected = compare_policy(tiny_gpt2(0), tiny_gpt2(1), tokenizer, remainder_reward, queries, ids, GENERATION, seed=3)
    done = compare_folders(
        sources(folders, "plain", "other", "wider", "plain"),
        prompts, remainder_reward, GENERATION, device=CPU, seed=3,
    )  # fmt: skip
    plain, other, wider, again = done.results
    assert other.gain == expected.reward
    assert (other.kl, other.kl_error) == (pytest.approx(expected.kl), pytest.approx(expected.kl_error))
    assert other.sampled == expected.policy
    assert plain.kl is None
    assert wider.kl is None  # another tokenizer
    assert not done.same_tokens
    assert (again.gain.delta, again.gain.win_rate, again.kl) == (0.0, 0.5, 0.0)
    duel = compare_policies(
        str(folders / "wider"), str(folders / "plain"), prompts, remainder_reward, GENERATION, device=CPU, seed=3
    )
    assert wider.gain.delta == duel["delta"]
    assert "champion_reward" not in duel
    both = compare_policies(
        str(folders / "wider"), str(folders / "plain"), prompts, remainder_reward, GENERATION, device=CPU, seed=3,
        champion_reward=lambda queries, responses: [3 * score + 1 for score in remainder_reward(queries, responses)],
    )  # fmt: skip
    theirs = both.pop("champion_reward")
    assert both == duel
    assert theirs["delta"] == pytest.approx(3 * duel["delta"])
    assert theirs["champion"] == pytest.approx(3 * duel["champion"] + 1)
    assert (theirs["win_rate"], theirs["prompts"]) == (duel["win_rate"], duel["prompts"])
    assert done.win_rates[2][0] == duel["win_rate"]


def test_a_reward_that_reads_ends_is_told_which_responses_ended():
    def reward(queries, responses, *, ended=None):
        return [float(whole) for whole in ended]

    reward.reads_ends = True
    queries = [f"w{i}" for i in range(1, 21)]
    ids = [[i] for i in range(1, 21)]
    longer = GenerationConfig(max_new_tokens=40)
    found = compare_policy(tiny_gpt2(0), tiny_gpt2(1), word_tokenizer(), reward, queries, ids, longer)
    for side in (found.reference, found.policy):
        assert set(side.ended) == {True, False}
        assert side.scores == [float(whole) for whole in side.ended]


def test_bf16_is_the_precision_of_the_passes_and_not_of_the_weights(folders):
    """PPO keeps fp32 weights, and its updates are smaller than bf16 resolves."""
    queries = [row["text"] for row in map(json.loads, (folders / "prompts.jsonl").read_text().splitlines())][:20]
    seen = []

    def measure(model, _tokenizer):
        seen.append((model.dtype, torch.is_autocast_enabled("cpu")))
        return {}

    for dtype in (torch.bfloat16, torch.float32):
        compare_folders(
            sources(folders, "plain", "other"), Dataset.from_dict({"query": queries, "prompt": queries}),
            remainder_reward, GENERATION, device=CPU, dtype=dtype, perplexity_of=measure,
        )  # fmt: skip
    assert seen == [(torch.float32, True)] * 2 + [(torch.float32, False)] * 2


def test_answers_to_training_prompts_are_called_so(by_hand, tmp_path):
    closed = replace(by_hand, queries=["a", "b"] * 32, held_out=False)
    assert closed.asked == "64 answers to 2 training prompts"
    report = build_comparison_report("closed", closed)
    for page in (report.markdown(), report.html({})):
        assert closed.asked in page
        assert "No prompts are held out (data.prompts.held_out is 0)" in page
    assert "No prompts are held out" not in build_comparison_report("open", by_hand).markdown()
