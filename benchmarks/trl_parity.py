"""What TRL 0.11.4's PPOTrainer computes, recorded as a fixture that our own PPO is compared against.

    sh benchmarks/trl_environment.sh FOLDER
    FOLDER/bin/python benchmarks/trl_parity.py

writes to tests/fixtures/trl_parity (or --out):

    policy/           a tiny GPT-2 with random weights and a value head, as TRL saves it
    adapter/          a LoRA adapter on it with a non-zero B, as TRL saves it (its value head equals the policy's)
    trl_parity.json   TRL's defaults and, for each case and step: queries, responses, scores, the permutations drawn,
                      every scalar statistic `step` returned, and how far each tensor has moved from its start

Each step's responses are sampled from the policy as that case has trained it so far, so the KL is a real one; a replay
takes them from the fixture. The pad id is the EOS id and both occur inside responses: only lengths can tell padding.
"""

import argparse
import json
import re
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer

# Of seeds 0-3 the one least moved by rounding: weights off by 1e-7 shift no statistic by a tenth of what parity allows.
SEED, STEPS, BATCH, VOCABULARY, EOS = 3, 3, 8, 97, 0
GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_positions": 64,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "bos_token_id": EOS,
    "eos_token_id": EOS,
    "initializer_range": 0.2,  # 0.02 would make the logits nearly flat, and every figure nearly rounding
}
LORA: dict[str, Any] = {
    "r": 4,
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "target_modules": ["c_attn"],
    "fan_in_fan_out": True,
    "task_type": "CAUSAL_LM",
}
# What decides the numbers; the rest of PPOConfig is tracking.
DEFAULTS = (
    "adap_kl_ctrl",
    "init_kl_coef",
    "kl_penalty",
    "target",
    "horizon",
    "gamma",
    "lam",
    "cliprange",
    "cliprange_value",
    "vf_coef",
    "ppo_epochs",
    "gradient_accumulation_steps",
    "max_grad_norm",
    "early_stopping",
    "target_kl",
    "ratio_threshold",
    "use_score_scaling",
    "use_score_norm",
    "score_clip",
    "whiten_rewards",
    "learning_rate",
    "batch_size",
    "mini_batch_size",
    "seed",
)


@dataclass(frozen=True)
class Case:
    """One training run; `config` is what differs from PPOConfig's defaults beside learning rate and batch sizes."""

    name: str
    lora: bool = False
    mini_batch_size: int = BATCH
    flush: bool = False  # query + response of one length: TRL's reward whitening is only sound without padding
    config: dict = field(default_factory=dict)


CASES = (
    Case("full"),
    Case("full-mini-batches", mini_batch_size=4),
    Case("lora", lora=True),
    Case("lora-mini-batches", lora=True, mini_batch_size=4),
    # use_score_scaling can't be recorded: its `step` calls .to() on a float, and raises.
    Case("clipped-scores", config={"score_clip": 1.0}),
    Case(
        "knobs",
        mini_batch_size=4,
        config={
            "gamma": 0.9,
            "lam": 0.8,
            "cliprange": 0.05,
            "cliprange_value": 0.1,
            "vf_coef": 0.5,
            "ppo_epochs": 2,
            "init_kl_coef": 0.4,
            "target": 0.3,
            "horizon": 40.0,
        },
    ),
    Case("whitened-rewards", flush=True, config={"whiten_rewards": True, "adap_kl_ctrl": False}),
)


def tokenizer() -> PreTrainedTokenizerFast:
    words = {"<eos>": EOS} | {f"w{i}": i for i in range(1, VOCABULARY)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<eos>")),
        eos_token="<eos>",
        pad_token="<eos>",
        padding_side="right",
    )


def save_initial_weights(out: Path) -> None:
    torch.manual_seed(SEED)
    policy = AutoModelForCausalLMWithValueHead(GPT2LMHeadModel(GPT2Config(**GPT2)))
    policy.is_peft_model = False
    # GPT-2 starts its biases at zero and its norms at one; move them, so that none is a special case.
    with torch.no_grad():
        for parameter in policy.pretrained_model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    policy.save_pretrained(out / "policy")

    adapted = AutoModelForCausalLMWithValueHead.from_pretrained(str(out / "policy"), peft_config=LoraConfig(**LORA))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    (out / "adapter").mkdir(exist_ok=True)  # TRL writes the value head before peft makes the folder
    adapted.save_pretrained(str(out / "adapter"))
    settings = json.loads((out / "adapter/adapter_config.json").read_text())
    settings["base_model_name_or_path"] = None  # peft noted this machine's folder
    (out / "adapter/adapter_config.json").write_text(json.dumps(settings, indent=1) + "\n")
    for extra in ("policy/generation_config.json", "adapter/README.md"):
        (out / extra).unlink(missing_ok=True)


def load(out: Path, lora: bool) -> AutoModelForCausalLMWithValueHead:
    model = AutoModelForCausalLMWithValueHead.from_pretrained(
        str(out / "policy"), peft_config=LoraConfig(**LORA) if lora else None, attn_implementation="eager"
    )
    if lora:
        set_peft_model_state_dict(model.pretrained_model, load_file(out / "adapter/adapter_model.safetensors"))
    return model


def trained_tensors(model: AutoModelForCausalLMWithValueHead) -> dict[str, torch.Tensor]:
    """Copies of what is trained, under the names of the files in policy/ and adapter/.

    c_attn.bias is given as its three parts: the key's gradient is zero but for rounding, which Adam amplifies.
    """
    tensors = {f"v_head.{name}": tensor for name, tensor in model.v_head.named_parameters()}
    if model.is_peft_model:
        tensors |= get_peft_model_state_dict(model.pretrained_model)
    else:
        tensors |= dict(model.pretrained_model.named_parameters())
    for name in [name for name in tensors if name.endswith("c_attn.bias")]:
        parts = tensors.pop(name).chunk(3)
        tensors |= {f"{name}[{part}]": tensor for part, tensor in zip(("query", "key", "value"), parts, strict=True)}
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


@torch.no_grad()
def sample(model, flush: bool, generator: torch.Generator) -> tuple[list, list, list]:
    """Queries of random ids, responses sampled from the model (half of them closed by EOS), random scores."""
    model.eval()
    queries, responses = [], []
    for row in range(BATCH):
        length = int(torch.randint(1, 9, (), generator=generator))
        new = 14 - length if flush else int(torch.randint(1, 13, (), generator=generator))
        ids = torch.randint(VOCABULARY, (1, length), generator=generator)
        for _ in range(new):
            logits, _, _ = model(input_ids=ids)
            ids = torch.cat([ids, torch.multinomial(logits[:, -1].softmax(-1), 1, generator=generator)], dim=1)
        if row % 2:
            ids[0, -1] = EOS
        queries.append(ids[0, :length])
        responses.append(ids[0, length:])
    # Three decimals, so that the JSON's scores are the float32 ones.
    scores = [torch.tensor(round(float(s), 3)) for s in 0.5 + torch.randn(BATCH, generator=generator)]
    return queries, responses, scores


def shortest(value: float) -> float:
    return float(str(np.float32(value)))  # the fewest digits that give the float32 back


def run(case: Case, out: Path) -> dict:
    model = load(out, case.lora)
    config = PPOConfig(
        learning_rate=1e-3, batch_size=BATCH, mini_batch_size=case.mini_batch_size, seed=SEED, **case.config
    )
    trainer = PPOTrainer(config, model, ref_model=None, tokenizer=tokenizer())
    start, steps = trained_tensors(model), []
    generator = torch.Generator().manual_seed(SEED)
    permutation = np.random.permutation
    for _ in range(STEPS):
        queries, responses, scores = sample(model, case.flush, generator)
        drawn: list[list[int]] = []

        def recorded(size: int, drawn: list[list[int]] = drawn) -> np.ndarray:
            order = permutation(size)
            drawn.append(order.tolist())
            return order

        with mock.patch.object(np.random, "permutation", recorded):
            stats = trainer.step(queries, responses, scores)
        moved = {name: tensor - start[name] for name, tensor in trained_tensors(model).items()}
        steps.append(
            {
                "queries": [query.tolist() for query in queries],
                "responses": [response.tolist() for response in responses],
                "scores": [shortest(score.item()) for score in scores],
                "permutations": drawn,
                "statistics": {
                    name: shortest(value)
                    for name, value in stats.items()
                    if isinstance(value, float) and not name.startswith("time/")
                },
                "kl_coef_after": shortest(trainer.kl_ctl.value),
                "update_norms": {name: shortest(tensor.norm().item()) for name, tensor in moved.items()},
            }
        )
    return asdict(case) | {"steps": steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = Path(__file__).resolve().parents[1] / "tests/fixtures/trl_parity"
    parser.add_argument("--out", type=Path, default=folder, help="folder to write (default: the tests' fixture)")
    out = parser.parse_args().out
    torch.set_num_threads(1)  # the sums' order, and with it the last digit, then stays the same
    save_initial_weights(out)
    defaults = asdict(PPOConfig())
    record = {
        "versions": {name: version(name) for name in ("trl", "torch", "transformers", "peft", "accelerate", "numpy")},
        "defaults": {name: defaults[name] for name in DEFAULTS},
        "learning_rate": 1e-3,
        "batch_size": BATCH,
        "pad_id": EOS,
        "cases": [run(case, out) for case in CASES],
    }
    text = json.dumps(record, indent=1)
    innermost = re.compile(r"\[[^][{}]*\]")  # lists of plain values on one line each
    (out / "trl_parity.json").write_text(innermost.sub(lambda found: " ".join(found[0].split()), text) + "\n")


if __name__ == "__main__":
    main()
