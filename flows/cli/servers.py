"""`rlhf ui`, `up` and `down`: the servers on this machine."""

from __future__ import annotations

import argparse
import sys
from typing import Any


def add_commands(commands: Any) -> None:
    for name, about in (
        ("ui", "start the Prefect server and MLflow's UI on 127.0.0.1"),
        (
            "up",
            "start servers, a worker, all deployments of prefect.yaml and the pages for ranking; leave them running",
        ),
        ("down", "stop what rlhf up started"),
    ):
        command = commands.add_parser(name, help=about)
        command.set_defaults(function=_serve)
        if name != "down":
            command.add_argument("--prefect-port", type=int, default=4200)
            command.add_argument("--mlflow-port", type=int, default=5000)
        if name == "up":
            command.add_argument("--annotate-port", type=int, default=4400)


def _serve(args: argparse.Namespace) -> int:
    from flows.servers import services

    if args.command == "down":
        services.down()
        return 0
    try:
        if args.command == "ui":
            services.ui(args.prefect_port, args.mlflow_port)
        else:
            services.up(args.prefect_port, args.mlflow_port, args.annotate_port)
    except KeyboardInterrupt:
        print("rlhf: interrupted; everything that it had started is stopped", file=sys.stderr)
        return 130
    return 0
