"""Data sets without an official test part: one fifth is held out, always the same one."""

from __future__ import annotations

from abc import abstractmethod
from functools import cached_property

from qdeploy.datasets._base import ArrayDataset, Indices, Raw, Targets, stratified

# The same fifth whatever ``seed`` says: that must not decide what a model is judged by, or two recipes could not be
# compared.
HOLD_OUT_SHARE = 0.2
HOLD_OUT_SEED = 0


class HeldOutDataset(ArrayDataset):
    """Classes, of each of which a fifth is the evaluation part. A plugin gives all samples in a fixed order."""

    @property
    @abstractmethod
    def _arrays(self) -> tuple[Raw, Targets]:
        """All raw samples and targets; cached."""

    @property
    def _labels(self) -> Targets:
        """The class of every sample; a plugin that knows them before the samples says so."""
        return self._arrays[1]

    @cached_property
    def _halves(self) -> tuple[Indices, Indices]:
        """Rows of the training and of the evaluation part, decided by the labels alone."""
        return stratified(self._labels, HOLD_OUT_SHARE, HOLD_OUT_SEED)

    def _read_training(self) -> tuple[Raw, Targets]:
        return self._rows(self._halves[0])

    def _read_evaluation(self) -> tuple[Raw, Targets]:
        return self._rows(self._halves[1])

    def _rows(self, rows: Indices) -> tuple[Raw, Targets]:
        raw, targets = self._arrays
        return raw[rows], targets[rows]
