"""The policy that PPO trains: a language model, a value head on its trunk, and the reference it must not stray from."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Literal

import peft
import torch
from peft import (
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    set_peft_model_state_dict,
)
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_lib.errors import ModelError
from rlhf_lib.models.critic import Critic, ValueHead, check_family
from rlhf_lib.models.loading import quiet
from rlhf_lib.models.logprobs import Packed, Padded, token_logprobs
from rlhf_lib.models.trunk import blocks, freeze_below, top_blocks, trunk_and_head
from rlhf_lib.recipe import LoraConfig

REFERENCE = "reference"  # the adapter that is the reference where PPO starts from an adapter


class Policy(nn.Module):
    """`model` is the language model, `v_head` its value head, on the policy's own trunk or, with `critic`, on a trunk
    that learns values alone: a copy of the model (True), or a `Critic` made of a reward model of the same family.

    What learns: everything; or a LoRA/DoRA adapter (`lora`, or `model` is a PeftModel, whose adapter goes on learning);
    or the top `unfrozen_layers` blocks (-n: all but the bottom n), with the rest frozen, tied embeddings included. The
    reference is what the policy is at construction: a frozen copy, which shares whatever is frozen in the policy; the
    base under an adapter that starts at zero; a frozen second adapter where it doesn't (with `reference` "base", the
    base all the same).

    Dropout is off for good: it would make the ratio's two passes differ by chance. Raises ModelError where the
    architecture doesn't fit.
    """

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        lora: LoraConfig | None = None,
        *,
        unfrozen_layers: int | None = None,
        critic: bool | Critic = False,
        gradient_checkpointing: bool = False,
        reference: PreTrainedModel | Literal["base"] | None = None,
    ) -> None:
        super().__init__()
        self.adapted: PeftModel | None = None
        if isinstance(model, PeftModel):
            self.adapted = model
        base: PreTrainedModel = model.get_base_model() if isinstance(model, PeftModel) else model  # type: ignore
        for part in {base, reference} if base.config.is_encoder_decoder else ():
            if isinstance(part, PreTrainedModel):
                # T5's position bias learns, and fused attention has one kernel for a bias with a gradient and another,
                # which rounds otherwise, for one without: the ratio's two passes must not differ by that
                part.set_attn_implementation("eager")
        self.unfrozen_layers = top_blocks(base, unfrozen_layers) if unfrozen_layers is not None else None
        if isinstance(critic, Critic):
            check_family(base.config, critic.trunk.config)
            self.critic: PreTrainedModel | None = critic.trunk
        else:
            self.critic = copy.deepcopy(base) if critic else None
        if lora is not None:
            self.adapted = add_adapter(base, lora)
        elif self.unfrozen_layers is not None:
            freeze_below(base, self.unfrozen_layers)
        self.model = base
        if base.get_output_embeddings() is None:
            raise ModelError(
                f"{type(base).__name__} has no language-model head: load it with AutoModelForCausalLM or "
                "AutoModelForSeq2SeqLM"
            )
        self.v_head = critic.head if isinstance(critic, Critic) else ValueHead(base.get_output_embeddings().in_features)
        self._reference: PreTrainedModel | None = None
        self._reference_adapter = False
        if isinstance(reference, PreTrainedModel):
            self._reference = frozen(reference)
        elif self.adapted is None:
            shared = {id(p): p for p in base.parameters() if not p.requires_grad}
            self._reference = frozen(copy.deepcopy(base, shared))
        elif lora is None and reference != "base" and not _starts_at_zero(self.adapted):
            _copy_adapter(self.adapted)
            self._reference_adapter = True
        self.gradient_checkpointing = gradient_checkpointing
        if gradient_checkpointing:
            for part in filter(None, (self.model, self.critic)):
                if not part.supports_gradient_checkpointing:
                    name = type(part).__name__
                    raise ModelError(
                        f"{name} can't do gradient checkpointing: set policy.gradient_checkpointing to false"
                    )
                part.gradient_checkpointing_enable({"use_reentrant": False})
        self.eval()

    @property
    def config(self):
        return self.model.config

    @property
    def _no_split_modules(self) -> list[str]:
        """What Accelerate shards as a unit by default: the transformer blocks."""
        return list(self.model._no_split_modules or [])

    @property
    def device(self) -> torch.device:
        return self.v_head.summary.weight.device

    @property
    def shares_bottom(self) -> bool:
        """Whether frozen blocks can run once for the reference and every PPO epoch."""
        return self.unfrozen_layers is not None and not self.config.is_encoder_decoder

    def forward(
        self, batch: Packed | Padded, temperature: float, bottom: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probs, values and entropies of the batch's response tokens: (N,) each. `bottom`: the hidden states from
        which the unfrozen blocks start."""
        with self._recomputing():
            states = batch.states(self.model, bottom, self.unfrozen_layers)
            value_states = states if self.critic is None else batch.states(self.critic)
        logprobs, entropy = token_logprobs(states, batch.targets_N, trunk_and_head(self.model)[1], temperature)
        return logprobs, self.v_head(value_states), entropy

    @contextmanager
    def reference(self) -> Iterator[PreTrainedModel]:
        """The reference model, inside the block."""
        if self._reference is not None:
            yield self._reference
            return
        assert self.adapted is not None
        if not self._reference_adapter:
            with self.adapted.disable_adapter():
                yield self.model
            return
        active = self.adapted.active_adapter
        self.adapted.set_adapter(REFERENCE)
        try:
            yield self.model
        finally:
            self.adapted.set_adapter(active)

    def trainable(self) -> list[nn.Parameter]:
        return [p for p in self.parameters() if p.requires_grad]

    def of_values(self) -> list[nn.Parameter]:
        """What learns values alone: the value head, and the critic that it may have."""
        return [p for part in (self.v_head, self.critic) if part for p in part.parameters() if p.requires_grad]

    @contextmanager
    def only_values_learn(self) -> Iterator[None]:
        """Inside the block nothing else has gradients."""
        values = {id(parameter) for parameter in self.of_values()}
        frozen_here = [parameter for parameter in self.trainable() if id(parameter) not in values]
        for parameter in frozen_here:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in frozen_here:
                parameter.requires_grad_(True)

    def save_pretrained(self, folder: str | Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """An ordinary model folder, adapters merged; the value head stays with the checkpoints."""
        merged = self.model
        if self.adapted is not None:
            merged = copy.deepcopy(self.adapted).merge_and_unload()
        with quiet():
            merged.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    @contextmanager
    def _recomputing(self) -> Iterator[None]:
        """Recompute activations in the backward pass. Hugging Face does so only in training mode: inside the block, the
        transformer blocks are in it and their dropouts are not."""
        active = self.gradient_checkpointing and torch.is_grad_enabled()
        models = filter(None, (self.model, self.critic)) if active else ()
        parts = [block for model in models for block in blocks(trunk_and_head(model)[0])[1]]
        for block in parts:
            block.training = True
        try:
            yield
        finally:
            for block in parts:
                block.training = False


def add_adapter(model: PreTrainedModel, lora: LoraConfig) -> PeftModel:
    """The model with a new LoRA (or DoRA) adapter, which starts at zero. Raises ModelError if it can't be added."""
    config = peft.LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=0.0,  # the ratio's passes must not differ by chance
        target_modules=lora.target_modules,
        use_dora=lora.dora,
        task_type="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings():  # what peft says of GPT-2's transposed weights, and of names in Transformers
            warnings.simplefilter("ignore")
            return get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"LoRA can't be added to this model: {error} (policy.lora.target_modules)") from None


def _starts_at_zero(adapted: PeftModel) -> bool:
    """Whether the adapter changes nothing yet, which makes the base the reference."""
    return all(not p.any() for name, p in adapted.named_parameters() if ".lora_B." in name)


def _copy_adapter(adapted: PeftModel) -> None:
    """A frozen copy of the active adapter, as the reference."""
    active = adapted.active_adapter
    adapted.add_adapter(REFERENCE, adapted.peft_config[active])
    weights = get_peft_model_state_dict(adapted, adapter_name=active)
    set_peft_model_state_dict(adapted, weights, adapter_name=REFERENCE)
    adapted.set_adapter(active)


def frozen(model: PreTrainedModel) -> PreTrainedModel:
    """The model in eval mode, none of its parameters trainable."""
    return model.eval().requires_grad_(False)


def autocast(device: torch.device, dtype: torch.dtype) -> AbstractContextManager[object]:
    """Mixed precision for passes of a model kept in fp32; a no-op in fp32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(device.type, dtype=dtype)
