"""``sluice model load | unload | label | calibrate | reset | status``: what running workers serve.

Each command writes one record to the control topic and waits until every live scoring worker has acted on it.
"""

from __future__ import annotations

import asyncio
import getpass
import json
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.dead_letters import printable
from app.models.control import Wish, describe, encode, of_calibration, of_label, of_version
from app.models.control_progress import Outcome, Progress, progress_of
from app.settings import load_settings
from app.text_table import aligned
from schemas.topic_names import MODEL_CONTROL

if TYPE_CHECKING:
    from agents.worker_watch import WorkerWatch
    from app.models.control import ControlState, Target
    from app.settings import Settings

EXIT_FAILED = 1
EXIT_NO_WORKER = 3
EXIT_TIMED_OUT = 4
LOOK_EVERY_S = 0.2
"""Workers publish once a second."""
ROLE = "scoring"

Name = Annotated[str, typer.Argument(help="of the model")]
Version = Annotated[int, typer.Argument(min=1, help="of the model, as its folder is named")]
Timeout = Annotated[float, typer.Option(min=0, help="seconds to wait for the workers")]
NoWait = Annotated[bool, typer.Option("--no-wait", help="only write the record")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text")]


def register(cli: typer.Typer) -> None:
    """Add the commands to ``sluice model``."""
    for command in (load, unload, label, calibrate, reset, status):
        cli.command()(command)


def load(name: Name, version: Version, *, timeout: Timeout = 60, no_wait: NoWait = False) -> None:
    """Have every scoring worker load a version, whatever the version policy says."""
    _wish(of_version(name, version), 1, timeout_s=timeout, is_awaited=not no_wait)


def unload(name: Name, version: Version, *, timeout: Timeout = 60, no_wait: NoWait = False) -> None:
    """Have every scoring worker drain a version and let it go."""
    _wish(of_version(name, version), 0, timeout_s=timeout, is_awaited=not no_wait)


def label(
    name: Name,
    label: Annotated[str, typer.Argument(help="champion answers requests that pin nothing")],
    version: Version,
    *,
    timeout: Timeout = 60,
    no_wait: NoWait = False,
) -> None:
    """Move a label to a version; one that is not loaded is loaded first, and what cannot be loaded is refused."""
    _wish(of_label(name, label), version, timeout_s=timeout, is_awaited=not no_wait)


def calibrate(
    name: Name,
    version: Version,
    revision: Annotated[int, typer.Argument(min=0, help="of the calibration")],
    *,
    timeout: Timeout = 60,
    no_wait: NoWait = False,
) -> None:
    """Have a version use a revision of its calibration; the weights stay as they are."""
    _wish(of_calibration(name, version), revision, timeout_s=timeout, is_awaited=not no_wait)


def reset(
    name: Name,
    *,
    version: Annotated[int | None, typer.Option(min=1, help="whether it is loaded")] = None,
    label: Annotated[str | None, typer.Option(help="where it points")] = None,
    calibration: Annotated[int | None, typer.Option(min=1, help="the calibration of that version")] = None,
    timeout: Timeout = 60,
    no_wait: NoWait = False,
) -> None:
    """Take one decision back: the policies of the settings decide again."""
    targets = [
        *([] if version is None else [of_version(name, version)]),
        *([] if label is None else [of_label(name, label)]),
        *([] if calibration is None else [of_calibration(name, calibration)]),
    ]
    if len(targets) != 1:
        msg = "name one of --version, --label and --calibration"
        raise typer.BadParameter(msg)
    _wish(targets[0], None, timeout_s=timeout, is_awaited=not no_wait)


def status(*, as_json: AsJson = False) -> None:
    """What each live scoring worker has loaded, and what was decided by command."""
    state, workers = asyncio.run(_status(load_settings()))
    if as_json:
        decided = [{"what": describe(t, w), "at": w.at_us, "by": w.by} for t, w in state.wishes.items()]
        typer.echo(json.dumps({"control_offset": state.offset, "decided": decided, "workers": workers}))
    else:
        typer.echo("\n".join(_status_lines(state, workers)))
    if not workers:
        typer.echo(_no_worker(), err=True)
        raise typer.Exit(EXIT_NO_WORKER)


def _wish(target: Target, value: int | None, *, timeout_s: float, is_awaited: bool) -> None:
    wish = None if value is None else Wish(value, time.time_ns() // 1000, _user())
    code = asyncio.run(_carry_out(load_settings(), target, wish, timeout_s if is_awaited else None))
    if code:
        raise typer.Exit(code)


async def _carry_out(settings: Settings, target: Target, wish: Wish | None, timeout_s: float | None) -> int:
    """Write the record, wait for the workers, print how each fared; returns the exit code."""
    from agents.control import send_wishes  # noqa: PLC0415 - brings aiokafka; `sluice --help` is spared it
    from agents.worker_watch import watch_workers  # noqa: PLC0415

    record = (target.key, None) if wish is None else encode(target, wish)
    (offset,) = await send_wishes(settings.kafka, [record])
    typer.echo(f"{describe(target, wish)}: written to {MODEL_CONTROL} at offset {offset}")
    if timeout_s is None:
        return 0
    async with watch_workers(settings) as watch:
        return await _wait(watch, target, wish, offset, timeout_s=timeout_s)


async def _wait(watch: WorkerWatch, target: Target, wish: Wish | None, offset: int, *, timeout_s: float) -> int:
    deadline_s = time.monotonic() + timeout_s
    shown: dict[str, Progress] = {}
    while True:
        found = {
            worker: progress_of(document["stats"].get("models"), target, wish, offset)
            for worker, document in watch.stats(ROLE).items()
        }
        for worker, progress in found.items():
            if progress.outcome is not Outcome.WAITING and shown.get(worker) != progress:
                typer.echo(_line(worker, progress))
                shown[worker] = progress
        if not found:
            typer.echo(_no_worker(), err=True)
            return EXIT_NO_WORKER
        waiting = {worker: progress for worker, progress in found.items() if progress.outcome is Outcome.WAITING}
        if not waiting:
            return EXIT_FAILED if any(p.outcome is Outcome.FAILED for p in found.values()) else 0
        if time.monotonic() > deadline_s:
            return _give_up(waiting, timeout_s)
        await asyncio.sleep(LOOK_EVERY_S)
        await watch.refresh()


def _give_up(waiting: dict[str, Progress], timeout_s: float) -> int:
    for worker, progress in waiting.items():
        typer.echo(_line(worker, progress))
    advice = "the record stands, and they act on it when they can: see `sluice model status` and their logs"
    typer.echo(f"sluice: not all workers are there after {timeout_s:g} s; {advice}", err=True)
    return EXIT_TIMED_OUT


async def _status(settings: Settings) -> tuple[ControlState, dict[str, Any]]:
    from agents.control import ControlFollower  # noqa: PLC0415 - see _carry_out
    from agents.worker_watch import watch_workers  # noqa: PLC0415

    async def ignore(_state: ControlState) -> None: ...

    state = await ControlFollower(settings, ignore).read_all()
    async with watch_workers(settings) as watch:
        documents = watch.stats(ROLE)
    return state, {
        worker: {"web_url": document["web_url"], "models": document["stats"].get("models")}
        for worker, document in documents.items()
    }


def _status_lines(state: ControlState, workers: dict[str, Any]) -> list[str]:
    rows: list[tuple[str, ...]] = [
        ("WORKER", "MODEL", "VERSION", "STATE", "LABELS", "CALIBRATION", "DEVICE", "MEMORY", "REASON")
    ]
    for worker, document in workers.items():
        rows += [(worker, *_version_cells(entry)) for entry in _versions(document["models"])]
    lines = aligned(rows) if len(rows) > 1 else []
    for worker, document in workers.items():
        if not isinstance(document["models"], dict):
            lines.append(f"{worker} publishes no model states; is it of an older release?")
            continue
        if document["models"].get("control_offset") != state.offset:
            lines.append(f"{worker} has read up to {document['models'].get('control_offset')}, not {state.offset}")
        for refused in document["models"].get("refused") or ():
            lines.append(printable(f"{worker} refused {refused.get('what')}: {refused.get('reason')}"))
    if state.wishes:
        lines += ["", "Decided by command:"]
        lines += aligned(
            [(describe(t, w), f"by {w.by}" if w.by else "", _utc(w.at_us)) for t, w in state.wishes.items()]
        )
    return lines


def _versions(models: object) -> list[dict[str, Any]]:
    return models.get("versions") or [] if isinstance(models, dict) else []


def _version_cells(entry: dict[str, Any]) -> tuple[str, ...]:
    memory = entry.get("memory_bytes")
    return (
        str(entry.get("name")),
        str(entry.get("version")),
        str(entry.get("state")),
        ",".join(entry.get("labels") or ()) or "-",
        str(entry.get("calibration_revision", "-")),
        str(entry.get("device") or "-"),
        f"{memory / 2**20:.1f} MiB" if isinstance(memory, int) else "-",
        printable(str(entry.get("reason") or "").replace("\n", "; ")),
    )


def _line(worker: str, progress: Progress) -> str:
    reason = "\n    ".join(printable(line) for line in progress.reason.splitlines())
    return f"{worker}  {progress.state}  {reason}".rstrip()


def _no_worker() -> str:
    return "sluice: no scoring worker is alive; start one with `sluice worker scoring`: it acts on the record then"


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container without a user database
        return ""


def _utc(micros: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(micros / 1e6)) if micros else ""
