"""A logistic regression on what the output layer reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zolab.baselines.untrained import Untrained
from zolab.errors import UserError
from zolab.learner import Reader
from zolab.objectives import Batch, Encoded, Scorer


class LinearProbing(Untrained):
    """Multinomial logistic regression on the hidden state that predicts the label word.

    The regularisation is chosen by cross-validation on the training rows (scikit-learn). Each
    feature is what the output layer is given at that position. For tasks whose candidates differ
    from row to row, train the output layer instead: `optimizer=adamw model/tuning=head`.
    Source: MeZO (arXiv 2305.17333), appendix E.

    Args:
        model: not changed.
        intercept: "yes", "no", or "auto": none for OPT, whose final norm has a bias.
        max_iter: iterations of the solver at most.
        tol: its tolerance.
        folds: of the cross-validation; fewer if a class has fewer rows.
    """

    def __init__(
        self,
        model: nn.Module,
        intercept: str = "auto",
        max_iter: int = 5000,
        tol: float = 1e-4,
        folds: int = 5,
    ) -> None:
        super().__init__()
        own = getattr(getattr(model, "config", None), "model_type", "")
        self.intercept = own != "opt" if intercept == "auto" else intercept == "yes"
        self.max_iter, self.tol, self.folds = max_iter, tol, folds

    def reader(self, scorer: Scorer, train: Sequence[Encoded], batch_size: int) -> Reader:
        """Fit on the training rows.

        Raises:
            UserError: candidates differ from row to row, a class has fewer than two rows, or
                scikit-learn is not installed.
        """
        answers = {tuple(c.targets for c in e.candidates) for e in train}
        if len(answers) != 1:
            raise UserError(
                "optimizer = linear_probing: the candidates differ from row to row, so there are "
                "no classes; use optimizer=adamw model/tuning=head"
            )
        labels = np.array([e.label for e in train])
        rows = np.unique(labels, return_counts=True)[1]
        if len(rows) < 2 or rows.min() < 2:
            raise UserError(
                "optimizer = linear_probing: needs two rows of two classes at least in "
                f"train; it has {len(labels)} rows of {len(rows)}"
            )
        features = [
            scorer.features(scorer.batch(train[i : i + batch_size]))
            for i in range(0, len(train), batch_size)
        ]
        model = _regression()(
            l1_ratios=(0.0,),
            scoring="accuracy",
            use_legacy_attributes=False,
            cv=min(self.folds, int(rows.min())),
            fit_intercept=self.intercept,
            max_iter=self.max_iter,
            tol=self.tol,
            random_state=0,
        )
        model.fit(torch.cat(features).double().cpu().numpy(), labels)
        return Probe(scorer, model, len(next(iter(answers))))


class Probe(Reader):
    """Log-probabilities of a fitted classifier in place of the model's own.

    Args:
        scorer: gives the features.
        classifier: of scikit-learn.
        width: candidates of a row; one that no training row had gets probability 0.
    """

    def __init__(self, scorer: Scorer, classifier: Any, width: int) -> None:
        super().__init__(scorer)
        self.classifier = classifier
        self.width = width

    def scores(self, batch: Batch, copies: int = 1) -> Tensor:
        features = self.scorer.features(batch)
        found = self.classifier.predict_log_proba(features.double().cpu().numpy())
        out = torch.full((len(found), self.width), -torch.inf)
        out[:, list(self.classifier.classes_)] = torch.from_numpy(found).float()
        return out.to(features.device).expand(copies, -1, -1)


def _regression() -> Any:
    try:
        from sklearn.linear_model import LogisticRegressionCV
    except ImportError as error:
        raise UserError(
            f"optimizer = linear_probing: needs scikit-learn ({error}); install zolab[baselines]"
        ) from error
    return LogisticRegressionCV
