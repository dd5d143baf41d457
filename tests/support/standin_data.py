"""Stand-ins for the published data sets: folders of the same ids with the same splits, configurations and columns."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from random import Random

import standin_texts as texts


def lay_data(root: Path) -> None:
    """Every published data set's stand-in as a folder of its id under `root`: splits, configurations and columns as
    on the hub."""
    rng = Random(7)
    for split, count in (("train", 420), ("test", 60)):
        reviews = [(i % 2, texts.review(rng, i % 2 == 1, rng.choice((2, 6, 8)))) for i in range(count)]
        _rows(root / "stanfordnlp/imdb", split, [{"text": text, "label": label} for label, text in reviews])
    for split, count in (("train", 500), ("validation", 40)):
        _rows(root / "roneneldan/TinyStories", split, [{"text": texts.story(rng)} for _ in range(count)])

    emotions = root / "google-research-datasets/go_emotions"
    for split, count in (("train", 500), ("validation", 40), ("test", 100)):
        kinds = [rng.randrange(len(texts.EMOTIONS)) for _ in range(count)]
        found = [{"text": texts.comment(rng, kind), "labels": [kind], "id": f"e{i}"} for i, kind in enumerate(kinds)]
        _rows(emotions / "simplified", split, found)
    _rows(emotions / "raw", "train", [{"text": "not what the recipes ask for", "author": "nobody"}])
    files = "".join(
        f"  - split: {split}\n    path: simplified/{split}.jsonl.gz\n" for split in ("train", "validation", "test")
    )
    (emotions / "README.md").write_text(
        "---\nconfigs:\n- config_name: raw\n  data_files:\n  - split: train\n    path: raw/train.jsonl.gz\n"
        f"- config_name: simplified\n  data_files:\n{files}---\n"
    )
    published = {"train": 500, "test": 60}
    for folder, splits in {
        "helpful-base": published,
        "harmless-base": published,
        "helpful-rejection-sampled": {"test": 300},  # whose train split no recipe asks for
    }.items():
        for split, count in splits.items():
            pairs = []
            for _ in range(count):
                turns, question, opening = rng.choice((1, 1, 2)), texts.ask(rng), rng.random()
                best = rng.random() < 0.6  # of some pairs neither is of any help
                chosen, rejected = (
                    texts.dialogue(Random(opening), rng, good, question, turns) for good in (best, False)
                )
                pairs.append({"chosen": chosen, "rejected": rejected})
            _rows(root / "Anthropic/hh-rlhf" / folder, split, pairs)
    _lay_ultrafeedback(root / "HuggingFaceH4/ultrafeedback_binarized", rng)


def _lay_ultrafeedback(folder: Path, rng: Random) -> None:
    """Pairs of whole conversations beside their prompt, in splits whose names say what they are for."""
    counts = {"train_prefs": 500, "test_prefs": 80}
    for split, count in counts.items():
        found = []
        for number in range(count):
            asked, good = texts.ask(rng), rng.random() < 0.8  # of some pairs neither is of any help
            chosen, rejected = ([_user(asked), _answer(texts.answer(rng, helps))] for helps in (good, False))
            scores = {"score_chosen": 4.0 + good, "score_rejected": 4.0}
            row = {
                "prompt": asked,
                "prompt_id": f"p{number}",
                "chosen": chosen,
                "rejected": rejected,
                "messages": chosen,
            }
            found.append(row | scores)
        _rows(folder / "data", split, found)
    files = "".join(f"  - split: {split}\n    path: data/{split}.jsonl.gz\n" for split in counts)
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}---\n")


def _user(text: str) -> dict[str, str]:
    return {"content": text, "role": "user"}


def _answer(text: str) -> dict[str, str]:
    return {"content": text.strip(), "role": "assistant"}


def _rows(folder: Path, split: str, rows: list[dict]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with gzip.open(folder / f"{split}.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
