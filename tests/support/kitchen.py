"""A kitchen's preferences - the steps of a recipe in order - and a small reward model that has learnt them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2ForSequenceClassification, PreTrainedTokenizerFast, set_seed

from rlhf_lib.rewards.check_texts import repeated_word, shuffled_words

STEPS = ["wash", "peel", "cut", "boil", "drain", "season", "stir", "serve"]
FILLER = ["please", "then", "simply", "now", "well", "just", "first", "carefully"]
WORDS = [*STEPS, *FILLER, "Human:", "Assistant:", "how", "do", "I", "cook", "it", "?"]
PROMPT = "\n\nHuman: how do I cook it ?\n\nAssistant:"
RIGHT, WRONG = " wash cut boil serve", " serve boil cut wash"


def preferences(count: int, seed: int) -> list[tuple[str, str, str]]:
    """Chosen: kitchen steps in order. Rejected: the same words in another order, a stutter, or nothing to speak of.
    Chosen answers carry a little more filler on average, as people's preferred answers tend to be longer."""
    rng = np.random.default_rng(seed)

    def filled(steps: list[str], most: int) -> str:
        words = list(steps)
        for _ in range(rng.integers(0, most)):
            words.insert(rng.integers(len(words) + 1), rng.choice(FILLER))
        return " " + " ".join(words)

    pairs = []
    for i in range(count):
        steps = [STEPS[j] for j in np.sort(rng.choice(len(STEPS), rng.integers(3, 6), replace=False))]
        chosen, kind = filled(steps, 5), rng.random()
        if kind < 0.7:
            rejected = filled(shuffled_words(" ".join(steps), rng).split(), 4)
        elif kind < 0.9:
            rejected = repeated_word(chosen, rng) if i % 2 else shuffled_words(chosen, rng)
        else:
            rejected = ""
        pairs.append((PROMPT, chosen, rejected))
    return pairs


def train_reward(folder: Path) -> Path:
    """Save in `folder`, and return it, a two-layer GPT-2 trained on the preferences with the Bradley-Terry loss."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", "<unk>", *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        model_max_length=48,
        truncation_side="left",
    )
    set_seed(0)
    config = GPT2Config(
        vocab_size=len(vocabulary), n_positions=48, n_embd=32, n_layer=2, n_head=2, pad_token_id=0,
        bos_token_id=1, eos_token_id=1, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    config.num_labels = 1
    model = GPT2ForSequenceClassification(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    pairs = preferences(6400, seed=1)
    for start in range(0, len(pairs), 64):
        batch = pairs[start : start + 64]
        texts = [f"{p}{c} <eos>" for p, c, _ in batch] + [f"{p}{r} <eos>" for p, _, r in batch]
        scores_2B = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits[:, 0]
        loss = -torch.nn.functional.logsigmoid(scores_2B[:64] - scores_2B[64:]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
