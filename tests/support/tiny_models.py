"""Tiny models with random weights, their tokenizers and trainers, made in the process: nothing is downloaded or kept.

Weights are drawn wide (std 0.2), since at the usual 0.02 the logits are nearly flat and every figure nearly rounding.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from rlhf_lib.models.policy import Policy
from rlhf_lib.ppo.evaluation import Metric
from rlhf_lib.ppo.rollout import Responses
from rlhf_lib.ppo.trainer import PPOTrainer
from rlhf_lib.recipe import GenerationConfig, LoraConfig, PPOConfig
from rlhf_lib.rewards import Reward

VOCABULARY, EOS = 61, 0


def word_tokenizer(vocabulary: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """Words w1, w2, ... with ids 1, 2, ...; EOS has id 0, and there is no pad token."""
    words = {"<eos>": EOS} | {f"w{i}": i for i in range(1, vocabulary)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<eos>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def tiny_gpt2(seed: int = 0, *, vocabulary: int = VOCABULARY, **overrides) -> GPT2LMHeadModel:
    """Two layers, width 16; dropout as GPT-2 has it (0.1), so that a pass in training mode shows."""
    settings = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.2}
    return _built(
        GPT2LMHeadModel,
        GPT2Config(vocab_size=vocabulary, bos_token_id=EOS, eos_token_id=EOS, **settings | overrides),
        seed,
    )


def _rope(vocabulary: int, overrides: dict) -> dict:
    return {
        "vocab_size": vocabulary,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "attention_dropout": 0.1,
        "bos_token_id": None,
        "eos_token_id": EOS,
        "pad_token_id": None,
    } | overrides


def tiny_llama(seed: int = 0, *, vocabulary: int = VOCABULARY, **overrides) -> LlamaForCausalLM:
    """Rotary positions, grouped-query attention, head apart from the embeddings."""
    return _built(LlamaForCausalLM, LlamaConfig(**_rope(vocabulary, overrides)), seed)


def tiny_qwen2(seed: int = 0, *, vocabulary: int = VOCABULARY, **overrides) -> Qwen2ForCausalLM:
    """As tiny_llama, with biases and a head tied to the embeddings."""
    return _built(Qwen2ForCausalLM, Qwen2Config(**_rope(vocabulary, {"tie_word_embeddings": True} | overrides)), seed)


def tiny_t5(seed: int = 0, *, vocabulary: int = VOCABULARY, **overrides) -> T5ForConditionalGeneration:
    """Encoder and decoder of two layers each, embeddings shared and tied; pad, start and EOS are the same id."""
    settings = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.1}
    ids = {"pad_token_id": EOS, "decoder_start_token_id": EOS, "eos_token_id": EOS}
    config = T5Config(vocab_size=vocabulary, initializer_factor=0.5, **settings | ids | overrides)
    return _built(T5ForConditionalGeneration, config, seed)


def _built(architecture: type, config, seed: int) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = architecture(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:  # biases start at 0 and norms at 1: move them, so that none is a special case
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def tiny_prompts(count: int = 12) -> list[dict]:
    """Prompts of 1 to 5 tokens; the EOS id, which is also the usual pad id, is inside some of them."""
    rows = [[(7 * i + 3 * k) % VOCABULARY for k in range(1 + i % 5)] for i in range(1, count + 1)]
    return [{"query": word_tokenizer().decode(ids, skip_special_tokens=True), "input_ids": ids} for ids in rows]


def remainder_reward(queries: list[str], responses: list[str]) -> list[float]:
    """A score that differs between responses: the mean of the words' numbers modulo 5, less 2."""
    numbers = [[int(word[1:]) % 5 for word in response.split()] for response in responses]
    return [sum(n) / max(len(n), 1) - 2.0 for n in numbers]


def tiny_trainer(
    model: PreTrainedModel | PeftModel | None = None,
    *,
    lora: LoraConfig | None = None,
    policy: dict | None = None,
    reward: Reward = remainder_reward,
    generation: dict | None = None,
    seed: int = 0,
    score_constants: tuple[float, float] = (0.0, 1.0),
    eval_prompts: list[dict] | None = None,
    metrics: Metric | Sequence[Metric] = (),
    judges: Mapping[str, Reward] | None = None,
    **ppo,
) -> PPOTrainer:
    """3 steps of 8 responses of up to 7 tokens, 2 PPO epochs, unless `ppo` and `generation` say otherwise; `policy`
    are options of Policy."""
    torch.manual_seed(seed)  # LoRA draws its weights
    return PPOTrainer(
        Policy(tiny_gpt2() if model is None else model, lora, **(policy or {})),
        word_tokenizer(),
        reward,
        tiny_prompts(),
        PPOConfig(**{"steps": 3, "batch_size": 8, "ppo_epochs": 2, "learning_rate": 1e-2} | ppo),
        GenerationConfig(**{"max_new_tokens": 7} | (generation or {})),
        seed=seed,
        score_constants=score_constants,
        eval_prompts=eval_prompts,
        metrics=metrics,
        judges=judges,
    )


def count_steps(trainer: PPOTrainer) -> list[float]:
    """A list that grows with each optimizer step by the norm of the gradient which it is given."""
    norms: list[float] = []

    def note(optimizer, args, kwargs) -> None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.linalg.vector_norm(torch.stack([g.norm() for g in grads]))))

    trainer.optimizer.register_step_pre_hook(note)
    return norms


def given_responses(
    queries: list[list[int]], responses: list[list[int]], logprobs: list[torch.Tensor] | None = None
) -> Responses:
    """Responses from elsewhere, without what sampling keeps."""
    values = [torch.zeros(len(r)) for r in responses] if logprobs else []
    return Responses(queries, responses, [""] * len(queries), [True] * len(queries), logprobs or [], values)


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all parameters, by name."""
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of weights are equal, bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Import it into a test file: on models this small a second thread costs far more than it brings."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def three_folders(root: Path) -> Path:
    """The folder, with three models and their tokenizers (the last one's is larger) and 60 prompts in prompts.jsonl."""
    for name, seed, vocabulary in (("plain", 0, 61), ("other", 1, 61), ("wider", 2, 80)):
        tiny_gpt2(seed, vocabulary=vocabulary).save_pretrained(root / name)
        word_tokenizer(vocabulary).save_pretrained(root / name)
    rows = [{"text": f"w{i} w{(i * 7) % 60 + 1} w3"} for i in range(1, 61)]
    (root / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root
