"""A report in TensorBoard: scores, pictures, a table, and a row of the HParams tab.

Event files are written with TensorBoard's own messages, without TensorFlow: evaluation
takes seconds, and loading TensorFlow many of them.

The HParams tab has a row per experiment: its parameters, and every scalar written here.
It shows the parameters of all rows when no run says which there are, so none does; it
then takes every scalar for a column, so only key numbers are scalars. All other metrics
are in the table of the Text tab.
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import google_crc32c
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_STRING
from tensorboard.plugins.hparams import metadata as hparams
from tensorboard.plugins.hparams.api_pb2 import STATUS_SUCCESS
from tensorboard.plugins.hparams.plugin_data_pb2 import (
    HParamsPluginData,
    SessionEndInfo,
    SessionStartInfo,
)

from cellgan.evaluation.figures.canvas import Picture
from cellgan.evaluation.report.document import ExperimentReport
from cellgan.evaluation.report.model_card import flat, metrics_table
from cellgan.evaluation.report.tables import family_scores, pooled
from cellgan.files import replacing

PNG_SIZE = struct.Struct(">II")
PNG_SIZE_AT = 16
RGBA = 4


def write_boards(
    folder: Path,
    name: str,
    experiment: ExperimentReport,
    pictures: Sequence[Picture],
) -> None:
    """Write an experiment's report for TensorBoard, in place of an earlier one.

    Parameters
    ----------
    folder
        Of the run, ``job/evaluation`` of the experiment.
    name
        Name of the experiment.
    experiment
        Its part of a report. Numbers are shown at the training step that the generated
        cells say they are of, or at 0.
    pictures
        Its pictures.
    """
    now = time.time()
    step = int(experiment.run.origin.get("step") or 0)
    values = [
        *_session(experiment, now),
        *(
            Summary.Value(tag=tag, simple_value=value)
            for tag, value in scalars(experiment).items()
        ),
        *map(_image, pictures),
        _text("evaluation", f"### {name}\n\n{metrics_table(experiment)}"),
    ]
    events = [
        Event(wall_time=now, file_version="brain.Event:2"),
        *(
            Event(wall_time=now, step=step, summary=Summary(value=[value]))
            for value in values
        ),
    ]
    file = folder / f"events.out.tfevents.{now:.6f}.{socket.gethostname()}"
    with replacing(file) as temporary:
        temporary.write_bytes(b"".join(_framed(e.SerializeToString()) for e in events))
    for other in folder.glob("events.out.tfevents.*"):
        if other != file:
            other.unlink()


def scalars(experiment: ExperimentReport) -> dict[str, float]:
    """Return the key numbers: the scores, and the first value of every family."""
    found = {"overall score": experiment.overall}
    for family, score in family_scores(experiment).items():
        found[f"score/{family}"] = score
    families = set()
    for result in pooled(experiment):
        if result.family not in families:
            families.add(result.family)
            found[f"value/{result.name}"] = result.value
    return {tag: value for tag, value in found.items() if value is not None}


def _session(experiment: ExperimentReport, now: float) -> Iterator[Summary.Value]:
    """Yield what makes a run a row of the HParams tab."""
    start = SessionStartInfo(start_time_secs=now)
    for key, value in hyperparameters(experiment).items():
        kind = {bool: "bool_value", str: "string_value"}.get(type(value))
        setattr(start.hparams[key], kind or "number_value", value)
    end = SessionEndInfo(status=STATUS_SUCCESS, end_time_secs=now)
    for tag, content in (
        (hparams.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=start)),
        (hparams.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=end)),
    ):
        yield Summary.Value(
            tag=tag,
            tensor=hparams.NULL_TENSOR,
            metadata=hparams.create_summary_metadata(content),
        )


def hyperparameters(experiment: ExperimentReport) -> dict[str, bool | float | str]:
    """Return the parameters of model and training that are single values.

    Lists, as of layers, are written as text.
    """
    parameters = experiment.run.parameters or {}
    blocks = {key: parameters.get(key) or {} for key in ("model", "training")}
    return {
        key: str(value) if isinstance(value, list) else value
        for key, value in flat(blocks).items()
        if value is not None
    }


def _image(picture: Picture) -> Summary.Value:
    width, height = PNG_SIZE.unpack_from(picture.png, PNG_SIZE_AT)
    return Summary.Value(
        tag=f"evaluation/{picture.name}",
        image=Summary.Image(
            height=height,
            width=width,
            colorspace=RGBA,
            encoded_image_string=picture.png,
        ),
        metadata=SummaryMetadata(
            display_name=picture.title, summary_description=picture.alt
        ),
    )


def _text(tag: str, markdown: str) -> Summary.Value:
    return Summary.Value(
        tag=tag,
        tensor=TensorProto(
            dtype=DT_STRING,
            tensor_shape=TensorShapeProto(),
            string_val=[markdown.encode()],
        ),
        metadata=SummaryMetadata(
            plugin_data=SummaryMetadata.PluginData(plugin_name="text")
        ),
    )


def _framed(record: bytes) -> bytes:
    """Return a record as a TFRecord file has it: length and checksums around it."""
    length = struct.pack("<Q", len(record))
    return b"".join((length, _checksum(length), record, _checksum(record)))


def _checksum(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
