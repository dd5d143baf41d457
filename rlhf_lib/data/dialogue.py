"""Dialogues in hh-rlhf's format (Bai et al. 2022): one text whose turns begin with "\\n\\nHuman:" or
"\\n\\nAssistant:"."""

from __future__ import annotations

import re

from rlhf_lib.conversation import ASSISTANT, HUMAN, SYSTEM
from rlhf_lib.errors import DataError

__all__ = ["ASSISTANT", "HUMAN", "first_exchange", "first_turn", "split_dialogue"]


def split_dialogue(text: str) -> tuple[str, str]:
    """Prompt (everything up to and including the last "\\n\\nAssistant:") and response (that turn, right-stripped).

    Raises DataError for a text that is not a dialogue.
    """
    _require_dialogue(text)
    history, _, answer = text.rpartition(ASSISTANT)
    # a dialogue may end with a human turn: it isn't part of the answer
    return history + ASSISTANT, answer.partition(HUMAN)[0].rstrip()


def first_turn(text: str) -> str:
    """The first human turn, newlines to spaces, stripped: the published tutorial's query.

    The turn ends at the next turn's mark, so that a question which merely mentions "Assistant:" stays whole.
    Raises DataError for a text that is not a dialogue.
    """
    _require_dialogue(text)
    turn = re.split(f"{HUMAN}|{ASSISTANT}", text.removeprefix(HUMAN), maxsplit=1)[0]
    return turn.replace("\n", " ").strip()


def first_exchange(text: str) -> tuple[str, str]:
    """(the first human turn, as `first_turn` gives it; the assistant's turn after it, right-stripped, empty where
    there is none). Raises DataError for a text that is not a dialogue."""
    asked = first_turn(text)
    _, *turns = re.split(f"({HUMAN}|{ASSISTANT})", text.removeprefix(HUMAN), maxsplit=2)
    return asked, turns[1].rstrip() if turns[0] == ASSISTANT else ""


def _require_dialogue(text: str) -> None:
    if not text.startswith((HUMAN, SYSTEM)) or ASSISTANT not in text:
        raise DataError(
            f"is not a dialogue: it begins {text[:60]!r}. Dialogues start with {HUMAN!r} and have a turn {ASSISTANT!r}"
        )
