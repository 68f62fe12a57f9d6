"""Checksums of the base model of a run, for checkpoints without its weights (adapters) and for reference models.

A run computes them at its start, while the weights are loaded, and saves them in its directory. A resumed run and an
export compare them.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path

from erniekit.checkpoint.hub import weight_files
from erniekit.checkpoint.manifest import FileRecord, checksum_problems, read_record, records_from
from erniekit.distributed.context import DistributedContext
from erniekit.errors import CheckpointError
from erniekit.local_files import read_json_object, replacing

BASE_FILE = "base_checksums.json"


class BaseChecksums:
    """Reads the weight files of a base model in a thread; the processes of a machine share them.

    All processes of a run create it before they load the model, and call `check` together afterwards. Either the
    thread or the loader comes first, so that the other one mostly reads from the page cache.
    """

    def __init__(self, directory: Path, dist: DistributedContext) -> None:
        self._directory, self._dist = directory, dist
        self._records: dict[str, FileRecord] = {}
        self._problem: str | None = None
        self._thread = threading.Thread(target=self._read, name="base checksums", daemon=True)
        self._thread.start()

    def check(self, run: Path | None) -> dict[str, FileRecord]:
        """The records of all files, compared with those that a run has kept, if there are any.

        run: the directory of a run that is resumed, None for a new one. Raises CheckpointError on all processes where a
        file of any machine differs.
        """
        mesh = self._dist.mesh
        with mesh.long_operation("reading the base model"):
            self._thread.join()
        kept = read_base_checksums(run) if run is not None and self._dist.is_main else {}
        gathered = self._dist.all_gather_object([mesh.machine, kept, self._records, self._problem])
        kept = {name: FileRecord(*record) for name, record in gathered[0][1].items()}
        records: dict[str, FileRecord] = {}
        for machine, _, found, problem in gathered:
            if problem is not None:
                raise CheckpointError(problem)
            own = {name: FileRecord(*record) for name, record in found.items()}
            for name, record in own.items():
                if kept and kept.get(name) != record:
                    raise CheckpointError(_changed(self._directory / name))
            if machine == 0:
                records |= own
        return records

    def _read(self) -> None:
        mesh = self._dist.mesh
        try:
            for file in weight_files(self._directory)[mesh.rank - mesh.machine :: mesh.local_size]:
                self._records[file.name] = read_record(file)
        except OSError as error:
            self._problem = f"{self._directory}: cannot be read: {error.strerror}"
        except CheckpointError as error:
            self._problem = str(error)


def write_base_checksums(run: Path, records: Mapping[str, FileRecord]) -> None:
    """Save the records in the directory of a run."""
    with replacing(run / BASE_FILE) as file:
        file.write(json.dumps({"files": records}, indent=1) + "\n")


def read_base_checksums(run: Path) -> dict[str, FileRecord]:
    """The saved records of a run; empty for runs of older versions. Raises CheckpointError."""
    file = run / BASE_FILE
    if not file.is_file():
        return {}
    try:
        return records_from(read_json_object(file)["files"])
    except (KeyError, ValueError, TypeError, IndexError):
        raise CheckpointError(f"{file}: damaged; remove it to take the base model as it is now") from None


def check_base(directory: Path, run: Path) -> None:
    """Raise CheckpointError if a base model is not the one of a run. Reads all of its files."""
    for name, record in read_base_checksums(run).items():
        if checksum_problems(directory, [(name, record)]):
            raise CheckpointError(_changed(directory / name))


def _changed(file: Path) -> str:
    return (
        f"{file}: the file of the base model has changed since the run began (its checksum differs). Restore it, or "
        "start a new run"
    )
