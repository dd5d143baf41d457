"""Tiny policies and their registration in a real MLflow store."""

from itertools import count

import mlflow
import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from rlhf_lib.recipe import Recipe
from tasks import registration
from tasks.results import EvaluationResult, Folders, PPOResult, RewardArtifact, StartingPolicy
from tasks.tracking.runs import PipelineRun
from tests.rlhf_lib.evaluation.test_promotion import figures

EOS = "<|endoftext|>"
PROMPTS = [
    f"\n\nHuman: {line}\n\nAssistant:"
    for line in (
        "where is my parcel?",
        "can I return the  shoes ",
        "hello",
        "the lamp is broken",
        "I want a refund",
        "hi!",
    )
]
LONG = "\n\nHuman: " + "please help me now. " * 30 + "\n\nAssistant:"


def letters(queries, responses):
    """The reward of the tests: share of the response's characters that are ASCII letters."""
    return [sum(c.isascii() and c.isalpha() for c in text) / max(len(text), 1) for text in responses]


def train_tokenizer(vocab_size):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([f"{p} I am glad to help.\n" for p in PROMPTS] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, bos_token=EOS)


def make_policy(folder, *, seed, vocab_size=300, favour=(), positions=128):
    """A random GPT-2 and its tokenizer in a folder; texts in `favour` name tokens that it likes to draw."""
    tokenizer = train_tokenizer(vocab_size)
    torch.manual_seed(seed)
    eos = tokenizer.eos_token_id
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=positions,
        n_embd=32,
        n_layer=2,
        n_head=2,
        initializer_range=0.4,
        bos_token_id=eos,
        eos_token_id=eos,
        tie_word_embeddings=False,
    )
    model = GPT2LMHeadModel(config).eval()
    # a first feature that is always 10 after the last norm serves as a bias on the logits
    with torch.no_grad():
        model.transformer.ln_f.weight[0], model.transformer.ln_f.bias[0] = 0.0, 10.0
        model.lm_head.weight[:, 0] = 0.0
        for text in favour:
            model.lm_head.weight[tokenizer(text).input_ids, 0] = 0.6
    # what a model's own generation config says must not reach the served words
    model.generation_config.update(repetition_penalty=5.0, do_sample=True, temperature=1.7, min_new_tokens=3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def make_recipe(**sections):
    return Recipe.model_validate(
        {
            "name": "letters",
            "description": "Letters for everyone.",
            "data": {"prompts": {"dataset": "local"}},
            "policy": {"model": "tiny"},
            "reward": {"kind": "function", "function": "registered:letters"},
            "generation": {"max_new_tokens": 16},
            "registration": {"gates": {"min_prompts": None}},  # six prompts
            "compute": {"device": "cpu", "precision": "fp32"},
        }
        | sections
    )


@pytest.fixture(name="store")
def own_store(tmp_path, monkeypatch, mlflow_store):
    """An MLflow SQLite store of this test's own, with a parent run; yields the PipelineRun."""
    monkeypatch.chdir(tmp_path)
    with mlflow_store(tmp_path), mlflow.start_run() as parent:
        yield PipelineRun(run_dir=str(tmp_path / "runs"), parent_run_id=parent.info.run_id)


@pytest.fixture(scope="module", name="folders")
def policy_folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("policies")
    texts = [*PROMPTS, LONG]
    rows = {"query": texts, "prompt": texts, "input_ids": train_tokenizer(290)(texts, verbose=False).input_ids}
    Dataset.from_dict(rows).save_to_disk(root / "prompts")
    return {
        "plain": make_policy(root / "plain", seed=1),
        "lettered": make_policy(root / "lettered", seed=2, vocab_size=290, favour=["abcdefghijklm", "nopqrstuvwxyz"]),
        "brief": make_policy(root / "brief", seed=3, favour=[EOS]),
        "prompts": str(root / "prompts"),
    }


def brevity(queries, responses):
    """Another reward: fewer letters."""
    return [-score for score in letters(queries, responses)]


ids = map(str, count())  # of runs of PPO: each registration is another run's


def register(
    run, folders, folder, recipe=None, evaluation=None, ppo=None, model="tiny", fingerprint="reward456", **more
):
    return registration.register_policy.fn(
        recipe or make_recipe(),
        run,
        StartingPolicy(
            model=model, fingerprint="base123", prompts=Folders(train=folders["prompts"], test=folders["prompts"])
        ),
        RewardArtifact(model=None, fingerprint=fingerprint, normalization=None),
        PPOResult(
            policy=folder,
            reference=folders["plain"],
            steps=7,
            seconds=1.5,
            kl=4.0,
            mlflow_run_id=ppo or next(ids),
        ),
        EvaluationResult(perplexity_counts=None, **(evaluation or figures())),
        **more,
    )


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def greedy_texts(folder, prompts, steps=16):
    """Greedy decoding spelt out: the whole text anew for each token, the largest logit, until EOS or the limit."""
    model, tokenizer = load(folder)
    texts = []
    for prompt in prompts:
        ids = tokenizer(prompt).input_ids
        start = len(ids)
        while len(ids) < start + steps and ids[-1] != tokenizer.eos_token_id:
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        texts.append(tokenizer.decode(ids[start:], skip_special_tokens=True))
    return texts
