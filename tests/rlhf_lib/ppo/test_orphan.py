"""A process of PPO's whose launcher was killed ends too."""

import os
import subprocess
import sys
from pathlib import Path

from rlhf_lib.ppo import orphan

ROOT = Path(__file__).parents[3]
WAITS = "import time; from rlhf_lib.ppo.orphan import end_with_launcher; end_with_launcher(); {}"


def test_it_ends_once_its_launcher_was_killed():
    launcher = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    command = [sys.executable, "-c", WAITS.format("print(1, flush=True); time.sleep(600)")]
    environment = os.environ | {orphan.LAUNCHER: str(launcher.pid)}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"1\n"
        assert process.poll() is None
        launcher.kill()
        launcher.wait()
        assert process.wait(60) == 1
    finally:
        launcher.kill()
        process.kill()


def test_what_nobody_launched_is_left_alone():
    command = [sys.executable, "-c", WAITS.format("import threading; print(threading.active_count())")]
    kept = {name: value for name, value in os.environ.items() if name != orphan.LAUNCHER}
    assert subprocess.run(command, cwd=ROOT, env=kept, capture_output=True, text=True).stdout == "1\n"


def test_ppos_processes_know_their_launcher(monkeypatch):
    from rlhf_lib.ppo.run import Job, _environment
    from rlhf_lib.recipe import load_recipe

    recipe = load_recipe("embedded", ["compute.device=cpu"])
    job = Job(
        recipe=recipe, policy="", prompts={}, reward=None, score_constants=None, folder="", checkpoints="", key=""
    )
    assert _environment(job)[orphan.LAUNCHER] == str(os.getpid())
