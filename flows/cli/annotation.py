"""`rlhf collect` and `rlhf rankings`: sample responses for annotators, and check their rankings."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable
from typing import Any

from flows.cli.starting import starting


def add_commands(commands: Any, override_option: Callable[[argparse.ArgumentParser], None]) -> None:
    collect = commands.add_parser("collect", help="sample responses to a recipe's prompts for people to rank")
    collect.set_defaults(function=_collect)
    collect.add_argument("recipe", help="the name of a shipped recipe, or a YAML file of your own")
    collect.add_argument(
        "--out", required=True, metavar="FILE.jsonl", help="where to write the tasks; a CSV form is written beside them"
    )
    collect.add_argument(
        "--policy",
        metavar="MODEL",
        help="who answers: hub id, folder or models:/NAME@champion (default: the recipe's policy)",
    )
    collect.add_argument("--responses", type=int, default=4, help="responses per prompt (default: 4)")
    collect.add_argument(
        "--prompts", type=int, default=100, help="number of the recipe's training prompts (default: 100)"
    )
    collect.add_argument(
        "--criterion", default="helpful", help="helpful, honest, harmless, or your own (default: helpful)"
    )
    collect.add_argument("--instructions", help="instructions for the annotators (default: a standard text)")
    collect.add_argument(
        "--seed",
        type=int,
        help="seed of prompts and samples; use another one for another round (default: the recipe's)",
    )
    override_option(collect)

    rankings = commands.add_parser("rankings", help="check annotators' rankings and show how well they agree")
    rankings.set_defaults(function=_rankings)
    rankings.add_argument("files", nargs="*", metavar="FILE", help="rankings as JSONL or CSV")
    rankings.add_argument("--tasks", nargs="+", default=[], metavar="FILE", help="the files written by rlhf collect")
    rankings.add_argument("--feedback", nargs="+", default=[], metavar="FILE", help="files with thumbs up and down")
    rankings.add_argument("--criterion", help="only judgements by this criterion (default: the one in the files)")
    rankings.add_argument(
        "--consensus", choices=["majority", "bradley_terry", "none"], default="majority", help="(default: majority)"
    )
    rankings.add_argument(
        "--flag-below",
        type=float,
        default=0.2,
        metavar="ALPHA",
        help="flag annotators whose agreement is below this (default: 0.2)",
    )


def _collect(args: argparse.Namespace) -> int:
    from flows.servers import environment, temporary_server
    from rlhf_lib.recipe import load_recipe

    load_recipe(args.recipe, args.overrides)
    environment.check()
    with starting():
        temporary_server.begin()

        from flows.collect import collect as flow
        from flows.orchestration import logs

        logs.leave_to_caller()
        temporary_server.wait()
    record = flow(**{key: value for key, value in vars(args).items() if key not in ("command", "run_dir")})
    counts = ", ".join(f"{name} {count}" for name, count in record["counts"].items())
    print(f"\n{record['files']['tasks']}\n{record['files']['form']}  (fill in annotator and rank)\n{counts}")
    print(f"rank them in a browser:  rlhf annotate {shlex.quote(record['files']['tasks'])}")
    return 0


def _rankings(args: argparse.Namespace) -> int:
    """Print the report. Exit status 0 even with rejected rows: people have to judge those."""
    from pydantic import ValidationError

    from rlhf_lib.data.rankings.consensus import gather
    from rlhf_lib.data.rankings.report import markdown
    from rlhf_lib.errors import DataError
    from rlhf_lib.recipe import RankingsConfig

    given = {"tasks": args.tasks, "rankings": args.files, "feedback": args.feedback, "criterion": args.criterion}
    try:
        settings = RankingsConfig.model_validate(given | {"consensus": args.consensus, "flag_below": args.flag_below})
    except ValidationError as error:
        raise DataError("; ".join(fault["msg"].removeprefix("Value error, ") for fault in error.errors())) from None
    print(markdown(gather(settings)), end="")
    return 0
