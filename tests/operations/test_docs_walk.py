"""README and the how-tos as a reader follows them: each command as printed, in a fresh shell in a fresh clone, and its
output held against what the page promises. `make test-docs`; RLHF_SHORT_WALK=1 makes the README's runs small.

Whatever isn't run is named below with the reason; a block that is neither run nor named fails.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
from datasets import Dataset
from hub_folders import lay_out_hub
from walk import ROOT, Block, Shell, bare, blocks, clone, commands

from rlhf_lib.conversation import dialogue_messages
from rlhf_lib.data.embedded import load

PAGES = [
    "README.md",
    *sorted(f"docs/how-to/{path.name}" for path in (ROOT / "docs/how-to").glob("*.md")),
    "docs/moving-from-trl.md",
    "docs/operate.md",
    "docs/rankings.md",
]
PATIENCE = 1800.0  # seconds for a command, on a machine that has other things to do
SHORT = bool(os.environ.get("RLHF_SHORT_WALK"))
COMMANDS = ("sh", "bash", "console")
SHOWN = ("mermaid", "text", "diff", "ini", "yaml", "json", "csv")  # unless a title or FILES makes a file of it

NOT_RUN = {
    "README.md": {
        "make test": "these tests themselves",
        "rlhf run gpt2-imdb-positive": "the hub's models and data; make test-recipes runs it on stand-ins",
        "rlhf run hh-helpful-scratch --set data.prompts.dataset=/data/hh-rlhf": "the collection isn't in the clone; "
        ".ci/run runs it where it is at hand",
    },
    "docs/how-to/compare-and-promote.md": {
        "rlhf push happy me/happy --private": "needs a token; tests/tasks/registry/test_push.py has a hub of its own",
        "curl -s http://127.0.0.1:4300/v1": "the page's models are none of chat; test_chat_completions.py asks one",
    },
    "docs/how-to/production.md": {
        "apt-get install postgresql": "installs a service; tests/operations/test_postgres.py uses one",
        "useradd --system": "makes a user of the machine",
        "install -d -m 750": "writes into /etc",
        "cd /opt/ppo-rlhf && sudo -u postgres": "needs postgres' account; test_postgres.py runs deploy/databases.sh",
        "systemctl": "needs systemd; test_postgres.py runs the units' commands",
        "set -a; . /etc/ppo-rlhf/runs.env": "the file is in /etc; test_postgres.py reads the page's",
        "MLFLOW_ADMIN_PASSWORD=...": "needs the servers above; test_postgres.py runs it",
        ".venv/bin/prefect": "needs the servers above; test_postgres.py runs it",
        '.venv/bin/python -c "from getpass': "asks for a password and needs the servers above",
        "cp .env.example .env": "needs a person who fills it in",
        "docker compose": "needs a container engine",
    },
    "docs/operate.md": {
        "prefect work-pool create": "for a server elsewhere; test_postgres.py runs these four on one",
        "prefect concurrency-limit": "as above",
        "prefect --no-prompt deploy": "as above",
        "prefect worker start": "as above",
        "prefect block ls": "needs a notification block that a person made",
        "prefect deployment inspect": "as above",
        "sed -e s/00000000": "as above",
        "prefect automation create": "as above; test_operation.py validates the file, test_promotion_event.py uses it",
        "docker build": "needs a container engine",
        "pip install prefect-": "needs a package index, and Docker or Kubernetes",
    },
    "docs/rankings.md": {
        "rlhf collect my-recipe.yaml": "the reader's own recipe; tests/flows/test_collect.py collects",
    },
}

# blocks without a title that are files, in the order in which a page has them
FILES = {
    "README.md": {"yaml": ["mine.yaml"]},
    "docs/rankings.md": {"json": ["tasks.jsonl", "rankings.jsonl", "thumbs.jsonl"], "csv": ["rankings.csv"]},
}

# Runs that can't be as printed here: with what, and why. The tiny GPT-2 that stands in for the hub's learns nothing.
TINY = {
    "ppo.steps": 2,
    "ppo.batch_size": 16,
    "ppo.mini_batch_size": 16,
    "reward.train.max_steps": 2,
    "evaluation.prompts": 16,
    "generation.max_new_tokens": 12,
    **{
        f"reward.checks.{gate}": "null"
        for gate in (
            *("min_accuracy", "min_probe_accuracy", "min_score_std"),
            *("max_calibration_error", "max_length_correlation", "max_degenerate_win_rate"),
        )
    },
}
SMALL = TINY | {
    "data.prompts.limit": 96,
    "data.preferences.limit": 256,
    "policy.train.max_steps": 10,
    "evaluation.perplexity.limit": 20,
    **{f"registration.gates.{gate}": "null" for gate in ("min_reward_delta", "min_judge_delta")},
    "registration.gates.max_perplexity_ratio": "null",
    **{f"registration.gates.{gate}": "null" for gate in ("min_prompts", "min_distinct_2_ratio")},
}


def with_(command: str, settings: dict) -> str:
    return command + "".join(f" --set {key}={value}" for key, value in settings.items())


CHANGED = {"rlhf run mine.yaml": with_("rlhf run mine.yaml", TINY)}
if SHORT:
    CHANGED |= {
        "make run": f'make run ARGS="{with_("", SMALL)}"',
        "rlhf run embedded --set ppo.steps=100": with_(
            "rlhf run embedded --set ppo.kl_coef=0.1 --summary run.json", SMALL | {"ppo.steps": 3}
        ),
        "prefect deployment run": "prefect deployment run rlhf/train-on-demand -p recipe=embedded --watch "
        f"-p 'overrides={json.dumps([f'{key}={value}' for key, value in SMALL.items()])}'",
    }

# what a page says, or lets expect, of a command's output
PROMISES = {
    "make run": r"(?s)reward  .*registered +embedded version 1 .*\n\. \.venv/bin/activate .*\nrlhf serve embedded",
    "rlhf recipes": r"(?m)^embedded ",
    "rlhf show embedded": r"(?m)^  gamma: 1.0$",
    "rlhf run embedded": r"registered +embedded version 2",
    "rlhf run mine.yaml": r"registered +mine version 1",
    "rlhf compare reference models:/embedded": r"(?m)^Gains and wins against .* on \d+ prompts of embedded",
    "rlhf models embedded": r"(?s)^embedded\nVERSION .*\n2 .*\n1 .*version 1 promoted by the gates",
    "rlhf chat embedded": r"(?s)^embedded \d \([-\d.e]+\): .+\nreference \([-\d.e]+\): ",
    "rlhf compare reference models:/happy": r"(?m)^happy 1 .*\npessimistic 1 ",
    "rlhf models happy": r"(?m)^1 .*champion",
    "rlhf promote happy": r"version 2 promoted by hand, version 1 before it: the interval misses 0 by a hair",
    "rlhf rollback happy": r"rolled back from version 2 to 1: it repeats itself",
    "rlhf chat happy": r"(?m)^happy 1 \(.*\): ",
    'echo "This film was"': r"(?m)^happy 1 \(.*\): ",
    "rlhf push": r"(?s)^(embedded|happy) \d would go to me/.*model\.safetensors\n.*\nlibrary_name: transformers\n",
    "curl": r'^\{"predictions": \[".+"\]\}$',
    "rlhf run own-data.yaml": r"registered +own-data version 1",
    "rlhf run own-reward.yaml": r"registered +own-reward version 1",
    "rlhf run own-sum.yaml": r"registered +own-sum version 1",
    "rlhf run own-base.yaml": r"registered +own-base version 1",
    "rlhf run helpful.yaml": r"registered +helpful version 1",
    "rlhf rankings rankings.jsonl": r"# Human feedback",
    "make up": r"export PREFECT_API_URL=http://127.0.0.1:4200/api",
    "make down": r"worker: stopped",
    "prefect deployment run": r"Completed",
}
TYPED = {"rlhf chat": "where is my parcel?\n"}
PORTS = {"rlhf serve": [4300], "rlhf playground": [4310], "MLFLOW_TRACKING_URI=": [4301], "make up": [4200, 5000, 4400]}
SERVERS = ("rlhf serve", "rlhf playground", "MLFLOW_TRACKING_URI=")  # go on until Ctrl-C, each in a terminal of its own
BEFORE = {"prefect deployment run": "make up"}  # a page that has shown make down too
AFTER = {"prefect deployment run": "make down"}


def entry(table: dict, command: str):
    """The table's value for the longest key that the command begins with."""
    keys = [key for key in table if bare(command).startswith(key)]
    return table[max(keys, key=len)] if keys else None


def typed_commands(block: Block) -> list[str]:
    found = commands(block.text)
    return [line[2:] for line in found if line.startswith("$ ")] if block.language == "console" else found


def test_every_command_is_run_or_listed_with_a_reason():
    everything = []
    for page in PAGES:
        found = list(blocks(page))
        assert {block.language for block in found} <= {*COMMANDS, *SHOWN, "python"}, page
        there = [bare(command) for block in found if block.language in COMMANDS for command in typed_commands(block)]
        everything += there
        for listed in NOT_RUN.get(page, {}):
            assert any(command.startswith(listed) for command in there), f"{page} has no command {listed} any more"
        for language, names in FILES.get(page, {}).items():
            untitled = [block for block in found if block.language == language and not block.title]
            assert len(untitled) >= len(names), page
    for key in (*PROMISES, *TYPED, *BEFORE):
        assert any(command.startswith(key) for command in everything), f"no page has a command {key} any more"


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.mark.slow
@pytest.mark.timeout(4 * PATIENCE)
@pytest.mark.parametrize("page", PAGES)
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this is no git checkout, which could be cloned")
def test_a_page_as_printed_from_a_fresh_clone(page, home, tmp_path):
    Walk(page, clone(tmp_path), home).go()


class Walk:
    def __init__(self, page: str, place: Path, home: Path) -> None:
        self.page, self.place, self.home = page, place, home
        self.shell = Shell(place, home)
        self.activated = ""
        self.servers: dict[str, Shell] = {}
        self.files = {language: list(names) for language, names in FILES.get(page, {}).items()}
        self.cells: list[str] = []

    def go(self) -> None:
        lay_out_hub(self.place)
        if self.page == "README.md":  # which leaves the data to its reader
            rows = load("train[:600]").to_list()
            pairs = [{side: dialogue_messages(row[side]) for side in ("chosen", "rejected")} for row in rows]
            Dataset.from_list(pairs).to_json(self.place / "pairs.jsonl")
            prompts = [{"prompt": row["chosen"][:-1]} for row in pairs]
            Dataset.from_list(prompts).to_json(self.place / "prompts.jsonl")
        try:
            for block in blocks(self.page):
                self.follow(block)
            for command in list(self.servers):
                self.stop(command)
            if self.cells:  # one program, cell by cell
                (self.place / "cells.py").write_text("\n".join(self.cells))
                self.run(".venv/bin/python cells.py")
            self.left_nothing()
        finally:
            for shell in (self.shell, *self.servers.values()):
                shell.close()
            for process in self.processes():
                process.kill()

    def follow(self, block: Block) -> None:
        name = block.title or next(iter(self.files.get(block.language, [])), "")
        if block.language not in COMMANDS and name:
            (self.place / name).write_text(block.text)
            if not block.title:
                self.files[block.language].pop(0)
        elif block.language == "python":
            self.cells.append(block.text)
        elif block.language == "console":
            self.refusals(block)
        elif block.language in COMMANDS:
            for command in commands(block.text):
                if not entry(NOT_RUN.get(self.page, {}), command):
                    self.type(command)

    def type(self, command: str) -> None:
        for port in entry(PORTS, command) or ():
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    pytest.skip(f"{self.page}: {command} needs port {port}, which is taken here")
        if command.startswith(SERVERS):
            self.serve(command, *entry(PORTS, command))
            return
        if before := entry(BEFORE, command):
            self.run(before)
        self.run(entry(CHANGED, command) or command, entry(PROMISES, command))
        if after := entry(AFTER, command):
            self.run(after)
        if "activate" in command:
            self.activated = command

    def run(self, command: str, promise: str | None = None) -> None:
        self.shell.start(command, entry(TYPED, command) or "")
        done = self.shell.end(PATIENCE)
        where = f"{self.page}: {command}\n{done.out[-3000:]}\n{done.err[-3000:]}"
        assert done.status == 0, where
        assert "Traceback" not in done.out + done.err, where
        assert not promise or re.search(promise, done.out.strip()), f"{promise} not in {where}"

    def refusals(self, block: Block) -> None:
        expected: list[str] = []
        for line in [*block.text.splitlines(), "$ "]:
            if not line.startswith("$ "):
                expected.append(line)
                continue
            if expected:
                done = self.shell.end(PATIENCE)
                assert done.status == 2, f"{self.page}: {done}"
                assert set(expected) <= set(done.err.splitlines()), f"{self.page}: {expected}\n{done.err}"
            expected = []
            if line[2:]:
                self.shell.start(line[2:])

    def serve(self, command: str, port: int) -> None:
        shell = self.servers[command] = Shell(self.place, self.home)
        shell.start(self.activated or ":")
        assert shell.end(60).status == 0
        shell.start(command)
        if command.startswith("rlhf playground"):
            shell.printed(f"The playground is on http://127.0.0.1:{port} until Ctrl-C.\n", PATIENCE)
            _await(f"http://127.0.0.1:{port}/playground", shell)
        elif command.startswith("rlhf"):  # it prints how to ask it
            said = shell.printed("/invocations", PATIENCE)
            assert f" answers on http://127.0.0.1:{port} until Ctrl-C" in said
            self.run(said.splitlines()[-1], PROMISES["curl"])
        else:
            _await(f"http://127.0.0.1:{port}/ping", shell)

    def stop(self, command: str) -> None:
        shell = self.servers[command]
        shell.interrupt()
        done = shell.end(60)
        if command.startswith("rlhf"):  # MLflow's own command says Aborted, and exits with 1 or 0
            assert done.status == 0, f"{self.page}: {command}\n{done}"
            assert done.err == "", done.err[-3000:]

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter(["cmdline"]):
            if any(str(self.place) in word for word in process.info["cmdline"] or ()):
                found.append(process)
        return found

    def left_nothing(self) -> None:
        """No process of the clone's goes on, and no database is outside its run folder."""
        _, alive = psutil.wait_procs(self.processes(), timeout=30)
        assert not alive, [process.cmdline() for process in alive]
        strays = [path for name in ("mlflow.db", "mlruns", "mlartifacts") for path in self.place.rglob(name)]
        assert set(strays) <= {self.place / "runs/mlflow.db"}


def _await(page: str, shell: Shell) -> None:
    until = time.monotonic() + PATIENCE
    while True:
        try:
            urllib.request.urlopen(page, timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < until
            assert not shell.status.exists(), shell.err.read_text()[-3000:]
            time.sleep(0.5)
