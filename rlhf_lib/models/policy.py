"""The policy that PPO trains: a language model, a value head on its trunk, and the reference it must not stray from."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lib.errors import ModelError
from rlhf_lib.recipe import Lora


class ValueHead(nn.Module):
    """A linear map from the last hidden state to a scalar, starting at 0 (Ziegler et al. 2019). The parameter names are
    TRL's, so that its checkpoints load."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.summary = nn.Linear(width, 1)
        nn.init.zeros_(self.summary.weight)
        nn.init.zeros_(self.summary.bias)

    def forward(self, states: Tensor) -> Tensor:
        """(..., D) -> (...) in fp32."""
        with torch.autocast(states.device.type, enabled=False):
            return self.summary(states.float())[..., 0]


class Policy(nn.Module):
    """`model` is the language model, `v_head` its value head. The reference is the same model with the adapter off
    where there is one, else a frozen copy taken at construction."""

    def __init__(
        self, model: PreTrainedModel, lora: Lora | None = None, *, reference: PreTrainedModel | None = None
    ) -> None:
        super().__init__()
        self.adapted: PeftModel | None = None
        if lora is not None:
            config = LoraConfig(
                r=lora.r,
                lora_alpha=lora.alpha,
                lora_dropout=0.0,  # the ratio's passes must not differ by chance
                target_modules=lora.target_modules,
                use_dora=lora.dora,
                task_type="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",
            )
            try:
                self.adapted = get_peft_model(model, config)
            except ValueError as error:
                raise ModelError(f"LoRA can't be put on this model: {error} (policy.lora.target_modules)") from None
        self.model = model
        self.v_head = ValueHead(model.get_output_embeddings().in_features)
        self._reference = None
        if self.adapted is None:
            self._reference = frozen(reference if reference is not None else copy.deepcopy(model))
        self.eval()  # for good: dropout would make the ratio's two passes differ by chance

    @property
    def config(self):
        return self.model.config

    @property
    def device(self) -> torch.device:
        return self.v_head.summary.weight.device

    @contextmanager
    def reference(self) -> Iterator[PreTrainedModel]:
        """The reference model, inside the block."""
        if self._reference is not None:
            yield self._reference
            return
        assert self.adapted is not None
        with self.adapted.disable_adapter():
            yield self.model

    def trainable(self) -> list[nn.Parameter]:
        return [p for p in (*self.model.parameters(), *self.v_head.parameters()) if p.requires_grad]

    def save_pretrained(self, folder: str | Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """An ordinary model folder, adapters merged; the value head stays with the checkpoints."""
        merged = self.model
        if self.adapted is not None:
            merged = copy.deepcopy(self.adapted).merge_and_unload()
        merged.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def trunk_and_head(model: PreTrainedModel) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """The part that makes hidden states (a seq2seq model's decoder), and the language-model head on them."""
    head = model.get_output_embeddings()
    if getattr(model.config, "scale_decoder_outputs", False):  # T5 with tied embeddings
        return model.get_decoder(), lambda states: head(states * model.config.d_model**-0.5)
    return model.get_decoder(), head


def frozen(model: PreTrainedModel) -> PreTrainedModel:
    """The model in eval mode, none of its parameters trainable."""
    return model.eval().requires_grad_(False)


def autocast(device: torch.device, dtype: torch.dtype):
    """Mixed precision for the passes of a model kept in fp32; nothing to do in fp32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)
