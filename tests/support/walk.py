"""A reader at a terminal: a fresh clone, a shell with nothing set, and the blocks of a page in their order."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
SCRIPTS = {  # what pip would have put beside the environment's Python
    "rlhf": "flows.cli:main",
    "mlflow": "mlflow.cli:cli",
    "prefect": "prefect.cli:app",
    "uvicorn": "uvicorn.main:main",
}


class Block(NamedTuple):
    line: int
    language: str
    title: str
    text: str


def blocks(page: str) -> Iterator[Block]:
    """Every fenced or indented block of the page, in its order; what is indented counts as `sh`."""
    for token in MarkdownIt().parse((ROOT / page).read_text()):
        if token.type in ("fence", "code_block") and token.map:
            language, _, more = (token.info or "sh").partition(" ")
            yield Block(token.map[0] + 1, language, more.removeprefix('title="').removesuffix('"'), token.content)


def commands(text: str) -> list[str]:
    """The commands of a block as printed, comments included; one may go over several lines."""
    joined = text.replace("\\\n", "\\\0").splitlines()
    return [line.replace("\0", "\n") for line in joined if line.strip() and not line.startswith("#")]


def bare(command: str) -> str:
    """The command on one line and without the comment behind it."""
    return " ".join(command.replace("\\\n", " ").split("  #")[0].split())


def clone(folder: Path) -> Path:
    """A fresh clone, what isn't committed yet included, with an environment in .venv that has the packages of this one:
    installing them again takes minutes and an index."""
    place = folder / "ppo-rlhf"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(place)], check=True)
    changes = subprocess.run(
        ["git", "-C", str(ROOT), "diff", "--binary", "HEAD"], check=True, capture_output=True
    ).stdout
    if changes:
        subprocess.run(["git", "-C", str(place), "apply"], check=True, input=changes)
    base = getattr(sys, "_base_executable", sys.executable)
    subprocess.run([base, "-m", "venv", "--without-pip", str(place / ".venv")], check=True)
    [packages] = place.glob(".venv/lib/*/site-packages")
    (packages / "walk.pth").write_text(f"{place}\n{sysconfig.get_path('purelib')}\n")
    for name, entry in SCRIPTS.items():
        module, _, function = entry.partition(":")
        script = place / ".venv/bin" / name
        script.write_text(
            f"#!{place}/.venv/bin/python\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n"
        )
        script.chmod(0o755)
    (place / ".venv/.ready").touch()  # for make: newer than pyproject.toml
    return place


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str


class Shell:
    """bash with PATH and HOME alone, in a folder. Commands share its state, as those typed into one terminal do."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.files = home / f"shell-{time.monotonic_ns()}"
        self.files.mkdir()
        path = [part for part in os.environ["PATH"].split(os.pathsep) if not Path(part, "rlhf").exists()]
        self.bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            stdin=subprocess.PIPE,
            cwd=folder,
            env={"PATH": os.pathsep.join(path), "HOME": str(home)},
            text=True,
            start_new_session=True,  # Ctrl-C in this terminal reaches what runs there and nothing else
        )
        self.count = 0

    def start(self, command: str, typed: str = "") -> None:
        """Type the command; `typed` is what is typed into it, before the end of input."""
        self.count += 1
        self.out, self.err, self.status = (self.files / f"{self.count}.{end}" for end in ("out", "err", "status"))
        script, keys = self.files / f"{self.count}.sh", self.files / f"{self.count}.in"
        script.write_text(f"{command}\n")
        keys.write_text(typed)
        assert self.bash.stdin
        self.bash.stdin.write(
            f". {script} <{keys} >{self.out} 2>{self.err}; echo $? >{keys}; mv {keys} {self.status}\n"
        )
        self.bash.stdin.flush()

    def printed(self, text: str, patience: float) -> str:
        """What the command has printed, once the text is in it."""
        until = time.monotonic() + patience
        while text not in (said := self.out.read_text() if self.out.exists() else ""):
            late = time.monotonic() > until or self.status.exists()
            assert not late, f"not printed: {text}\n{said}\n{self.err.read_text()[-3000:]}"
            time.sleep(0.2)
        return said

    def interrupt(self) -> None:
        os.killpg(self.bash.pid, signal.SIGINT)

    def end(self, patience: float) -> Done:
        """The result of the command that was started."""
        until = time.monotonic() + patience
        while not self.status.exists():
            assert self.bash.poll() is None, f"the shell is gone: {self.bash.returncode}"
            assert time.monotonic() < until, f"not done within {patience:.0f} s\n{self.err.read_text()[-3000:]}"
            time.sleep(0.1)
        return Done(int(self.status.read_text()), self.out.read_text(), self.err.read_text())

    def close(self) -> None:
        """Close the terminal."""
        if self.bash.poll() is None:
            os.killpg(self.bash.pid, signal.SIGKILL)
        self.bash.wait()
