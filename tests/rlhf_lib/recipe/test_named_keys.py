"""Messages that name a key of the recipe name one that exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import pytest

from rlhf_lib.data.sources import sources
from rlhf_lib.recipe import Recipe, SourceConfig, load_recipe
from rlhf_lib.recipe.document import groups

ROOT = Path(__file__).parents[3]
SECTIONS = "data|policy|reward|generation|ppo|evaluation|registration|compute"
NAMED = re.compile(rf"(?<![\w./*])(?:{SECTIONS})(?:\.[a-z_*][a-z_0-9*]*)+(?![\w/(*])")
OTHERS = {"policy.safetensors"}  # look like keys


def known() -> set[str]:
    """Every key and section, an item of a list without its mark, a term's reward as a reward."""
    names = {group.name for group in groups()} | {key for group in groups() for key in group.keys}
    return {name.replace("[]", "") for name in names}


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of every string of a file that isn't a docstring; what an f-string fills in is `*`, or the module's
    constant of that name."""
    tree = ast.parse(path.read_text())
    inside = set()
    constants = {
        node.targets[0].id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.targets[0], ast.Name)
        and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            inside.add(id(node.value))
        if isinstance(node, ast.JoinedStr):
            inside |= {id(part) for part in ast.walk(node) if part is not node}
            yield node.lineno, "".join(str(_filled(part, constants)) for part in node.values)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.lineno, node.value


def _filled(part: ast.expr, constants: dict[str, object]) -> object:
    if isinstance(part, ast.Constant):
        return part.value
    if isinstance(part, ast.FormattedValue) and isinstance(part.value, ast.Name):
        return constants.get(part.value.id, "*")
    return "*"


def unknown(text: str, keys: set[str]) -> list[str]:
    """Names of keys in the text that no recipe has."""
    return [
        name
        for name in NAMED.findall(text)
        if name not in OTHERS and not any(fnmatchcase(key, name) or key.startswith(name + ".") for key in keys)
    ]


def test_every_key_that_a_message_names_exists():
    keys, named, wrong = known(), set(), []
    for package in ("rlhf_lib", "tasks", "flows"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for line, text in texts(path):
                named |= set(NAMED.findall(text))
                wrong += [f"{path.relative_to(ROOT)}:{line}: {name}" for name in unknown(text, keys)]
    assert not wrong
    assert {"ppo.learning_rate", "evaluation.prompts", "data.labelled.names", "data.prompts.held_out"} <= named


def test_the_keys_of_every_source_exist():
    """What messages on data sets put their `.dataset`, `.split`, `.name` and `.data_dir` behind."""
    named = ("data.preferences.train", "data.corpus.test", "data.labelled.train", "data.prompts.test")
    assert set(named) < {key for _, _, key in sources(load_recipe("t5-emotion-scratch")).values()} | {
        key for _, _, key in sources(load_recipe("embedded")).values()
    }
    places = {*named, "data.prompts", "evaluation.perplexity"}
    assert {f"{place}.{key}" for place in places for key in SourceConfig.model_fields} <= known()


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Set data.preference.chosen", ["data.preference.chosen"]),
        ("lower ppo.lr, or ppo.learning_rate", ["ppo.lr"]),
        ("data.preferences.rankings.*, data.preferences.ranking.*", ["data.preferences.ranking.*"]),
        ("raise evaluation.promts", ["evaluation.promts"]),
        ("see reward.checks.", []),
        ("rlhf_lib.data.sources, tasks/data.py, ppo/loss", []),
    ],
)
def test_a_key_that_does_not_exist_is_found(text, names):
    assert unknown(text, known()) == names


def test_the_recipe_s_own_keys_are_all_known():
    assert set(Recipe.model_fields) <= {name.partition(".")[0] for name in known()}
