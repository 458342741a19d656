"""``sluice model``: pack a model, look at it, check it, trust it, remove it.

Exit statuses: 0 done, 1 refused or (``verify``) scores differ, and the message says why.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path  # noqa: TC003 - typer reads it at run time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.calibration import Calibration
from app.errors import BundleError, SluiceError, TopicError
from app.models.bundle import parse_yaml
from app.models.bundle_files import MAX_SPEC_BYTES, PARITY, REFERENCE
from app.models.repository import LocalSource, Repository, add_calibration, configured_repository
from app.models.spec import parse_spec
from app.settings import load_settings
from app.text_table import aligned

if TYPE_CHECKING:
    import pandas as pd

    from app.models.parity import ParityReport
    from app.models.spec import Feature, ModelSpec
    from app.settings import Settings

cli = typer.Typer(no_args_is_help=True, help=__doc__)
DIGITS_SHOWN = 12
NOTE = "packed here"

Name = Annotated[str, typer.Argument(help="of the model")]
Version = Annotated[int, typer.Argument(min=1, help="of the model, as its folder is named")]
AnyVersion = Annotated[int | None, typer.Argument(min=1, help="none: the newest")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text")]
IsSure = Annotated[bool, typer.Option("--yes", help="do not ask")]


@cli.command()
def pack(  # noqa: PLR0913 - one option a part of the bundle
    *,
    spec: Annotated[Path, typer.Option(help="the model.yaml, without `files`; no version: the next free one")],
    weights: Annotated[Path, typer.Option(help="weights.safetensors, or a .pt2 of torch.export")],
    calibration: Annotated[Path | None, typer.Option(help="JSON; none: scores stay as they are")] = None,
    reference: Annotated[Path | None, typer.Option(help="Parquet; none: no drift is judged")] = None,
    sample: Annotated[Path | None, typer.Option(help="Parquet, training rows to keep for `verify`")] = None,
    tokenizer: Annotated[list[Path] | None, typer.Option(help="a file that text features name")] = None,
    false_positive_cost: Annotated[float | None, typer.Option(help="with the next: chooses the threshold")] = None,
    false_negative_cost: Annotated[float | None, typer.Option(help="on the scores and labels of the reference")] = None,
) -> None:
    """Make a bundle of files, and print its folder; what an exported program is packed from here is trusted here."""
    from app.models.packing import Costs, pack_bundle  # noqa: PLC0415 - brings torch; the other commands are spared it

    if (false_positive_cost is None) != (false_negative_cost is None):
        msg = "give both --false-positive-cost and --false-negative-cost, or neither"
        raise BundleError(msg)
    settings = load_settings()
    _load_architectures(settings)
    repository = configured_repository(settings.models)
    root = _local_root(repository)
    is_program = weights.suffix == ".pt2"
    parsed = _draft_spec(spec, repository, kind="pt2" if is_program else "safetensors")
    folder = pack_bundle(
        root,
        parsed,
        None if is_program else weights,
        _calibration(calibration),
        _frame(reference),
        sample=_frame(sample),
        tokenizers={path.name: path for path in tokenizer or []},
        exported=weights if is_program else None,
        costs=None if false_positive_cost is None else Costs(false_positive_cost, false_negative_cost or 0.0),
    )
    if is_program:
        repository.vouch(parsed.name, parsed.version, note=NOTE)
    typer.echo(folder)


@cli.command()
def trust(
    name: Name,
    version: Version,
    *,
    is_sure: IsSure = False,
    note: Annotated[str, typer.Option(help="kept beside it: who packed it, why it is trusted")] = "",
) -> None:
    """Let a bundle with an exported program be loaded on this machine."""
    repository = _repository()
    spec, digest = repository.spec(name, version), repository.digest(name, version)
    if spec.weights != "pt2":
        typer.echo(f"{name} version {version} has safetensors weights, which need no trust; nothing was changed.")
        return
    typer.echo(
        f"{name} version {version} in {repository.url}\n"
        f"sha256 {digest}\n"
        "holds a program of torch.export. Loading it evaluates expressions that stand in the file, so whoever packed\n"
        "it can run any command as the user of your workers. Trust it only if you know who packed it and have the\n"
        "digest from them. It is valid for exactly these files, and on this machine."
    )
    if not is_sure:
        typer.confirm(f"Trust it (in {repository.trust.path})?", abort=True)
    repository.vouch(name, version, sha256=digest, note=note)
    typer.echo("Trusted. Workers load it at their next look.")


@cli.command()
def verify(
    name: Name,
    version: AnyVersion = None,
    *,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N")] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Check every file's digest, and that the rows kept at pack time still give the same scores here."""
    from app.models.parity import replay_parity  # noqa: PLC0415 - brings torch, see pack

    settings = load_settings()
    _load_architectures(settings)
    repository = configured_repository(settings.models)
    bundle = repository.open(name, version or repository.latest(name))
    report = replay_parity(bundle, device)
    spec = bundle.spec
    if as_json:
        typer.echo(json.dumps({"name": spec.name, "version": spec.version, **_report_document(report)}))
    else:
        typer.echo("\n".join(_report_lines(spec, report)))
    if not report.is_within:
        raise typer.Exit(1)


@cli.command("list")
def list_models(*, as_json: AsJson = False) -> None:
    """One line a version; one that cannot be read says why."""
    repository = _repository()
    documents = [
        _version_document(repository, name, version)
        for name in repository.names()
        for version in repository.versions(name)
    ]
    if as_json:
        typer.echo(json.dumps(documents))
    elif not documents:
        typer.echo(f"no models in {repository.url}; pack one (`sluice model pack`, or `make demo`)")
    else:
        typer.echo("\n".join(aligned([LIST_HEAD, *(_list_row(document) for document in documents)])))


@cli.command()
def show(name: Name, version: AnyVersion = None, *, as_json: AsJson = False) -> None:
    """What a version takes and gives, its files, calibrations, precision and parity."""
    repository = _repository()
    version = version or repository.latest(name)
    spec = repository.spec(name, version)
    document = {
        **_version_document(repository, name, version),
        "spec": spec.model_dump(mode="json", exclude_defaults=True),
        "calibrations": repository.calibrations(name, version),
        "has_reference": REFERENCE in spec.files,
        "has_parity": PARITY in spec.files,
    }
    typer.echo(json.dumps(document) if as_json else "\n".join(_show_lines(spec, document)))


@cli.command("add-calibration")
def add_revision(
    name: Name, version: Version, file: Annotated[Path, typer.Argument(help="JSON, as calibration.json of a bundle")]
) -> None:
    """Put a calibration beside a version and print its revision; workers take the newest, or what `calibrate` says."""
    root = _local_root(_repository())
    revision = add_calibration(root, name, version, _calibration(file))
    typer.echo(f"calibration {revision} of {name} version {version}")


@cli.command()
def rm(name: Name, version: Version, *, is_sure: IsSure = False) -> None:
    """Remove a version from a local repository; of one that is far away, the copies in the cache."""
    settings = load_settings()
    repository = configured_repository(settings.models)
    reasons = _reasons_to_keep(repository, settings, name, version)
    if reasons and not is_sure:
        msg = f"{name} version {version} was not removed: {'; '.join(reasons)}; add --yes to remove it all the same"
        raise BundleError(msg)
    for folder in repository.remove(name, version):
        typer.echo(f"removed {folder}")


def _repository() -> Repository:
    return configured_repository(load_settings().models)


def _load_architectures(settings: Settings) -> None:
    """Networks of the operator's own, before a bundle that names one is loaded."""
    from app.models.architectures import load_architecture_modules  # noqa: PLC0415 - brings torch, see pack

    load_architecture_modules(settings.models.architecture_modules)


def _local_root(repository: Repository) -> Path:
    if not isinstance(repository.source, LocalSource):
        msg = f"{repository.url} is far away; pack into a folder (SLUICE_MODELS__REPOSITORY=...) and copy it there"
        raise BundleError(msg)
    return repository.source.root


def _draft_spec(path: Path, repository: Repository, *, kind: str) -> ModelSpec:
    """The specification that a person wrote, completed by what the other files say."""
    try:
        raw = path.read_bytes()[: MAX_SPEC_BYTES + 1]
    except OSError as exc:
        msg = f"{path} cannot be read ({exc.strerror}); name the model.yaml to pack"
        raise BundleError(msg) from exc
    document = parse_yaml(raw, origin=path.name)
    if isinstance(document, dict):
        document.pop("files", None)
        document.setdefault("weights", kind)
        if "version" not in document:
            document["version"] = max(repository.versions(str(document.get("name"))), default=0) + 1
    return parse_spec(document, origin=path.name)


def _calibration(path: Path | None) -> Calibration:
    if path is None:
        return Calibration()
    try:
        return Calibration.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        msg = f"{path}: {exc}; name a file as Calibration.to_json writes it"
        raise BundleError(msg) from exc


def _frame(path: Path | None) -> pd.DataFrame | None:
    import pandas as pd  # noqa: PLC0415 - pack only

    if path is None:
        return None
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as exc:  # pyarrow's errors are ValueErrors
        msg = f"{path}: not a Parquet file ({exc}); write it with DataFrame.to_parquet"
        raise BundleError(msg) from exc


def _report_document(report: ParityReport) -> dict[str, Any]:
    return {
        "rows": report.rows,
        "are_inputs_equal": report.are_inputs_equal,
        "logit_difference": report.logit_difference,
        "score_difference": report.score_difference,
        "tolerance": report.tolerance,
        "is_bit_equal": report.is_bit_equal,
        "is_within": report.is_within,
        "packed_with": report.packed_with,
        "replayed_with": report.replayed_with,
    }


def _report_lines(spec: ModelSpec, report: ParityReport) -> list[str]:
    verdict = "bit-equal" if report.is_bit_equal else "within tolerance" if report.is_within else "DIFFERENT"
    lines = [
        f"{spec.name} version {spec.version}: files as packed; {report.rows} rows replayed: {verdict}",
        f"  inputs of the network  {'the same bits' if report.are_inputs_equal else 'other bits'}",
        f"  logits differ by       {report.logit_difference:.3g}",
        f"  scores differ by       {report.score_difference:.3g}, tolerance {report.tolerance:.3g}",
    ]
    if report.packed_with != report.replayed_with:
        lines.append(f"  packed with {report.packed_with}; here {report.replayed_with}")
    return lines


LIST_HEAD = ("MODEL", "VERSION", "SHA256", "FORMAT", "PRECISION", "SIZE", "TRUSTED")


def _version_document(repository: Repository, name: str, version: int) -> dict[str, Any]:
    document: dict[str, Any] = {"name": name, "version": version, "repository": repository.url}
    try:
        spec, digest = repository.spec(name, version), repository.digest(name, version)
    except BundleError as exc:
        return {**document, "error": str(exc)}
    return {
        **document,
        "sha256": digest,
        "weights": spec.weights,
        "precision": spec.precision,
        "size_bytes": repository.size_bytes(name, version),
        "is_trusted": spec.weights != "pt2" or repository.trust.has(digest),
    }


def _list_row(document: dict[str, Any]) -> tuple[str, ...]:
    start = (document["name"], str(document["version"]))
    if "error" in document:
        return (*start, f"cannot be read: {document['error'].splitlines()[0]}", "", "", "", "")
    trusted = "not needed" if document["weights"] != "pt2" else "yes" if document["is_trusted"] else "NO"
    digest, size = document["sha256"][:DIGITS_SHOWN], _size_text(document["size_bytes"])
    return (*start, digest, document["weights"], document["precision"], size, trusted)


def _show_lines(spec: ModelSpec, document: dict[str, Any]) -> list[str]:
    architecture = spec.architecture.name if spec.architecture else "its own program"
    error = "" if spec.precision_error is None else f", scores off by up to {spec.precision_error:.3g}"
    revisions = ", ".join(map(str, document["calibrations"])) or "none added"
    output = spec.output
    facts = [
        ("sha256", document["sha256"]),
        ("network", f"{architecture} ({spec.weights}), {spec.precision}{error}, {_size_text(document['size_bytes'])}"),
        ("trusted", "yes" if document["is_trusted"] else f"NO: sluice model trust {spec.name} {spec.version}"),
        ("output", f"{output.kind}: {', '.join(output.output_names)}; decisions {', '.join(output.labels or ())}"),
        ("buckets", ", ".join(map(str, spec.buckets))),
        ("calibration", f"its own; revisions: {revisions}"),
        ("drift", "reference.parquet" if document["has_reference"] else "no reference: none is judged"),
        ("parity", f"sluice model verify {spec.name} {spec.version}" if document["has_parity"] else "no rows kept"),
    ]
    features = [("FEATURE", "TYPE", "FROM", ""), *(_feature_row(feature) for feature in spec.features)]
    files = [("FILE", "SHA256"), *sorted(spec.files.items())]
    title = f"{spec.name} version {spec.version}" + (f": {spec.description}" if spec.description else "")
    return [title, *aligned(facts), "", *aligned(features), "", *aligned(files)]


def _feature_row(feature: Feature) -> tuple[str, ...]:
    source = "request" if feature.view is None else f"store, view {feature.view}"
    marks = ["required"] if feature.required else []
    marks += [] if feature.default is None else [f"default {feature.default}"]
    marks += [] if feature.model_input else ["key only"]
    return feature.name, feature.type, source, ", ".join(marks)


def _size_text(size_bytes: float) -> str:
    """Bytes for people.

    Example:
        >>> _size_text(512), _size_text(1_500_000)
        ('512 B', '1.5 MB')

    """
    for unit in ("B", "kB", "MB"):
        if size_bytes < 1000:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.3g} GB"


def _reasons_to_keep(repository: Repository, settings: Settings, name: str, version: int) -> list[str]:
    if not isinstance(repository.source, LocalSource):
        return []  # only copies go
    reasons = []
    if repository.versions(name)[-1:] == [version]:
        reasons.append("it is the newest, which workers serve by default")
    if (settings.models.name, settings.models.version) == (name, version):
        reasons.append("the setting models.version names it")
    try:
        labels = asyncio.run(_labels(settings, name))
    except SluiceError as exc:
        reasons.append(f"whether a label points to it is unknown ({exc})")
    else:
        reasons += [f"label {label} points to it" for label, pointed in labels.items() if pointed == version]
    return reasons


async def _labels(settings: Settings, name: str) -> dict[str, int]:
    """Where the labels of a model have been moved to, as the control topic says."""
    from app.models.control import ControlState  # noqa: PLC0415 - rm only
    from app.topic_reader import find_cluster, open_reader  # noqa: PLC0415 - aiokafka, for rm only
    from schemas.topic_names import MODEL_CONTROL  # noqa: PLC0415 - rm only

    state = ControlState.empty()
    try:
        cluster = await find_cluster(settings.kafka)
    except OSError as exc:
        raise TopicError(str(exc)) from exc
    if MODEL_CONTROL not in cluster.partitions:
        return {}
    async with open_reader(settings.kafka) as reader:
        start, end = await reader.bounds(MODEL_CONTROL, 0)
        async for records in reader.read(MODEL_CONTROL, 0, start, end):
            for record in records:
                state = state.apply(record.key, record.value, record.offset)
    return dict(state.labels(name))
