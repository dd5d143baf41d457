"""Seconds per PPO step by phase and peak memory, beside TRL 0.11.4, step by step in turn on the same machine.

    python benchmarks/speed.py                                  full fine-tuning against TRL's (make bench)
    python benchmarks/speed.py --method lora --steps 3
    python benchmarks/speed.py --method unfrozen                the top two blocks, against our own full fine-tuning
    python benchmarks/speed.py --precision bf16 --device cuda   where there is one; TRL's side is its default, fp32

The two sides are processes that wait for each other, each with its own packages: ours with those of the Python that
runs this, TRL's with those of --trl (benchmarks/trl_environment.sh makes it). One step of each is for warming up.
TRL's side is its published loop: a query at a time through `generate`, a text-classification pipeline with batches of
16, `step`. The figures are printed and written to --out.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PHASES = ("generation", "reward", "forward", "update", "total")
HERE = Path(__file__).resolve().parent


# ------------------------------------------------------------ the two sides


class Ours:
    def __init__(self, folder: Path, method: str, args: argparse.Namespace) -> None:
        import torch

        from rlhf_lib.models.loading import load_causal_lm, load_classifier, load_tokenizer
        from rlhf_lib.models.policy import Policy
        from rlhf_lib.ppo.trainer import PPOTrainer
        from rlhf_lib.recipe import GenerationConfig, LengthSamplerConfig, LoraConfig, PPOConfig
        from rlhf_lib.rewards.classifier import ClassifierReward

        tokenizer = load_tokenizer(str(folder / "policy"))
        classifier = load_classifier(str(folder / "classifier")), load_tokenizer(str(folder / "classifier"))
        prompts = json.loads((folder / "prompts.json").read_text())
        policy = Policy(
            load_causal_lm(str(folder / "policy")),
            LoraConfig(r=args.lora["r"], alpha=args.lora["lora_alpha"]) if method == "lora" else None,
            unfrozen_layers=2 if method == "unfrozen" else None,
        ).to(args.device)
        low, high = args.response
        self.trainer = PPOTrainer(
            policy,
            tokenizer,
            ClassifierReward(*classifier, label="POSITIVE", device=args.device),
            [{"query": tokenizer.decode(ids) + " ", "input_ids": ids} for ids in prompts],
            PPOConfig(
                steps=args.steps + 1,
                batch_size=args.batch,
                ppo_epochs=args.epochs,
                learning_rate=args.learning_rate,
                max_grad_norm=None,
            ),
            GenerationConfig(length_sampler=LengthSamplerConfig(min=low, max=high)),
            dtype=getattr(torch, {"fp32": "float32", "bf16": "bfloat16"}[args.precision]),
        )

    def step(self) -> dict[str, float]:
        stats = self.trainer.train_step()
        named = {"generation": "generate", "reward": "score", "forward": "forward_pass", "update": "optimize_step"}
        seconds = {phase: stats[f"time/ppo/{name}"] for phase, name in named.items()}
        response, query = stats["tokens/responses_len_mean"], stats["tokens/queries_len_mean"]
        return seconds | {"total": stats["time/ppo/total"], "response_tokens": response, "query_tokens": query}


class TRL:
    def __init__(self, folder: Path, method: str, args: argparse.Namespace) -> None:
        import torch
        from peft import LoraConfig
        from transformers import AutoTokenizer, pipeline
        from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer
        from trl.core import LengthSamplerConfig

        torch.manual_seed(0)
        config = PPOConfig(
            learning_rate=args.learning_rate,
            batch_size=args.batch,
            mini_batch_size=args.batch,
            gradient_accumulation_steps=1,
            ppo_epochs=args.epochs,
        )
        path = str(folder / "policy")
        adapter = LoraConfig(task_type="CAUSAL_LM", **args.lora) if method == "lora" else None
        model = AutoModelForCausalLMWithValueHead.from_pretrained(path, peft_config=adapter)
        reference = None if adapter else AutoModelForCausalLMWithValueHead.from_pretrained(path)
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.trainer = PPOTrainer(config, model, reference, self.tokenizer)
        self.classifier = pipeline("text-classification", model=str(folder / "classifier"), device=args.device)
        self.prompts = [torch.tensor(ids) for ids in json.loads((folder / "prompts.json").read_text())]
        self.length = LengthSamplerConfig(*args.response)
        self.batch, self.start, self.torch = args.batch, 0, torch

    def step(self) -> dict[str, float]:
        queries = self.prompts[self.start : self.start + self.batch]
        self.start = (self.start + self.batch) % (len(self.prompts) - self.batch + 1)
        kwargs = {"min_length": -1, "top_k": 0, "top_p": 1.0, "do_sample": True}
        begun = time.perf_counter()
        responses = []
        for query in queries:
            n = self.length()
            answer = self.trainer.generate(
                query, max_new_tokens=n, pad_token_id=self.tokenizer.eos_token_id, **kwargs
            ).squeeze()
            responses.append(answer[-n:])
        generated = time.perf_counter()
        texts = [self.tokenizer.decode(self.torch.cat(pair)) for pair in zip(queries, responses, strict=True)]
        outputs = self.classifier(texts, top_k=None, function_to_apply="none", batch_size=16)
        scores = [self.torch.tensor(o["score"]) for row in outputs for o in row if o["label"] == "POSITIVE"]
        scored = time.perf_counter()
        stats = self.trainer.step(queries, responses, scores)
        return {
            "generation": generated - begun,
            "reward": scored - generated,
            "forward": float(stats["time/ppo/forward_pass"]),
            "update": float(stats["time/ppo/optimize_step"]),
            "total": time.perf_counter() - begun,
            "response_tokens": float(stats["tokens/responses_len_mean"]),
            "query_tokens": float(stats["tokens/queries_len_mean"]),
        }


def worker(side: str, folder: Path, method: str, args: argparse.Namespace) -> None:
    """Answer each line of the standard input with a step's figures."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what the libraries print isn't an answer
    runner = {"ours": Ours, "trl": TRL}[side](folder, method, args)
    for _ in sys.stdin:
        figures = runner.step()
        figures["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        if args.device.startswith("cuda"):
            import torch

            figures["peak_gb"] = torch.cuda.max_memory_allocated() / 2**30
        print(json.dumps(figures), file=answers, flush=True)


# ------------------------------------------------------------ the comparison


def compare(sides: dict[str, tuple[str, str, str]], folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Steps of each side in turn. `sides`: what it is called -> (its Python, side, method). The medians."""
    processes = {}
    for name, (python, side, method) in sides.items():
        command = [python, __file__, *sys.argv[1:], "--worker", side, "--method", method, "--folder", str(folder)]
        environment = os.environ | {"PYTHONPATH": str(HERE.parent), "HF_HUB_OFFLINE": "1"}
        processes[name] = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
    taken: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    try:
        for step in range(args.steps + 1):
            for name, process in processes.items():
                assert process.stdin
                assert process.stdout
                process.stdin.write("step\n")
                process.stdin.flush()
                line = process.stdout.readline()
                if not line:
                    raise SystemExit(f"{name} ended with exit code {process.wait()}")
                figures = json.loads(line)
                print(f"{name:18} step {step}: " + "  ".join(f"{k} {v:.2f}" for k, v in figures.items()), flush=True)
                if step > 0:
                    taken[name].append(figures)
    finally:
        for process in processes.values():
            assert process.stdin
            process.stdin.close()
            process.wait()
    return {name: {key: statistics.median(s[key] for s in steps) for key in steps[0]} for name, steps in taken.items()}


def peaks(device: str, precision: str) -> dict[str, float]:
    """This machine's fastest matrix product (GFLOP/s) in this precision and copy (GB/s, reading and writing), the best
    of several."""
    import torch

    def fastest(run: Any) -> float:
        seconds = []
        for _ in range(8):
            begun = time.perf_counter()
            run()
            if device != "cpu":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begun)
        return min(seconds)

    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    left, right = (torch.randn(*shape, device=device).to(dtype) for shape in ((2048, 768), (768, 3072)))
    product = torch.empty(2048, 3072, device=device, dtype=dtype)
    source, target = torch.ones(2**26, device=device), torch.empty(2**26, device=device)
    return {
        f"{precision}_gflops": 2 * 2048 * 768 * 3072 / fastest(lambda: torch.mm(left, right, out=product)) / 1e9,
        "copy_gb_s": 2 * 2**28 / fastest(lambda: target.copy_(source)) / 1e9,
    }


def update_tflop(figures: dict[str, float], size: str, batch: int, epochs: int) -> float:
    """Floating-point operations of full fine-tuning's updates without padding, in 10^12: twice a parameter and token
    forward, twice that backward; the head on response tokens alone."""
    from benchmarks.workload import GPT2

    shape = {"n_embd": 768, "n_layer": 12, "vocab_size": 50257} | GPT2[size]
    blocks, head = 12 * shape["n_layer"] * shape["n_embd"] ** 2, shape["n_embd"] * shape["vocab_size"]
    tokens = figures["query_tokens"] + figures["response_tokens"] - 1
    return 6 * epochs * batch * (blocks * tokens + head * figures["response_tokens"]) / 1e12


def table(medians: dict[str, dict[str, float]]) -> str:
    ours, peer = medians
    lines = [f"| | {peer} | {ours} | ratio |", "|---|---:|---:|---:|"]
    for key in (*PHASES, "peak_gb"):
        a, b = medians[peer][key], medians[ours][key]
        label, unit = ("peak memory", "GB") if key == "peak_gb" else (key, "s")
        lines.append(f"| {label} | {a:.2f} {unit} | {b:.2f} {unit} | {a / b:.2f} |")
    return "\n".join(lines)


def processor() -> str:
    info = Path("/proc/cpuinfo")
    names = (
        [line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        if info.exists()
        else []
    )
    return f"{len(names) or os.cpu_count()} x {names[0] if names else platform.processor() or platform.machine()}"


def main() -> None:
    from benchmarks import workload

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=["full", "lora", "unfrozen"], default="full")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of our side")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--size", choices=list(workload.GPT2), default="gpt2")
    parser.add_argument("--batch", type=int, default=workload.BATCH)
    parser.add_argument(
        "--response", type=int, nargs=2, default=workload.RESPONSE, metavar=("MIN", "MAX"), help="exclusive"
    )
    parser.add_argument("--epochs", type=int, default=workload.EPOCHS)
    parser.add_argument("--steps", type=int, default=3, help="counted steps of each side")
    parser.add_argument("--trl", default="build/trl/bin/python", help="Python of the environment with TRL 0.11.4")
    parser.add_argument("--alone", action="store_true", help="our side alone")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    parser.add_argument("--worker", choices=["ours", "trl"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.lora, args.learning_rate = workload.LORA, workload.LEARNING_RATE
    if args.worker:
        worker(args.worker, args.folder, args.method, args)
        return
    from flows.cli.configure import configure

    configure()  # both sides inherit the settings

    folder = (args.out / args.size).resolve()
    if not (folder / "prompts.json").exists():
        python = sys.executable if args.alone else args.trl  # what the older transformers writes both can read
        code = "import sys, pathlib, benchmarks.workload as w; w.prepare(pathlib.Path(sys.argv[1]), sys.argv[2])"
        environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
        subprocess.run([python, "-c", code, str(folder), args.size], check=True, env=environment)
    label = f"ours, {args.method}, {args.precision}"
    sides = {label: (sys.executable, "ours", args.method)}
    if args.method == "unfrozen":
        sides["ours, full"] = (sys.executable, "ours", "full")
    elif not args.alone:
        sides[f"TRL 0.11.4, {args.method}"] = (args.trl, "trl", args.method)
    medians = compare(sides, folder, args)
    report: dict[str, Any] = {
        "machine": processor(),
        "device": args.device,
        "peaks": peaks(args.device, args.precision),
        "medians": medians,
    }
    if args.method == "full":
        report["update_tflop"] = update_tflop(medians[label], args.size, args.batch, args.epochs)
        rate = 1000 * report["update_tflop"] / medians[label]["update"]
        report["update_gflops"] = rate
        report["update_share_of_peak"] = rate / report["peaks"][f"{args.precision}_gflops"]
    name = f"{args.size}-{args.method}-{args.precision}-{args.device.split(':')[0]}.json"
    (args.out / name).write_text(json.dumps(report, indent=1))
    print(
        f"\n{report['machine']}, device {args.device}; " + ", ".join(f"{k} {v:.0f}" for k, v in report["peaks"].items())
    )
    if "update_gflops" in report:
        print(
            f"our update: {report['update_tflop']:.2f} TFLOP at {rate:.0f} GFLOP/s, "
            f"{report['update_share_of_peak']:.0%} of the peak"
        )
    if len(medians) == 2:
        print("\n" + table(medians))


if __name__ == "__main__":
    main()
