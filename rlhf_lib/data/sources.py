"""Data sets as `datasets` opens them (hub ids, local folders, single files, lists of these) and the embedded corpus;
and filters that count what they drop."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from huggingface_hub.errors import OfflineModeIsEnabled

from rlhf_lib.conversation import Conversation, Message, checked_messages
from rlhf_lib.data.joined import Datasets, Mixture, is_list, items, join, missing, row_place
from rlhf_lib.errors import DataError
from rlhf_lib.models.hub import offline_if_unreachable
from rlhf_lib.recipe import Recipe, SourceConfig

if TYPE_CHECKING:
    from datasets import Dataset


EMBEDDED = "embedded/customer-service"
_COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
_BUILDERS = {".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


def load_split(source: SourceConfig, default: Datasets = None, key: str = "data.prompts") -> Dataset:
    """The rows of one split, or of those of several sets, joined; `default` stands in for `source.dataset` where that
    is null.

    A single file is the split that is asked for, whatever its name. Folders written by `save_to_disk` open as well.

    Args:
        key: the recipe's section that holds the source, for the messages.

    Raises:
        DataError: set, folder, file, configuration or split missing or unreadable, or the hub out of reach.
    """
    from datasets import load_dataset, load_from_disk

    owner = key if source.dataset is not None or default is None else "data.prompts"  # where the set is named
    sets = [one for one, _ in items(source, default)]
    if is_list(source, default):
        own = f"{owner}.dataset[]"
        return join([load_split(one, key=own) for one in sets], [describe_source(one) for one in sets])
    place_key, source = f"{owner}.dataset", sets[0]
    name = source.dataset
    if name is None:
        raise DataError(f"{place_key} is missing: a hub id, a local folder or file, or {EMBEDDED}")
    assert isinstance(name, str), "one set, not a list"
    where = describe_source(source)
    base = re.split(r"[\[+]", source.split)[0].strip()
    path, away = Path(name).expanduser(), None
    folder = None if source.data_dir == "." else source.data_dir
    try:
        if name.startswith("embedded/"):
            if name != EMBEDDED:
                raise DataError(f"{place_key}: unknown set '{name}': the embedded one is {EMBEDDED}")
            from rlhf_lib.data import embedded

            named = [part for part in ("train", "test") if part in source.split] or ["train", "test"]
            return _slice({part: embedded.load(part) for part in named}, source.split)
        if path.is_file():
            return load_dataset(_builder(path, place_key), data_files={base: str(path)}, split=source.split)
        if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
            saved = load_from_disk(str(path))
            return _slice(saved if isinstance(saved, Mapping) else {base: saved}, source.split)
        if path.is_dir():
            if folder and not (path / folder).is_dir():
                folders = ", ".join(sorted(child.name for child in path.iterdir() if child.is_dir())) or "none"
                raise DataError(f"{where}: no such folder in {path}, which has: {folders}. Set {key}.data_dir")
        elif _looks_local(name):
            raise DataError(f"{where}: {path} doesn't exist. Set {place_key} to a hub id or an existing folder or file")
        if path.is_dir():
            return load_dataset(str(path), source.name, data_dir=folder, split=source.split, cache_dir=_own_cache(path))
        with offline_if_unreachable() as away:
            return load_dataset(name, source.name, data_dir=folder, split=source.split)
    except DataError:
        raise
    except Exception as error:  # the readers of the formats raise whatever they like
        unreadable = "JSON parse" in f"{error} {error.__cause__}" or isinstance(error.__cause__, json.JSONDecodeError)
        if unreadable and (broken := _broken_line(path)):
            raise DataError(f"{where}: {broken}. Correct or remove the line") from None
        told = OfflineModeIsEnabled(away) if away else error  # which another attempt doesn't change
        raise DataError(_explain(error, where, key, place_key, away)) from told


def load_sources(recipe: Recipe, section: str = "") -> dict[str, Dataset]:
    """Every split that the recipe's data section names, by role: `prompts/train`, `prompts/test`,
    `preferences/train`, `preferences/test`; roles that the recipe leaves null are absent, and with a `section` those
    of the other one. Raises DataError."""
    opened: dict[tuple[str, bool], Dataset] = {}
    found: dict[str, Dataset] = {}
    for role, (source, default, key) in sources(recipe).items():
        place = describe_source(source, default), is_list(source, default)
        if not role.startswith(section):
            continue
        if place not in opened:
            opened[place] = load_split(source, default, key)
        found[role] = opened[place]
    return found


def sources(recipe: Recipe) -> dict[str, tuple[SourceConfig, Datasets, str]]:
    """(source, default set, section of the recipe) by role, as in `load_sources`."""
    prompts, preferences = recipe.data.prompts, recipe.data.preferences
    found: dict[str, tuple[SourceConfig, Datasets, str]] = {"prompts/train": (prompts, None, "data.prompts")}
    if prompts.test is not None:
        found["prompts/test"] = (prompts.test, prompts.dataset, "data.prompts.test")
    if preferences is not None and preferences.rankings is None:
        found["preferences/train"] = (preferences.train, prompts.dataset, "data.preferences.train")
        found["preferences/test"] = (preferences.test, prompts.dataset, "data.preferences.test")
    if preferences is not None and preferences.transfer is not None:
        found["preferences/transfer"] = (preferences.transfer, prompts.dataset, "data.preferences.transfer")
    for name in ("corpus", "labelled"):
        if (section := getattr(recipe.data, name)) is not None:
            found[f"{name}/train"] = (section.train, prompts.dataset, f"data.{name}.train")
            found[f"{name}/test"] = (section.test, prompts.dataset, f"data.{name}.test")
    return found


def describe_source(source: SourceConfig, default: Datasets = None) -> str:
    """`data set SET (data_dir DIR, split SPLIT)`, as the messages name it; of several sets all."""
    described = []
    for one, _ in items(source, default):
        settings = {"name": one.name, "data_dir": one.data_dir, "split": one.split}
        details = ", ".join(f"{key} {value}" for key, value in settings.items() if value)
        described.append(f"data set {one.dataset} ({details})")
    return " and ".join(described)


def mixture(recipe: Recipe, role: str, dataset: Dataset, keys: Sequence[Any]) -> Mixture:
    """The sets that the role's rows come from; `keys` as in `Mixture`."""
    source, default, _ = sources(recipe)[role]
    return Mixture(dataset, keys, items(source, default))


def fingerprint(dataset: Dataset) -> str:
    """sha256 over the rows' content in order, independent of where the set is stored and how it was cached."""
    digest = hashlib.sha256(json.dumps(sorted(dataset.column_names)).encode())
    plain = dataset.with_format(None)
    for start in range(0, len(plain), 1000):
        digest.update(json.dumps(plain[start : start + 1000], sort_keys=True, default=repr).encode())
    return digest.hexdigest()


def text_column(dataset: Dataset, column: str, where: str, key: str | None) -> list[str]:
    """The column's texts, null as empty. Raises DataError where it is missing or holds no text.

    Args:
        where: the data set in words; `key`: the recipe's key that names the column, None where the name is fixed; both
            for the messages.
    """
    require_columns(dataset, [column], where, key)
    if not _is_text(dataset.features[column]):
        held, fix = _held(dataset.features[column])
        texts = [name for name, feature in dataset.features.items() if _is_text(feature)]
        if key is not None and texts:
            fix += f", or set {key} to a column of texts ({', '.join(texts)})"
        raise DataError(f"{where}: column '{column}' holds {held}, not text. {fix}")
    return [text or "" for text in dataset.with_format(None)[column]]


def holds_messages(dataset: Dataset, column: str) -> bool:
    """Whether the column is there and holds messages, well-formed or not: its first value that isn't empty tells, since
    the features of messages whose keys differ don't."""
    if column not in dataset.column_names or _is_text(dataset.features[column]):
        return False
    value = next((value for value in dataset.with_format(None)[column] if value), None)
    return isinstance(value[0] if isinstance(value, list) else value, Mapping)


def messages_column(dataset: Dataset, column: str, where: str) -> list[list[Message]]:
    """A column of messages, null as none. Raises DataError for a message that isn't one, naming its row."""
    return [
        checked_messages(value, f"{row_place(dataset, row, where)}, column '{column}'") if value else []
        for row, value in enumerate(dataset.with_format(None)[column])
    ]


def conversations(dataset: Dataset, column: str, where: str) -> list[str]:
    """A column of messages as conversations, without the answers that they end with; empty where there are none.
    Raises DataError for a message that isn't one, naming its row."""
    found: list[str] = []
    for messages in messages_column(dataset, column, where):
        while messages and messages[-1]["role"] == "assistant":
            messages.pop()
        found.append(Conversation(messages) if messages else "")
    return found


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def _held(feature: Any) -> tuple[str, str]:
    """(what a column that isn't text holds, what to do about it), in words."""
    inner = getattr(feature, "feature", feature[0] if isinstance(feature, list) else None)
    if isinstance(inner, dict) and {"role", "content"} <= set(inner):
        dialogue = "'\\n\\nHuman: ...\\n\\nAssistant: ...'"
        return "chat messages", f"Join each list of messages into one text, {dialogue}"
    if inner is not None:
        return "lists", "Join each list into one text"
    return str(getattr(feature, "dtype", "records")), "Make its values texts"


def require_columns(dataset: Dataset, columns: Sequence[str], where: str, key: str | None) -> None:
    """Raise DataError if a column is missing, naming it and the available ones."""
    for column in columns:
        if reason := missing(dataset, column, where):
            raise DataError(f"{reason}. {f'Set {key}' if key else f'Add a column {column!r}'}")


def _own_cache(folder: Path) -> str | None:
    """A cache for a local folder that describes its files in a README.md: `datasets` tells such folders apart by the
    folder's name and that text alone, and would give one folder's rows for another's, or those before an edit."""
    if not (folder / "README.md").is_file():
        return None
    from datasets import config

    files = sorted((str(f), f.stat().st_mtime_ns, f.stat().st_size) for f in folder.resolve().rglob("*") if f.is_file())
    return str(Path(config.HF_DATASETS_CACHE) / "folders" / hashlib.sha256(repr(files).encode()).hexdigest()[:16])


def _slice(splits: Mapping[str, Dataset], spec: str) -> Dataset:
    """The part of the splits that an instruction such as `train[:100]+test[-10%:]` selects. Raises ValueError."""
    from datasets import ReadInstruction, concatenate_datasets

    parts = ReadInstruction.from_spec(spec).to_absolute({name: len(rows) for name, rows in splits.items()})
    return concatenate_datasets([splits[part.splitname].select(range(part.from_, part.to)) for part in parts])


def _builder(path: Path, place_key: str) -> str:
    suffixes = [suffix for suffix in path.suffixes if suffix not in _COMPRESSIONS]
    builder = _BUILDERS.get(suffixes[-1]) if suffixes else None
    if builder is None:
        raise DataError(
            f"{place_key}: {path} has an unknown format (known: {', '.join(_BUILDERS)}, each also with .gz)"
        )
    return builder


def _looks_local(name: str) -> bool:
    return name[0] in "/.~" or name.count("/") > 1 or Path(name).suffix in (*_BUILDERS, *_COMPRESSIONS)


def _broken_line(path: Path) -> str | None:
    """The first line of a JSON Lines file, or of those in a folder, that isn't JSON, in words; None where all are."""
    files = [path] if path.is_file() else sorted(path.rglob("*")) if path.is_dir() else []
    for file in files:
        if not re.search(r"\.(jsonl|ndjson)(\.gz)?$", file.name):
            continue
        with suppress(EOFError), gzip.open(file) if file.suffix == ".gz" else file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    json.loads(line if line.strip() else "null")
                except UnicodeDecodeError:
                    return f"{file}, line {number} is not UTF-8"
                except json.JSONDecodeError as error:
                    reason = f"{error.msg.removesuffix(' at')} at column {error.colno}"
                    return f"{file}, line {number} is not valid JSON ({reason})"
    return None


def _explain(error: Exception, where: str, key: str, place_key: str, away: str | None) -> str:
    """One line that says what is wrong and how to fix it. `away`: why the hub is out of reach, if it is."""
    from datasets.exceptions import DatasetBuildError

    # "An error occurred while generating the dataset" keeps what matters in its cause
    told = error.__cause__ if isinstance(error, DatasetBuildError) and error.__cause__ else error
    message = str(told).strip().split("\n")[0].rstrip(".!") or type(told).__name__
    if isinstance(told, StopIteration):
        message = "it holds no rows"
    if message.startswith("Unknown split") or "nstruction" in message:
        return f"{where}: {message}. Set {key}.split"
    if "BuilderConfig" in message or "Config name is missing" in message:
        return f"{where}: {message}. Set {key}.name"
    if away or isinstance(error, ConnectionError):
        return (
            f"{where}: the hub is out of reach ({away or 'is there a network?'}) and the set isn't in the cache. Get "
            f"it where there is a network and set {place_key} to the local folder"
        )
    return f"{where} can't be read: {message}. Check {place_key} (a hub id, or a local folder or file)"


T = TypeVar("T")


@dataclass
class Funnel:
    """One data set on its way through named filters.

    Raises DataError at once where there are no rows to begin with.
    """

    where: str
    rows: int
    dropped: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.rows:
            raise DataError(f"{self.where} has no rows")

    def keep(self, reason: str, items: list[T], wanted: Iterable[bool], fix: str) -> list[T]:
        """The wanted items; the others are counted under `reason`. Raises DataError with the fix if none is left."""
        kept = [item for item, want in zip(items, wanted, strict=True) if want]
        self.dropped[reason] = self.dropped.get(reason, 0) + len(items) - len(kept)
        if not kept:
            counts = ", ".join(f"{name} dropped {count}" for name, count in self.dropped.items())
            raise DataError(f"{self.where}: filter '{reason}' left none of {self.rows} rows ({counts}). {fix}")
        return kept

    def report(self, kept: int) -> dict[str, Any]:
        return {"rows": self.rows, "dropped": dict(self.dropped), "kept": kept}


def first_seen(keys: Iterable[Any]) -> list[bool]:
    """True at each key's first occurrence."""
    seen: set[Any] = set()
    first = []
    for key in keys:
        first.append(key not in seen)
        seen.add(key)
    return first
