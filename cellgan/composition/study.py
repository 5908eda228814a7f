"""A composition study: its folder, its manifest, and the experiments it is made of.

::

    <experiments_dir>/<study>/
      composition.json     the manifest: which cell is in which corpus, and why
      cells.csv.gz         the same, cell by cell
      experiments.json     one experiment for every mixture and seed
      evaluations/         <name>.h5ad: cells that models are judged on
      <mixture>-seed<n>/   an experiment like any other
      report/              tables, figures, report.html
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

from cellgan.composition.plan import SCHEMA_VERSION, training_seed
from cellgan.config.composition import (
    Budget,
    Composition,
)
from cellgan.config.parameters import ExperimentParameters, StudyParameters
from cellgan.config.reading import as_json, parse_experiment, read_json
from cellgan.config.training import StageParameters
from cellgan.errors import ConfigError, DataError
from cellgan.experiment import Experiment

RAW_PREFIX = "composition:"
"""What ``input_ds.raw_input`` of a study's experiments begins with; the fingerprint of
their corpus follows."""


DATA_KEYS = (
    *("sources", "mixtures", "evaluations", "genes", "seeds", "seed_scope"),
    *("exclude", "label", "covariates", "valid_fraction", "scale"),
)
"""What of a composition decides the corpora."""


@dataclasses.dataclass(frozen=True)
class Study:
    """A composition study: its folder and its parameters."""

    folder: Path
    parameters: StudyParameters

    @property
    def name(self) -> str:
        """Name of the study, which is that of its folder."""
        return self.folder.name

    @property
    def composition(self) -> Composition:
        """Sources, mixtures and evaluations."""
        return self.parameters.composition

    @property
    def manifest_file(self) -> Path:
        """Which cell is in which corpus; written last."""
        return self.folder / "composition.json"

    @property
    def cells_file(self) -> Path:
        """The same, a row per cell."""
        return self.folder / "cells.csv.gz"

    @property
    def experiments_file(self) -> Path:
        """Parameter file of all experiments of the study."""
        return self.folder / "experiments.json"

    @property
    def report_folder(self) -> Path:
        """Tables, figures and the report."""
        return self.folder / "report"

    def evaluation_file(self, name: str) -> Path:
        """Cells of an evaluation set, with the genes of the study."""
        return self.folder / "evaluations" / f"{name}.h5ad"

    def experiment_name(self, mixture: str, seed: int) -> str:
        """Name of the experiment of a mixture and a seed."""
        return f"{mixture}-seed{seed}"

    def manifest(self) -> dict[str, Any]:
        """Read the manifest, and check that it is of these parameters.

        Raises
        ------
        DataError
            If the study is not processed.
        ConfigError
            If it was processed with other parameters.
        """
        if not self.manifest_file.exists():
            msg = f"{self.manifest_file}: no such file. Run --process first."
            raise DataError(msg)
        document = dict(read_json(self.manifest_file))
        if document.get("schema_version") != SCHEMA_VERSION:
            msg = f"{self.manifest_file}: of another version. Run --process again."
            raise DataError(msg)
        before, now = document["composition"], data_parameters(self.composition)
        differing = [key for key in DATA_KEYS if before[key] != now[key]]
        if differing:
            msg = (
                f"{self.name}: {', '.join(differing)} of the composition differ from "
                f"those in {self.manifest_file}. Run --process --overwrite, which "
                "replaces the corpora that change and keeps the others."
            )
            raise ConfigError(msg)
        return document

    def experiments(self, manifest: Mapping[str, Any]) -> dict[str, Experiment]:
        """Return the experiment of every mixture and seed, by name."""
        return {
            name: Experiment(
                self.folder / name,
                experiment_parameters(self.parameters, manifest, name),
            )
            for name in manifest["corpora"]
        }

    def experiments_document(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Return the parameter file of all experiments of the study."""
        return {
            "exp_param": {"experiments_dir": str(self.folder.absolute()), "GPU": []},
            "experiments": {
                name: experiment_block(self.parameters, manifest, name)
                for name in manifest["corpora"]
            },
        }


def data_parameters(composition: Composition) -> dict[str, Any]:
    """Return what of a composition decides the corpora, as plain JSON values."""
    document = as_json(composition)
    return {key: document[key] for key in DATA_KEYS}


def training_steps(
    study: StudyParameters, budget: Budget, corpora: Mapping[str, Any], name: str
) -> dict[str, int]:
    """Return the steps of every stage that a budget gives the model of a corpus.

    Parameters
    ----------
    corpora
        ``corpora`` of the manifest.
    name
        Of the corpus.
    """
    corpus = corpora[name]
    if budget.epochs is not None:
        of = corpus
        if budget.equal:
            baseline = study.composition.baseline
            of = next(
                other
                for other in corpora.values()
                if (other["mixture"], other["seed"]) == (baseline, corpus["seed"])
            )
        n_cells = Fraction(str(budget.epochs)) * of["n_train"]
    else:
        n_cells = Fraction(budget.cells_seen or 0)
    steps = {}
    for stage in study.model.stages:
        batch_size = study.training.of_stage(stage).batch_size
        steps[stage] = budget.steps or max(1, math.ceil(n_cells / batch_size))
    return steps


def experiment_block(
    study: StudyParameters, manifest: Mapping[str, Any], name: str
) -> dict[str, Any]:
    """Return the entry of an ordinary parameter file for one mixture and seed."""
    composition = study.composition
    corpus = manifest["corpora"][name]
    training = as_json(study.training)
    training["seed"] = training_seed(composition, corpus["seed"])
    stages = study.model.stages
    if composition.budget is not None:
        steps = training_steps(study, composition.budget, manifest["corpora"], name)
        training["max_steps"] = steps[stages[-1]]
        if training["stages"] or len(set(steps.values())) > 1:
            keys = [field.name for field in dataclasses.fields(StageParameters)]
            for stage in stages:
                of_stage = as_json(study.training.of_stage(stage))
                own = training["stages"].setdefault(
                    stage, {key: of_stage[key] for key in keys}
                )
                own["max_steps"] = steps[stage]
    return {
        "input_ds": {
            "raw_input": f"{RAW_PREFIX}{corpus['sha256']}",
            "clustering": {"res": None, "key": composition.label},
            "covariates": list(composition.covariates),
            "filtering": {"min_cells": 0, "min_genes": 0},
            "scale": composition.scale,
            "split": {"valid_cells": corpus["n_valid"], "test_cells": 0},
        },
        "model": as_json(study.model),
        "training": training,
        "generation": as_json(study.generation),
        "evaluation": as_json(study.evaluation),
    }


def experiment_parameters(
    study: StudyParameters, manifest: Mapping[str, Any], name: str
) -> ExperimentParameters:
    """Return the parameters of the experiment of one mixture and seed."""
    return parse_experiment(experiment_block(study, manifest, name), name)
