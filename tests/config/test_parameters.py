"""The strict loader: originals load unchanged, everything wrong is named."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cellgan.config.reading import (
    as_json,
    load_parameters,
    parse_experiment,
    with_generation,
)
from cellgan.config.training import (
    LearningRateParameters,
    OptimizerParameters,
    StageParameters,
    TrainingParameters,
)
from cellgan.errors import ConfigError

ORIGINAL = {
    "exp_param": {"experiments_dir": "experiments", "GPU": [0]},
    "experiments": {
        "pbmc": {
            "input_ds": {
                "raw_input": "raw.h5ad",
                "clustering": {"res": 0.15},
                "filtering": {"min_cells": 3, "min_genes": 10},
                "scale": "normalize_per_cell_LS_20000",
                "split": {
                    "balanced_split": True,
                    "split_seed": "default",
                    "test_cells": 0,
                    "valid_cells": 2000,
                },
            },
            "training": {
                "max_steps": 1000000,
                "learning_rate": {"decay": True, "alpha_0": 1e-4, "alpha_final": 1e-5},
                "optimizer": {"algorithm": "AMSGrad", "beta1": 0.5, "beta2": 0.9},
                "batch_size": 128,
                "critic_iters": 5,
                "checkpoint": None,
                "progress_freq": 10,
                "validation_freq": 1000,
                "save_freq": 1000,
                "summary_freq": 50,
            },
            "model": {
                "type": "cscGAN",
                "latent_dim": 128,
                "output_LSN": 20000,
                "critic_layers": [1024, 512, 256],
                "gen_layers": [256, 512, 1024],
                "critic_cond_type": "proj",
                "gen_cond_type": "batchnorm",
                "lambd": 10,
            },
        }
    },
}
"""The template of the original scGAN, key for key."""

Edit = Callable[[dict[str, Any]], Any]


def write(folder: Path, document: Any) -> Path:
    path = folder / "parameters.json"
    path.write_text(json.dumps(document))
    return path


def edited(folder: Path, edit: Edit) -> Path:
    document = copy.deepcopy(ORIGINAL)
    edit(document["experiments"]["pbmc"])
    return write(folder, document)


def without_our_keys(block: Any, original: Any) -> Any:
    return (
        {key: without_our_keys(block[key], original[key]) for key in original}
        if isinstance(original, dict)
        else block
    )


def test_original_file_is_honoured_key_for_key(tmp_path: Path) -> None:
    parameters = load_parameters(write(tmp_path, ORIGINAL))

    resolved = as_json(parameters.experiments["pbmc"])
    expected = ORIGINAL["experiments"]["pbmc"]  # type: ignore[index]
    assert without_our_keys(resolved, expected) == expected
    assert parameters.exp_param.GPU == (0,)


def test_scgan_accepts_the_conditioning_keys_of_the_original(tmp_path: Path) -> None:
    path = edited(tmp_path, lambda e: e["model"].update(type="scGAN"))

    assert load_parameters(path).experiments["pbmc"].model.type == "scGAN"


def test_resolved_parameters_load_to_themselves(tmp_path: Path) -> None:
    experiment = load_parameters(write(tmp_path, ORIGINAL)).experiments["pbmc"]

    assert parse_experiment(as_json(experiment), "again") == experiment


def test_output_lsn_follows_scale_when_left_out(tmp_path: Path) -> None:
    path = edited(
        tmp_path,
        lambda e: (
            e["model"].pop("output_LSN"),
            e["input_ds"].update(scale="normalize_per_cell_LS_1000"),
        ),
    )

    assert load_parameters(path).experiments["pbmc"].model.output_LSN == 1000


def test_output_lsn_null_leaves_the_output_unscaled(tmp_path: Path) -> None:
    path = edited(tmp_path, lambda e: e["model"].update(output_LSN=None))

    assert load_parameters(path).experiments["pbmc"].model.output_LSN is None


def test_label_is_the_column_when_key_is_given_without_res(tmp_path: Path) -> None:
    path = edited(
        tmp_path, lambda e: e["input_ds"].update(clustering={"key": "cell_type"})
    )

    clustering = load_parameters(path).experiments["pbmc"].input_ds.clustering
    assert (clustering.res, clustering.label) == (None, "cell_type")


def test_covariates_besides_the_label_are_in_one_order(tmp_path: Path) -> None:
    path = edited(
        tmp_path,
        lambda e: e["input_ds"].update(
            clustering={"key": "cell_type"}, covariates=["sex", "cell_type", "donor"]
        ),
    )

    parameters = load_parameters(path).experiments["pbmc"].input_ds
    assert parameters.other_covariates == ("donor", "sex")


def test_atac_is_off_until_its_block_is_there(tmp_path: Path) -> None:
    without, found = (
        load_parameters(edited(tmp_path, lambda e, new=new: e["input_ds"].update(new)))
        .experiments["pbmc"]
        .input_ds.atac
        for new in ({}, {"atac": {"raw_input": "Peaks.H5AD"}})
    )

    assert without is None
    assert (found.layer, found.min_cells, found.values) == ("auto", 5, "counts")


WRONG = {
    "misspelt key": (
        lambda e: e["training"].update(critic_iter=5),
        r'pbmc\.training: unknown key "critic_iter"\. Did you mean "critic_iters"\?'
        r"(.|\n)*Keys allowed here: batch_size, checkpoint, clip_norm, critic_iters",
    ),
    "misspelt key in a nested block": (
        lambda e: e["training"]["learning_rate"].update(alpha0=1e-3),
        r'training\.learning_rate: unknown key "alpha0"\. Did you mean "alpha_0"',
    ),
    "unknown block": (
        lambda e: e.update(trainin={}),
        r'pbmc: unknown key "trainin"\. Did you mean "training"',
    ),
    "text for a number": (
        lambda e: e["training"].update(max_steps="many"),
        r'training\.max_steps: "many" found, expected a valid integer',
    ),
    "fraction for an integer": (
        lambda e: e["training"].update(batch_size=12.5),
        r"training\.batch_size: 12\.5 found, expected a valid integer",
    ),
    "truth value for a number": (
        lambda e: e["training"].update(critic_iters=True),
        r"training\.critic_iters: true found, expected a valid integer",
    ),
    "out of range": (
        lambda e: e["training"].update(batch_size=0),
        r"training\.batch_size: 0 found, expected greater than or equal to 1",
    ),
    "not a number": (
        lambda e: e["model"].update(lambd=float("nan")),
        r"model\.lambd: NaN found, expected",
    ),
    "layer without units": (
        lambda e: e["model"].update(gen_layers=[0]),
        r"model\.gen_layers: 0 found, expected greater than or equal to 1\.$",
    ),
    "empty layers": (
        lambda e: e["model"].update(gen_layers=[]),
        r"model\.gen_layers: \[\] found",
    ),
    "unknown optimiser": (
        lambda e: e["training"]["optimizer"].update(algorithm="SGD"),
        r'"SGD" found, expected .AMSGrad., .Adam., .AdamW. or .AdamL2.',
    ),
    "unknown model type": (
        lambda e: e["model"].update(type="cscgan"),
        r'model: type is "cscgan"\. Did you mean "cscGAN"',
    ),
    "unknown normalisation": (
        lambda e: e["model"].update(gen_cond_type="batch"),
        r'model\.gen_cond_type: "batch" found, expected .batchnorm.',
    ),
    "scale of another form": (
        lambda e: e["input_ds"].update(scale="log"),
        r'input_ds: scale is "log", expected "normalize_per_cell_LS_"',
    ),
    "scale and output disagree": (
        lambda e: e["model"].update(output_LSN=10000),
        r"model: output_LSN is 10000 but input_ds\.scale is",
    ),
    "unknown embedded data": (
        lambda e: e["input_ds"].update(raw_input="builtin:pbmc"),
        r"embedded data sets are: builtin:pbmc68k_reduced",
    ),
    "two sources of labels": (
        lambda e: e["input_ds"]["clustering"].update(key="cell_type"),
        r'res is 0\.15 and key is "cell_type": set res to null',
    ),
    "held-out values without a column": (
        lambda e: e["input_ds"]["split"].update(test_values=["donor 1"]),
        r'need "by", the obs column',
    ),
    "a value held out twice": (
        lambda e: e["input_ds"]["split"].update(
            by="donor", test_values=["1"], valid_values=["1"]
        ),
        r'"1" is in both',
    ),
    "a covariate named twice": (
        lambda e: e["input_ds"].update(covariates=["donor", "sex", "donor"]),
        r'input_ds: covariates name "donor" twice',
    ),
    "a covariate without a name": (
        lambda e: e["input_ds"].update(covariates=[""]),
        r'input_ds\.covariates: "" found, expected',
    ),
    "misspelt key in a block that may be null": (
        lambda e: e["input_ds"].update(raw_input="x.h5mu", atac={"min_cell": 3}),
        r'input_ds\.atac: unknown key "min_cell"\. Did you mean "min_cells"',
    ),
    "wrong value in a block that may be null": (
        lambda e: e["input_ds"].update(raw_input="x.h5mu", atac={"values": "open"}),
        r"input_ds\.atac\.values: \"open\" found, expected 'counts' or 'binary'",
    ),
    "ATAC in the records of the original": (
        lambda e: e["input_ds"].update(
            raw_input="x.h5mu", atac={}, record_values="normalized"
        ),
        r'input_ds: record_values is "normalized", .* no place for atac\. Set it to',
    ),
    "no file of ATAC": (
        lambda e: e["input_ds"].update(atac={}),
        r'atac\.raw_input is null, so raw_input must be an \.h5mu .* is "raw\.h5ad"',
    ),
    "ATAC in a file of another format": (
        lambda e: e["input_ds"].update(atac={"raw_input": "peaks.mtx"}),
        r'atac\.raw_input is "peaks\.mtx", expected an \.h5ad file',
    ),
    "missing input": (
        lambda e: e["input_ds"].pop("raw_input"),
        r'input_ds: "raw_input" is missing',
    ),
    "block of another type": (
        lambda e: e.update(model=[]),
        r"pbmc\.model: expected an object, found \[\]",
    ),
}


@pytest.mark.parametrize(("edit", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_value_is_named(tmp_path: Path, edit: Edit, message: str) -> None:
    path = edited(tmp_path, edit)

    with pytest.raises(ConfigError, match=message):
        load_parameters(path)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    path = edited(tmp_path, lambda e: e["training"].update(batch_size=0, critic_iter=5))

    with pytest.raises(ConfigError, match=r"(?s)batch_size: 0.*critic_iter"):
        load_parameters(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"exp_param": ', r"not valid JSON at line 1, column \d+"),
        ('{"a": 1, "a": 2}', r'the key "a" is given twice'),
        ("[]", r"expected an object, found \[\]"),
        ('{"exp_param": {}}', r'"experiments" is missing'),
        (
            '{"exp_param": {"experiments_dir": "x"}, "experiments": {}}',
            r"experiments: expected an object with one entry per experiment",
        ),
        (
            '{"exp_param": {"experiments_dir": "x"}, "experiments": {"a/b": {}}}',
            r'"a/b" cannot be a folder name',
        ),
        ('{"exp_param": {"GPU": [-1]}, "experiments": {"a": {}}}', r"exp_param"),
    ],
)
def test_wrong_document_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "parameters.json"
    path.write_text(text)

    with pytest.raises(ConfigError, match=message):
        load_parameters(path)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.json: no such file"):
        load_parameters(tmp_path / "nowhere.json")


# Stages


def cfgen(training: Any = None, **blocks: Any) -> Any:
    """Parse an experiment of CFGen."""
    block = {
        "input_ds": {"raw_input": "raw.h5ad"},
        "model": {"type": "CFGen"},
        "training": training or {},
        **blocks,
    }
    return parse_experiment(block, "here")


def test_stages_of_cfgen_have_the_defaults_of_the_family() -> None:
    training = cfgen().training

    assert training.stages == {
        name: StageParameters(
            max_steps=steps,
            batch_size=256,
            learning_rate=LearningRateParameters(decay=False, alpha_0=rate),
            optimizer=OptimizerParameters(
                algorithm="AdamW", beta1=0.9, beta2=0.999, weight_decay=weight_decay
            ),
            clip_norm=1.0,
        )
        for name, steps, rate, weight_decay in (
            ("autoencoder", 3000, 1e-3, 1e-5),
            ("flow", 20_000, 1e-4, 1e-6),
        )
    }


def test_values_of_the_file_hold_for_all_stages() -> None:
    given = {"batch_size": 32, "optimizer": {"beta1": 0.8}}
    training = cfgen(given).training

    for stage in training.stages.values():
        assert stage.batch_size == 32
        assert (stage.optimizer.beta1, stage.optimizer.beta2) == (0.8, 0.999)
    decays = [stage.optimizer.weight_decay for stage in training.stages.values()]
    assert decays == [1e-5, 1e-6]


def test_values_of_a_stage_go_over_those_of_the_file() -> None:
    given = {
        "max_steps": 50,
        "learning_rate": {"alpha_0": 0.5},
        "stages": {"flow": {"max_steps": 70, "learning_rate": {"decay": True}}},
    }
    stages = cfgen(given).training.stages

    assert (stages["autoencoder"].max_steps, stages["flow"].max_steps) == (50, 70)
    rates = [(s.learning_rate.alpha_0, s.learning_rate.decay) for s in stages.values()]
    assert rates == [(0.5, False), (0.5, True)]


def test_a_stage_is_trained_with_its_own_and_the_shared_values() -> None:
    given = {"seed": 7, "save_freq": 9, "stages": {"flow": {"max_steps": 70}}}
    training = cfgen(given).training
    flow = training.of_stage("flow")

    assert (flow.max_steps, flow.seed, flow.save_freq) == (70, 7, 9)
    assert flow.optimizer.weight_decay == 1e-6
    assert training.of_stage("autoencoder").max_steps == 3000


def test_a_stage_without_values_of_its_own_has_those_of_the_file() -> None:
    training = TrainingParameters(max_steps=5)

    assert training.of_stage("gan") == training


def test_stage_of_a_gan_may_be_given_too() -> None:
    block = {
        "input_ds": {"raw_input": "raw.h5ad"},
        "training": {"batch_size": 8, "stages": {"gan": {"max_steps": 5}}},
    }
    gan = parse_experiment(block, "here").training.of_stage("gan")

    assert (gan.max_steps, gan.batch_size) == (5, 8)
    assert gan.optimizer.algorithm == "AMSGrad"


@pytest.mark.parametrize(
    "training", [{}, {"batch_size": 8, "stages": {"flow": {"clip_norm": None}}}]
)
def test_frozen_parameters_of_cfgen_load_to_themselves(training: Any) -> None:
    experiment = cfgen(training, generation={"guidance": {"cluster": 2.0}})
    frozen = json.loads(json.dumps(as_json(experiment)))

    again = parse_experiment(frozen, "again")

    assert again == experiment
    assert as_json(again) == frozen


def test_generation_keys_of_the_command_line_go_over_those_of_the_file() -> None:
    experiment = cfgen(generation={"solver": "rk4", "n_steps": 4, "seed": 3})

    generation = with_generation(experiment, {"solver": "dopri5", "seed": 0}).generation

    assert (generation.solver, generation.n_steps, generation.seed) == ("dopri5", 4, 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"solver": "rk5"}, r'--solver: "rk5" found, expected .euler.'),
        ({"n_steps": 0}, r"--n-steps: 0 found, expected greater than"),
        (
            {"library_size": "real"},
            r'--library-size: "real" found, expected',
        ),
        (
            {"tolerance": 1e-5},
            "--tolerance has no effect on the solver midpoint, which",
        ),
        ({"solver": "dopri5", "n_steps": 9}, "--n-steps has no effect on the solver"),
        ({"counts": True}, "^--counts has no meaning for .* scGAN"),
        ({"cache_interval": 5}, "^--cache-interval has no meaning for .* cfDiffusion"),
    ],
)
def test_wrong_generation_option_is_named(given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_generation(cfgen(), given)


LATENT_ONLY = (
    r'no meaning for the model type "cscGAN", only for CFGen, cfDiffusion'
    r".*\. Leave it out"
)
WRONG_STAGES = {
    "unknown stage": (
        {"training": {"stages": {"flw": {}}}},
        r'here\.training\.stages: unknown key "flw"\. Did you mean "flow"\?'
        r"(.|\n)*allowed here: autoencoder, flow",
    ),
    "unknown key of a stage": (
        {"training": {"stages": {"flow": {"max_step": 5}}}},
        r'training\.stages\.flow: unknown key "max_step"\. Did you mean "max_steps"',
    ),
    "key that all stages share": (
        {"training": {"stages": {"flow": {"seed": 5}}}},
        r'training\.stages\.flow: unknown key "seed"',
    ),
    "wrong value in a stage": (
        {"training": {"stages": {"flow": {"batch_size": 0}}}},
        r"training\.stages\.flow\.batch_size: 0 found, expected greater than",
    ),
    "stages of another type": (
        {"training": {"stages": []}},
        r"training\.stages: expected an object, found \[\]",
    ),
    "stage of another type": (
        {"training": {"stages": {"flow": 5}}},
        r"training\.stages\.flow: expected an object, found 5",
    ),
    "training of another type": (
        {"training": 5},
        r"here\.training: expected an object, found 5",
    ),
    "stage of another family": (
        {"model": {}, "training": {"stages": {"flow": {}}}},
        r'training\.stages: unknown key "flow"(.|\n)*allowed here: gan',
    ),
    "critic of a model without one": (
        {"training": {"critic_iters": 3}},
        r'here\.training: critic_iters has no meaning for the model type "CFGen", only '
        r"for scGAN, cscGAN\. Leave it out",
    ),
    "clipping of a GAN": (
        {"model": {}, "training": {"clip_norm": 1.0}},
        rf"here\.training: clip_norm has {LATENT_ONLY}",
    ),
    "clipping of a GAN in its stage": (
        {"model": {}, "training": {"stages": {"gan": {"clip_norm": 1.0}}}},
        rf"here\.training\.stages\.gan: clip_norm has {LATENT_ONLY}",
    ),
    "guidance of a GAN": (
        {"model": {}, "generation": {"guidance": {"cluster": 2.0}}},
        rf"here\.generation: guidance has {LATENT_ONLY}",
    ),
    "solver of a GAN": (
        {"model": {}, "generation": {"solver": "rk4"}},
        rf"here\.generation: solver has {LATENT_ONLY}",
    ),
    "condition by what is no covariate": (
        {"model": {"type": "CFGen", "flow": {"condition_on": ["clustr"]}}},
        r'here\.model\.flow\.condition_on: no covariate "clustr"\. Did you mean "clus',
    ),
    "guidance by what is no covariate": (
        {"generation": {"guidance": {"donor": 2.0}}},
        r'here\.generation\.guidance: no covariate "donor"',
    ),
    "covariate named twice": (
        {"model": {"type": "CFGen", "flow": {"condition_on": ["a", "a"]}}},
        r'model\.flow: condition_on names "a" twice',
    ),
    "range of library sizes that nothing reads": (
        {"model": {"type": "CFGen", "flow": {"log_library_sizes": {"rna": [1, 2]}}}},
        "log_library_sizes does nothing without use_library_size: true",
    ),
    "counts learned from normalised records": (
        {"input_ds": {"raw_input": "a.h5ad", "record_values": "normalized"}},
        r'record_values is "normalized", but CFGen learns from counts\. Set it to "cou',
    ),
    "decay of an optimiser without it": (
        {"model": {}, "training": {"optimizer": {"weight_decay": 0.1}}},
        r'weight_decay is 0\.1 but algorithm is "AMSGrad", .* algorithm to "AdamW"',
    ),
    "decay of an optimiser without it in a stage": (
        {"training": {"stages": {"flow": {"optimizer": {"algorithm": "Adam"}}}}},
        r'stages\.flow\.optimizer: weight_decay is 1e-06 but algorithm is "Adam"',
    ),
}


@pytest.mark.parametrize(
    ("blocks", "message"), WRONG_STAGES.values(), ids=WRONG_STAGES.keys()
)
def test_wrong_value_of_a_family_is_named(blocks: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cfgen(**blocks)


# cfDiffusion


def cfdiffusion(**blocks: Any) -> Any:
    """Parse an experiment of cfDiffusion."""
    block = {
        "input_ds": {"raw_input": "a.h5ad"},
        "model": {"type": "cfDiffusion"},
        **blocks,
    }
    return parse_experiment(block, "here")


def test_family_starts_from_its_own_generation_values() -> None:
    generation = cfdiffusion().generation
    assert (generation.solver, generation.n_steps) == ("ddpm", 100)
    given = cfdiffusion(generation={"n_steps": 7}).generation
    assert (given.solver, given.n_steps) == ("ddpm", 7)
    assert cfgen().generation.solver == "midpoint"


def test_diffusion_anneals_its_rate_in_a_straight_line() -> None:
    training = cfdiffusion().training
    decays = [training.of_stage(name).learning_rate.decay for name in training.stages]
    assert decays == [True, "linear"]


def test_cells_are_counts_with_the_decoder_of_counts_alone() -> None:
    assert cfdiffusion().model.makes_counts
    squared = {"type": "cfDiffusion", "autoencoder": {"decoder": "squared_error"}}
    assert not cfdiffusion(model=squared).model.makes_counts


SQUARED = {"type": "cfDiffusion", "autoencoder": {"decoder": "squared_error"}}
WRONG_DIFFUSION = {
    "more steps than the schedule has": (
        {"generation": {"n_steps": 1001}},
        r"here\.generation: n_steps is 1001, but the model diffuses in 1000 steps",
    ),
    "cache interval below 1": (
        {"generation": {"cache_interval": 0}},
        r"here\.generation\.cache_interval: 0 found, expected greater than or equal",
    ),
    "connection that there is not": (
        {"generation": {"cache_branch": 3}},
        r"cache_branch is 3, but the denoiser has 3 connections\. Give 0 to 2",
    ),
    "solver of a flow": (
        {"generation": {"solver": "rk4"}},
        r'solver is "rk4", which the model type "cfDiffusion" does not know\. Solvers: '
        r"ddpm, ddim",
    ),
    "eta without ddim": (
        {"generation": {"eta": 0.5}},
        r"eta is 0\.5, which only the solver ddim has",
    ),
    "eta above 1": (
        {"generation": {"solver": "ddim", "eta": 1.5}},
        r"generation\.eta: 1\.5 found, expected less than or equal to 1",
    ),
    "library sizes without counts": (
        {"model": SQUARED, "generation": {"library_size": 900}},
        r"library_size is given, but cells are not counts\. Leave it out",
    ),
    "tolerance of another family": (
        {"generation": {"tolerance": 0.1}},
        r'tolerance has no meaning for the model type "cfDiffusion", only for CFGen',
    ),
    "odd width": (
        {"model": {"type": "cfDiffusion", "diffusion": {"widths": [7, 4]}}},
        r"model\.diffusion\.widths: widths are \[7, 4\]: give two or more, the first",
    ),
    "residual layers that differ": (
        {"model": {"type": "cfDiffusion", "autoencoder": {"residual": True}}},
        r"residual is true but layers are \[512, 256\]: make them equal",
    ),
}


@pytest.mark.parametrize(
    ("blocks", "message"), WRONG_DIFFUSION.values(), ids=WRONG_DIFFUSION.keys()
)
def test_wrong_value_of_a_diffusion_is_named(blocks: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cfdiffusion(**blocks)


def test_solver_of_a_diffusion_is_refused_by_a_flow() -> None:
    with pytest.raises(ConfigError, match=r'"CFGen" does not know\. Solvers: euler'):
        with_generation(cfgen(), {"solver": "ddim"})


def test_steps_that_a_diffusion_has_not_are_named_as_typed() -> None:
    with pytest.raises(ConfigError, match=r"^--n-steps is 2000, but .* in 1000 steps"):
        with_generation(cfdiffusion(), {"n_steps": 2000})


def test_unknown_condition_of_a_diffusion_is_named() -> None:
    model = {"type": "cfDiffusion", "diffusion": {"condition_on": ["donr"]}}
    with pytest.raises(ConfigError, match=r'diffusion\.condition_on: .* "donr"'):
        cfdiffusion(model=model)


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (
            {"autoencoder": {"atac_layers": [64]}},
            r"autoencoder\.atac_layers is \[64\], but input_ds\.atac is null",
        ),
        (
            {"autoencoder": {"atac_weight": 0.5}},
            r"autoencoder\.atac_weight is 0\.5, but input_ds\.atac is null",
        ),
        (
            {
                "flow": {
                    "use_library_size": True,
                    "log_library_sizes": {"atac": [1.0, 2.0]},
                }
            },
            r"flow\.log_library_sizes is \{\"atac\": \[1\.0, 2\.0\]\}, but",
        ),
    ],
)
def test_keys_of_atac_need_atac(block, expected) -> None:
    model = {"type": "CFGen", **block}
    with pytest.raises(ConfigError, match=rf"one\.model\.{expected}.*Leave it out"):
        parse_experiment({"input_ds": {"raw_input": "a.h5ad"}, "model": model}, "one")
    multiome = {"raw_input": "a.h5ad", "atac": {"raw_input": "b.h5ad"}}
    parse_experiment({"input_ds": multiome, "model": model}, "one")


def test_defaults_of_atac_keys_need_no_atac() -> None:
    model = {"type": "CFGen", "autoencoder": {"atac_layers": [1024, 512]}}
    parse_experiment({"input_ds": {"raw_input": "a.h5ad"}, "model": model}, "one")
