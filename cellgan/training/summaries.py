"""What a run tells: TensorBoard, ``metrics.jsonl`` and the console.

Steps are completed steps. When a run is resumed, what an interrupted run had logged
beyond the restored step is dropped, so every curve has one value per step.
"""

from __future__ import annotations

import json
import logging
import re
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt
import tensorflow as tf
from tensorboard.plugins.histogram.metadata import create_summary_metadata

from cellgan.files import replacing

logger = logging.getLogger(__name__)

N_BUCKETS = 30


class RunLog:
    """The log of one stage of one experiment. Only the chief writes anything.

    Parameters
    ----------
    experiment
        Name shown on the console.
    stage
        Name of the stage.
    logs_folder
        Where TensorBoard looks, ``job/<stage>/logs``.
    metrics_file
        ``job/metrics.jsonl``, shared by all stages: one line per summary with the
        step, the stage, the time (seconds since 1970) and the scalars.
    is_chief
        Whether this process writes.
    """

    def __init__(
        self,
        experiment: str,
        stage: str,
        logs_folder: Path,
        metrics_file: Path,
        *,
        is_chief: bool = True,
    ) -> None:
        self.experiment = experiment
        self.stage = stage
        self._folder = logs_folder
        self._metrics_file = metrics_file
        self._is_chief = is_chief
        self._writer: tf.summary.SummaryWriter = tf.summary.create_noop_writer()
        self._last_line = (0, 0, time.perf_counter())  # step, max_steps, clock

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._writer.close()

    def begin(self, step: int, max_steps: int) -> None:
        """Start logging after `step` completed steps, forgetting what came later."""
        self._last_line = (step, max_steps, time.perf_counter())
        if not self._is_chief:
            return
        if step:
            logger.info("%s: going on from step %d", self.experiment, step)
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in self._folder.glob("events.*"):
            _cut_events(path, step)
        self._drop_lines_after(step)
        self._writer = tf.summary.create_file_writer(str(self._folder))

    def progress(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show rate (since the last line), remaining time and losses in one line."""
        previous, last, since = self._last_line
        now = time.perf_counter()
        rate = (step - previous) / (now - since)
        self._last_line = (step, last, now)
        values = ", ".join(
            f"{name} {value:.4g}" for name, value in metrics.items() if "/" not in name
        )
        if self._is_chief:
            logger.info(
                "%s: step %d/%d, %.3g steps/s, %s left, %s",
                self.experiment,
                step,
                last,
                rate,
                _duration((last - step) / rate),
                values,
            )

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars to TensorBoard and as one line of ``metrics.jsonl``."""
        if not self._is_chief:
            return
        with self._writer.as_default(step):
            for tag, value in values.items():
                tf.summary.scalar(tag, value)
        self._writer.flush()
        line = {"step": step, "stage": self.stage, "time": time.time(), **values}
        self._metrics_file.parent.mkdir(parents=True, exist_ok=True)
        with self._metrics_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def tensors(self, step: int, values: Mapping[str, tf.Tensor]) -> None:
        """Write scalars to TensorBoard as such, and all else as histograms."""
        with self._writer.as_default(step):
            for tag, value in values.items():
                if value.shape.rank == 0:
                    tf.summary.scalar(tag, value)
                else:
                    tf.summary.write(
                        tag, histogram(value), metadata=create_summary_metadata("", "")
                    )

    def image(self, step: int, tag: str, file: Path) -> None:
        """Write a PNG or JPEG file as an image summary."""
        picture = tf.io.decode_image(tf.io.read_file(str(file)), channels=3)
        with self._writer.as_default(step):
            tf.summary.image(tag, picture[tf.newaxis])
        self._writer.flush()

    def projector(
        self,
        points: npt.NDArray[np.floating],
        labels: Sequence[str],
        kinds: Sequence[str],
    ) -> None:
        """Show cells in the Projector tab, in place of those shown before.

        Parameters
        ----------
        points
            ``(n_cells, n_dimensions)``. The browser loads all of it, so give some 50
            principal components, not all genes.
        labels
            Name of each cell's label; tabs and line breaks are shown as spaces.
        kinds
            ``"real"`` or ``"generated"``, by cell.
        """
        if not self._is_chief:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        with replacing(self._folder / "projector_points.tsv") as temporary:
            np.savetxt(temporary, points, fmt="%.5g", delimiter="\t")
        names = [re.sub(r"\s+", " ", label) for label in labels]
        rows = ["label\tkind", *map("\t".join, zip(names, kinds, strict=True))]
        with replacing(self._folder / "projector_cells.tsv") as temporary:
            temporary.write_text("\n".join(rows) + "\n", encoding="utf-8")
        with replacing(self._folder / "projector_config.pbtxt") as temporary:
            temporary.write_text(
                "embeddings {\n"
                '  tensor_name: "cells"\n'
                '  tensor_path: "projector_points.tsv"\n'
                '  metadata_path: "projector_cells.tsv"\n'
                "}\n",
                encoding="utf-8",
            )

    def _drop_lines_after(self, step: int) -> None:
        if not self._metrics_file.exists():
            return
        lines = self._metrics_file.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if self._is_kept(line, step)]
        with replacing(self._metrics_file) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in kept), "utf-8")

    def _is_kept(self, line: str, step: int) -> bool:
        try:
            entry = json.loads(line)
        except ValueError:  # the process was killed while writing it
            return False
        return bool(entry["stage"] != self.stage or entry["step"] <= step)


@tf.function(reduce_retracing=True)
def histogram(values: tf.Tensor) -> tf.Tensor:
    """Count values in `N_BUCKETS` buckets of equal width.

    TensorBoard's own histogram makes a row of 30 doubles of every value, which weights
    of some million do not bear.

    Returns
    -------
    ``(n_buckets, 3)`` float64: left edge, right edge, count. Values that are not
    finite are counted as 0: the losses, which stop the run, will tell.
    """
    flat = tf.cast(tf.reshape(values, (-1,)), tf.float64)
    flat = tf.where(tf.math.is_finite(flat), flat, tf.zeros_like(flat))
    low, high = tf.reduce_min(flat), tf.reduce_max(flat)
    margin = tf.cast(low == high, tf.float64) / 2
    low, high = low - margin, high + margin
    edges = tf.linspace(low, high, N_BUCKETS + 1)
    counts = tf.histogram_fixed_width(flat, tf.stack((low, high)), N_BUCKETS)
    return tf.stack((edges[:-1], edges[1:], tf.cast(counts, tf.float64)), axis=1)


def _cut_events(path: Path, step: int) -> None:
    """Cut an event file off before its first event after `step`, or half event.

    TensorBoard has no way to be told of a restart: it would draw both curves.
    """
    with path.open("r+b") as file:
        end = 0
        # a record is its length, a checksum of that, the event, a checksum of that
        while len(header := file.read(12)) == 12:
            (length,) = struct.unpack("<Q", header[:8])
            record = file.read(length + 4)
            if len(record) < length + 4:
                break
            if tf.compat.v1.Event.FromString(record[:length]).step > step:
                break
            end = file.tell()
        file.truncate(end)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
