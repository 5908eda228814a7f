"""The folder of one experiment: every path in it, and how it is written.

Only this module joins paths of an experiment. Files are written to a temporary name
and renamed, folders are built beside their place and moved there when complete, so a
killed run leaves nothing half-written under a final name.

::

    <experiments_dir>/<name>/
      parameters.json      what was asked for; input_ds frozen at --process,
                           model and training at the first --train
      manifest.json        genes, vocabularies, sizes
      fields.json          columns of the raw cells: kind, values, how full, in use
      vocabulary.json      code of every value of the columns in use
      processed.h5ad       filtered counts with label and split; with ATAC counts
                           processed.h5mu
      TF_records/          train-0.tfrecords ... train-9, validate, test
      job/<stage>/checkpoints, job/<stage>/logs
      job/TSNE/            maps of real and generated cells
      job/metrics.jsonl    one line per summary
      job/imported_weights.json  source of weights that were not trained here
      generated/           cells.h5ad
      influence/           what each covariate contributes: tables, loadings, a plot
      evaluation/          report.html, report.json, metrics.csv, figures/
      MODEL_CARD.md        data, training, metrics, limits
      augmentation/        tables and plots; one experiment folder per run of --augment
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cellgan.config.parameters import ExperimentParameters
from cellgan.config.reading import as_json, parse_experiment, read_json
from cellgan.data.manifest import (
    Combination,
    CovariateVocabulary,
    DatasetManifest,
    read_manifest,
)
from cellgan.errors import ConfigError, DataError
from cellgan.files import write_json

UNFROZEN = (
    "checkpoint",
    "progress_freq",
    "validation_freq",
    "save_freq",
    "summary_freq",
    "steps_per_call",
    "embedding",
)
"""Training keys that may change between runs: none alters the weights of a run that has
begun (``checkpoint`` says what a run begins with)."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One experiment: its folder and its resolved parameters."""

    folder: Path
    parameters: ExperimentParameters

    @property
    def name(self) -> str:
        """Name of the experiment, which is that of its folder."""
        return self.folder.name

    @property
    def parameters_file(self) -> Path:
        """Parameters as frozen, with the reference's ``preprocessed`` block."""
        return self.folder / "parameters.json"

    @property
    def manifest_file(self) -> Path:
        """What the data are; there when processing is complete."""
        return self.folder / "manifest.json"

    @property
    def fields_file(self) -> Path:
        """What the columns of the raw cells are, and which of them are used."""
        return self.folder / "fields.json"

    @property
    def vocabulary_file(self) -> Path:
        """Code of every value of the columns that are used."""
        return self.folder / "vocabulary.json"

    @property
    def processed_file(self) -> Path:
        """Filtered counts with label and split; an .h5mu if ATAC is among them."""
        has_atac = self.parameters.input_ds.atac is not None
        return self.folder / ("processed.h5mu" if has_atac else "processed.h5ad")

    @property
    def records_folder(self) -> Path:
        """The records that training reads."""
        return self.folder / "TF_records"

    @property
    def job_folder(self) -> Path:
        """What training writes."""
        return self.folder / "job"

    @property
    def metrics_file(self) -> Path:
        """One JSON line per summary of training."""
        return self.job_folder / "metrics.jsonl"

    @property
    def imported_file(self) -> Path:
        """Which files the weights were imported from, if they were."""
        return self.job_folder / "imported_weights.json"

    @property
    def embedding_folder(self) -> Path:
        """Maps of real and generated cells, drawn in training."""
        return self.job_folder / "TSNE"

    @property
    def generated_file(self) -> Path:
        """Where generated cells go unless told otherwise."""
        return self.folder / "generated" / f"cells{self.processed_file.suffix}"

    @property
    def corrected_file(self) -> Path:
        """Where batch-corrected cells go unless told otherwise."""
        return self.generated_file.with_stem("corrected")

    @property
    def interpolated_file(self) -> Path:
        """Where cells between two labels go unless told otherwise."""
        return self.generated_file.with_stem("interpolated")

    @property
    def counterfactual_file(self) -> Path:
        """Where edited cells go unless told otherwise."""
        return self.folder / "generated" / "counterfactual.h5ad"

    @property
    def embedded_file(self) -> Path:
        """Where cells with latents go unless told otherwise; tables are beside it."""
        return self.folder / "embedding" / "cells.h5ad"

    @property
    def influence_folder(self) -> Path:
        """What each covariate contributes to cells: tables, loadings and a plot."""
        return self.folder / "influence"

    @property
    def guidance_file(self) -> Path:
        """Table of the guidance sweep; a figure of the same name is beside it."""
        return self.generated_file.with_name("guidance_sweep.csv")

    @property
    def evaluation_folder(self) -> Path:
        """Report and figures of the evaluation."""
        return self.folder / "evaluation"

    @property
    def model_card_file(self) -> Path:
        """What the model is, how good it is and whether it copies."""
        return self.folder / "MODEL_CARD.md"

    @property
    def augmentation_folder(self) -> Path:
        """Tables, plots and runs of the augmentation study."""
        return self.folder / "augmentation"

    @property
    def has_checkpoint(self) -> bool:
        """Whether a step of training has been kept."""
        return any(self.job_folder.glob("*/checkpoints/model-*"))

    @property
    def is_trained(self) -> bool:
        """Whether every stage has the checkpoint of its last step."""
        parameters = self.parameters
        return all(
            (
                self.checkpoints_folder(stage)
                / f"model-{parameters.training.of_stage(stage).max_steps}"
            ).is_dir()
            for stage in parameters.model.stages
        )

    def checkpoints_folder(self, stage: str) -> Path:
        """Folder of a stage's checkpoints."""
        return self.job_folder / stage / "checkpoints"

    def logs_folder(self, stage: str) -> Path:
        """Folder of a stage's TensorBoard events."""
        return self.job_folder / stage / "logs"

    @property
    def is_processed(self) -> bool:
        """Whether ``--process`` has completed (or the reference has written here)."""
        return self.manifest_file.exists() or self._is_reference_folder

    @property
    def _is_reference_folder(self) -> bool:
        return (
            self.parameters_file.exists()
            and self.records_folder.is_dir()
            and "preprocessed" in read_json(self.parameters_file)
        )

    def manifest(self) -> DatasetManifest:
        """Read the manifest.

        A folder written by the reference scGAN has none: what its ``parameters.json``
        says stands in for it, and genes are named by position, as it stores no names.

        Raises
        ------
        DataError
            If the experiment is not processed, or the manifest is damaged.
        """
        if not self.manifest_file.exists() and self._is_reference_folder:
            block = read_json(self.parameters_file)["preprocessed"]
            return reference_manifest(block, str(self.parameters_file))
        return read_manifest(self.manifest_file)

    def stored_parameters(self) -> dict[str, Any]:
        """Return the parameter blocks stored in the folder."""
        return dict(read_json(self.parameters_file))

    def check_frozen(self, *blocks: str) -> None:
        """Refuse parameters that differ from those the folder was made with.

        Parameters
        ----------
        blocks
            Which of ``"input_ds"``, ``"model"``, ``"training"`` must agree. A block
            that the folder does not have yet is not checked.

        Raises
        ------
        ConfigError
            Naming every key that differs, its stored and its present value.
        """
        stored = self.stored_parameters()
        present = as_json(self.parameters)
        old = as_json(parse_experiment(stored, str(self.parameters_file)))
        differing = []
        for block in blocks:
            if block not in stored:
                continue
            before, now = _flatten(old[block]), _flatten(present[block])
            for key in sorted({*before, *now}):
                if block == "training" and key in UNFROZEN:
                    continue
                if before.get(key) != now.get(key):
                    differing.append(
                        f"    {block}.{key}: {json.dumps(before.get(key))} then, "
                        f"{json.dumps(now.get(key))} now"
                    )
        if differing:
            msg = (
                f"{self.name}: the parameters differ from those in "
                f"{self.parameters_file}:\n" + "\n".join(differing) + "\n"
                "    Put the old values back, or give the experiment another name "
                "(training.checkpoint can start it from this one's job folder)."
            )
            raise ConfigError(msg)

    def freeze(self, *blocks: str) -> None:
        """Store the named blocks in the folder's ``parameters.json``."""
        stored = self.stored_parameters() if self.parameters_file.exists() else {}
        present = as_json(self.parameters)
        stored.update({block: present[block] for block in blocks})
        write_json(self.parameters_file, stored)

    @classmethod
    def open(cls, folder: str | Path) -> Experiment:
        """Open an existing experiment folder by its own ``parameters.json``.

        Raises
        ------
        DataError
            If there is no such folder, or it is not that of an experiment.
        """
        folder = Path(folder)
        file = folder / "parameters.json"
        if not file.exists():
            reason = (
                "it has no parameters.json" if folder.is_dir() else "no such folder"
            )
            msg = f"{folder}: not an experiment folder: {reason}."
            raise DataError(msg)
        return cls(folder, parse_experiment(read_json(file), str(file)))


def reference_manifest(block: Mapping[str, Any], where: str) -> DatasetManifest:
    """Build a manifest from the ``preprocessed`` block of the reference scGAN.

    Raises
    ------
    DataError
        If the block lacks a key.

    Notes
    -----
    The reference stores requested numbers of validation and test cells; those per
    cluster are the realised ones, so sizes are their sums.
    """
    try:
        splits = ("train", "valid", "test")
        categories = _natural_order(block["train_cells_per_cluster"])
        per_split = {
            split: tuple(
                int(block[f"{split}_cells_per_cluster"].get(category, 0))
                for category in categories
            )
            for split in splits
        }
        n_genes = int(block["genes_no"])
        scale = int(block["scale"]["scale_value"])
    except (KeyError, TypeError) as error:
        msg = f"{where}: preprocessed: {error} is missing. Run --process --overwrite."
        raise DataError(msg) from None
    return DatasetManifest(
        features={"rna": tuple(str(gene) for gene in range(n_genes))},
        covariates={"cluster": CovariateVocabulary(categories)},
        label="cluster",
        target_library_size=scale,
        record_values="normalized",
        split_sizes={split: sum(per_split[split]) for split in splits},
        cells_per_category={split: {"cluster": per_split[split]} for split in splits},
        library_sizes={"rna": tuple(() for _ in categories)},
        shards={},
        combinations=tuple(
            Combination({"cluster": code}, n_cells, {}, {}, {})
            for code, n_cells in enumerate(per_split["train"])
            if n_cells
        ),
    )


def _flatten(block: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in block.items():
        if isinstance(value, dict):
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def _natural_order(names: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(sorted(names, key=lambda name: (not name.isdigit(), name.zfill(12))))
