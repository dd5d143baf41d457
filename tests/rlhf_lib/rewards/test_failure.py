"""A reward function that raises: one line that says what, and the user's own stack frames."""

import sys

import pytest

from rlhf_lib.errors import DataError, RewardFailed
from rlhf_lib.rewards.failure import explained
from rlhf_lib.rewards.function import function_reward, import_function

MODULE = """\
import json
from helper import first_word
def raises(queries, responses):
    return [len(first_word(responses[0]))]
def installed(queries, responses):
    return json.loads("{")
def lazy(queries, responses):
    for response in responses:
        yield 1 / len(response)
def leaves(queries, responses):
    raise SystemExit("no such server")
"""
HELPER = "def first_word(text):\n    return text.split()[0]\n"


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "failing.py").write_text(MODULE)
    (tmp_path / "helper.py").write_text(HELPER)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in ("failing", "helper", "half_written", "needy"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("name", "first", "frames"),
    [
        ("raises", "IndexError: list index out of range", [("failing", 4, "raises"), ("helper", 2, "first_word")]),
        (
            "installed",
            "JSONDecodeError: Expecting property name enclosed in double quotes",
            [("failing", 6, "installed")],
        ),
        ("lazy", "ZeroDivisionError: division by zero", [("failing", 9, "lazy")]),
        ("leaves", "SystemExit: no such server", [("failing", 11, "leaves")]),
    ],
)
def test_the_message_is_one_line_and_the_frames_are_the_users(module, name, first, frames):
    with pytest.raises(RewardFailed) as raised:
        function_reward(f"failing:{name}")(["q"], [""])
    message, *rest = str(raised.value).split("\n")
    assert message.startswith(f"reward.function failing:{name} raised {first}")
    told = [line.strip() for line in rest if line.strip().startswith("File ")]
    assert [line.rsplit(", in ")[0] for line in told] == [
        f'File "{module}/{file}.py", line {at}' for file, at, _ in frames
    ]


def test_a_module_that_cannot_be_run_is_told_with_its_place(module):
    (module / "half_written.py").write_text("def reward(queries, responses):\n    return [\n")
    with pytest.raises(RewardFailed, match=r"(?s)half_written raised SyntaxError: .*half_written.py\", line 2"):
        import_function("half_written:reward")
    (module / "needy.py").write_text("import os\nKEY = os.environ['NO_SUCH_KEY']\n")
    with pytest.raises(RewardFailed, match=r"(?s)needy raised KeyError: 'NO_SUCH_KEY'.*needy.py\", line 2"):
        import_function("needy:reward")


def test_errors_of_our_own_pass():
    with pytest.raises(DataError, match="mine"), explained("reward.function x:y"):
        raise DataError("mine")
    with pytest.raises(KeyboardInterrupt), explained("reward.function x:y"):
        raise KeyboardInterrupt
