"""A seq2seq policy through the whole pipeline: perplexity of responses given prompts, probes, registration, a duel."""

import math
from types import SimpleNamespace

import mlflow
import pytest
import torch
import yaml
from tiny_models import tiny_t5, word_tokenizer
from transformers import AutoTokenizer, T5ForConditionalGeneration

from flows.rlhf import rlhf
from rlhf_lib.data.corpus import load_texts
from rlhf_lib.errors import DataError
from rlhf_lib.models.loading import load_policy, load_tokenizer
from rlhf_lib.ppo.rollout import sample_responses
from rlhf_lib.recipe import GenerationConfig, PerplexitySetConfig, PromptsConfig, QueryConfig
from tasks.registry import policies

TEXTS = [" ".join(f"w{1 + (7 * row + i * (row + 1)) % 60}" for i in range(6)) for row in range(60)]


def even_words(queries, responses):
    return [float(sum(int(word[1:]) % 2 == 0 for word in response.split())) for response in responses]


@pytest.fixture(scope="module")
def run(tmp_path_factory, prefect_server, mlflow_store):
    """Two runs of one recipe, whose second is judged against the first one's champion."""
    folder = tmp_path_factory.mktemp("seq2seq")
    model = tiny_t5()
    model.generation_config.update(repetition_penalty=5.0)
    model.save_pretrained(folder / "t5")
    word_tokenizer().save_pretrained(folder / "t5")
    (folder / "texts.csv").write_text("text\n" + "\n".join(TEXTS))
    recipe = {
        "name": "seq2seq",
        "data": {
            "prompts": {
                "dataset": str(folder / "texts.csv"),
                "held_out": 0.4,
                "query": {"kind": "first_words", "min": 2, "max": 3},
            }
        },
        "policy": {"model": str(folder / "t5"), "unfrozen_layers": -1},
        "reward": {"kind": "function", "function": f"{__name__}:even_words", "normalize": True}
        | {"checks": {"max_length_correlation": None, "max_degenerate_win_rate": None}},
        "generation": {"max_new_tokens": 5},
        "ppo": {"steps": 2, "batch_size": 8, "learning_rate": 0.05, "eval_every": 1, "eval_texts": ["w1 w2", "w3"]},
        "evaluation": {
            "perplexity": {"split": "train", "column": "text"},
            "probes": [{"prompt": "w1 w2", "token": "w5", "against": "w6"}],
        },
        "registration": {
            "gates": dict.fromkeys(("min_prompts", "min_reward_delta", "max_perplexity_ratio", "min_distinct_2_ratio"))
        },
        "compute": {"device": "cpu", "precision": "fp32"},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with mlflow_store(folder), pytest.MonkeyPatch.context() as patch:
        patch.setenv("RLHF_RUN_DIR", str(folder))
        records = [rlhf(recipe=str(folder / "recipe.yaml"), overrides=[f"seed={seed}"]) for seed in (0, 1)]
        yield SimpleNamespace(folder=folder, records=records)


def exported(run, name):
    return run.folder / "work" / run.records[0]["mlflow_run_id"] / "ppo" / name


def test_perplexity_is_that_of_the_rest_given_the_first_words(run):
    tokenizer = AutoTokenizer.from_pretrained(run.folder / "t5")
    for name in ("reference", "policy"):
        model = T5ForConditionalGeneration.from_pretrained(exported(run, name)).eval()
        losses = []
        with torch.no_grad():
            for text in TEXTS:
                words = text.split()
                prompt = tokenizer(" ".join(words[:2]), return_tensors="pt")
                labels = tokenizer(" ".join(words[2:]), return_tensors="pt").input_ids
                losses.append(float(model(input_ids=prompt.input_ids, labels=labels).loss))  # all of four tokens
        expected = math.exp(sum(losses) / len(losses))
        assert run.records[0]["perplexity"][name] == pytest.approx(expected, rel=1e-4)


def test_probes_are_the_first_token_of_the_decoder(run):
    tokenizer = AutoTokenizer.from_pretrained(run.folder / "t5")
    child = mlflow.search_runs(
        search_all_experiments=True,
        filter_string=f"tags.mlflow.parentRunId = '{run.records[0]['mlflow_run_id']}' AND tags.stage = 'evaluation'",
        output_format="list",
    )[0]
    for name in ("reference", "policy"):
        model = T5ForConditionalGeneration.from_pretrained(exported(run, name)).eval()
        start = torch.tensor([[model.config.decoder_start_token_id]])
        with torch.no_grad():
            logits = model(tokenizer("w1 w2", return_tensors="pt").input_ids, decoder_input_ids=start).logits[0, -1]
        assert child.data.metrics[f"probes/1/{name}"] == pytest.approx(float(logits[5] - logits[6]), abs=1e-4)
    assert child.data.metrics["probes/1/policy"] != child.data.metrics["probes/1/reference"]


def test_fixed_texts_are_answered_during_training(run):
    child = mlflow.search_runs(
        search_all_experiments=True,
        filter_string=f"tags.mlflow.parentRunId = '{run.records[0]['mlflow_run_id']}' AND tags.stage = 'ppo'",
        output_format="list",
    )[0]
    history = mlflow.MlflowClient().get_metric_history(child.info.run_id, "eval/mean_scores")
    assert [point.step for point in history] == [1, 2]


def test_what_is_frozen_stays_as_it_was(run):
    before, after = (load_policy(str(exported(run, name))).state_dict() for name in ("reference", "policy"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith(("decoder.block.1.", "decoder.final_layer_norm.", "lm_head.")) for name in moved)


def test_the_registered_version_answers_greedily_word_for_word(run):
    served = mlflow.pyfunc.load_model("models:/seq2seq/1")
    prompts = ["w1 w2", "w30 w4 w9"]
    folder = policies.resolve_model("models:/seq2seq/1")
    tokenizer = load_tokenizer(folder)
    expected = sample_responses(
        load_policy(folder),
        tokenizer,
        [tokenizer(prompt).input_ids for prompt in prompts],
        GenerationConfig(max_new_tokens=5),
        seed=0,
        greedy=True,
    )
    assert served.predict(prompts) == [text.removeprefix(" ") for text in expected.texts]
    assert all(text.startswith(" ") for text in expected.texts if text)  # query + response reads as text


def test_the_second_is_judged_against_the_first(run):
    assert run.records[0]["model"] == {"name": "seq2seq", "version": "1", "promoted": True}
    version = mlflow.MlflowClient().get_model_version("seq2seq", "2")
    assert "duel/delta" in version.tags


def test_texts_that_no_query_cuts_need_a_prompt_column(tmp_path):
    (tmp_path / "texts.csv").write_text("text,question\nb c,a\nd,\n")
    source = PerplexitySetConfig(dataset=str(tmp_path / "texts.csv"), column="text")
    prompts = PromptsConfig(dataset="x", query=QueryConfig(kind="text"), template="say {query}:")
    with pytest.raises(DataError, match=r"text doesn't cut texts in two: set evaluation\.perplexity\.prompt"):
        load_texts(source, prompts=prompts)
    source.prompt = "question"
    assert load_texts(source, prompts=prompts) == (["b c"], ["say a:"])
    source.prompt = "asked"
    with pytest.raises(
        DataError, match=r"'asked' not found in .*: text, question\)\. Set evaluation\.perplexity\.prompt"
    ):
        load_texts(source)
