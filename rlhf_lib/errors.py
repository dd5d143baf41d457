"""Errors that the user can fix. Each message names the culprit and the fix; the command line prints it
without a traceback. Anything else that escapes is a bug of ours and keeps its traceback."""

from rlhf_lib.credentials import redact


class RLHFError(Exception):
    """Something the user can fix: a recipe, a data set, a model, a folder, a server. Its message holds no secrets,
    for it goes to terminals, logs and both servers."""

    def __init__(self, message: str = "") -> None:
        super().__init__(redact(message))


class RecipeError(RLHFError):
    """A recipe or an override of it that doesn't validate."""


class SettingsError(RecipeError, ValueError):
    """A section of a recipe that was made in Python and doesn't validate."""


class DataError(RLHFError):
    """A data set that is missing, malformed, or empty after its filters."""


class ModelError(RLHFError):
    """A model or tokenizer that is missing or can't do what the recipe asks of it."""


class RewardFailed(ModelError):
    """A reward function of the user's own that raised. The first line says what; the lines after it are the user's own
    stack frames."""


class JudgeFailed(ModelError):
    """A judge behind an endpoint that couldn't be asked, or whose replies say too little. It costs the run that judge's
    opinion, not the evaluation."""


class QuestionRefused(JudgeFailed):
    """A question that a judge's endpoint doesn't take, say because it is too long. `said`: why, in its words."""

    def __init__(self, message: str, said: str) -> None:
        super().__init__(message)
        self.said = said


class EnvironmentFault(RLHFError):
    """A folder that can't be written, or a server that is configured but doesn't answer."""


class GateFailed(RLHFError):
    """A check ran, and its value is on the wrong side of its threshold."""


class TimeLimit(RLHFError):
    """A run that took longer than it was allowed to."""


class DiskFull(RLHFError):
    """A file that could not be written for want of space."""


def notes(error: BaseException | None) -> list[str]:
    """What was noted (`add_note`) on the error or on those that led to it, the latest first."""
    found: list[str] = []
    while error is not None:
        found += getattr(error, "__notes__", [])
        error = error.__cause__ or error.__context__
    return found
