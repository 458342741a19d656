"""What lies in a ``.pt2`` archive, told without loading it.

``torch.export.save`` writes a zip: ``archive_format`` (``pt2``), ``models/model.json`` with the graph, and under
``data/`` weights and constants as plain bytes. But it also puts the example inputs in as a pickle
(``data/sample_inputs/model.pt``), and tensors of unusual classes and script objects as pickles too, all of which
``torch.export.load`` unpickles without restraint. So an archive is packed without example inputs, which nothing needs,
and one with any pickle is refused, trusted or not. What then is left to run code is ``model.json``, whose shapes are
read by SymPy's ``sympify``, an ``eval``: that is what trust is needed for.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from typing import TYPE_CHECKING, Any

from app.errors import BundleError, UnsafeBundle
from app.models.bundle_files import MAX_BUNDLE_BYTES, MEBIBYTE, WEIGHTS, open_plain

if TYPE_CHECKING:
    from pathlib import Path

ZIP_MAGIC = b"PK\x03\x04"
PICKLE_MAGIC = {bytes((0x80, protocol)) for protocol in range(2, 6)}
MAX_ENTRIES = 100_000
"""Each weight is one; more only makes looking slow."""
MAX_CONFIG_BYTES = 256 * MEBIBYTE
SAMPLES = "data/sample_inputs/"
WRONG_TYPES = (TypeError, AttributeError)
"""What JSON of another shape than expected ends in."""
NEXT_STEP = "export it again with torch.export.export and pack it with `sluice model pack`"


def refuse_disguised(path: Path) -> None:
    """Refuse a file that begins as a pickle or as a zip of pickles does, whatever it is called.

    Raises:
        UnsafeBundle: it does.

    """
    with open_plain(path) as file:
        start = file.read(len(ZIP_MAGIC))
    expected = "not a safetensors file" if path.name == WEIGHTS else "not what its name says"
    # The first bytes of safetensors are a length, which may well look like a pickle's.
    if start == ZIP_MAGIC or (path.name != WEIGHTS and start[:2] in PICKLE_MAGIC):
        msg = (
            f"{path.parent.name}/{path.name}: {expected} but a pickle, or a zip as torch.save and TorchScript write, "
            "which can run code when loaded; save the weights as safetensors"
        )
        raise UnsafeBundle(msg)


def check_archive(path: Path, *, is_packed: bool = True) -> None:
    """Refuse what is no plain exported program.

    Args:
        path: the archive; its bytes are looked at, nothing of it is loaded.
        is_packed: False: example inputs are let pass, ``strip_archive`` takes them out.

    Raises:
        BundleError: it is no archive of ``torch.export``.
        UnsafeBundle: it holds pickles, TorchScript or machine code.

    """
    where = f"{path.parent.name}/{path.name}"
    try:
        with open_plain(path) as file, zipfile.ZipFile(file) as archive:
            _check_entries(archive, where, is_packed=is_packed)
            _check_payloads(archive, where)
    except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError, LookupError, ValueError, *WRONG_TYPES) as exc:
        msg = f"{where}: no archive of torch.export ({exc}); {NEXT_STEP}"
        raise BundleError(msg) from exc


def strip_archive(source: Path, target: Path) -> None:
    """Copy an archive without its example inputs, the one part that ``torch.export.save`` always pickles.

    Raises:
        BundleError: it is no archive of ``torch.export``.
        UnsafeBundle: other parts of it are pickles too.

    """
    check_archive(source, is_packed=False)
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        for entry in old.infolist():
            kept = zipfile.ZipInfo(entry.filename)  # of a fixed date: the same program gives the same bytes
            if SAMPLES in entry.filename:
                new.writestr(kept, b"")
                continue
            kept.file_size = entry.file_size  # tells whether 64-bit sizes are needed
            with old.open(entry) as reader, new.open(kept, "w") as writer:
                while piece := reader.read(MEBIBYTE):
                    writer.write(piece)


def _check_entries(archive: zipfile.ZipFile, where: str, *, is_packed: bool) -> None:
    entries = archive.infolist()
    if len(entries) > MAX_ENTRIES or sum(entry.file_size for entry in entries) > MAX_BUNDLE_BYTES:
        msg = f"{where}: unpacks to more than {MAX_ENTRIES} entries or {MAX_BUNDLE_BYTES} bytes; {NEXT_STEP}"
        raise BundleError(msg)
    roots = {entry.filename.partition("/")[0] for entry in entries}
    names = {entry.filename.partition("/")[2]: entry for entry in entries}
    if len(roots) > 1 or len(names) < len(entries):
        msg = f"{where}: entries of several archives, or one twice; {NEXT_STEP}"
        raise UnsafeBundle(msg)
    scripts = [name for name in names if name in ("data.pkl", "constants.pkl") or name.startswith("code/")]
    if scripts:
        kind = "TorchScript" if "constants.pkl" in names else "a pickle of torch.save"
        msg = f"{where}: {kind} ({scripts[0]}), which can run code when loaded, is never loaded; {NEXT_STEP}"
        raise UnsafeBundle(msg)
    root = next(iter(roots), "")
    if "models/model.json" not in names or archive.read(f"{root}/archive_format") != b"pt2":
        msg = f"{where}: no archive of torch.export (models/model.json or archive_format is missing); {NEXT_STEP}"
        raise BundleError(msg)
    for name, entry in names.items():
        if name.startswith(SAMPLES) and is_packed and entry.file_size:
            msg = f"{where}: holds pickled example inputs ({name}); pack it with `sluice model pack`, which drops them"
            raise UnsafeBundle(msg)
        if not _is_known(name):
            msg = f"{where}: {name} is no part of a plain exported program (script object, machine code); {NEXT_STEP}"
            raise UnsafeBundle(msg)


def _is_known(name: str) -> bool:
    folder, _, leaf = name.rpartition("/")
    if folder == "data/weights":
        return leaf.startswith("weight_") or leaf == "model_weights_config.json"
    if folder == "data/constants":
        return leaf.startswith("tensor_") or leaf == "model_constants_config.json"
    known = {"archive_format", "archive_version", "byteorder", "version", "models/model.json"}
    return name in known or f"{folder}/" == SAMPLES or folder == ".data" or name.startswith("extra/")


def _check_payloads(archive: zipfile.ZipFile, where: str) -> None:
    """Refuse weights and constants that are stored as pickles, which the tables beside them say."""
    for entry in archive.infolist():
        if not entry.filename.endswith(("_weights_config.json", "_constants_config.json")):
            continue
        if entry.file_size > MAX_CONFIG_BYTES:
            msg = f"{where}: {entry.filename} has more than {MAX_CONFIG_BYTES} bytes; {NEXT_STEP}"
            raise BundleError(msg)
        table: dict[str, Any] = json.loads(archive.read(entry))
        for tensor, payload in table["config"].items():
            if payload["use_pickle"] is not False:
                msg = f"{where}: {tensor} is stored as a pickle, which can run code when loaded; {NEXT_STEP}"
                raise UnsafeBundle(msg)
