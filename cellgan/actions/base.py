"""What an action says of itself."""

from __future__ import annotations

import abc
import argparse
import types
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

if TYPE_CHECKING:
    from cellgan.composition.study import Study
    from cellgan.experiment import Experiment

UNDERSCORED = ("cells_no", "save_path", "model_path")
"""Options that are written with underscores, as those of the original."""


def flag(name: str) -> str:
    """Return how an option is written."""
    return f"--{name if name in UNDERSCORED else name.replace('_', '-')}"


class Option(NamedTuple):
    """One option of the command line besides the actions' own."""

    name: str
    settings: Mapping[str, Any]
    """What argparse is told of it; its default is None, or false for a switch."""
    is_one_actions: bool = False
    """Whether it means another thing to each action, such as the file to write."""

    def is_given(self, options: argparse.Namespace) -> bool:
        """Return whether a user has given it; 0 is given."""
        value = getattr(options, self.name)
        return value is not None and value is not False


class Action(abc.ABC):
    """One action: how it is asked for, what it refuses, and what it does."""

    name: ClassVar[str]
    """As the verb and, behind two dashes, the flag."""
    help: ClassVar[str]
    takes: ClassVar[Mapping[str, Any]] = types.MappingProxyType(
        {"action": "store_true"}
    )
    """What argparse is told of its flag."""
    options: ClassVar[tuple[Option, ...]] = ()
    verb_options: ClassVar[tuple[Option, ...]] = ()
    """Options of others that go with its verb too, where `check_words` lets them."""
    ability: ClassVar[tuple[str, str] | None] = None
    """A flag of `cellgan.config.base.ModelConfig` that the model must have, and what a
    model without it lacks, in words; None for all model types."""
    is_for_folders: ClassVar[bool] = False
    """Whether the folder of a trained experiment will do, without a parameter file."""
    is_for_studies: ClassVar[bool] = False
    """Whether a composition study as a whole can be asked for it."""
    needs_training: ClassVar[bool] = False
    """Whether it asks a trained model."""
    goes_alone: ClassVar[str] = ""
    """Why no other action goes with it; empty where others do."""
    is_for_one: ClassVar[str] = ""
    """Why it is for one experiment at a time; empty where a queue will do."""

    @property
    def attribute(self) -> str:
        """Its name among the parsed options."""
        return self.name.replace("-", "_")

    def is_wanted(self, options: argparse.Namespace) -> bool:
        """Return whether a user has asked for it."""
        return bool(getattr(options, self.attribute))

    def check_words(self, options: argparse.Namespace) -> None:
        """Refuse options that no experiment could do anything with.

        Raises
        ------
        ConfigError
            Saying which.
        """
        del options

    def prepare(self, experiment: Experiment, options: argparse.Namespace) -> Any:
        """Check what is asked for by parameters and manifest; load no TensorFlow.

        Returns
        -------
        What `run` needs to know.

        Raises
        ------
        ConfigError, DataError
            If the experiment cannot do it.
        """
        del options
        experiment.manifest()

    @abc.abstractmethod
    def run(self, experiment: Experiment, plan: Any) -> int | None:
        """Do what `prepare` has returned; return an exit code if it is not 0."""

    def run_on_study(
        self, study: Study, options: argparse.Namespace, gpus: Sequence[int]
    ) -> int:
        """Do it for a composition study; where `is_for_studies` says so."""
        raise NotImplementedError

    def end_queue(self, experiments: Sequence[Experiment]) -> None:
        """Do what is to be done when a queue of experiments has ended."""
        del experiments
