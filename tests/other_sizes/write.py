"""Write all files: ``python -m tests.other_sizes.write FOLDER``."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.other_sizes.cfdiffusion import write_cfdiffusion
from tests.other_sizes.cfgen import write_cfgen
from tests.other_sizes.cycle import write_cycle
from tests.other_sizes.gan import write_gan
from tests.other_sizes.vae import write_vae

WRITERS = (write_gan, write_cycle, write_vae, write_cfgen, write_cfdiffusion)


def write_all(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for write in WRITERS:
        write(folder)


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))
