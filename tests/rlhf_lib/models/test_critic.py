"""The value function that starts as a reward model: its head by hand, and which models can be critics."""

from __future__ import annotations

import pytest
import torch
from tiny_models import EOS, VOCABULARY, one_thread, tiny_gpt2, tiny_llama, tiny_t5  # noqa: F401
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from rlhf_lib.errors import ModelError
from rlhf_lib.models.critic import critic_from_classifier
from rlhf_lib.models.policy import Policy
from rlhf_lib.recipe import LoraConfig


def classifier(labels: int = 1, **overrides) -> PreTrainedModel:
    settings = {"n_embd": 4, "n_layer": 1, "n_head": 2, "n_positions": 64, "vocab_size": VOCABULARY}
    ids = {"bos_token_id": EOS, "eos_token_id": EOS, "pad_token_id": EOS}
    return GPT2ForSequenceClassification(GPT2Config(num_labels=labels, **settings | ids | overrides)).eval()


def test_the_head_is_one_output_on_the_scale_of_the_normalised_scores():
    scored = classifier(2)
    with torch.no_grad():
        scored.score.weight.copy_(torch.tensor([[9.0, 9.0, 9.0, 9.0], [2.0, -4.0, 0.0, 6.0]]))
    critic = critic_from_classifier(scored, 1, mean=0.5, std=2.0)
    assert critic.head.summary.weight.tolist() == [[1.0, -2.0, 0.0, 3.0]]
    assert critic.head.summary.bias.tolist() == [-0.25]
    # w.h = 2 - 8 + 24 = 18, and (18 - 0.5) / 2 = 8.75
    assert critic.head(torch.tensor([[1.0, 2.0, 3.0, 4.0]])).tolist() == [8.75]
    assert critic.trunk is scored.transformer


def test_a_policy_with_a_critic_predicts_with_its_trunk_and_trains_all_of_it():
    critic = critic_from_classifier(classifier(n_layer=3), mean=1.0, std=4.0)
    for options in ({}, {"lora": LoraConfig(r=4)}, {"unfrozen_layers": 1}):
        policy = Policy(tiny_gpt2(), critic=critic, **options)
        assert {id(p) for p in policy.of_values()} == {
            id(p) for part in (critic.trunk, critic.head) for p in part.parameters()
        }
        assert {id(p) for p in policy.of_values()} < {id(p) for p in policy.trainable()}


def test_an_encoder_has_no_score_for_each_token():
    roberta = RobertaForSequenceClassification(
        RobertaConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=20)
    )
    with pytest.raises(ModelError, match=r"RobertaForSequenceClassification doesn't score.*critic to separate"):
        critic_from_classifier(roberta)


def test_a_critic_must_be_of_the_policys_family_and_read_as_much():
    llama = LlamaForSequenceClassification(
        LlamaConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=20)
    )
    with pytest.raises(ModelError, match=r"that is llama, and the policy gpt2.*reward\.model: null.*separate"):
        Policy(tiny_gpt2(), critic=critic_from_classifier(llama))
    with pytest.raises(ModelError, match="takes 32 tokens and the policy 64"):
        Policy(tiny_gpt2(), critic=critic_from_classifier(classifier(n_positions=32)))
    with pytest.raises(ModelError, match=r"this one is seq2seq: set policy\.critic to separate"):
        Policy(tiny_t5(), critic=critic_from_classifier(classifier()))


@pytest.mark.parametrize("options", [{}, {"critic": True}, {"lora": LoraConfig(r=4)}, {"unfrozen_layers": 1}])
def test_inside_the_block_only_values_have_gradients(options):
    policy = Policy(tiny_llama(), **options)
    learnt = [id(p) for p in policy.trainable()]
    with policy.only_values_learn():
        assert {id(p) for p in policy.trainable()} == {id(p) for p in policy.of_values()}
    assert [id(p) for p in policy.trainable()] == learnt
