"""The `rlhf` command: parse, call a flow, print. Each sub-command imports the heavy packages that it needs."""

from __future__ import annotations

import argparse
import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

from flows.cli import annotate, annotation, check, faults, registry, retention, servers
from flows.cli.configure import configure
from flows.cli.starting import starting
from flows.orchestration import logs


def main(argv: list[str] | None = None) -> int:
    """Run the command line; 0 when all went well, 2 for an error that the user can fix, 1 for a failed gate, 3 for any
    other error, 130 or 143 where it was interrupted."""
    signals = faults.Signals()
    with signals.caught():
        try:
            return _main(argv)
        except Exception as error:
            return faults.tell_interrupted(error, signals.number) if signals.number else faults.tell(error)
        except KeyboardInterrupt as error:
            return faults.tell_interrupted(error, signals.number)
        finally:
            logs.close_file()


def _main(argv: list[str] | None) -> int:
    parser = argparse.ArgumentParser(
        prog="rlhf", description="PPO-RLHF as a pipeline: run it, schedule it, watch it, compare it."
    )
    parser.add_argument(
        "--version", action=_Version, nargs=0, default=argparse.SUPPRESS, help="print the version and exit"
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run a recipe end to end")
    run.set_defaults(function=_run)
    run.add_argument("recipe", help="the name of a shipped recipe, or a YAML file of your own")
    _override_option(run)
    run.add_argument("--name", metavar="NAME", help="what to call the run (default: the recipe and what is overridden)")
    run.add_argument("--summary", type=Path, metavar="FILE", help="write the run's record as JSON")
    run.add_argument("--fresh", action="store_true", help="redo every stage instead of reusing unchanged ones")
    run.add_argument("--until", metavar="STAGE", help="stop after a stage: data, base_model, reward_model, ...")

    commands.add_parser("recipes", help="list the shipped recipes").set_defaults(function=_recipes)
    show = commands.add_parser("show", help="print a recipe, validated, with all its defaults")
    show.set_defaults(function=_show)
    show.add_argument("recipe")
    _override_option(show)

    check.add_commands(commands, _override_option)
    annotation.add_commands(commands, _override_option)
    annotate.add_commands(commands)
    registry.add_commands(commands, _override_option)
    retention.add_commands(commands)
    servers.add_commands(commands)
    for name, command in commands.choices.items():
        command.add_argument("--debug", action="store_true", help="print Prefect's whole log, and tracebacks of errors")
        if name not in ("recipes", "show", "rankings"):
            command.add_argument(
                "--run-dir", type=Path, metavar="DIR", help="run folder (default: $RLHF_RUN_DIR or ./runs)"
            )

    args = parser.parse_args(argv)
    function = args.function
    del args.function
    logs.details(args.debug)
    del args.debug
    configure()
    _refuse_secrets(args)
    _use_run_dir(getattr(args, "run_dir", None))
    status: int = function(args)
    return status


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        import rlhf_lib

        print(f"rlhf {rlhf_lib.__version__}")
        parser.exit()


def _refuse_secrets(args: argparse.Namespace) -> None:
    """Raise RecipeError for arguments that hold secrets, since Prefect stores a flow's parameters as they are."""
    from rlhf_lib.credentials import refusal
    from rlhf_lib.errors import RecipeError

    given = {key: value for key, value in vars(args).items() if key != "overrides"}  # load_recipe names those by key
    if reason := refusal(given, f"rlhf {args.command}"):
        raise RecipeError(reason)


def _override_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="a.b=c", help="override a setting (repeatable)"
    )


def _use_run_dir(folder: Path | None) -> None:
    """Switch to another run folder, before anything reads the settings."""
    if folder is None:
        return
    from flows.servers import environment

    embedded = f"sqlite:///{environment.run_dir()}/mlflow.db"
    home = str(environment.run_dir() / "prefect")
    os.environ["RLHF_RUN_DIR"] = str(folder.absolute())
    for name, default in (("MLFLOW_TRACKING_URI", embedded), ("PREFECT_HOME", home)):
        if os.environ.get(name) == default:
            del os.environ[name]
    environment.configure()


def _run(args: argparse.Namespace) -> int:
    from flows.servers import environment, temporary_server
    from rlhf_lib.recipe import load_recipe
    from tasks.stage.keys import check_stage

    load_recipe(args.recipe, args.overrides)
    until = check_stage(args.until) if args.until is not None else None
    environment.check()
    if args.summary is not None and not args.summary.absolute().parent.is_dir():
        from rlhf_lib.errors import EnvironmentFault

        raise EnvironmentFault(f"--summary {args.summary}: its folder doesn't exist: create it first")

    api = environment.prefect_api()
    gc.disable()  # what is imported stays: looking through it again and again costs a second
    with starting():
        temporary_server.begin()
        from flows.rlhf import rlhf

        logs.leave_to_caller()
        temporary_server.wait()
    gc.freeze()
    gc.enable()
    flow = rlhf.with_options(flow_run_name=lambda: args.name) if args.name else rlhf
    record = flow(recipe=args.recipe, overrides=args.overrides, fresh=args.fresh, until=until)

    from flows.cli.tables import next_commands, report_page, run_table, stages_table
    from tasks.tracking.runs import mlflow_link

    if args.summary is not None:
        args.summary.write_text(json.dumps(record, indent=2) + "\n")
    opener = "open" if sys.platform == "darwin" else "xdg-open"
    print(f"\n{stages_table(record) if until else run_table(record)}\n")
    pages = f"Prefect on {api.removesuffix('/api') if api else 'http://127.0.0.1:4200'}/runs, "
    pages += f"this run in MLflow on {mlflow_link(record['mlflow_run_id'])}"
    opened = "make ui" if Path("Makefile").is_file() else "rlhf ui"
    print(pages if api else f"{opened}       {pages}")
    if record["reward"] is not None:
        print(f"{opener} {report_page(record, environment.run_dir())}")
    if commands := next_commands(record):
        print(f"\n{commands}")
    return 0


def _recipes(args: argparse.Namespace) -> int:
    from textwrap import fill

    from flows.cli.tables import row
    from rlhf_lib.recipe import load_recipe, shipped

    recipes = [load_recipe(name) for name in shipped()]
    widths = (max(len(recipe.name) for recipe in recipes), 31, 22, 36)
    print(row(("RECIPE", "MODELS", "HARDWARE", "TIME"), widths))
    for recipe in recipes:
        print(row((recipe.name, recipe.about.models, recipe.about.hardware, recipe.about.time), widths))
        print(fill(recipe.description, 120, initial_indent="  ", subsequent_indent="  "))
    return 0


def _show(args: argparse.Namespace) -> int:
    import yaml

    from rlhf_lib.recipe import load_recipe

    recipe = load_recipe(args.recipe, args.overrides)
    print(yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True), end="")
    return 0
