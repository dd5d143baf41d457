"""Small models with random weights and tokenizers of their own: a GPT-2, and a T5 as flan-t5 is (Raffel et al. 2020;
gated GELU: Shazeer 2020)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
    set_seed,
)

from rlhf_lib.models.loading import PAD

if TYPE_CHECKING:
    from rlhf_lib.recipe import FromScratchConfig

EOS = "<|endoftext|>"


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, max_length: int | None = None, *, append_eos: bool = False
) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer as GPT-2's, made from the texts, with a pad token of its own.

    `vocab_size` counts EOS (also BOS; id 0), pad (id 1) and the 256 bytes; a small corpus may fill less of it.
    `max_length`: tokens that the model it is for can take. `append_eos`: texts end with EOS, as T5's encoder reads
    them, and there is no BOS.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[EOS, PAD],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if append_eos:
        bpe.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=None if append_eos else EOS,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        **({"model_max_length": max_length} if max_length else {}),
    )


def scratch_model(size: FromScratchConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> GPT2LMHeadModel:
    """A GPT-2 with random weights, without dropout: a corpus seen once doesn't need it, and PPO can't use it."""
    set_seed(seed)
    return GPT2LMHeadModel(gpt2_config(size, len(tokenizer), **_special(tokenizer)))


def init_std(width: int) -> float:
    """Standard deviation of new weights: the usual 0.02 at a width of 768, and more in a narrower model, which would
    learn too slowly from that (docs/log.md)."""
    return float(0.55 * width**-0.5)


def scratch_config(size: FromScratchConfig, vocab_size: int, **special: int | None) -> PreTrainedConfig:
    """The configuration of such a model. `special`: the tokenizer's bos_token_id, eos_token_id and pad_token_id."""
    make = gpt2_config if size.architecture == "gpt2" else t5_config
    return make(size, vocab_size, **special)


def gpt2_config(size: FromScratchConfig, vocab_size: int, **special: int | None) -> GPT2Config:
    return GPT2Config(
        vocab_size=vocab_size,
        n_positions=size.positions,
        n_embd=size.width,
        n_layer=size.layers,
        n_head=size.heads,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        initializer_range=init_std(size.width),
        **special,  # type: ignore[arg-type]
    )


def t5_config(size: FromScratchConfig, vocab_size: int, **special: int | None) -> T5Config:
    config = T5Config(
        vocab_size=vocab_size,
        d_model=size.width,
        d_kv=size.width // size.heads,
        d_ff=4 * size.width,
        num_layers=size.layers,
        num_heads=size.heads,
        feed_forward_proj="gated-gelu",
        dropout_rate=0.0,
        tie_word_embeddings=False,
        eos_token_id=special["eos_token_id"],
        pad_token_id=special["pad_token_id"],
        decoder_start_token_id=special["pad_token_id"],  # type: ignore[call-arg]
    )
    config.dense_act_fn = "gelu_pytorch_tanh"  # gelu_new in one kernel
    return config


def _special(tokenizer: PreTrainedTokenizerBase) -> dict[str, int | None]:
    return {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


def scratch_t5(size: FromScratchConfig, tokenizer: PreTrainedTokenizerBase, seed: int) -> T5ForConditionalGeneration:
    """A T5 with random weights, `size.layers` blocks in the encoder and as many in the decoder, without dropout.

    Its head is apart from its embeddings, and the decoder starts from the pad token.
    """
    set_seed(seed)
    model = T5ForConditionalGeneration(t5_config(size, len(tokenizer), **_special(tokenizer)))
    # Transformers ties the head in a new T5 whatever the configuration says; in a folder, different weights stay apart.
    # At the embeddings' scale of 1 the first logits would be in the tens.
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight) * size.width**-0.5)
    return model
