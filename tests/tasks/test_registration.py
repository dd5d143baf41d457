"""Registration against a real MLflow store: gates, the duel with the champion, and the way back."""

import json
import shutil
from pathlib import Path

import mlflow
import pytest
import torch
from chat_models import chat_folder
from datasets import Dataset
from llm_server import llm_server
from registered import (  # noqa: F401
    LONG,
    PROMPTS,
    greedy_texts,
    letters,
    load,
    make_recipe,
    own_store,
    policy_folders,
    register,
)
from tiny_models import one_thread  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_lib.conversation import Conversation, columns_of, user
from rlhf_lib.errors import EnvironmentFault, ModelError, RecipeError
from rlhf_lib.models.chat import prompt_ids
from rlhf_lib.ppo.rollout import sample_responses
from tasks import registration
from tasks.registry import policies, versions
from tasks.results import Folders, JudgeModels, PreparedData, RewardChecks
from tasks.stage.keys import function_source
from tests.rlhf_lib.evaluation.test_promotion import figures


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_registration_that_was_killed_is_completed_by_the_next(store, folders, monkeypatch, when):
    """Whether it got as far as the alias or not: one version, champion, and nothing twice."""
    crown = registration.champions.crown

    def killed(*words):
        if when == "after":
            crown(*words)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(registration.champions, "crown", killed)
        with pytest.raises(KeyboardInterrupt):
            register(store, folders, folders["plain"], ppo="1")
    record = register(store, folders, folders["plain"], ppo="1")
    assert (record.version, record.promoted) == ("1", True)
    assert aliases("letters") == {"challenger": "1", "champion": "1"}
    assert len(mlflow.MlflowClient().search_model_versions("name='letters'")) == 1


def aliases(name):
    return {alias: str(v) for alias, v in mlflow.MlflowClient().get_registered_model(name).aliases.items()}


def test_first_version_becomes_champion_with_card_tags_and_pins(store, folders):
    record = register(
        store,
        folders,
        folders["lettered"],
        checks=RewardChecks(passed=True, accuracy=0.93, ci95=(0.9, 0.95), held_out=400, checks=[]),
        data=PreparedData(
            **dict.fromkeys(("prompts", "preferences", "corpus", "labelled", "label_names", "criterion")),
            texts=Folders(train="", test=""),
            policy_fingerprint=None,
            fingerprints={"prompts/train": "feed01"},
            report={},
        ),
    )
    assert (record.name, record.version, record.promoted, record.duel) == ("letters", "1", True, None)

    client = mlflow.MlflowClient()
    assert aliases("letters") == {"challenger": "1", "champion": "1"}
    version = client.get_model_version("letters", "1")
    assert version.tags["promoted"] == "true"
    assert version.tags["reason"] == record.reason
    assert version.tags["reward/ci95_low"] == "0.3"
    assert version.tags["reward/prompts"] == "256"
    assert version.tags["reward_model/accuracy"] == "0.93"
    assert version.tags["reward_model/ci95_high"] == "0.95"
    assert version.tags["reward_model/held_out"] == "400"
    for fact in (
        "feed01",
        "reward456",
        "base123",
        store.parent_run_id,
        "0.93 (95% interval [0.9, 0.95], 400 examples)",
        "Reward delta 0.5 (95% interval [0.3, 0.7], 256 prompts), win rate 0.9",
        "| max_perplexity_ratio | perplexity went from 20 to 30, a ratio of 1.5, which must be at most 2 | yes |",
        "7 steps",
        "Promoted to champion",
        "| perplexity (by token) | 20 | 30 |",
    ):
        assert fact in version.description
    child = client.get_run(record.mlflow_run_id)
    assert version.run_id == store.parent_run_id  # by which MLflow's list names the model beside its run
    parent = client.get_run(store.parent_run_id)
    assert version.source == f"models:/{parent.outputs.model_outputs[0].model_id}"
    for run in (parent, child):
        assert run.data.tags["registered"] == "models:/letters/1"
        assert (run.data.tags["promoted"], run.data.tags["reason"]) == ("true", record.reason)
    assert child.data.tags["mlflow.parentRunId"] == store.parent_run_id
    assert child.data.metrics["reward/delta"] == 0.5
    assert child.data.metrics["promoted"] == 1.0

    root = Path(mlflow.artifacts.download_artifacts("models:/letters@champion"))
    files = {str(f.relative_to(root)) for f in root.rglob("*") if f.is_file()}
    assert (root / "model_card.md").read_text() == version.description
    assert not [f for f in files if f.endswith((".pkl", ".bin", ".pt"))]
    pins = (root / "requirements.txt").read_text().split()
    assert f"torch=={torch.__version__.split('+')[0]}" in pins
    assert all("==" in pin and "+" not in pin for pin in pins)
    signature = mlflow.models.get_model_info("models:/letters@champion").signature
    for schema in (signature.inputs, signature.outputs):
        assert [str(t) for t in schema.input_types()] == ["DataType.string"]
    params = {param.name: param.default for param in signature.params}
    assert params == {"max_new_tokens": 16, "temperature": None, "top_p": 1, "top_k": 0, "seed": None, "stop": None}


def test_a_judge_that_disagrees_keeps_the_version_from_becoming_champion(store, folders):
    judged = {"reference": 0.2, "policy": 0.1, "delta": -0.1, "ci95": [-0.2, -0.05], "win_rate": 0.25, "prompts": 256}
    judged |= {"length_controlled_win_rate": 0.3, "only_reports": None}
    models = JudgeModels(models={"fair": folders["brief"]}, pairs={"fair": 40}, left=60)
    record = register(store, folders, folders["lettered"], evaluation=figures(judges={"fair": judged}), judges=models)
    assert not record.promoted
    assert record.reason.startswith(
        "judge/fair: the mean gained by judge fair over the reference is -0.1 (95% interval"
    )
    version = mlflow.MlflowClient().get_model_version("letters", "1")
    assert version.tags["judge/fair/delta"] == "-0.1"
    assert "| judge fair | 0.2 | 0.1 |" in version.description
    assert "By judge fair: -0.1 (95% interval [-0.2, -0.05], 256 prompts), win rate 0.25, at equal length 0.3." in (
        version.description
    )
    # kept with the version, and once
    recipe = make_recipe(
        data={"prompts": {"dataset": "local"}, "preferences": {}},
        evaluation={"judges": {"fair": {"kind": "preference", "pairs": "held_out"}}},
    )
    again = register(store, folders, folders["lettered"], judges=models)
    second = mlflow.MlflowClient().get_model_version("letters", again.version)
    assert second.tags["judge.fair"] == version.tags["judge.fair"]
    kept = versions.judges_of(recipe, [second])["fair"]
    assert (Path(kept) / "config.json").read_text() == (Path(folders["brief"]) / "config.json").read_text()
    recipe.name = "other"
    with pytest.raises(ModelError, match="the judge fair of recipe other is trained by a run of it"):
        versions.judges_of(recipe, [second])


def test_champion_resolves_to_a_folder_with_the_same_logits(store, folders):
    register(store, folders, folders["lettered"])
    folder = policies.resolve_model("models:/letters@champion")
    back, ours = (AutoModelForCausalLM.from_pretrained(f).eval() for f in (folder, folders["lettered"]))
    tokens = torch.tensor([AutoTokenizer.from_pretrained(folder)(PROMPTS[0]).input_ids])
    with torch.no_grad():
        assert torch.equal(back(tokens).logits, ours(tokens).logits)
    assert policies.resolve_model("gpt2") == "gpt2"
    with pytest.raises(ModelError, match=r"models:/letters@nobody .*models:/NAME@ALIAS"):
        policies.resolve_model("models:/letters@nobody")


def test_better_candidate_with_another_tokenizer_takes_the_place(store, folders):
    register(store, folders, folders["plain"])
    record = register(store, folders, folders["lettered"])
    assert record.promoted
    assert record.duel["version"] == "1"
    assert record.duel["prompts"] == len(PROMPTS)  # the long one fits neither
    assert record.duel["ci95"] is None  # six prompts are a handful
    assert "no 95% interval: 6 prompts are too few" in record.reason
    assert not [name for name in record.metrics if name.startswith("duel/ci95")]
    assert aliases("letters") == {"challenger": "2", "champion": "2"}

    # what the duel says is what sampling and scoring by hand gives
    means = []
    for name in ("lettered", "plain"):
        model, tokenizer = load(folders[name])
        ids = [tokenizer(p).input_ids for p in PROMPTS]
        texts = sample_responses(model, tokenizer, ids, make_recipe().generation, seed=0).texts
        means.append(sum(letters(PROMPTS, texts)) / len(texts))
    assert record.duel["delta"] == pytest.approx(means[0] - means[1], abs=1e-6)


def brevity(queries, responses):
    return [-float(len(response)) for response in responses]


@pytest.mark.parametrize(("gate", "promoted"), [(0.0, False), (None, True)])
def test_a_champion_that_a_judge_prefers_keeps_its_place(store, folders, gate, promoted):
    """The letters that the reward counts make longer texts."""
    judge = {"kind": "function", "function": f"{__name__}:brevity"}
    recipe = make_recipe(
        evaluation={"judges": {"short": judge}},
        registration={"gates": {"min_prompts": None, "min_judge_delta": gate}},
    )
    liked = {"reference": 0.2, "policy": 0.3, "delta": 0.1, "ci95": [0.05, 0.2], "win_rate": 0.75, "prompts": 256}
    liked |= {"length_controlled_win_rate": 0.7, "only_reports": None}
    register(store, folders, folders["brief"], recipe, evaluation=figures(judges={"short": liked}))
    record = register(store, folders, folders["lettered"], recipe, evaluation=figures(judges={"short": liked}))
    assert record.promoted is promoted
    assert set(record.duel["judges"]) == (set() if promoted else {"short"})
    if not promoted:
        assert record.duel["judges"]["short"]["delta"] < 0 < record.duel["delta"]
        assert record.reason.startswith("beats_champion/short: the mean gained by judge short over the champion (vers")
        version = mlflow.MlflowClient().get_model_version("letters", "2")
        assert "Under judge short: " in version.description
        assert float(version.tags["duel/judges/short/delta"]) < 0


def test_a_language_model_judges_the_duel_and_one_that_is_down_lets_nothing_pass(store, folders, monkeypatch):
    """More letters are longer answers, which this one prefers."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    liked = {"reference": 0.2, "policy": 0.3, "delta": 0.1, "ci95": [0.05, 0.2], "win_rate": 0.75, "prompts": 256}
    liked |= {"length_controlled_win_rate": 0.7, "only_reports": None, "failed": None}

    def longer(conversation, a, b):
        return "[[C]]" if len(a) == len(b) else f"[[{'A' if len(a) > len(b) else 'B'}]]"

    with llm_server(longer) as server:
        llm = {"base_url": server.url, "retries": 0}
        recipe = make_recipe(evaluation={"judges": {"long": {"kind": "llm", "model": "m", "llm": llm}}})

        def registered(folder):
            return register(store, folders, folders[folder], recipe, evaluation=figures(judges={"long": liked}))

        registered("brief")
        server.script[:] = [500] * 99
        down = registered("lettered")
        assert not down.promoted
        assert "beats_champion/long: no comparison with the champion (version 1) by judge long: " in down.reason
        version = mlflow.MlflowClient().get_model_version("letters", down.version)
        assert "Under judge long: evaluation.judges.long: 127.0.0.1" in version.description
        server.script.clear()
        record = registered("lettered")
    found = record.duel["judges"]["long"]
    assert (found["prompts"], found["candidate"] + found["champion"]) == (6, 1.0)
    assert found["delta"] > 0
    assert record.promoted


def test_the_same_policy_again_stays_challenger_and_says_why(store, folders):
    register(store, folders, folders["lettered"])
    record = register(store, folders, folders["lettered"])
    assert not record.promoted
    assert record.duel["delta"] == 0.0
    assert record.reason == (
        "beats_champion: the mean score gained over the champion (version 1) is +0 (no 95% interval: 6 prompts are too "
        "few); it must be above 0"
    )
    client = mlflow.MlflowClient()
    assert aliases("letters") == {"challenger": "2", "champion": "1"}
    version = client.get_model_version("letters", "2")
    assert version.tags["promoted"] == "false"
    assert "Not promoted: beats_champion" in version.description


def test_the_duel_is_held_under_the_champions_reward_too(store, folders):
    """The champion was trained for fewer letters, the candidate for more: by its own reward the champion is better."""
    brief = make_recipe(reward={"kind": "function", "function": "registered:brevity"})
    made = function_source("registered:brevity", "reward.function")
    mlflow.log_dict(brief.model_dump(mode="json"), "recipe.yaml")  # in the parent run, as the flow does
    register(store, folders, folders["plain"], brief, fingerprint=made)
    record = register(store, folders, folders["lettered"])
    theirs = record.duel["champion_reward"]
    assert theirs["delta"] == pytest.approx(-record.duel["delta"])
    assert record.duel["delta"] > 0
    assert not record.promoted
    assert record.reason.startswith(
        "beats_champion_by_its_reward: the mean score gained over the champion (version 1) under the champion's own "
        "reward is -"
    )
    assert record.metrics["duel/champion_reward/delta"] == theirs["delta"]
    card = mlflow.MlflowClient().get_model_version("letters", "2").description
    assert "Under the champion's own reward: -" in card

    # with the same reward there is but one verdict
    record = register(store, folders, folders["lettered"], brief, fingerprint=made)
    assert "champion_reward" not in record.duel


@pytest.mark.parametrize("gone", ["recipe", "function"])
def test_a_champions_reward_that_is_gone_leaves_the_candidates(store, folders, gone):
    if gone == "function":
        brief = make_recipe(reward={"kind": "function", "function": "registered:brevity"})
        mlflow.log_dict(brief.model_dump(mode="json"), "recipe.yaml")
    register(store, folders, folders["plain"])
    record = register(store, folders, folders["lettered"])
    why = record.duel["champion_reward"]["error"]
    assert ("its run's recipe is gone" if gone == "recipe" else "brevity has changed since it was trained") in why
    assert record.promoted
    assert "; under this policy's reward alone, since the champion's can't be had: " in record.reason
    assert "duel/champion_reward/delta" not in record.metrics
    assert (
        "Not under the champion's own reward: " in mlflow.MlflowClient().get_model_version("letters", "2").description
    )


def test_failed_gate_gives_a_challenger_not_an_error(store, folders):
    evaluation = figures(perplexity={"reference": 10.0, "policy": 99.0})
    record = register(store, folders, folders["lettered"], evaluation=evaluation)
    assert not record.promoted
    assert record.reason == (
        "max_perplexity_ratio: perplexity went from 10 to 99, a ratio of 9.9, which must be at most 2"
    )
    assert aliases("letters") == {"challenger": "1"}


def test_a_policy_evaluated_on_one_prompt_stays_challenger_and_says_so_everywhere(store, folders):
    recipe = make_recipe(registration={})
    one = figures(reward={"reference": 0.1, "policy": 0.103, "delta": 0.003, "ci95": None, "win_rate": 1, "prompts": 1})
    record = register(store, folders, folders["lettered"], recipe, one)
    assert not record.promoted
    assert record.reason.startswith("min_prompts: the number of evaluation prompts is 1 and must be at least 50")
    version = mlflow.MlflowClient().get_model_version("letters", "1")
    assert "Reward delta 0.003 (no 95% interval: 1 prompt is too few), win rate 1" in version.description
    assert "Not promoted: min_prompts" in version.description
    assert "reward/ci95_low" not in version.tags
    assert versions.version_rows("letters")[0][3] == "+0.003, 1 prompt"


def test_promote_false_and_a_name_of_its_own(store, folders):
    recipe = make_recipe(registration={"name": "other", "promote": False, "gates": {"min_prompts": None}})
    record = register(store, folders, folders["lettered"], recipe, figures(perplexity=None))
    assert (record.name, record.promoted) == ("other", False)
    assert "registration.promote is false" in record.reason
    assert "perplexity/policy" not in record.metrics
    assert aliases("other") == {"challenger": "1"}


def test_champion_whose_files_are_gone_keeps_its_place(store, folders):
    register(store, folders, folders["plain"])
    shutil.rmtree(policies.resolve_model("models:/letters@champion"))
    record = register(store, folders, folders["lettered"])
    assert (record.version, record.promoted) == ("2", False)
    assert "beats_champion: no comparison" in record.reason
    assert aliases("letters") == {"challenger": "2", "champion": "1"}


def test_model_that_comes_back_changed_gets_no_version(store, folders, monkeypatch):
    log_policy = policies.log_policy

    def log_and_damage(*args, **kwargs):
        logged = log_policy(*args, **kwargs)
        folder = policies.resolve_model(logged.model_uri)
        model = AutoModelForCausalLM.from_pretrained(folder)
        with torch.no_grad():
            model.transformer.h[1].mlp.c_fc.bias[3] += 1e-3
        model.save_pretrained(folder)
        return logged

    monkeypatch.setattr(policies, "log_policy", log_and_damage)
    with pytest.raises(EnvironmentFault, match="different logits"):
        register(store, folders, folders["plain"])
    assert mlflow.MlflowClient().search_registered_models() == []


def test_pickled_weights_are_refused(store, folders, tmp_path):
    folder = shutil.copytree(folders["plain"], tmp_path / "pickled")
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors only"):
        register(store, folders, str(folder))


def test_long_card_is_cut_to_what_the_registry_holds(store, folders):
    recipe = make_recipe(description="much to say " * 600)
    record = register(store, folders, folders["plain"], recipe)
    assert len(mlflow.MlflowClient().get_model_version("letters", record.version).description) == 5000


def test_registered_name_that_mlflow_would_refuse_is_refused_at_once(tmp_path):
    from rlhf_lib.recipe import load_recipe

    path = tmp_path / "r.yaml"
    path.write_text(json.dumps(make_recipe().model_dump(mode="json") | {"registration": {"name": "team/letters"}}))
    with pytest.raises(RecipeError, match=r"registration\.name"):
        load_recipe(str(path))


def test_chat_policies_are_compared_in_their_conversations(store, folders, tmp_path):
    """The prompts are conversations of the data stage; each model answers in its own template."""
    first, second = (str(chat_folder(tmp_path / name, seed=seed)) for seed, name in ((30, "first"), (39, "second")))
    asked = [Conversation([user(text)]).after("Be kind.") for text in ("hello", "where is my parcel?", "hi!")]
    tokenizer = AutoTokenizer.from_pretrained(first)
    rows = columns_of(asked, "query") | {"prompt": list(map(str, asked)), "input_ids": prompt_ids(tokenizer, asked)}
    Dataset.from_dict(rows).save_to_disk(tmp_path / "prompts")
    theirs = {"plain": first, "prompts": str(tmp_path / "prompts")}
    recipe = make_recipe(policy={"model": "tiny", "system": "Be kind."}, generation={"max_new_tokens": 16})
    register(store, theirs, first, recipe)
    record = register(store, theirs, second, recipe)
    means = []
    for folder in (second, first):
        texts = sample_responses(load(folder)[0], tokenizer, rows["input_ids"], recipe.generation, seed=0).texts
        means.append(sum(letters(asked, texts)) / len(texts))
    assert (record.duel["candidate"], record.duel["champion"]) == pytest.approx(tuple(means), abs=1e-6)
