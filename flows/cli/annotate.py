"""`rlhf annotate` and `rlhf annotators`: the pages where people rank answers, and who may log in."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rlhf_lib.data.rankings.files import Rejected
    from tasks.annotation.database import Database

PORT = 4400
DATABASE = "RLHF_ANNOTATION_DATABASE"


def add_commands(commands: Any) -> None:
    annotate = commands.add_parser("annotate", help="open the pages where people rank answers in a browser")
    annotate.set_defaults(function=_annotate)
    annotate.add_argument(
        "tasks",
        nargs="*",
        metavar="TASKS.jsonl",
        help="a new round, of files that rlhf collect wrote (default: no new one)",
    )
    annotate.add_argument("--annotators", type=int, default=3, metavar="K", help="people per task (default: 3)")
    annotate.add_argument("--name", metavar="NAME", help="what to call the round (default: the first file's name)")
    annotate.add_argument(
        "--lease",
        type=float,
        default=30,
        metavar="MINUTES",
        help="how long a task waits for whom it was handed to (default: 30)",
    )
    annotate.add_argument("--port", type=int, default=PORT, help=f"(default: {PORT}; 0: any free one)")
    annotate.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)"
    )
    serving_options(annotate)
    annotate.add_argument("--no-links", action="store_true", help="print no login links, where the output is a log")
    annotate.add_argument(
        "--demo", action="store_true", help="try it: a round of the embedded data, in a database that goes"
    )
    annotate.add_argument(
        "--import",
        dest="imports",
        nargs="+",
        default=[],
        metavar="FILE",
        help="take rankings: JSONL or CSV of the round's tasks, or exports of Argilla or Label Studio",
    )
    annotate.add_argument(
        "--export", type=Path, metavar="FOLDER", help="write the rounds' tasks and rankings there, and end"
    )

    annotators = commands.add_parser("annotators", help="who may log in to the pages: list, add, remove, reset")
    annotators.set_defaults(function=_annotators)
    annotators.add_argument("action", choices=["list", "add", "remove", "reset"])
    annotators.add_argument("name", nargs="?")
    annotators.add_argument("--owner", action="store_true", help="add: may see everything, too")
    annotators.add_argument("--password-stdin", action="store_true", help="add, reset: read the password from stdin")
    annotators.add_argument("--url", default=f"http://127.0.0.1:{PORT}", help="the pages' address, for the login link")
    _database_option(annotators)


def serving_options(parser: argparse.ArgumentParser) -> None:
    """Of every command that serves pages: the database, and how browsers reach them."""
    _database_option(parser)
    parser.add_argument(
        "--public-name",
        action="append",
        default=[],
        metavar="NAME",
        help="a host name under which browsers ask (repeatable)",
    )
    parser.add_argument("--https", action="store_true", help="a proxy in front speaks HTTPS: cookies go over it only")


def _database_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--database",
        metavar="URL",
        help=f"sqlite:///FILE or postgresql://... (default: ${DATABASE}, or annotation.db in the run folder)",
    )


def open_database(url: str | None) -> Database:
    """The database of annotation: the URL's, the environment's, or the run folder's."""
    from flows.servers import environment
    from tasks.annotation.database import Database, sqlite_url

    return Database(url or os.environ.get(DATABASE) or sqlite_url(environment.run_dir() / "annotation.db"))


def _annotate(args: argparse.Namespace) -> int:
    if not args.demo:
        return _serve(args, open_database(args.database))
    from tasks.annotation import accounts, demo
    from tasks.annotation.database import Database, sqlite_url
    from tasks.annotation.store import open_round

    with tempfile.TemporaryDirectory(prefix="rlhf-annotate-") as folder:
        database = Database(sqlite_url(Path(folder) / "annotation.db"))
        open_round(database, "demo", demo.tasks(), annotators=args.annotators)
        accounts.add(database, "annotator")
        try:
            return _serve(args, database, demo="annotator")
        finally:
            database.close()


def _serve(args: argparse.Namespace, database: Database, demo: str | None = None) -> int:
    from tasks.annotation import accounts, overview
    from tasks.pages.serving import serve

    _open_and_import(args, database)
    if args.export is not None:
        _export(args.export, database)
        return 0
    for one in overview.rounds(database):
        wanted = f" of {one.wanted}" if one.wanted else ""
        print(f"round {one.id}, {one.name}: {one.tasks} tasks, {one.rankings}{wanted} rankings")
    owner = next((one.name for one in accounts.listed(database) if one.role == "owner" and one.active), None)
    if owner is None:
        owner = accounts.add(database, "owner", role="owner")[0].name

    if args.host not in ("127.0.0.1", "::1", "localhost") and not args.https:
        print(
            "rlhf: warning: others can connect, and without HTTPS whoever is between reads passwords: "
            "put a proxy in front (--https, docs/rankings.md)",
            file=sys.stderr,
        )

    def ready(address: str) -> None:
        print(f"pages on {address} until Ctrl-C{'' if args.no_links else '; log in:'}", flush=True)
        for name in (owner, demo):
            if name is not None and not args.no_links:
                print(f"  {name:10} {address}/login/{accounts.link(database, name)}", flush=True)
        if demo is None:
            print("  annotators: rlhf annotators add NAME, or on the owner's page", flush=True)

    serve(database, args.host, args.port, names=args.public_name, https=args.https, ready=ready)
    return 0


def _open_and_import(args: argparse.Namespace, database: Database) -> None:
    """Open the round of the task files, and take the rankings of others."""
    from rlhf_lib.data.rankings.exports import is_export
    from rlhf_lib.errors import DataError
    from tasks.annotation import exchange, overview
    from tasks.annotation.store import open_round

    of: int | None = None
    rejected: list[Rejected] = []
    if args.tasks:
        tasks, rejected = exchange.read_tasks(args.tasks)
        name = args.name or Path(args.tasks[0]).stem
        opened, new = open_round(database, name, tasks, annotators=args.annotators, lease=60 * args.lease)
        of = opened.id
        print(f"{'opened' if new else 'there is already'} round {of}, {opened.name}")
    for file in args.imports:
        if is_export(file):
            _, taken = exchange.bring_export(database, args.name or Path(file).stem, file)
        else:
            of = of or max((one.id for one in overview.rounds(database) if one.handed_out), default=None)
            if of is None:
                raise DataError(f"--import {file}: there is no round of its tasks: name their file too")
            taken = exchange.bring_rankings(database, of, [file])
        print(f"{file}: {taken.new} rankings taken, {taken.known} were there already")
        rejected += taken.rejected
    for row in rejected:
        print(f"rlhf: {row}", file=sys.stderr)


def _export(folder: Path, database: Database) -> None:
    """Write each round's files: of several, each to a folder of its own."""
    from rlhf_lib.errors import DataError
    from tasks.annotation import exchange, overview

    rounds = overview.rounds(database)
    if not rounds:
        raise DataError("there is no round to export: rlhf annotate TASKS.jsonl opens one")
    for one in rounds:
        into = folder if len(rounds) == 1 else folder / f"round-{one.id}"
        print(*exchange.export(database, one.id, into).values(), sep="\n")


def _annotators(args: argparse.Namespace) -> int:
    from rlhf_lib.errors import DataError
    from tasks.annotation import accounts

    database = open_database(args.database)
    if args.action == "list":
        for one in accounts.listed(database):
            state = "" if one.active and one.password else "  no login"
            print(f"{one.name:24} {one.role}{state}")
        return 0
    if not args.name:
        raise DataError(f"rlhf annotators {args.action} needs a name")
    password = sys.stdin.readline().rstrip("\n") if args.password_stdin else None
    if args.action == "remove":
        accounts.remove(database, args.name)
        print(f"{args.name} can no longer log in; what they judged stays")
        return 0
    if args.action == "add":
        _, password = accounts.add(database, args.name, role="owner" if args.owner else "annotator", password=password)
    else:
        password = accounts.reset(database, args.name, password)
    print(f"name      {args.name}")
    if not args.password_stdin:
        print(f"password  {password}")
    print(f"link      {args.url.rstrip('/')}/login/{accounts.link(database, args.name)}  (seven days)")
    return 0
