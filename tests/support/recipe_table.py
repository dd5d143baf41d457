"""What each published recipe must say, written down from its publication and not from the recipe: hub ids, labels,
templates, splits, columns and settings by dotted key."""

from __future__ import annotations

import json
from typing import Any

from rlhf_lib.recipe import Recipe, flatten, load_recipe

_IMDB = {
    "data.prompts.dataset": "stanfordnlp/imdb",
    "data.prompts.split": "train",
    "data.prompts.column": "text",
    "data.prompts.min_chars": 200,
    "data.prompts.query.kind": "first_tokens",
    "data.prompts.query.min": 2,
    "data.prompts.query.max": 8,
    "policy.model": "lvwerra/gpt2-imdb",
    "reward.kind": "classifier",
    "reward.model": "lvwerra/distilbert-imdb",
    "reward.label": "POSITIVE",
    "reward.output": "logit",
    "reward.batch_size": 16,
    "generation.length_sampler.min": 4,
    "generation.length_sampler.max": 16,
    "generation.top_k": 0,
    "generation.top_p": 1.0,
    "ppo.learning_rate": 1.41e-5,
    "ppo.batch_size": 128,
}
_STORIES = {
    "data.prompts.dataset": "roneneldan/TinyStories",
    "data.prompts.split": "train[:20000]",
    "data.prompts.column": "text",
    "data.prompts.query.kind": "first_words",
    "policy.model": "gpt2",
}
_ULTRAFEEDBACK = {
    "data.prompts.dataset": "HuggingFaceH4/ultrafeedback_binarized",
    "data.prompts.split": "train_prefs",
    "data.prompts.column": "prompt",
    "data.prompts.test.split": "test_prefs",
    "data.preferences.train.split": "train_prefs",
    "data.preferences.test.split": "test_prefs",
    "data.preferences.chosen": "chosen",
    "data.preferences.rejected": "rejected",
}
EXPECTED: dict[str, dict[str, Any]] = {
    "gpt2-imdb-positive": _IMDB,
    "gpt2-imdb-negative": _IMDB | {"reward.label": "NEGATIVE"},
    "gpt2-imdb-lora": _IMDB
    | {
        "data.prompts.min_chars": 250,
        "policy.lora.r": 32,
        "policy.lora.alpha": 32,
        "policy.lora.dropout": 0.1,
        "ppo.learning_rate": 1.5e-5,
        "ppo.steps": 12,
    },
    "flan-t5-emotion": {
        "data.prompts.dataset": "google-research-datasets/go_emotions",
        "data.prompts.name": "simplified",
        "data.prompts.split": "train+test",
        "data.prompts.column": "text",
        "data.prompts.query.kind": "first_words",
        "data.prompts.query.min": 4,
        "data.prompts.query.max": 5,
        "policy.model": "google/flan-t5-small",
        "policy.unfrozen_layers": -2,
        "reward.kind": "classifier",
        "reward.model": "SamLowe/roberta-base-go_emotions",
        "reward.label": "joy",
        "reward.output": "softmax",
        "generation.max_new_tokens": 32,
        "generation.top_k": 10,
        "ppo.steps": 312,
        "ppo.batch_size": 128,
        "ppo.mini_batch_size": 32,
        "ppo.ppo_epochs": 4,
        "ppo.optimizer": "adamw",
        "ppo.learning_rate": 3e-5,
        "ppo.schedule": "constant",
        "ppo.betas": [0.9, 0.95],
        "ppo.eps": 1e-8,
        "ppo.weight_decay": 1e-6,
        "ppo.kl_coef": 0.001,
        "ppo.kl_controller": "fixed",
        "ppo.gamma": 1.0,
        "ppo.lam": 0.95,
        "ppo.cliprange": 0.2,
        "ppo.cliprange_value": 0.2,
        "ppo.vf_coef": 1.0,
        "ppo.clip_scores": 10.0,
        "ppo.eval_texts": ["In my opinion"],
        "ppo.eval_every": 6,
        "ppo.checkpoint_every": 62,
    },
    "gpt2-finbert": {
        "data.prompts.dataset": "stanfordnlp/imdb",
        "data.prompts.split": "train",
        "data.prompts.column": "text",
        "policy.model": "gpt2",
        "reward.kind": "classifier",
        "reward.model": "ProsusAI/finbert",
        "reward.label": "positive",
        "reward.output": "probability",
    },
    "gpt2-tinystories": _STORIES | {"reward.kind": "likelihood", "reward.model": "roneneldan/TinyStories-1M"},
    "gpt2-tinystories-ending": _STORIES
    | {
        "reward.kind": "classifier",
        "reward.model": "lvwerra/distilbert-imdb",
        "reward.label": "POSITIVE",
        "reward.output": "logit",
    },
    "dlite-hh-helpful": {
        "data.prompts.dataset": "Anthropic/hh-rlhf",
        "data.prompts.data_dir": "helpful-base",
        "data.prompts.split": "train",
        "data.prompts.column": "chosen",
        "data.prompts.max_query_chars": 100,
        "data.prompts.limit": 6400,
        "data.prompts.query.kind": "first_turn",
        "data.prompts.template": "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\n{query}\n\n### Response:\n",
        "policy.model": "aisquared/dlite-v1-355m",
        "reward.kind": "pair",
        "reward.model": "OpenAssistant/reward-model-deberta-v3-large-v2",
        "generation.max_new_tokens": 16,
        "generation.stop": "### End",
        "evaluation.perplexity.dataset": "Anthropic/hh-rlhf",
        "evaluation.perplexity.data_dir": "helpful-base",
        "evaluation.perplexity.split": "test",
        "evaluation.perplexity.column": "chosen",
        "evaluation.perplexity.limit": None,
    },
    "hh-rlhf-full": {
        "data.prompts.dataset": "Anthropic/hh-rlhf",
        "data.prompts.data_dir": "helpful-base",
        "data.prompts.split": "train",
        "data.prompts.column": "chosen",
        "data.prompts.query.kind": "dialogue",
        "data.prompts.test.split": "test",
        "data.preferences.train.data_dir": "helpful-base",
        "data.preferences.train.split": "train",
        "data.preferences.test.data_dir": "helpful-base",
        "data.preferences.test.split": "test",
        "data.preferences.chosen": "chosen",
        "data.preferences.rejected": "rejected",
        "policy.model": "gpt2",
        "policy.train.answers": "chosen",
        "reward.kind": "preference",
        "reward.model": "gpt2",
        "ppo.steps": 20000,
        "evaluation.perplexity.split": "test",
        "evaluation.perplexity.column": "chosen",
    },
    "qwen-instruct-helpful": _ULTRAFEEDBACK
    | {
        "policy.model": "Qwen/Qwen2.5-0.5B-Instruct",
        "policy.lora.r": 32,
        "reward.kind": "classifier",
        "reward.model": "Skywork/Skywork-Reward-V2-Qwen3-0.6B",
        "reward.output": "logit",
    },
    "smollm2-ultrafeedback": _ULTRAFEEDBACK
    | {
        "policy.model": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "reward.kind": "preference",
        "reward.model": "HuggingFaceTB/SmolLM2-135M-Instruct",
    },
}
_SIEBERT = {
    "kind": "classifier",
    "model": "siebert/sentiment-roberta-large-english",
    "label": "POSITIVE",
    "output": "softmax",
}
# Who judges what PPO made, by what PPO didn't optimise; the default gates ask each of them.
JUDGES: dict[str, dict[str, dict[str, Any]]] = {
    "gpt2-imdb-positive": {"siebert": _SIEBERT},
    "gpt2-imdb-negative": {"siebert": _SIEBERT | {"label": "NEGATIVE"}},
    "gpt2-imdb-lora": {"siebert": _SIEBERT},
    "gpt2-finbert": {"siebert": _SIEBERT},
    "gpt2-tinystories-ending": {"siebert": _SIEBERT | {"max_length": 48}},
    "gpt2-tinystories": {"larger": {"kind": "likelihood", "model": "roneneldan/TinyStories-33M"}},
    "flan-t5-emotion": {
        "bert": {
            "kind": "classifier",
            "model": "bhadresh-savani/bert-base-go-emotion",
            "label": "joy",
            "output": "softmax",
        }
    },
    "t5-emotion-scratch": {
        "published": {
            "kind": "classifier",
            "model": "SamLowe/roberta-base-go_emotions",
            "label": "joy",
            "output": "softmax",
        }
    },
    "dlite-hh-helpful": {
        "electra": {"kind": "pair", "model": "OpenAssistant/reward-model-electra-large-discriminator"}
    },
    "qwen-instruct-helpful": {"deberta": {"kind": "pair", "model": "OpenAssistant/reward-model-deberta-v3-large-v2"}},
    "smollm2-ultrafeedback": {
        "skywork": {"kind": "classifier", "model": "Skywork/Skywork-Reward-V2-Qwen3-0.6B", "output": "logit"}
    },
    "hh-rlhf-full": {"held_out": {"kind": "preference", "pairs": "held_out", "model": "gpt2", "share": 0.3}},
    "hh-helpful-scratch": {"held_out": {"kind": "preference", "pairs": "held_out", "model": None, "share": 0.5}},
}
# Where any other value won't do: one of a few words, or numbers that go together.
_OTHERS = {
    "data.prompts.query.kind": {"first_tokens": "first_words", "first_words": "text"},
    "reward.kind": {"classifier": "pair", "preference": "pair", "likelihood": "pair", "pair": "likelihood"},
    "reward.output": {"logit": "softmax", "probability": "logit", "softmax": "probability"},
    "policy.train.answers": {"chosen": "both"},
    "ppo.optimizer": {"adamw": "adamw_8bit"},
    "ppo.schedule": {"constant": "cosine"},
    "ppo.kl_controller": {"fixed": "adaptive"},
    "data.prompts.query.min": {2: 3, 4: 3},
    "ppo.batch_size": {128: 256},
    "ppo.mini_batch_size": {32: 64},
    "ppo.betas": {(0.9, 0.95): [0.9, 0.999]},
    "evaluation.perplexity.limit": {None: 100},
}


def differences(recipe: Recipe) -> dict[str, tuple[Any, Any]]:
    """Where the recipe doesn't say what it must: (what it says, what it must say) by dotted key."""
    says = flatten(recipe)
    must = EXPECTED[recipe.name]
    return {key: (says.get(key, "absent"), value) for key, value in must.items() if says.get(key, "absent") != value}


def another(key: str, value: Any) -> Any:
    """A value that the key could have, and mustn't in this recipe."""
    if key in _OTHERS:
        return _OTHERS[key].get(tuple(value) if isinstance(value, list) else value, "text")
    if isinstance(value, str):
        return {"train": "test", "test": "train"}.get(value, f"{value}-x")
    if isinstance(value, list):
        return [*value, "another"]
    return value + 1 if isinstance(value, int) else value / 2


def altered(name: str, key: str) -> Recipe:
    """The shipped recipe with another value for that key."""
    return load_recipe(name, [f"{key}={json.dumps(another(key, EXPECTED[name][key]))}"])
