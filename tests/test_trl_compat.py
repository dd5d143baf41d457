"""TRL 0.11's interface: its statistics and updates on given responses, its files, and sampling through it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors.torch import load_file
from test_ppo_parity import EXEMPT, FIXTURE, RECORD, trained_tensors
from tiny_models import one_thread, same, tiny_gpt2, tiny_llama, weights, word_tokenizer  # noqa: F401
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, T5Config, T5ForConditionalGeneration

from rlhf_lib.errors import ModelError, RecipeError, RLHFError
from rlhf_lib.trl_compat import (
    AutoModelForCausalLMWithValueHead,
    AutoModelForSeq2SeqLMWithValueHead,
    LengthSampler,
    PPOConfig,
    PPOTrainer,
    create_reference_model,
    set_seed,
)

QUERIES = [[5, 9, 2], [7], [3, 0, 11, 4], [8, 8]]
RESPONSES = [[4, 6], [12, 1, 9, 0], [2], [10, 3, 0]]
SCORES = [1.0, -0.5, 0.25, 2.0]


def wrapped(model=None, **kwargs) -> AutoModelForCausalLMWithValueHead:
    torch.manual_seed(0)
    return AutoModelForCausalLMWithValueHead.from_pretrained(tiny_gpt2() if model is None else model, **kwargs)


def trainer_of(model=None, ref_model=None, **settings) -> PPOTrainer:
    extra = {
        name: settings.pop(name)
        for name in ("optimizer", "lr_scheduler", "dataset", "data_collator", "log")
        if name in settings
    }
    config = PPOConfig(**{"batch_size": 4, "mini_batch_size": 4, "learning_rate": 1e-2} | settings)
    return PPOTrainer(config, wrapped() if model is None else model, ref_model, word_tokenizer(), **extra)


def given(scores=SCORES) -> tuple[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]]:
    return [torch.tensor(q) for q in QUERIES], [torch.tensor(r) for r in RESPONSES], [torch.tensor(s) for s in scores]


def lora_config() -> LoraConfig:
    """The parity fixture's, but for the dropout: it must have no effect."""
    return LoraConfig(
        r=4, lora_alpha=8, lora_dropout=0.1, target_modules=["c_attn"], fan_in_fan_out=True, task_type="CAUSAL_LM"
    )


def shake_adapter(model) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))


# ------------------------------------------------------------ the same figures


@pytest.mark.parametrize("case", RECORD["cases"], ids=lambda case: case["name"])
def test_three_steps_agree_with_trl(case, monkeypatch):
    adapter = lora_config() if case["lora"] else None
    model = AutoModelForCausalLMWithValueHead.from_pretrained(str(FIXTURE / "policy"), peft_config=adapter)
    if adapter is not None:
        set_peft_model_state_dict(model.pretrained_model, load_file(FIXTURE / "adapter/adapter_model.safetensors"))
    config = PPOConfig(
        learning_rate=RECORD["learning_rate"],
        batch_size=RECORD["batch_size"],
        mini_batch_size=case["mini_batch_size"],
        **case["config"],
    )
    trainer = PPOTrainer(config, model, None, word_tokenizer(97))
    start = trained_tensors(trainer.policy)
    for step in case["steps"]:
        permutations = iter(step["permutations"])
        monkeypatch.setattr(np.random, "permutation", lambda rows, drawn=permutations: np.array(next(drawn)))
        stats = trainer.step(
            [torch.tensor(q) for q in step["queries"]],
            [torch.tensor(r) for r in step["responses"]],
            [torch.tensor(s) for s in step["scores"]],
        )
        off = {}
        for name, theirs in step["statistics"].items():
            tolerance = 1e-4 * abs(theirs) + (1.01e-4 if name == "objective/kl" else 1e-6)
            if name not in EXEMPT and abs(float(stats[name]) - theirs) > tolerance:
                off[name] = (stats[name], theirs)
        assert not off
        assert trainer.kl_ctl.value == pytest.approx(step["kl_coef_after"], rel=1e-4, abs=1e-6)
        now = trained_tensors(trainer.policy)
        moved = {name: float((now[name] - start[name]).norm()) for name in now if "[key]" not in name}
        assert moved == pytest.approx({name: step["update_norms"][name] for name in moved}, rel=1e-3)


def test_arrays_add_up_to_the_figures():
    trainer = trainer_of(wrapped(tiny_gpt2(1)), wrapped(tiny_gpt2(2)))
    stats = trainer.step(*given())
    assert stats["objective/kl_dist"].shape == (4,)
    assert stats["objective/kl_dist"].mean() == pytest.approx(stats["objective/kl"], rel=1e-5)
    per_token = stats["objective/logprobs"] - stats["objective/ref_logprobs"]
    assert per_token.sum(1) == pytest.approx(stats["objective/kl_dist"], rel=1e-4, abs=1e-5)
    assert -stats["objective/logprobs"].sum(1).mean() == pytest.approx(stats["objective/entropy"], rel=1e-5)
    assert stats["tokens/responses_dist"].tolist() == [2, 4, 1, 3]
    assert stats["tokens/queries_dist"].tolist() == [3, 1, 4, 2]
    assert all(isinstance(stats[f"time/ppo/{name}"], float) for name in ("forward_pass", "optimize_step", "total"))


def test_accumulation_makes_one_optimizer_step_of_several_mini_batches():
    whole = trainer_of(wrapped(tiny_llama()))  # no biases: a key's has no gradient but noise
    cut = trainer_of(wrapped(tiny_llama()), mini_batch_size=1, gradient_accumulation_steps=4)
    assert cut.engine.config.mini_batch_size == 4
    for trainer in (whole, cut):
        trainer.step(*given())
    assert cut.engine.config.micro_batch_tokens == 5  # one padded row of TRL's: the longest query + response
    for (name, a), (_, b) in zip(whole.model.named_parameters(), cut.model.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-5, msg=name)


def test_scores_are_scaled_normalised_and_clipped_before_ppo_is_paid():
    stats = trainer_of(use_score_scaling=True, use_score_norm=True, score_clip=1.0).step(*given())
    scores = np.array(SCORES)
    paid = np.clip((scores - scores.mean()) / scores.std(ddof=1), -1, 1)
    assert stats["ppo/mean_scores"] == pytest.approx(paid.mean(), abs=1e-5)
    assert stats["ppo/std_scores"] == pytest.approx(paid.std(ddof=1), rel=1e-5)


# ------------------------------------------------------------ configuration


def test_defaults_are_trls():
    assert {name: getattr(PPOConfig(), name) for name in RECORD["defaults"]} == RECORD["defaults"]
    config = PPOConfig()
    assert (config.batch_size, config.mini_batch_size, config.learning_rate) == (128, 128, 1.41e-5)
    assert (config.ratio_threshold, config.early_stopping, config.max_grad_norm, config.seed) == (10.0, False, None, 0)
    ppo = config.to_recipe()
    assert (ppo.target_kl, ppo.max_grad_norm, ppo.weight_decay, ppo.kl_estimator) == (None, None, 0, "k1")


def test_early_stopping_switches_its_threshold_on():
    assert PPOConfig(early_stopping=True, target_kl=0.3).to_recipe().target_kl == 0.3


def test_an_unknown_field_is_named():
    with pytest.raises(TypeError, match="learning_rat"):
        PPOConfig(learning_rat=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kl_penalty": "full"}, "kl_penalty is 'full'.*'kl'.*'mse'"),
        ({"push_to_hub_if_best_kwargs": {"repo_id": "x"}}, "push_to_hub_if_best_kwargs.*save_pretrained"),
        ({"compare_steps": 5}, "compare_steps"),
        ({"log_with": "comet_ml"}, "log_with.*'wandb', 'tensorboard'"),
        ({"mini_batch_size": 3}, r"batch_size \(128\) must be a multiple.*3 \* 1"),
        ({"init_kl_coef": -0.1}, r"init_kl_coef.*given: -0\.1"),
        ({"horizon": 0.5}, r"horizon.*given: 0\.5"),
    ],
)
def test_what_cannot_be_done_is_refused_under_trls_name(settings, message):
    with pytest.raises(RecipeError, match=message):
        PPOConfig(**settings)


def test_the_old_name_of_the_mini_batch_overwrites_it():
    with pytest.warns(UserWarning, match="forward_batch_size"):
        assert PPOConfig(forward_batch_size=32).mini_batch_size == 32


def test_settings_come_from_the_command_line_as_in_published_programs():
    (config,) = HfArgumentParser(PPOConfig).parse_args_into_dataclasses(["--learning_rate", "1e-4", "--seed", "3"])
    assert (config.learning_rate, config.seed) == (1e-4, 3)


def test_lengths_are_drawn_below_the_exclusive_end_from_the_seeded_stream():
    sampler = LengthSampler(2, 5)
    set_seed(1)
    drawn = [sampler() for _ in range(100)]
    set_seed(1)
    assert drawn == [sampler() for _ in range(100)]
    assert set(drawn) == {2, 3, 4}
    with pytest.raises(ValueError, match="exclusive"):
        LengthSampler(3, 3)


# ------------------------------------------------------------ models and their files


def tiny_t5() -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    shape = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "initializer_factor": 1.0}
    config = T5Config(vocab_size=61, **shape, decoder_start_token_id=60, pad_token_id=60, eos_token_id=0)
    return T5ForConditionalGeneration(config).eval()


def logits(model, ids: list[int] = QUERIES[2]) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits


def test_forward_gives_logits_loss_and_the_value_by_hand():
    model = wrapped()
    ids = torch.tensor([QUERIES[2]])
    given_logits, loss, values = model(input_ids=ids, labels=ids)
    plain = model.pretrained_model(input_ids=ids, labels=ids, output_hidden_states=True)
    head = model.v_head.summary
    torch.testing.assert_close(given_logits, plain.logits)
    torch.testing.assert_close(loss, plain.loss)
    torch.testing.assert_close(values, (plain.hidden_states[-1] @ head.weight.T + head.bias)[..., 0])
    assert head.weight.abs().sum() > 0  # drawn, as TRL's
    assert len(model(input_ids=ids, return_past_key_values=True)) == 4


def test_seq2seq_values_are_of_the_decoders_states():
    model = AutoModelForSeq2SeqLMWithValueHead.from_pretrained(tiny_t5())
    ids, decoder_ids = torch.tensor([QUERIES[2]]), torch.tensor([[60, 4, 5]])
    given_logits, loss, values = model(input_ids=ids, decoder_input_ids=decoder_ids)
    assert (given_logits.shape, loss, values.shape) == ((1, 3, 61), None, (1, 3))


def test_value_head_strategies():
    assert not wrapped(v_head_init_strategy="zero").v_head.summary.weight.any()
    normal = wrapped(v_head_init_strategy="normal", v_head_initializer_range=100.0).v_head.summary
    assert normal.weight.std() > 30
    assert not normal.bias.any()
    with pytest.raises(ModelError, match="'orthogonal'"):
        wrapped(v_head_init_strategy="orthogonal")


def test_a_checkpoint_that_trl_wrote_loads_with_its_value_head():
    model = AutoModelForCausalLMWithValueHead.from_pretrained(str(FIXTURE / "policy"))
    stored = load_file(FIXTURE / "policy/model.safetensors")
    assert torch.equal(model.v_head.summary.weight, stored["v_head.summary.weight"])
    assert torch.equal(model.v_head.summary.bias, stored["v_head.summary.bias"])
    assert torch.equal(model.pretrained_model.transformer.wte.weight, stored["transformer.wte.weight"])


@pytest.fixture
def adapter_folder(tmp_path) -> Path:
    """TRL's adapter folder, whose base is named again: it was left out of the fixture."""
    folder = shutil.copytree(FIXTURE / "adapter", tmp_path / "adapter")
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = str(FIXTURE / "policy")
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def test_an_adapter_that_trl_wrote_loads_with_its_value_head(adapter_folder):
    model = AutoModelForCausalLMWithValueHead.from_pretrained(str(adapter_folder), is_trainable=True)
    assert model.is_peft_model
    head = torch.load(adapter_folder / "pytorch_model.bin", weights_only=True)
    assert torch.equal(model.v_head.summary.weight, head["v_head.summary.weight"])
    base = AutoModelForCausalLM.from_pretrained(FIXTURE / "policy")
    with_adapter = PeftModel.from_pretrained(base, adapter_folder)
    assert torch.equal(logits(model.pretrained_model), logits(with_adapter))
    with with_adapter.disable_adapter():
        assert not torch.allclose(logits(model.pretrained_model), logits(with_adapter), atol=1e-2)
    assert {name.split(".")[-3] for name, p in model.pretrained_model.named_parameters() if p.requires_grad} == {
        "lora_A",
        "lora_B",
    }


def test_an_adapter_that_may_not_learn_is_refused_for_training(adapter_folder):
    model = AutoModelForCausalLMWithValueHead.from_pretrained(str(adapter_folder))
    with pytest.raises(ModelError, match="is_trainable=True"):
        PPOTrainer(PPOConfig(), model, None, word_tokenizer(97))


def test_an_adapter_without_a_base_is_named():
    with pytest.raises(ModelError, match=r"adapter.*base_model_name_or_path"):
        AutoModelForCausalLMWithValueHead.from_pretrained(str(FIXTURE / "adapter"))


def test_a_full_checkpoint_in_pytorchs_format_loads(tmp_path):
    model = wrapped()
    model.pretrained_model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    loaded = AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path)
    assert same(weights(loaded), weights(model))


@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "5KB"}], ids=["one-file", "sharded"])
@pytest.mark.parametrize(
    ("kind", "build"),
    [(AutoModelForCausalLMWithValueHead, tiny_llama), (AutoModelForSeq2SeqLMWithValueHead, tiny_t5)],
    ids=["llama", "t5"],
)
def test_a_saved_model_comes_back_and_is_an_ordinary_one_too(kind, build, shards, tmp_path):
    model = kind.from_pretrained(build())
    model.save_pretrained(tmp_path, **shards)
    assert (tmp_path / "model.safetensors.index.json").exists() == bool(shards)
    assert same(weights(kind.from_pretrained(str(tmp_path))), weights(model))
    plain = kind.transformers_parent_class.from_pretrained(tmp_path)
    assert same(weights(plain), weights(model.pretrained_model))


def test_a_value_head_of_another_width_is_refused(tmp_path):
    wrapped().save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors") | {"v_head.summary.weight": torch.zeros(1, 5)}
    torch.save(stored, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"value head.*doesn't fit"):
        AutoModelForCausalLMWithValueHead.from_pretrained(tmp_path)


def test_a_saved_adapter_comes_back(tmp_path):
    tiny_gpt2().save_pretrained(tmp_path / "base")
    model = AutoModelForCausalLMWithValueHead.from_pretrained(str(tmp_path / "base"), peft_config=lora_config())
    trainer = trainer_of(model)
    trainer.step(*given())
    trainer.save_pretrained(tmp_path / "adapter")
    assert sorted(torch.load(tmp_path / "adapter/pytorch_model.bin", weights_only=True)) == [
        "v_head.summary.bias",
        "v_head.summary.weight",
    ]
    loaded = AutoModelForCausalLMWithValueHead.from_pretrained(str(tmp_path / "adapter"))
    assert same(weights(loaded), weights(model))
    assert AutoTokenizer.from_pretrained(tmp_path / "adapter")("w5").input_ids == [5]


def test_weights_are_fp32_unless_told_otherwise(tmp_path):
    tiny_gpt2().to(torch.bfloat16).save_pretrained(tmp_path)
    load = AutoModelForCausalLMWithValueHead.from_pretrained
    assert load(tmp_path).dtype == torch.float32
    assert load(tmp_path, torch_dtype=torch.bfloat16).dtype == torch.bfloat16


def test_unsupported_ways_of_loading_are_refused():
    with pytest.raises(ModelError, match=r"load_in_8bit.*quantization_config"):
        wrapped(load_in_8bit=True)
    with pytest.raises(ModelError, match="adapter already"):
        wrapped(get_peft_model(tiny_gpt2(), lora_config()), peft_config=lora_config())


# ------------------------------------------------------------ references


def test_a_reference_model_stays_while_the_model_learns():
    model = wrapped()
    reference = create_reference_model(model)
    before = weights(reference)
    trainer = trainer_of(model, reference)
    assert trainer.ref_model is reference
    trainer.step(*given())
    assert same(weights(reference), before)
    assert not same(weights(model), before)


def test_shared_layers_are_one_memory_and_frozen_in_both():
    model = wrapped()
    reference = create_reference_model(model, num_shared_layers=1)
    before = weights(model)
    trainer_of(model, reference).step(*given())
    mine, theirs = dict(model.named_parameters()), dict(reference.named_parameters())
    shared = {name for name in mine if mine[name].data_ptr() == theirs[name].data_ptr()}
    assert shared == {n for n in mine if ".wte." in n or ".wpe." in n or ".h.0." in n}
    changed = {name for name in mine if not torch.equal(mine[name], before[name])}
    assert changed == mine.keys() - shared
    with pytest.raises(ModelError, match="block number 9"):
        create_reference_model(model, num_shared_layers=9)


def test_under_an_adapter_the_reference_is_its_base():
    model = wrapped(peft_config=lora_config())
    shake_adapter(model)
    trainer = trainer_of(model, wrapped(tiny_gpt2(5)))  # given all the same, as published programs do
    assert trainer.ref_model is None
    assert "reference" not in model.pretrained_model.peft_config
    ids, answer = torch.tensor([QUERIES[0] + RESPONSES[0]]), slice(2, 4)
    stats = trainer.step(*given())
    expected = logits(tiny_gpt2(), ids[0].tolist())[0, answer].log_softmax(-1).gather(1, ids[0, 3:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(stats["objective/ref_logprobs"][0, :2]), expected, rtol=1e-4, atol=1e-4)
    assert stats["objective/kl"] != pytest.approx(0, abs=1e-2)


def test_models_that_cannot_be_told_apart_or_are_not_wrapped_are_refused():
    model = wrapped()
    with pytest.raises(ModelError, match="create_reference_model"):
        trainer_of(model, model)
    with pytest.raises(ModelError, match=r"GPT2LMHeadModel.*from_pretrained"):
        trainer_of(tiny_gpt2())
    with pytest.raises(ModelError, match=r"GPT2LMHeadModel.*create_reference_model"):
        trainer_of(model, tiny_gpt2())
    with pytest.raises(ModelError, match="torch_dtype"):
        trainer_of(wrapped(tiny_gpt2().half()))


# ------------------------------------------------------------ sampling

GREEDY = {"do_sample": False, "min_length": -1, "pad_token_id": 0}


@pytest.mark.parametrize("build", [tiny_gpt2, tiny_llama], ids=["gpt2", "llama"])
def test_a_list_of_queries_is_answered_as_each_alone(build):
    trainer = trainer_of(wrapped(build()))
    queries = given()[0]
    alone = [trainer.generate(q, max_new_tokens=6, eos_token_id=-1, **GREEDY) for q in queries]
    assert [a.shape for a in alone] == [(1, len(q) + 6) for q in queries]
    assert all(torch.equal(a[0, : len(q)], q) for a, q in zip(alone, queries, strict=True))
    together = trainer.generate(queries, batch_size=3, max_new_tokens=6, eos_token_id=-1, **GREEDY)
    assert [t.tolist() for t in together] == [a[0].tolist() for a in alone]
    bare = trainer.generate(queries, batch_size=4, return_prompt=False, max_new_tokens=6, eos_token_id=-1, **GREEDY)
    assert [b.tolist() for b in bare] == [a[0, len(q) :].tolist() for a, q in zip(alone, queries, strict=True)]
    assert trainer.generate(queries[0], return_prompt=False, max_new_tokens=6, **GREEDY).shape[1] <= 6


def test_responses_are_cut_after_the_first_of_several_end_tokens():
    trainer = trainer_of()
    queries = given()[0]  # one holds the pad and EOS token, which must not cut it
    free = trainer.generate(queries, return_prompt=False, max_new_tokens=8, eos_token_id=-1, **GREEDY)
    ends = [int(free[0][2]), int(free[1][4])]
    cut = trainer.generate(queries, max_new_tokens=8, eos_token_id=ends, **GREEDY)
    for q, whole, response in zip(queries, free, cut, strict=True):
        first = min([i for i, token in enumerate(whole.tolist()) if token in ends], default=7)
        assert response.tolist() == q.tolist() + whole[: first + 1].tolist()


def test_the_length_sampler_sets_each_batchs_limit():
    trainer = trainer_of()
    lengths = iter([2, 5])
    out = trainer.generate(
        given()[0], lambda: next(lengths), batch_size=2, return_prompt=False, eos_token_id=-1, do_sample=True
    )
    assert [len(o) for o in out] == [2, 2, 5, 5]


def test_sampling_follows_the_seed_and_has_no_dropout():
    trainer = trainer_of()
    options = {"do_sample": True, "top_k": 0, "top_p": 1.0, "max_new_tokens": 8, "pad_token_id": 0}
    drawn = []
    for seed in (1, 1, 2):
        trainer.model.train()
        set_seed(seed)
        drawn.append([r.tolist() for r in trainer.generate(given()[0], **options)])
    assert drawn[0] == drawn[1] != drawn[2]
    assert not trainer.policy.model.training


def test_reference_responses_come_from_the_reference():
    model = wrapped(peft_config=lora_config())
    shake_adapter(model)
    trainer = trainer_of(model)
    options = {"max_new_tokens": 6, "eos_token_id": -1} | GREEDY
    policys, references = trainer.generate(given()[0], generate_ref_response=True, **options)
    plain = trainer_of(wrapped(tiny_gpt2())).generate(given()[0], **options)
    assert [r.tolist() for r in references] == [p.tolist() for p in plain]
    assert [p.tolist() for p in policys] != [p.tolist() for p in plain]


def test_a_query_must_be_one_dimensional():
    with pytest.raises(RLHFError, match=r"shape \(length,\)"):
        trainer_of().generate(torch.tensor([[1, 2]]))


# ------------------------------------------------------------ learning through the interface


def test_a_seq2seq_response_may_bring_its_start_token():
    stats = []
    for start in ([], [60]):
        torch.manual_seed(0)
        trainer = trainer_of(AutoModelForSeq2SeqLMWithValueHead.from_pretrained(tiny_t5()))
        queries, responses, scores = given()
        stats.append(trainer.step(queries, [torch.tensor(start + r.tolist()) for r in responses], scores))
    assert stats[0]["ppo/loss/total"] == stats[1]["ppo/loss/total"]
    assert stats[1]["tokens/responses_len_mean"] == 2.5  # the first token counts
    out = trainer.generate(given()[0], max_new_tokens=5, **GREEDY)
    assert [int(o[0]) for o in out] == [60] * 4


def test_batches_are_whole_shuffled_and_hold_the_columns_of_use():
    rows = [{"input_ids": [i, i + 1], "query": f"w{i}", "text": "unused"} for i in range(1, 11)]
    dataset = Dataset.from_list(rows)
    dataset.set_format("torch")
    trainer = trainer_of(dataset=dataset, data_collator=lambda d: {k: [x[k] for x in d] for k in d[0]})
    batches = list(trainer.dataloader)
    assert [sorted(b) for b in batches] == [["input_ids", "query"]] * 2
    assert all(len(b["input_ids"]) == 4 and isinstance(b["input_ids"][0], torch.Tensor) for b in batches)
    seen = [q for b in batches for q in b["query"]]
    assert len(set(seen)) == 8
    assert seen != [f"w{i}" for i in range(1, 9)]
    with pytest.warns(UserWarning, match="3 rows make no batch of 4"):
        trainer_of(dataset=dataset.select(range(3)))


def test_a_loop_from_a_folder_and_queries_to_a_saved_policy(tmp_path):
    tiny_gpt2().save_pretrained(tmp_path / "base")
    model, ref_model = (AutoModelForCausalLMWithValueHead.from_pretrained(str(tmp_path / "base")) for _ in range(2))
    dataset = Dataset.from_list([{"input_ids": [i, i + 1, 2 * i], "query": f"w{i}"} for i in range(1, 13)])
    dataset.set_format("torch")
    trainer = trainer_of(
        model, ref_model, dataset=dataset, data_collator=lambda d: {k: [x[k] for x in d] for k in d[0]}
    )
    kls = []
    for batch in trainer.dataloader:
        responses = trainer.generate(
            batch["input_ids"],
            return_prompt=False,
            max_new_tokens=6,
            do_sample=True,
            top_k=0,
            top_p=1.0,
            pad_token_id=0,
        )
        scores = [torch.tensor(float(len(r))) for r in responses]
        stats = trainer.step(batch["input_ids"], responses, scores)
        kls.append(stats["objective/kl"])
        assert stats["tokens/responses_len_mean"] == stats["ppo/mean_scores"]
    assert len(kls) == 3
    assert kls[0] == pytest.approx(0, abs=1e-4)
    assert abs(kls[2]) > 1e-3
    trainer.save_pretrained(tmp_path / "policy")
    assert torch.equal(
        logits(AutoModelForCausalLM.from_pretrained(tmp_path / "policy")), logits(model.pretrained_model)
    )


def test_a_given_optimizer_and_schedule_are_used():
    model = wrapped()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.1)
    trainer = trainer_of(model, optimizer=optimizer, lr_scheduler=schedule, ppo_epochs=1)
    assert trainer.optimizer is optimizer
    before = weights(model)
    rates = [trainer.step(*given())["ppo/learning_rate"] for _ in range(2)]
    assert rates == pytest.approx([0.5, 0.05])
    assert not same(weights(model), before)
    only = trainer_of(wrapped(), optimizer=torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5))
    before = weights(only.model)
    only.step(*given())
    assert same(weights(only.model), before)  # that optimizer holds none of the model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda q, r, s: (q[:3], r, s), "queries has 3 rows, but batch_size is 4"),
        (lambda q, r, s: (q, torch.stack([r[0]] * 4), s), "responses must be a list of tensors"),
        (lambda q, r, s: (q, r, [1.0, 2.0, 3.0, 4.0]), "scores must be a list of tensors"),
        (lambda q, r, s: (q, [*r[:3], torch.tensor([], dtype=torch.long)], s), "response 3 has no tokens"),
        (lambda q, r, s: (q, [r[0][None], *r[1:]], s), r"responses\[0\] has shape \(1, 2\)"),
        (lambda q, r, s: (q, r, [*s[:1], torch.tensor(float("nan")), *s[2:]]), r"scores\[1\] is nan.*'w12 w1 w9"),
        (lambda q, r, s: (q, r, s, [torch.tensor([0, 1])] + [torch.ones(1)] * 3), "response_masks"),
    ],
)
def test_a_bad_batch_is_refused_and_changes_nothing(change, message):
    trainer = trainer_of()
    before = weights(trainer.model)
    with pytest.raises(RLHFError, match=message):
        trainer.step(*change(*given()))
    assert same(weights(trainer.model), before)


def test_statistics_and_rewards_are_told():
    told: list[dict] = []
    trainer = trainer_of(log=told.append)
    stats = trainer.step(*given([[1.0], [-0.5], [0.25], [2.0]]))  # scores of shape (1,) are taken too
    trainer.log_stats(stats, {"query": ["a"] * 4, "response": ["b"] * 4}, given()[2])
    (logs,) = told
    assert logs["ppo/mean_scores"] == logs["env/reward_mean"] == pytest.approx(0.6875)
    assert logs["env/reward_std"] == pytest.approx(np.std(SCORES, ddof=1))
    assert logs["env/reward_dist"].tolist() == SCORES


def test_gradient_checkpointing_changes_no_figure():
    plain, frugal = trainer_of(), trainer_of(gradient_checkpointing=True)
    for _ in range(2):
        ours, theirs = plain.step(*given()), frugal.step(*given())
        frugal.generate(given()[0][0], max_new_tokens=2, **GREEDY)
    assert theirs["ppo/loss/total"] == pytest.approx(ours["ppo/loss/total"], rel=1e-4, abs=1e-6)


def test_bf16_passes_leave_the_weights_in_fp32():
    plain = trainer_of().step(*given())
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        trainer = trainer_of(accelerator_kwargs={"mixed_precision": "bf16"})
        stats = trainer.step(*given())
        assert trainer.model.dtype == torch.float32
        assert stats["objective/entropy"] != plain["objective/entropy"]
        assert stats["objective/entropy"] == pytest.approx(plain["objective/entropy"], rel=0.05)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
