"""What a PPO step costs as batches and responses grow: it should be in proportion to the tokens.

    python benchmarks/scaling.py [--batches 32 64 128 256 512] [--responses 16 32 64 128 256] [--steps 3]

A GPT-2 of 4 blocks of 256 with 8,192 tokens and random weights, prompts of 8 tokens, one PPO epoch, a reward that costs
nothing. The batch grows at responses of 32 tokens, the responses at a batch of 64. Prints the medians and writes
scaling.json and scaling.png to --out.
"""

import argparse
import json
import statistics
from pathlib import Path

from flows.cli.configure import configure

configure()  # before torch is loaded

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from rlhf_lib.models.policy import Policy
from rlhf_lib.ppo.trainer import PPOTrainer
from rlhf_lib.recipe import GenerationConfig, PPOConfig

QUERY, VOCABULARY = 8, 8192


def seconds(batch: int, response: int, steps: int) -> dict[str, float]:
    """Medians of a step's phases, the first step left out."""
    torch.manual_seed(0)
    shape = {"n_embd": 256, "n_layer": 4, "n_head": 4, "n_positions": QUERY + 512, "vocab_size": VOCABULARY}
    ends = {"bos_token_id": 0, "eos_token_id": 0}
    model = GPT2LMHeadModel(GPT2Config(**shape, **ends, activation_function="gelu_pytorch_tanh"))
    words = Tokenizer(WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="w0")
    trainer = PPOTrainer(
        Policy(model),
        tokenizer,
        lambda queries, responses: [float(len(text) % 7) for text in responses],
        [{"query": "", "input_ids": [1 + (i + k) % 999 for k in range(QUERY)]} for i in range(batch)],
        PPOConfig(steps=steps + 1, batch_size=batch, ppo_epochs=1, old_logprobs="sampling"),
        GenerationConfig(max_new_tokens=response, ignore_eos=True),
    )
    taken = list(trainer.train())[1:]
    names = {"generation": "generate", "forward": "forward_pass", "update": "optimize_step", "total": "total"}
    return {name: statistics.median(s[f"time/ppo/{key}"] for s in taken) for name, key in names.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[32, 64, 128, 256, 512])
    parser.add_argument("--responses", type=int, nargs="+", default=[16, 32, 64, 128, 256])
    parser.add_argument("--steps", type=int, default=3, help="counted steps of each")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    found = []
    print("| batch | response | tokens | generation | forward | update | step | ms a token |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|")
    for batch, response in [*((b, 32) for b in args.batches), *((64, r) for r in args.responses)]:
        tokens, taken = batch * (QUERY + response), seconds(batch, response, args.steps)
        found.append({"batch": batch, "response": response, "tokens": tokens} | taken)
        cells = [f"{taken[name]:.2f} s" for name in ("generation", "forward", "update", "total")]
        rate = 1000 * taken["total"] / tokens
        print(f"| {batch} | {response} | {tokens:,} | " + " | ".join(cells) + f" | {rate:.3f} |", flush=True)
    (args.out / "scaling.json").write_text(json.dumps(found, indent=1))

    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for label, rows in (
        ("batch grows, responses of 32 tokens", found[: len(args.batches)]),
        ("responses grow, batch of 64", found[len(args.batches) :]),
    ):
        axes.plot([row["tokens"] for row in rows], [row["total"] for row in rows], marker="o", label=label)
    first = found[0]
    ends = [first["tokens"], max(row["tokens"] for row in found)]
    line = [first["total"] * tokens / ends[0] for tokens in ends]
    axes.plot(ends, line, color="grey", linestyle=":", label="in proportion to the first")
    axes.set(xscale="log", yscale="log", xlabel="tokens of a step", ylabel="seconds a step", title="Cost of a PPO step")
    axes.legend()
    figure.savefig(args.out / "scaling.png", dpi=120)


if __name__ == "__main__":
    main()
