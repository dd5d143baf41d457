"""`rlhf clean` as it is typed: what it lists, what it removes, and its mistakes."""

import os
import time

import pytest

from flows import cli

DAY = 86400


@pytest.fixture(name="folder")
def run_folder_with_two_runs(tmp_path, monkeypatch, mlflow_store):
    """What two runs left that MLflow's store doesn't know, 70 days and 1 day ago."""
    root = tmp_path / "runs"
    monkeypatch.setenv("RLHF_RUN_DIR", str(root))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("PREFECT_HOME", os.environ["PREFECT_HOME"])
    for name, days in (("a" * 32, 70), ("b" * 32, 1)):
        stage = root / "work" / name / "ppo"
        (stage / "checkpoints").mkdir(parents=True)
        (stage / "model").write_text("x" * 3_000_000)
        for place in (stage / "model", stage / "checkpoints", stage, stage.parent):
            os.utime(place, (time.time() - days * DAY,) * 2)
    with mlflow_store(tmp_path):
        yield root


def test_a_dry_run_lists_what_the_next_call_removes(folder, capsys):
    old, new = (folder / "work" / (letter * 32) / "ppo" for letter in "ab")
    assert cli.main(["clean", "--dry-run"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[:4] == [
        "checkpoints: keep the newest 1 finished runs of each recipe and those younger than 14 days",
        "work:        keep the newest 5 finished runs of each recipe and those younger than 60 days",
        "artifacts:   keep all",
        "runs:        keep all",
    ]
    (line,) = [line for line in listed if line.startswith("work  ")]
    assert line.split()[1:4] == ["3", "MB", "aaaaaaaa,"]
    assert line.endswith("UTC: ppo")
    assert listed[-1] == (
        "1 piece, 3 MB would be removed. Left alone: 0 live runs, and what the registered versions of 0 runs need"
    )
    assert old.is_dir()
    assert cli.main(["clean"]) == 0
    assert "1 piece, 3 MB removed" in capsys.readouterr().out
    assert not old.exists()
    assert new.is_dir()
    assert cli.main(["clean"]) == 0
    assert "0 pieces, 0 MB removed" in capsys.readouterr().out


def test_flags_and_settings(folder, capsys):
    new = folder / "work" / ("b" * 32) / "ppo"
    (folder / "settings.yaml").write_text("retention: {work: {days: 80}, checkpoints: {days: 80}}\n")
    assert cli.main(["clean"]) == 0
    assert "0 pieces" in capsys.readouterr().out
    assert cli.main(["clean", "--only", "checkpoints", "--days", "0.5"]) == 0
    assert "2 pieces" in capsys.readouterr().out
    assert new.is_dir()
    assert not (new / "checkpoints").exists()
    assert cli.main(["clean", "--days", "0.5"]) == 0
    assert not new.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "work,models"], "there is no kind models to clean"),
        (["--days", "-1"], "can't be negative"),
        (["--only", "runs"], "how much of runs is kept isn't set"),
    ],
)
def test_mistakes_are_one_line_and_remove_nothing(folder, capsys, words, said):
    assert cli.main(["clean", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("rlhf: error: ")
    assert said in error
    assert len(list((folder / "work").glob("*/ppo"))) == 2
