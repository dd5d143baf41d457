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
    for line in _lines(record["removed"]):
        print(line)
    count, kept = len(record["removed"]), record["kept"]
    total = f"{count} {'piece' if count == 1 else 'pieces'}, {readable_size(record['bytes'])}"
    total += " would be removed" if args.dry_run else " removed"
    needed = f"what the registered versions of {kept['versions']} runs need"
    print(f"{total}. Left alone: {kept['live']} live runs, and {needed}")
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


def _lines(pieces: list[dict[str, Any]]) -> list[str]:
    """A line for each run and kind, with the stages whose folders it is about."""
    from tasks.stage.full_disk import readable_size

    grouped: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for piece in pieces:
        grouped.setdefault((piece["kind"], piece["run"]), []).append(piece)
    lines = []
    for (kind, run), parts in grouped.items():
        stages = ", ".join(part["stage"] for part in parts if part["stage"])
        size = readable_size(sum(part["bytes"] for part in parts))
        lines.append(f"{kind:<12}{size:>9}  {run}{': ' if stages else ''}{stages}")
    return lines
