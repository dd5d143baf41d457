"""TRL 0.11's interface: its statistics and updates on given responses, its configuration, and sampling through it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from datasets import Dataset
from peft import set_peft_model_state_dict
from safetensors.torch import load_file
from tiny_models import one_thread, same, tiny_gpt2, tiny_llama, weights, word_tokenizer  # noqa: F401
from tiny_trl import (
    SCORES,
    given,
    logits,
    lora_config,
    shake_adapter,
    started_t5,
    trainer_of,
    wrapped,
)
from transformers import AutoModelForCausalLM, HfArgumentParser

from rlhf_lib.errors import RecipeError, RLHFError
from rlhf_lib.trl_compat import (
    AutoModelForCausalLMWithValueHead,
    AutoModelForSeq2SeqLMWithValueHead,
    LengthSampler,
    PPOConfig,
    PPOTrainer,
    set_seed,
)
from tests.rlhf_lib.ppo.test_parity import EXEMPT, FIXTURE, RECORD, trained_tensors

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
        trainer = trainer_of(AutoModelForSeq2SeqLMWithValueHead.from_pretrained(started_t5()))
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
    assert not torch.allclose(
        logits(model.pretrained_model), logits(ref_model.pretrained_model), atol=1e-3
    )  # it learned
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
