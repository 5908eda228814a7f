"""Whether the training cells fit in memory."""

from __future__ import annotations

import itertools
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from cellgan.data.manifest import DatasetManifest
from cellgan.data.records import RecordSchema
from cellgan.data.shards import read_blocks, split_files

log = logging.getLogger(__name__)

DataSource = Literal["memory", "disk"]


MEMORY_SHARE = 0.4
"""Share of the available memory that decoded cells may take. Joining the files takes
as much again for a moment."""


BYTES_PER_VALUE = 8


def choose_data_source(
    folder: Path, manifest: DatasetManifest, requested: Literal["auto"] | DataSource
) -> DataSource:
    """Resolve ``"auto"``: memory if the training cells fit in a part of what is free.

    Their size is that of the first few hundred, multiplied.

    Raises
    ------
    DataError
        If a record file is missing, or the first one is damaged or of another run.
    """
    if requested != "auto":
        return requested
    files = split_files(folder, manifest, "train")
    n_bytes, n_cells = 0, 0
    for file in files:
        for block in itertools.islice(read_blocks(file, RecordSchema.of(manifest)), 1):
            n_values = block.values.nnz + (block.atac.values.nnz if block.atac else 0)
            n_bytes += n_values * BYTES_PER_VALUE
            n_cells += len(block)
    needed = n_bytes / max(n_cells, 1) * manifest.split_sizes["train"]
    available = _available_bytes()
    source: DataSource = "memory" if needed < MEMORY_SHARE * available else "disk"
    log.info(
        "training cells need %.2f GB, %.1f GB are available: batches come from %s",
        needed / 1e9,
        available / 1e9,
        source,
    )
    return source


def _available_bytes() -> int:
    """Return the memory that this process may still take, as far as Linux tells."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
    available = int(fields["MemAvailable"].split()[0]) * 1024
    groups = Path("/proc/self/cgroup").read_text()
    return min([available, *_control_group_bytes(groups, Path("/sys/fs/cgroup"))])


def _control_group_bytes(groups: str, root: Path) -> Iterator[int]:
    """Yield what each control group around this process, as a container, has left."""
    for group in re.findall("^0::/(.*)$", groups, flags=re.MULTILINE):
        folder = root / group
        for level in (folder, *folder.parents):
            limit = level / "memory.max"
            if limit.exists() and limit.read_text().strip() != "max":
                used = int((level / "memory.current").read_text())
                yield int(limit.read_text()) - used
