"""The run folder's settings.yaml: what is kept, and mistakes in it."""

import pytest

from rlhf_lib.errors import EnvironmentFault
from tasks.retention.settings import Keep, Retention, Settings, load

DAY = 86400.0


@pytest.mark.parametrize(
    ("keep", "age", "rank", "goes"),
    [
        (Keep(newest=2, days=10), 11 * DAY, 2, True),
        (Keep(newest=2, days=10), 11 * DAY, 1, False),  # among the newest
        (Keep(newest=2, days=10), 9 * DAY, 2, False),  # young
        (Keep(newest=2), 0.0, 2, True),
        (Keep(newest=2), 99 * DAY, 1, False),
        (Keep(days=10), 11 * DAY, 0, True),
        (Keep(days=10), 9 * DAY, 0, False),
        (Keep(), 999 * DAY, 999, False),
        (Keep(newest=0, days=0), 1.0, 0, True),
        # not finished: it may be resumed until it is too old, however many are newer
        (Keep(newest=0, days=10), 9 * DAY, None, False),
        (Keep(newest=0, days=10), 11 * DAY, None, True),
        (Keep(newest=0), 999 * DAY, None, False),
    ],
)
def test_what_is_let_go(keep, age, rank, goes):
    assert keep.lets_go(age, rank) is goes


def test_settings_are_read_and_what_is_not_there_is_the_default(tmp_path):
    assert load(tmp_path) == Settings()
    (tmp_path / "settings.yaml").write_text("retention:\n  work: {newest: 3}\n  runs: {days: 365}\n")
    policy = load(tmp_path).retention
    assert (policy.work, policy.runs) == (Keep(newest=3), Keep(days=365))
    assert (policy.checkpoints, policy.artifacts) == (Retention().checkpoints, None)


def test_by_default_nothing_in_mlflow_goes():
    policy = Retention()
    assert policy.artifacts is None
    assert policy.runs is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("retention: {wrok: {newest: 3}}", "settings.yaml: unknown key 'retention.wrok': did you mean 'work'?"),
        ("retention: {work: {newst: 3}}", "unknown key 'retention.work.newst': did you mean 'newest'?"),
        ("retention: {work: {newest: -1}}", "retention.work.newest: Input should be greater than or equal to 0"),
        ("retention: {work: {days: soon}}", "retention.work.days: "),
        ("retention: [", "settings.yaml is not valid YAML"),
        ("- retention", "settings.yaml: it: Input should be a valid dictionary"),
    ],
)
def test_mistakes_are_named(tmp_path, text, said):
    (tmp_path / "settings.yaml").write_text(text)
    with pytest.raises(EnvironmentFault) as refusal:
        load(tmp_path)
    assert said in str(refusal.value)


def test_a_call_has_its_own_numbers_for_the_kinds_that_are_on():
    policy = Retention(work=Keep(newest=5, days=60), checkpoints=None, runs=Keep(days=365))
    changed = policy.changed(newest=1, days=None, only=None)
    assert (changed.work, changed.checkpoints) == (Keep(newest=1, days=60), None)
    assert (changed.artifacts, changed.runs) == (None, Keep(newest=1, days=365))
    only = policy.changed(newest=1, days=2, only=["artifacts"])
    assert (only.work, only.artifacts, only.runs) == (None, Keep(newest=1, days=2), None)


@pytest.mark.parametrize(
    ("newest", "days", "only", "said"),
    [
        (None, None, ["models"], "there is no kind models to clean: name some of checkpoints, work, artifacts, runs"),
        (-1, None, None, "can't be negative"),
        (None, None, ["artifacts"], "how much of artifacts is kept isn't set: give --newest, --days or both"),
    ],
)
def test_a_call_that_makes_no_sense_is_refused(newest, days, only, said):
    with pytest.raises(EnvironmentFault, match=said):
        Retention().changed(newest, days, only)
