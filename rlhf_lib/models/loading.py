"""Models and tokenizers by hub id or local folder: safetensors only, no remote code unless asked, and errors that say
how to fix them; and the hash that tells one model from another."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file, logging
from transformers.utils.hub import extract_commit_hash

from rlhf_lib.errors import ModelError
from rlhf_lib.models.hub import offline_if_unreachable

if TYPE_CHECKING:
    from collections.abc import Iterator


PAD = "<|pad|>"

# RoBERTa and its kin number positions from pad_token_id + 1, and so have fewer than max_position_embeddings says.
_OFFSET_POSITIONS = {
    "roberta",
    "roberta-prelayernorm",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "longformer",
    "mpnet",
}
# Relative attention and state-space models take any length; a finite figure keeps the arithmetic simple.
_UNLIMITED = 1 << 20


def load_tokenizer(name: str, trust_remote_code: bool = False, *, need_eos: bool = True) -> PreTrainedTokenizerBase:
    """The tokenizer of a hub id or folder, padding with EOS where it has no pad token (masks come from lengths here).

    Raises ModelError if it is absent, or has no EOS though `need_eos` (a policy must be able to end a response).
    """
    with _explained(name, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)
    if need_eos and tokenizer.eos_token_id is None:
        raise ModelError(
            f"the tokenizer of {name} has no EOS token, so no response could end: set one with "
            "tokenizer.eos_token = '...' and save_pretrained(FOLDER), then point to that folder"
        )
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_causal_lm(name: str, dtype: torch.dtype | None = None, trust_remote_code: bool = False) -> PreTrainedModel:
    """The causal language model of a hub id or folder, in `dtype` (None: fp32), in eval mode, on the CPU.

    Raises ModelError if it is absent or no causal language model.
    """
    return _load(AutoModelForCausalLM, "causal language model", name, dtype, trust_remote_code)


def load_policy(name: str, dtype: torch.dtype | None = None, trust_remote_code: bool = False) -> PreTrainedModel:
    """The language model of a hub id or folder, causal or seq2seq according to its configuration; otherwise as
    `load_causal_lm`."""
    if load_config(name, trust_remote_code).is_encoder_decoder:
        return _load(AutoModelForSeq2SeqLM, "seq2seq language model", name, dtype, trust_remote_code)
    return load_causal_lm(name, dtype, trust_remote_code)


def load_classifier(
    name: str, dtype: torch.dtype | None = None, trust_remote_code: bool = False, **overrides: Any
) -> PreTrainedModel:
    """The sequence classifier of a hub id or folder, in `dtype` (None: fp32), in eval mode, on the CPU.

    `overrides` change its configuration: num_labels=1 puts a new scalar head on a language model. Without them a
    folder that holds no classification head is refused, for its head would be random. Raises ModelError.
    """
    return _load(AutoModelForSequenceClassification, "sequence classifier", name, dtype, trust_remote_code, **overrides)


def distinct_pad(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Give both a pad token that occurs in no text, the embeddings one row more where need be.

    Classifiers made of decoders read their score at the last token that isn't the pad token. In place.
    """
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": PAD})
    if len(tokenizer) > model.config.get_text_config().vocab_size:
        model.resize_token_embeddings(len(tokenizer))
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id


def fingerprint(name: str) -> str:
    """16 hex digits: of the files' content for a local folder (hidden ones aside), of the commit for a hub id.

    Raises ModelError if it is absent.
    """
    folder = Path(name).expanduser()
    digest = hashlib.sha256()
    if folder.is_dir():
        for file in sorted(f for f in folder.rglob("*") if f.is_file()):
            relative = file.relative_to(folder)
            if any(part.startswith(".") for part in relative.parts):
                continue
            with file.open("rb") as content:
                digest.update(f"{relative}\0".encode() + hashlib.file_digest(content, "sha256").digest())
    else:
        with _explained(name, "model"):
            digest.update(f"{name}\0{extract_commit_hash(cached_file(name, 'config.json'), None)}".encode())
    return digest.hexdigest()[:16]


def load_config(name: str, trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration alone, to find mistakes before weights are read. Raises ModelError."""
    with _explained(name, "model"):
        return AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code)


def load_generation_config(name: str, trust_remote_code: bool = False) -> GenerationConfig:
    """The generation config of a hub id or folder; without one, what its configuration says. Raises ModelError."""
    try:
        return GenerationConfig.from_pretrained(name)
    except OSError:
        return GenerationConfig.from_model_config(load_config(name, trust_remote_code))


def positions(config: PreTrainedConfig) -> int:
    """How many tokens, prompt and response together, a model with this configuration takes."""
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None) or 0
    if limit <= 0:
        return _UNLIMITED
    return limit - (text.pad_token_id or 0) - 1 if text.model_type in _OFFSET_POSITIONS else limit


def _load(
    auto: Any, what: str, name: str, dtype: torch.dtype | None, trust_remote_code: bool, **overrides: Any
) -> PreTrainedModel:
    with _explained(name, what), quiet():
        config = AutoConfig.from_pretrained(name, trust_remote_code=trust_remote_code, **overrides)
        faster_gelu(config)
        model, report = auto.from_pretrained(
            name,
            config=config,
            dtype=dtype or torch.float32,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
            ignore_mismatched_sizes=bool(overrides),
        )
    if (missing := sorted(report["missing_keys"])) and not overrides:
        raise ModelError(
            f"{name} is incomplete as a {what}: weights are missing for {', '.join(missing[:4])}. Point to "
            f"a model that was trained as a {what}"
        )
    return model.eval()


def faster_gelu(config: PreTrainedConfig) -> None:
    """Replace `gelu_new`, which is seven kernels, with `gelu_pytorch_tanh`, the same function in one. In place."""
    for key in ("activation_function", "hidden_act", "dense_act_fn"):
        if getattr(config, key, None) == "gelu_new":
            setattr(config, key, "gelu_pytorch_tanh")


@contextmanager
def quiet() -> Iterator[None]:
    """Load or save without progress bars and reports; what matters in them is raised."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _explained(name: str, what: str) -> Iterator[None]:
    """Turn every way in which a model can be missing or unsuitable into one ModelError with the fix."""
    folder = Path(name).expanduser()
    local = "point to a local folder that holds config.json, model.safetensors and the tokenizer's files"
    if name.startswith("models:/"):
        raise ModelError(f"{name} is a registry URI: resolve it to a folder before loading it")
    if not folder.is_dir() and (folder.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1):
        raise ModelError(f"{what} {name}: no such folder; give a hub id or {local}")
    if folder.is_dir() and what != "tokenizer" and not (folder / "config.json").is_file():
        raise ModelError(f"{what} {name}: the folder has no config.json; {local}")
    away = None
    try:
        with nullcontext() if folder.is_dir() else offline_if_unreachable() as away:
            yield
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        if "Unrecognized configuration class" in reason:
            raise ModelError(f"{name} is not a {what}: point to a model that is") from error
        if folder.is_dir():
            hint = "are all of its files there?"
            if not list(folder.glob("*.safetensors")) and list(folder.glob("*.bin")):
                hint = "its weights must be in safetensors format: load it elsewhere and save_pretrained() it again"
            raise ModelError(f"{what} {name} can't be loaded, {hint} ({reason})") from error
        if away:
            raise ModelError(
                f"{what} {name} is neither a local folder nor in the hub's cache, and the hub is out of reach "
                f"({away}): {local}"
            ) from error
        raise ModelError(
            f"{what} {name} can't be loaded from the hub; check the name, or {local} ({reason})"
        ) from error
