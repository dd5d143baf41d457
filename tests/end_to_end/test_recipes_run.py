"""Every published recipe unchanged and offline, through the real Prefect flow, against stand-ins under the same ids.

Only step counts are less, and models trained from scratch smaller. The scores that a run shows are computed here once
more, by transformers alone.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace

import chat_standins
import datasets
import mlflow
import pytest
import standin_data
import standins
import torch
from recipe_table import EXPECTED, JUDGES, another
from tiny_models import one_thread  # noqa: F401 - a fixture
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from flows import cli
from rlhf_lib.errors import RLHFError
from rlhf_lib.models.loading import fingerprint
from rlhf_lib.recipe import Recipe, load_recipe

STEPS = {"ppo.steps": 2}
# After four steps a reward model knows nothing, so the gates on what it has learnt are off here.
UNLEARNED = dict.fromkeys(("min_accuracy", "max_calibration_error", "max_degenerate_win_rate"))
REDUCED = dict.fromkeys(EXPECTED, STEPS) | {
    "hh-rlhf-full": STEPS
    | {"policy.train.max_steps": 4, "reward.train.max_steps": 4}
    | {f"reward.checks.{gate}": None for gate in UNLEARNED},
    # the wording alone tells the stand-ins' answers apart, and their reward model has seen none that goes on for ever
    "qwen-instruct-helpful": STEPS
    | {"reward.checks.min_accuracy": None, "reward.checks.max_degenerate_win_rate": None},
    "smollm2-ultrafeedback": STEPS
    | {"reward.train.max_steps": 4, "data.preferences.limit": 64}
    | {f"reward.checks.{gate}": None for gate in UNLEARNED},
    "hh-helpful-scratch": STEPS
    | {
        "policy.train.max_steps": 4,
        "policy.train.from_scratch": {"layers": 1, "width": 32, "heads": 2, "vocab_size": 500},
        "reward.train.max_steps": 4,
        "reward.checks.max_phrase_win_rate": None,
        "evaluation.judges.held_out.train.max_steps": 4,
    }
    | {f"reward.checks.{gate}": None for gate in UNLEARNED},
    "t5-emotion-scratch": STEPS
    | {
        "policy.train.max_steps": 4,
        "policy.train.from_scratch": {"architecture": "t5", "layers": 1, "width": 32, "heads": 2, "vocab_size": 500},
        "reward.train.max_steps": 4,
        "reward.train.from_scratch": {"layers": 1, "width": 32, "heads": 2, "vocab_size": 500},
        "reward.checks.min_probe_accuracy": None,
        "reward.checks.min_score_std": None,
    },
}


FEW = ("gpt2-imdb-positive", "flan-t5-emotion", "dlite-hh-helpful")  # run by `make test`, all by `make test-recipes`


def _few(names: Iterable[str]) -> list:
    return [pytest.param(name, marks=[] if name in FEW else pytest.mark.slow) for name in names]


def lay_models(cache: Path, kept: str | None) -> None:
    """Make the stand-ins, which takes a minute or two, or take those that an earlier run of the tests has `kept`."""
    if kept is not None and Path(kept).is_dir():
        shutil.copytree(kept, cache, symlinks=True, dirs_exist_ok=True)
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for models in (standins, chat_standins):
        models.lay_models(cache)
    torch.set_num_threads(threads)
    if kept is not None:
        shutil.copytree(cache, kept, symlinks=True)


@pytest.fixture(scope="module")
def hub(prefect_server, mlflow_store, tmp_path_factory):
    """The stand-ins' hub cache, and a working directory with their data sets."""
    folder = tmp_path_factory.mktemp("recipes")
    lay_models(Path(os.environ["HF_HUB_CACHE"]), os.environ.get("RLHF_TEST_STANDINS"))
    standin_data.lay_data(folder)
    with mlflow_store(folder / "runs"), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("RLHF_RUN_DIR", str(folder / "runs"))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        yield folder


@pytest.fixture(scope="module")
def run(hub):
    """`run(recipe)`: its record, MLflow runs, before/after table and policies' folders; each recipe runs once."""
    from flows.rlhf import rlhf

    done = {}

    def once(name: str) -> SimpleNamespace:
        if name not in done:
            done[name] = None
            overrides = [f"{key}={json.dumps(value)}" for key, value in REDUCED[name].items()]
            done[name] = _found(hub / "runs", rlhf(recipe=name, overrides=overrides))
        if done[name] is None:
            pytest.fail(f"{name} has failed before")
        return done[name]

    return once


def _found(run_dir: Path, record: dict) -> SimpleNamespace:
    children = mlflow.search_runs(
        search_all_experiments=True,
        filter_string=f"tags.mlflow.parentRunId = '{record['mlflow_run_id']}'",
        output_format="list",
    )
    stages = {child.data.tags["stage"]: child for child in children}
    table = mlflow.artifacts.load_dict(f"{stages['evaluation'].info.artifact_uri}/before_after.json")

    def stage_record(name: str) -> dict:
        return json.loads((run_dir / "work" / record["mlflow_run_id"] / name / "record.json").read_text())

    return SimpleNamespace(
        record=record,
        params=mlflow.get_run(record["mlflow_run_id"]).data.params,
        statuses={child.info.status for child in children},
        rows=[dict(zip(table["columns"], row, strict=True)) for row in table["data"]],
        data=stage_record("data"),
        ppo=stage_record("ppo"),
    )


@pytest.mark.parametrize("name", _few(REDUCED))
def test_the_recipe_runs_unchanged(run, name: str) -> None:
    found = run(name)
    for key, value in EXPECTED.get(name, {}).items():
        if key not in REDUCED[name]:
            assert found.params[key] == str(value), key
    assert found.record["ppo"]["steps"] == 2
    assert found.record["reward_model"]["checks_passed"] is True
    assert found.record["model"]["version"] == "1"
    measured = load_recipe(name).evaluation.perplexity is not None
    assert (found.record["perplexity"] is not None) == measured
    for section in ("reward", "diversity", *["perplexity"] * measured):
        figures = [f for f in found.record[section].values() if f is not None and not isinstance(f, list)]
        assert all(map(math.isfinite, figures)), section
    assert found.statuses == {"FINISHED"}
    assert found.record["judges"].keys() == JUDGES[name].keys()
    for judge, said in found.record["judges"].items():
        given = [row[f"judge/{judge}_after"] - row[f"judge/{judge}_before"] for row in found.rows]
        assert said["delta"] == pytest.approx(sum(given) / len(given), abs=1e-6)
        assert any(given)


def _logits(model: str, *texts: str) -> torch.Tensor:
    """A classifier's outputs for one text, or for one pair of texts."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    return AutoModelForSequenceClassification.from_pretrained(model)(**tokenizer(*texts, return_tensors="pt")).logits[0]


def _ending(query: str, response: str) -> torch.Tensor:
    """What stands in a story's last 48 tokens counts, special ones included."""
    tokenizer = AutoTokenizer.from_pretrained("lvwerra/distilbert-imdb")
    last = tokenizer(query + response, add_special_tokens=False).input_ids[-46:]
    ids = torch.tensor([[tokenizer.cls_token_id, *last, tokenizer.sep_token_id]])
    return AutoModelForSequenceClassification.from_pretrained("lvwerra/distilbert-imdb")(ids).logits[0, 1]


def _likelihood(query: str, response: str, name: str = "roneneldan/TinyStories-1M") -> torch.Tensor:
    tokenizer = AutoTokenizer.from_pretrained(name)
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(query + response).input_ids]])
    return -AutoModelForCausalLM.from_pretrained(name)(ids, labels=ids).loss


def _siebert(query: str, response: str, label: int = 1) -> torch.Tensor:
    return _logits("siebert/sentiment-roberta-large-english", query + response).softmax(-1)[label]


def _skywork(query: str, response: str) -> torch.Tensor:
    """As the model's card has it: the conversation in its template, and the one logit."""
    tokenizer = AutoTokenizer.from_pretrained(SKYWORK)
    asked = query.removeprefix("\n\nHuman: ").removesuffix("\n\nAssistant:")
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": response.strip()}]
    ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)
    return AutoModelForSequenceClassification.from_pretrained(SKYWORK)(**ids).logits[0, 0]


SKYWORK = "Skywork/Skywork-Reward-V2-Qwen3-0.6B"
JOY = standins.texts.EMOTIONS.index("joy")
SCORES = {
    "gpt2-imdb-positive": lambda q, r: _logits("lvwerra/distilbert-imdb", q + r)[1],
    "gpt2-imdb-negative": lambda q, r: _logits("lvwerra/distilbert-imdb", q + r)[0],
    "gpt2-imdb-lora": lambda q, r: _logits("lvwerra/distilbert-imdb", q + r)[1],
    "flan-t5-emotion": lambda q, r: _logits("SamLowe/roberta-base-go_emotions", q + r).softmax(-1)[JOY],
    "gpt2-finbert": lambda q, r: _logits("ProsusAI/finbert", q + r).softmax(-1)[0],
    "gpt2-tinystories": _likelihood,
    "gpt2-tinystories-ending": _ending,
    "dlite-hh-helpful": lambda q, r: _logits("OpenAssistant/reward-model-deberta-v3-large-v2", q, r)[0],
    "qwen-instruct-helpful": _skywork,
}


JUDGED = {  # the one judge of each; those trained here and the endings of stories, cut as the reward's, are left out
    "gpt2-imdb-positive": _siebert,
    "gpt2-imdb-negative": lambda q, r: _siebert(q, r, 0),
    "gpt2-imdb-lora": _siebert,
    "gpt2-finbert": _siebert,
    "gpt2-tinystories": lambda q, r: _likelihood(q, r, "roneneldan/TinyStories-33M"),
    "flan-t5-emotion": lambda q, r: _logits("bhadresh-savani/bert-base-go-emotion", q + r).softmax(-1)[JOY],
    "dlite-hh-helpful": lambda q, r: _logits("OpenAssistant/reward-model-electra-large-discriminator", q, r)[0],
    "qwen-instruct-helpful": lambda q, r: _logits("OpenAssistant/reward-model-deberta-v3-large-v2", q, r)[0],
    "smollm2-ultrafeedback": _skywork,
}


@pytest.mark.parametrize("name", _few(SCORES))
@torch.no_grad()
def test_the_scores_are_those_of_the_published_reward(run, name: str) -> None:
    _agree(run(name).rows[:8], "score", SCORES[name])
    assert any(row["response_before"] != row["response_after"] for row in run(name).rows)


@pytest.mark.parametrize("name", _few(JUDGED))
@torch.no_grad()
def test_the_judge_is_the_published_model(run, name: str) -> None:
    (judge,) = JUDGES[name]
    _agree(run(name).rows[:8], f"judge/{judge}", JUDGED[name])


def _agree(rows: list[dict], column: str, score: Callable[[str, str], torch.Tensor]) -> None:
    for when in ("before", "after"):
        told = [row[f"{column}_{when}"] for row in rows]
        again = [float(score(row["query"], row[f"response_{when}"])) for row in rows]
        assert told == pytest.approx(again, abs=1e-4)
        assert len(set(told)) > 1


def test_dlite_sees_the_template_and_its_reward_the_bare_query(run) -> None:
    from datasets import load_from_disk

    found = run("dlite-hh-helpful")
    prompts = [row for split in found.data["prompts"].values() for row in load_from_disk(split)]
    template = EXPECTED["dlite-hh-helpful"]["data.prompts.template"]
    for row in prompts:
        assert row["prompt"] == template.replace("{query}", row["query"])
    for row in [*prompts, *found.rows]:
        assert "\n" not in row["query"]
        assert "###" not in row["query"]
        assert len(row["query"]) < 100
    assert not any("### End" in row["response_before"] for row in found.rows)


def test_flan_t5_learns_in_its_upper_decoder_blocks_alone(run) -> None:
    found = run("flan-t5-emotion")
    before = AutoModelForSeq2SeqLM.from_pretrained("google/flan-t5-small").state_dict()
    after = AutoModelForSeq2SeqLM.from_pretrained(found.ppo["policy"]).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    frozen = ("shared.", "encoder.", "decoder.embed_tokens.", "decoder.block.0.", "decoder.block.1.")
    assert not [name for name in changed if name.startswith(frozen)]
    assert {name.split(".")[2] for name in changed if name.startswith("decoder.block.")} == {"2", "3"}
    assert all(len(row["query"].split()) == 4 for row in found.rows)


@pytest.mark.slow
def test_lora_starts_from_the_published_model_and_is_merged(run) -> None:
    found = run("gpt2-imdb-lora")
    before = AutoModelForCausalLM.from_pretrained("lvwerra/gpt2-imdb").state_dict()
    after = AutoModelForCausalLM.from_pretrained(found.ppo["policy"]).state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.endswith("c_attn.weight") for name in changed)


LOADED = ("dataset", "name", "data_dir", "column", "chosen", "rejected", "model", "label")
CHANGED = [(name, key) for name, must in EXPECTED.items() for key in must if key.rpartition(".")[2] in LOADED]


def _load(recipe: Recipe) -> None:
    """What a run loads before it trains anything."""
    from rlhf_lib.data.preferences import load_preferences
    from rlhf_lib.data.prompts import load_prompts
    from rlhf_lib.data.sources import load_sources
    from tasks.stage.preflight import preflight

    loaded = load_sources(preflight(recipe))
    load_prompts(recipe, loaded)
    if recipe.data.preferences is not None:
        load_preferences(recipe, loaded)


@pytest.mark.parametrize(("name", "key"), CHANGED)
def test_another_id_label_or_column_is_found_out_by_loading(hub, name: str, key: str) -> None:
    recipe = load_recipe(name, [f"{key}={another(key, EXPECTED[name][key])}"])
    with pytest.raises(RLHFError):
        _load(recipe)


def test_a_hub_models_fingerprint_follows_its_commit(hub) -> None:
    before = fingerprint("gpt2")
    assert before != fingerprint("lvwerra/gpt2-imdb")
    repository = Path(os.environ["HF_HUB_CACHE"]) / "models--gpt2"
    other = standins.COMMIT[::-1]
    (repository / "snapshots" / other).symlink_to(repository / "snapshots" / standins.COMMIT)
    (repository / "refs/main").write_text(other)
    try:
        assert fingerprint("gpt2") != before
    finally:
        (repository / "refs/main").write_text(standins.COMMIT)
    assert fingerprint("gpt2") == before


@pytest.mark.parametrize("folder", ["harmless-base", None])
def test_hh_rlhf_of_another_kind_by_one_override(hub, folder: str | None) -> None:
    from rlhf_lib.data.sources import load_sources

    loaded = load_sources(load_recipe("hh-rlhf-full", [f"data.prompts.data_dir={folder or 'null'}"]))
    one = load_sources(load_recipe("hh-rlhf-full"))
    assert loaded.keys() == one.keys()
    for role, rows in loaded.items():
        assert len(rows) == len(one[role]) if folder else len(rows) > len(one[role])
        assert rows[:10] != one[role][:10] if folder else set(one[role]["chosen"]) < set(rows["chosen"])


@pytest.mark.slow
def test_local_folders_take_the_place_of_every_id(assets, run, tmp_path) -> None:
    """On real data and models, by the command line."""
    settings = {
        "policy.model": assets / "models/gpt2-imdb-mini",
        "reward.model": assets / "models/distilbert-imdb-mini",
        "data.prompts.dataset": assets / "data/imdb",
        "evaluation.perplexity.dataset": assets / "data/imdb",
        "ppo.learning_rate": "1e-4",
        "data.prompts.limit": 600,
        "reward.checks.pairs": 200,
        "evaluation.prompts": 32,
        "evaluation.perplexity.limit": 32,
        "ppo.steps": 2,
        "registration.name": "mini",
    }
    options = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    assert cli.main(["run", "gpt2-imdb-positive", "--summary", str(tmp_path / "record.json"), *options]) == 0
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["ppo"]["steps"] == 2
    assert record["model"]["name"] == "mini"
    params = mlflow.get_run(record["mlflow_run_id"]).data.params
    assert params["ppo.learning_rate"] == "0.0001"
