"""`rlhf clean`: what old runs left behind."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.retention.settings import Retention


def add_commands(commands: Any) -> None:
    clean = commands.add_parser(
        "clean",
        help="remove what old runs left behind",
        description="Remove the checkpoints, stages' folders, MLflow artifacts and MLflow runs that the section "
        "`retention` of RUN_DIR/settings.yaml doesn't keep. What registered versions need stays, and so does what live "
        "runs use.",
    )
    clean.set_defaults(function=_clean)
    clean.add_argument("--dry-run", action="store_true", help="list what would go, with sizes, and remove nothing")
    clean.add_argument("--newest", type=int, metavar="N", help="keep the newest N finished runs of each recipe")
    clean.add_argument("--days", type=float, metavar="D", help="keep what is younger than D days")
    clean.add_argument(
        "--only",
        metavar="KIND,...",
        help="of checkpoints, work, artifacts and runs (default: those that the settings name)",
    )


def _clean(args: argparse.Namespace) -> int:
    from flows.servers import environment

    environment.check()
    from tasks.retention.clean import clean, raise_failures
    from tasks.retention.settings import load
    from tasks.stage.full_disk import readable_size

    root = environment.run_dir()
    only = [kind.strip() for kind in args.only.split(",")] if args.only else None
    policy = load(root).retention.changed(args.newest, args.days, only)
    print(_told(policy))
    record = clean(root, policy, dry_run=args.dry_run)
    for piece in record["removed"]:
        print(f"{piece['kind']:<12}{readable_size(piece['bytes']):>9}  {piece['run']}")
    kept = record["kept"]
    count = len(record["removed"])
    total = f"{count} {'piece' if count == 1 else 'pieces'}, {readable_size(record['bytes'])}"
    print(
        f"{total} {'would be removed' if args.dry_run else 'removed'}; {kept['live']} live runs and {kept['versions']} "
        "runs of registered versions were left alone"
    )
    raise_failures(record)
    return 0


def _told(policy: Retention) -> str:
    """The policy in words, a line for each kind."""
    from tasks.retention.settings import KINDS

    lines = []
    for kind in KINDS:
        keep = getattr(policy, kind)
        parts = []
        if keep and keep.newest is not None:
            parts.append(f"the newest {keep.newest} finished runs of each recipe")
        if keep and keep.days is not None:
            parts.append(f"those younger than {keep.days:g} days")
        lines.append(f"{kind + ':':<13}keep {' and '.join(parts) or 'all'}")
    return "\n".join(lines) + "\n"
