"""The linearly decoded VAE by its properties: priors, schedules, networks, cells."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from cellgan.config.reading import parse_experiment
from cellgan.data.batches import CellBatch
from cellgan.data.manifest import ATAC, CovariateVocabulary, find_combinations
from cellgan.errors import ConfigError
from cellgan.layers import BatchNormalization
from cellgan.layers.likelihoods import NegativeBinomial, ZeroInflatedNegativeBinomial
from cellgan.layers.log_probabilities import negative_binomial_softmax_loss
from cellgan.models import build_model
from cellgan.models.base import GenerationRequest
from cellgan.models.ldvae.networks import (
    VAE_EPSILON,
    LinearDecoder,
    Posterior,
    VaeNetwork,
)
from cellgan.models.ldvae.training import (
    SMALLEST_LIBRARY_VARIANCE,
    WarmUp,
    library_prior,
)
from tests.manifests import make_manifest

N_GENES = 12
TOTALS = np.array([100.0, 200, 400, 50, 70, 90])
LABELS = np.array([0, 0, 1, 0, 1, 1])
BATCHES = np.array([0, 0, 0, 1, 1, 1])


def manifest_of(totals=TOTALS, batches=BATCHES, n_batches=2):
    """Return a manifest of six cells with a label and a batch each."""
    manifest = make_manifest(("A", "B"), (3, 3), N_GENES)
    names = tuple(f"batch{code}" for code in range(n_batches))
    return dataclasses.replace(
        manifest,
        covariates={**manifest.covariates, "batch": CovariateVocabulary(names)},
        combinations=find_combinations(
            {"cluster": LABELS, "batch": batches}, {"rna": totals}
        ),
        cells_per_category={
            "train": {
                "cluster": (3, 3),
                "batch": tuple(np.bincount(batches, minlength=n_batches).tolist()),
            }
        },
        split_sizes={"train": 6, "valid": 0, "test": 0},
    )


def parameters_of(**blocks: Any) -> Any:
    block = {
        "input_ds": {"raw_input": "a.h5ad", "covariates": ["batch"]},
        "training": {"jit": False},
        **blocks,
    }
    block["model"] = {"type": "LDVAE", "n_latent": 3, "n_hidden": 8, **block["model"]}
    return parse_experiment(block, "test")


def make_model(manifest=None, **model: Any) -> Any:
    return build_model(parameters_of(model=model), manifest or manifest_of())


def make_cells(n_cells: int = 7, n_genes: int = N_GENES) -> CellBatch:
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(1, 3, (n_cells, n_genes))).astype(np.float32)
    codes = np.arange(n_cells, dtype=np.int32) % 2
    return CellBatch(
        {"rna": tf.constant(counts)},
        {"rna": tf.constant(counts.sum(axis=1))},
        {"cluster": tf.constant(codes), "batch": tf.constant(codes)},
    )


@pytest.fixture(scope="module")
def model() -> Any:
    """A model of two batches that no test changes: it is traced once."""
    return make_model(batch_key="batch")


class TestLibraryPrior:
    def test_is_mean_and_variance_of_the_log_totals_of_each_batch(self) -> None:
        prior = library_prior(manifest_of(), "batch")

        for code in (0, 1):
            logs = np.log(TOTALS[code == BATCHES])
            assert prior.mean[code] == pytest.approx(logs.mean(), rel=1e-6)
            assert prior.variance[code] == pytest.approx(logs.var(), rel=1e-6)

    def test_is_of_all_cells_without_batches(self) -> None:
        prior = library_prior(manifest_of(), None)

        assert prior.mean[0] == pytest.approx(np.log(TOTALS).mean(), rel=1e-6)
        assert prior.variance[0] == pytest.approx(np.log(TOTALS).var(), rel=1e-6)

    def test_has_a_variance_where_all_totals_are_the_same(self) -> None:
        prior = library_prior(manifest_of(totals=np.full(6, 100.0)), "batch")

        np.testing.assert_allclose(prior.variance, SMALLEST_LIBRARY_VARIANCE)

    def test_of_a_batch_without_cells_is_standard_normal(self) -> None:
        prior = library_prior(manifest_of(n_batches=3), "batch")

        assert (prior.mean[2], prior.variance[2]) == (0, 1)


class TestWarmUp:
    @pytest.mark.parametrize(
        ("epoch", "expected"),
        [(0, 0), (1, 0.0025), (100, 0.25), (249, 0.6225), (400, 1), (500, 1)],
    )
    def test_rises_by_epochs_as_in_the_original(self, epoch, expected) -> None:
        rise = WarmUp("epochs", 400, 0, 1, n_cells=1000, batch_size=100, max_steps=9)

        first, last = (rise.weight(tf.constant(10 * epoch + k)) for k in (0, 9))

        assert float(first) == pytest.approx(expected)
        assert float(last) == float(first)

    @pytest.mark.parametrize(
        ("unit", "length", "step", "expected"),
        [
            ("steps", 50, 10, 0.5),
            ("steps", 50, 60, 0.7),
            ("share", 0.5, 25, 0.575),
            ("share", 0.5, 50, 0.7),
            ("steps", 0, 0, 0.7),
        ],
    )
    def test_rises_from_smallest_to_largest(self, unit, length, step, expected):
        rise = WarmUp(unit, length, 0.45, 0.7, n_cells=9, batch_size=3, max_steps=100)

        assert float(rise.weight(tf.constant(step, tf.int64))) == pytest.approx(
            expected
        )

    @pytest.mark.parametrize("unit", ["epochs", "steps", "share"])
    def test_is_what_the_parameters_tell_before_training(self, unit) -> None:
        length = {"epochs": 30, "steps": 70, "share": 0.7}[unit]
        parameters = parameters_of(
            model={"kl": {"unit": unit, "length": length, "smallest": 0.1}},
            training={"max_steps": 100, "batch_size": 2},
        )
        (stage,) = build_model(parameters, manifest_of()).stages()

        for step in (0, 1, 7, 50, 99):
            told = parameters.model.kl_weight(step, parameters.training, 6)
            assert float(stage.warm_up.weight(tf.constant(step))) == pytest.approx(told)

    def test_that_does_not_end_is_remarked_on(self) -> None:
        parameters = parameters_of(
            model={}, training={"max_steps": 750, "batch_size": 2}
        )
        (remark,) = parameters.model.remarks(parameters.training, 6)

        # 249 epochs of 3 steps each are over in the last one
        assert "ends at 0.62, below its largest 1" in remark

    def test_that_ends_is_not_remarked_on(self) -> None:
        parameters = parameters_of(model={"kl": {"unit": "share", "length": 0.5}})

        assert parameters.model.remarks(parameters.training, 6) == ()


class TestNetworks:
    def test_divergence_is_that_of_normals(self) -> None:
        mean, variance = tf.constant([[1.0, -2.0]]), tf.constant([[0.5, 3.0]])

        found = Posterior(mean, variance).divergence(0.5, 2.0)

        # log(s2/s1) + (s1^2 + (m1 - m2)^2) / (2 s2^2) - 1/2, twice
        expected = 0.5 * (np.log(2 / 0.5) + (0.5 + 0.25) / 2 - 1)
        expected += 0.5 * (np.log(2 / 3) + (3 + 6.25) / 2 - 1)
        assert float(found[0]) == pytest.approx(expected, rel=1e-6)

    def test_decoder_normalises_logits_without_making_them_first(self) -> None:
        decoder = LinearDecoder(
            3, 2, N_GENES, use_bias=True, use_batch_norm=True, seed=1, name="decoder"
        )
        decoder.build()
        decoder.norm.scale.assign(np.linspace(0.5, 2, N_GENES))
        decoder.norm.offset.assign(np.linspace(-1, 1, N_GENES))
        plain = BatchNormalization(N_GENES, epsilon=VAE_EPSILON)
        plain.build()
        plain.scale.assign(decoder.norm.scale)
        plain.offset.assign(decoder.norm.offset)
        inputs = tf.random.stateless_normal((9, 5), (1, 2)) + 3

        logits, (used,) = decoder(inputs, training=True)

        expected, statistics = plain(
            tf.matmul(inputs, decoder.kernel) + decoder.bias, training=True
        )
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
        for found, wanted in zip(used, statistics, strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-6)

    def test_shares_sum_to_1_and_follow_the_batch(self, model) -> None:
        cells = make_cells()
        other = cells._replace(
            covariates={**cells.covariates, "batch": 1 - cells.covariates["batch"]}
        )

        one, two = (model.reconstruct(of).expression for of in (cells, other))

        np.testing.assert_allclose(one.sum(axis=1), 1, rtol=1e-5)
        assert np.abs(one - two).max() > 1e-3
        assert model.gene_loadings().shape == (N_GENES, 3)

    def test_one_batch_has_no_columns_in_the_decoder(self) -> None:
        alone = manifest_of(batches=np.zeros(6, np.int64), n_batches=1)

        (stage,) = make_model(alone, batch_key="batch").stages()

        assert stage.network.decoder.kernel.shape == (3, N_GENES)

    def test_loadings_are_the_kernel_without_normalisation(self) -> None:
        (stage,) = make_model(batch_norm=False).stages()

        kernel = np.asarray(stage.network.decoder.kernel)
        np.testing.assert_array_equal(stage.network.decoder.loadings(), kernel.T)

    @pytest.mark.parametrize(
        ("options", "without"),
        [
            ({}, "zero_decoder"),
            ({"likelihood": "poisson"}, "log_inverse_dispersion"),
            ({"observes_library": True}, "library_encoder"),
        ],
    )
    def test_what_has_no_part_is_not_built(self, options, without) -> None:
        sizes = {"n_latent": 2, "n_hidden": 4, "n_layers": 1}

        network = VaeNetwork(N_GENES, **sizes, **options)

        assert getattr(network, without) is None
        assert not [w.path for w in network.variables if without in w.path]

    def test_latents_of_shares_sum_to_1(self) -> None:
        model = make_model(latent_distribution="logistic_normal")

        latents = model.latents(make_cells().features)

        np.testing.assert_allclose(latents.sum(axis=1), 1, rtol=1e-5)


class TestLikelihoods:
    def test_zeros_come_from_two_sources(self) -> None:
        mean, theta = tf.constant([[2.0, 5.0]]), tf.constant([0.7, 3.0])
        logits = tf.constant([[0.5, -1.0]])
        share = 1 / (1 + np.exp(-logits.numpy()))
        plain = NegativeBinomial(mean, theta)
        inflated = ZeroInflatedNegativeBinomial(mean, theta, logits)

        zeros, fours = tf.zeros((1, 2)), tf.fill((1, 2), 4.0)

        of_zero = share + (1 - share) * np.exp(plain.log_prob(zeros))
        of_four = (1 - share) * np.exp(plain.log_prob(fours))
        np.testing.assert_allclose(np.exp(inflated.log_prob(zeros)), of_zero, 1e-5)
        np.testing.assert_allclose(np.exp(inflated.log_prob(fours)), of_four, 1e-5)
        np.testing.assert_allclose(inflated.mean, (1 - share) * mean, 1e-6)

    def test_draws_have_the_mean_and_the_zeros(self) -> None:
        n = 4000
        mean, theta = tf.fill((n, 2), 4.0), tf.constant([2.0, 2.0])
        logits = tf.tile(tf.constant([[0.0, -30.0]]), (n, 1))
        inflated = ZeroInflatedNegativeBinomial(mean, theta, logits)

        counts = inflated.sample(tf.constant([3, 4])).matrix().toarray()

        of_zero = np.exp(inflated.log_prob(tf.zeros((n, 2)))[0].numpy())
        error = 5 * np.sqrt(of_zero * (1 - of_zero) / n)
        assert (np.abs((counts == 0).mean(axis=0) - of_zero) < error).all()
        deviation = counts.std(axis=0) / np.sqrt(n)
        assert (np.abs(counts.mean(axis=0) - [2, 4]) < 5 * deviation).all()

    def test_gradient_reaches_the_library_size(self) -> None:
        counts = make_cells().features["rna"]
        logits = tf.random.stateless_normal(counts.shape, (1, 2))
        theta = tf.constant(np.linspace(0.3, 5, N_GENES), tf.float32)
        size = tf.reduce_sum(counts, axis=1) * 1.3

        with tf.GradientTape(persistent=True) as tape:
            tape.watch(size)
            fused = negative_binomial_softmax_loss(counts, logits, size, theta)
            mean = size[:, None] * tf.nn.softmax(logits)
            plain = NegativeBinomial(mean, theta).log_prob(counts)
            plain = -tf.reduce_mean(tf.reduce_sum(plain, axis=1))

        np.testing.assert_allclose(
            tape.gradient(fused, size), tape.gradient(plain, size), rtol=1e-4
        )

    @pytest.mark.parametrize(
        "likelihood", ["negative_binomial", "zero_inflated", "poisson"]
    )
    def test_a_cell_unlike_all_others_leaves_loss_and_gradients_finite(
        self, likelihood
    ) -> None:
        cells = make_cells()
        counts = cells.features["rna"].numpy()
        counts[0], counts[1] = 3e6, 0
        wild = CellBatch(
            {"rna": tf.constant(counts)},
            {"rna": tf.constant(counts.sum(axis=1))},
            cells.covariates,
        )
        (stage,) = make_model(likelihood=likelihood).stages()
        library = stage.network.library_encoder
        library.log_variance.bias.assign([200.0])
        library.mean.bias.assign([90.0])

        losses, gradients, _ = stage.gradients(
            wild, tf.constant(1.0), tf.constant([1, 2])
        )

        assert np.isfinite(float(losses["loss"]))
        assert all(np.isfinite(gradient).all() for gradient in gradients)


class TestReconstruction:
    def test_is_the_same_for_any_company(self, model) -> None:
        cells = make_cells()
        first = tf.nest.map_structure(lambda of: of[:2], cells)

        whole, part = (model.reconstruct(of, n_samples=3) for of in (cells, first))

        for name in ("latent", "expression", "negative_log_likelihood", "elbo"):
            np.testing.assert_allclose(
                getattr(whole, name)[:2], getattr(part, name), rtol=1e-4
            )

    def test_latents_are_the_means(self, model) -> None:
        cells = make_cells()

        np.testing.assert_allclose(
            model.reconstruct(cells).latent, model.latents(cells.features), rtol=1e-5
        )

    @pytest.mark.slow
    def test_of_counts_that_do_not_depend_on_the_latent_is_exact(self) -> None:
        model, cells = make_model(observed_library=True), make_cells()
        (stage,) = model.stages()
        stage.network.decoder.kernel.assign(tf.zeros((3, N_GENES)))
        stage.network.encoder.mean.kernel.assign(tf.zeros((8, 3)))
        stage.network.encoder.mean.bias.assign([0.5, 0.0, -0.5])
        stage.network.encoder.log_variance.kernel.assign(tf.zeros((8, 3)))
        stage.network.encoder.log_variance.bias.assign(tf.zeros(3))

        at_mean, drawn = (model.reconstruct(cells, n_samples=n) for n in (0, 300))

        # One likelihood for all latents, and posteriors half a deviation away from the
        # prior in two dimensions: weights have the variance exp(0.5) - 1
        error = np.sqrt(np.expm1(0.5) / 300)
        loss = at_mean.negative_log_likelihood
        np.testing.assert_allclose(drawn.negative_log_likelihood, loss, atol=5 * error)
        np.testing.assert_allclose(drawn.elbo, -loss - 0.25, rtol=1e-4)

    def test_bound_is_below_the_likelihood(self, model) -> None:
        made = model.reconstruct(make_cells(), n_samples=30)

        assert (made.elbo <= -made.negative_log_likelihood + 1e-3).all()


class TestGeneration:
    def request(self, cells=None, n_cells=40, **options) -> GenerationRequest:
        codes = np.arange(n_cells, dtype=np.int32) % 2
        return GenerationRequest(
            {"cluster": codes, "batch": codes}, n_cells, 3, source=cells, **options
        )

    @pytest.mark.parametrize(
        "source",
        [
            pytest.param(None, id="prior", marks=pytest.mark.slow),
            pytest.param(make_cells(40), id="cells"),
        ],
    )
    def test_cells_do_not_depend_on_the_pieces(self, model, source) -> None:
        whole = model.generate(self.request(source))

        codes = np.arange(40, dtype=np.int32) % 2
        later = (
            None if source is None else tf.nest.map_structure(lambda x: x[9:], source)
        )
        part = model.generate(
            GenerationRequest(
                {"cluster": codes[9:], "batch": codes[9:]},
                31,
                3,
                first_cell=9,
                source=later,
            )
        )

        cells, later = (of.features["rna"].toarray() for of in (whole, part))
        np.testing.assert_array_equal(cells[9:], later)
        np.testing.assert_array_equal(whole.latent[9:], part.latent)

    @pytest.mark.slow
    def test_library_sizes_of_the_prior_are_those_of_the_batches(self) -> None:
        manifest, n = manifest_of(totals=100 * TOTALS), 1500
        model = make_model(manifest, batch_key="batch", likelihood="poisson")

        made = model.generate(self.request(n_cells=n))

        totals, codes = made.features["rna"].sum(axis=1).A1, np.arange(n) % 2
        assert np.array_equal(totals, np.rint(totals))
        prior = library_prior(manifest, "batch")
        for code in (0, 1):
            logs = np.log(totals[codes == code])
            assert logs.mean() == pytest.approx(prior.mean[code], rel=0.02)

    @pytest.mark.slow
    def test_library_sizes_can_be_asked_for(self, model) -> None:
        sizes = {"rna": np.full(40, 5000, np.float32)}

        made = model.generate(self.request(library_sizes=sizes))

        totals = made.features["rna"].sum(axis=1).A1
        assert np.median(totals) == pytest.approx(5000, rel=0.2)

    @pytest.mark.slow
    def test_observed_library_sizes_are_those_of_the_sources(self) -> None:
        cells = make_cells(40)
        model = make_model(observed_library=True, likelihood="poisson")

        made = model.generate(self.request(cells))

        wanted = cells.library_size["rna"].numpy()
        away = (made.features["rna"].sum(axis=1).A1 - wanted) / np.sqrt(wanted)
        assert np.abs(away).max() < 5


def test_genes_can_start_where_they_are_in_the_cells() -> None:
    cells = make_cells(200)
    (stage,) = make_model(initial_genes="cells").stages()
    (random,) = make_model().stages()
    before = np.asarray(random.network.log_inverse_dispersion)

    for each in (stage, random):
        each.initialize(lambda: [cells])

    counts = cells.features["rna"].numpy()
    level = np.asarray(stage.network.decoder.norm.offset)
    share = counts.sum(axis=0) + 0.5
    np.testing.assert_allclose(np.exp(level - level[0]), share / share[0], rtol=1e-5)
    # Gamma-Poisson counts of shape 1 have the inverse dispersion 1, beside some of
    # other library sizes
    dispersion = np.exp(np.asarray(stage.network.log_inverse_dispersion))
    assert np.median(dispersion) == pytest.approx(1, rel=0.4)
    np.testing.assert_array_equal(random.network.log_inverse_dispersion, before)
    np.testing.assert_array_equal(random.network.decoder.norm.offset, 0)


@pytest.mark.parametrize(
    ("key", "rows"),
    [
        pytest.param("gene", (), marks=pytest.mark.slow),
        pytest.param("gene-batch", (2,), marks=pytest.mark.slow),
        ("gene-label", (2,)),
    ],
)
def test_dispersions_are_those_of_the_category(key, rows) -> None:
    model = make_model(batch_key="batch", inverse_dispersion=key)
    (stage,) = model.stages()
    assert stage.network.log_inverse_dispersion.shape == (*rows, N_GENES)

    cells = make_cells()
    before = model.reconstruct(cells).negative_log_likelihood
    table = stage.network.log_inverse_dispersion
    change = np.zeros(table.shape, np.float32)
    change[0] = 2  # of the first category, or the first gene
    table.assign_add(change)
    after = model.reconstruct(cells).negative_log_likelihood

    is_changed = before != after
    expected = np.ones(7, bool) if not rows else np.arange(7) % 2 == 0
    np.testing.assert_array_equal(is_changed, expected)


def test_atac_is_refused() -> None:
    manifest = manifest_of()
    both = dataclasses.replace(
        manifest, features={**manifest.features, ATAC: ("peak",)}
    )

    with pytest.raises(ConfigError, match="LDVAE is of RNA alone, but the data have"):
        make_model(both)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"inverse_dispersion": "gene-cell"},
            '"gene-cell" found, expected',
        ),
        ({"inverse_dispersion": "gene-batch"}, "name the covariate of the batches"),
        ({"batch_key": "donor"}, 'no covariate "donor"'),
        (
            {"kl": {"unit": "share", "length": 400}},
            "cannot be longer than the training",
        ),
        ({"kl": {"smallest": 2}}, "smallest is 2 but largest is 1"),
    ],
)
def test_parameters_that_do_not_suit_are_refused(model, message) -> None:
    with pytest.raises(ConfigError, match=message):
        parameters_of(model=model)
