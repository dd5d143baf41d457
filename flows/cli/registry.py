"""`rlhf compare`, `promote`, `rollback`, `models`, `chat`, `playground`, `serve` and `push`: registered models."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

from flows.cli import annotate
from flows.cli.starting import starting


def add_commands(commands: Any, override_option: Callable[[argparse.ArgumentParser], None]) -> None:
    compare = commands.add_parser("compare", help="compare models on the same prompts and seeds")
    compare.set_defaults(function=_compare)
    compare.add_argument(
        "models",
        nargs="+",
        metavar="MODEL",
        help="models:/NAME/VERSION, models:/NAME@ALIAS, hub id, folder, or 'reference' (of the first version)",
    )
    compare.add_argument(
        "--recipe", help="the recipe whose prompts, generation and reward are used (default: the first version's own)"
    )
    compare.add_argument(
        "--prompts", type=int, metavar="N", help="number of held-out prompts (default: as in the recipe)"
    )
    override_option(compare)

    promote = commands.add_parser("promote", help="make a registered version the champion")
    promote.set_defaults(function=_promote)
    promote.add_argument("name", help="registered model")
    promote.add_argument("version")
    promote.add_argument("--why", metavar="TEXT", help="reason, kept in the record")

    rollback = commands.add_parser("rollback", help="make the previous champion the champion again")
    rollback.set_defaults(function=_rollback)
    rollback.add_argument("name", help="registered model")
    rollback.add_argument("--why", metavar="TEXT", help="reason, kept in the record")

    models = commands.add_parser("models", help="list registered models, their versions and metrics")
    models.set_defaults(function=_models)
    models.add_argument("name", nargs="?", help="show only this model, with every change of champion")

    chat = commands.add_parser("chat", help="chat with a model and its reference in the terminal")
    chat.set_defaults(function=_chat)
    chat.add_argument("model", help="registered model: NAME (its champion), NAME@ALIAS, NAME/VERSION; folder or hub id")
    chat.add_argument(
        "--recipe", help="the recipe whose template, generation and reward are used (default: the version's own)"
    )
    override_option(chat)

    playground = commands.add_parser("playground", help="compare the answers of registered models in the browser")
    playground.set_defaults(function=_playground)
    playground.add_argument(
        "models",
        nargs="*",
        metavar="NAME",
        help="registered model: NAME (its champion), NAME@ALIAS or NAME/VERSION, with its reference (default: all)",
    )
    playground.add_argument("--port", type=int, default=4310, help="(default: 4310; 0: any free one)")
    playground.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: 127.0.0.1, this machine only; elsewhere people log in as annotators do)",
    )
    annotate.serving_options(playground)

    serve = commands.add_parser("serve", help="answer questions over HTTP with a registered model")
    serve.set_defaults(function=_serve)
    serve.add_argument("model", help="registered model: NAME (its champion), NAME@ALIAS or NAME/VERSION")
    serve.add_argument("--port", type=int, default=4300, help="port on 127.0.0.1 (default: 4300; 0: any free one)")

    push = commands.add_parser("push", help="upload a registered model, with its card, to the Hugging Face hub")
    push.set_defaults(function=_push)
    push.add_argument("model", help="registered model: NAME (its champion), NAME@ALIAS or NAME/VERSION")
    push.add_argument("repo", metavar="REPO", help="USER/NAME on the hub; made where it is missing")
    push.add_argument("--private", action="store_true", help="make a new repository private")
    push.add_argument("--revision", metavar="BRANCH", help="the branch to commit to (default: main)")
    push.add_argument("--dry-run", action="store_true", help="list what would go up; needs no token and no network")


def _compare(args: argparse.Namespace) -> int:
    from flows.servers import temporary_server

    with starting():
        temporary_server.begin()
        from flows.cli.tables import comparison_table
        from flows.compare import compare as flow
        from flows.orchestration import logs

        logs.leave_to_caller()
        temporary_server.wait()
    record = flow(models=args.models, recipe=args.recipe, overrides=args.overrides, prompts=args.prompts)
    print(f"\n{comparison_table(record)}\n\n{record['report']}")
    return 0


def _promote(args: argparse.Namespace) -> int:
    _open_registry()
    from tasks.registry import champions

    print(champions.promote(args.name, args.version, args.why))
    return 0


def _rollback(args: argparse.Namespace) -> int:
    _open_registry()
    from tasks.registry import champions

    print(champions.rollback(args.name, args.why))
    return 0


def _models(args: argparse.Namespace) -> int:
    from flows.cli.tables import row
    from tasks.registry import champions, versions

    if args.name is None and (nothing := versions.store_missing()):
        print(nothing)
        return 0
    _open_registry()
    names = versions.registered(args.name)
    if not names:
        print("nothing is registered yet: rlhf run RECIPE makes a version")
    for name in names:
        rows = [versions.HEADER, *versions.version_rows(name)]
        widths = [max(len(cells[column]) for cells in rows) for column in range(len(versions.HEADER) - 1)] + [48]
        print(name)
        print("\n".join(row(cells, widths) for cells in rows), end="\n\n")
        if args.name:
            print("\n".join(map(str, champions.history(name))))
    return 0


def _chat(args: argparse.Namespace) -> int:
    """Answer each line that is typed or piped in, or do what it commands; ignore empty lines; stop at the end of
    input."""
    _open_registry(needed=args.recipe is None)
    from tasks.registry.chat import Chat

    talk = Chat(args.model, args.recipe, args.overrides)
    asked = sys.stdin.isatty()
    if asked:
        import readline  # noqa: F401 - input() then edits lines and remembers them

        print(f"{talk.about}\nCtrl-D ends it.")
    turn = 0
    while True:
        try:
            typed = input("\n> " if asked else "")
        except EOFError:
            return 0
        if not typed.strip():
            continue
        if (done := talk.command(typed)) is not None:
            print(done, flush=True)
            continue
        for answer in talk.answer(typed, turn):
            print(answer, flush=True)
        turn += 1


def _playground(args: argparse.Namespace) -> int:
    _open_registry()
    from tasks.pages.playground_server import require, serve

    require(args.models)  # before a database is made
    serve(
        annotate.open_database(args.database),
        args.models,
        host=args.host,
        port=args.port,
        names=args.public_name,
        https=args.https,
    )
    return 0


def _serve(args: argparse.Namespace) -> int:
    _open_registry()
    from tasks.registry.serving import serve

    serve(args.model, args.port)
    return 0


def _push(args: argparse.Namespace) -> int:
    _open_registry()
    from rlhf_lib.plan.words import size
    from tasks.registry import push

    if not args.dry_run:
        print(push.push(args.model, args.repo, private=args.private, revision=args.revision))
        return 0
    upload = push.prepare(args.model, ask_hub=False)
    print(f"{upload.version} would go to {args.repo}:")
    for name, count in upload.sizes().items():
        print(f"{size(count):>9}  {name}")
    print(f"\n{push.CARD} begins with:\n\n{upload.head()}")
    return 0


def _open_registry(needed: bool = True) -> None:
    """Check the servers, and that there is a registry if one is needed. Raises EnvironmentFault."""
    from flows.servers import environment
    from rlhf_lib.errors import EnvironmentFault
    from tasks.registry import versions

    if needed and (nothing := versions.store_missing()):
        raise EnvironmentFault(nothing)
    environment.check()
