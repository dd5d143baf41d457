"""Faults on real servers: whatever is killed, goes away, fills up or is cancelled, the run recovers or says what to do,
nothing finished is done twice, and the figures are those of an undisturbed run. Behind `make test-faults`.

RLHF_FAULT_KILLS=4 shortens the kills to so many of a single run, for CI. RLHF_FAULT_LOG=FILE gets a line of JSON each.
"""

from __future__ import annotations

import json
import os
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faults import STAGES, TARGETS, FlowRun, Operated, assert_whole, figures, kill_at_random, operated, recover

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
KILLS = int(os.environ.get("RLHF_FAULT_KILLS", "33"))
SHORT = KILLS < 30
TRIES = 6  # flow runs, until every stage of the list was hit: one that a fault doesn't stop may run past its turn


@pytest.fixture(scope="module")
def servers(tmp_path_factory) -> Iterator[Operated]:
    with operated(tmp_path_factory.mktemp("faults")) as started:
        yield started


@pytest.fixture(scope="module")
def undisturbed(servers) -> FlowRun:
    """A run that nothing happens to."""
    run = servers.trigger("undisturbed")
    state = run.ended()
    assert state["type"] == "COMPLETED", state
    return run


@pytest.fixture(scope="module")
def expected(undisturbed) -> dict[str, Any]:
    assert_whole(undisturbed, figures(undisturbed.record()))
    return figures(undisturbed.record())


@pytest.fixture(scope="module")
def usual(undisturbed) -> dict[str, float]:
    """Seconds of each stage."""
    return {child.stage: child.metrics["seconds"] for child in undisturbed.children()}


def plan(target: str) -> list[tuple[str, str]]:
    """(target, stage) in the order of the stages: each once, PPO more often."""
    if SHORT:
        return list(
            zip(
                ("flow", "prefect", "mlflow", "worker"),
                ("base_model", "reward_model", "ppo", "evaluation"),
                strict=True,
            )
        )[:KILLS]
    often = {"ppo": 3 if target == "flow" else 2}
    return [(target, stage) for stage in STAGES for _ in range(often.get(stage, 1))]


@pytest.mark.parametrize("target", ["each"] if SHORT else TARGETS)
def test_killed_in_every_stage(servers, expected, usual, target):
    draw, left, kills = random.Random(f"{target} 0"), plan(target), []
    for number in range(TRIES):
        if not left:
            break
        run = servers.trigger(f"{target}-{number}", folder=f"{target}-{number}")
        for pair in list(left):
            kill = kill_in(pair, run, usual, draw)
            if kill is not None:
                left.remove(pair)
                kills.append(kill | recover(pair[0], run))
                tell(kills[-1])
        while (state := run.ended())["type"] in ("FAILED", "CRASHED"):
            tell({"target": target, "ended": state["message"], "needed": "retry"})
            run.retry()
        assert_whole(run, expected)
    assert not left
    print(Counter((kill["stage"], kill["needed"]) for kill in kills))


def kill_in(pair: tuple[str, str], run: FlowRun, usual: dict[str, float], draw: random.Random) -> dict[str, Any] | None:
    """Wait for the stage's turn and kill in it; None where the run had passed it."""
    target, stage = pair
    while run.at_work(stage) is None:
        state = run.state
        if state["type"] in ("FAILED", "CRASHED"):
            run.retry()
        begun = {child.stage for child in run.children() if child.status == "FINISHED"}
        if stage in begun or state["type"] == "COMPLETED":
            return None
    return kill_at_random(target, stage, run, usual, draw)


def tell(kill: dict[str, Any]) -> None:
    line = json.dumps(kill)
    print(line, flush=True)
    if file := os.environ.get("RLHF_FAULT_LOG"):
        with Path(file).open("a") as log:
            log.write(line + "\n")
