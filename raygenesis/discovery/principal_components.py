"""Fitting principal components to whole scans at the coarse level: the linear baseline of the auto-encoder."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.decomposition import PCA

from raygenesis.errors import WorkspaceError
from raygenesis.networks.principal_components import PrincipalComponents
from raygenesis.training.feeding import Samples

# Of the first component's variance.
LEAST_VARIANCE = 1e-5


def fit_components(samples: Samples, latent_size: int) -> PrincipalComponents:
    """Principal components of all the samples, by scikit-learn's singular value decomposition, in evaluation mode.

    At most `latent_size` and fewer than there are samples; none whose variance is below LEAST_VARIANCE times the
    first's, as rounding would decide where it points. The largest number of each component is positive. Raises
    WorkspaceError if the samples do not differ.
    """
    scans = samples.batch(np.arange(len(samples))).cubes.flatten(1).numpy()
    most = min(latent_size, len(scans) - 1)
    size = 0
    if most:
        with np.errstate(invalid="ignore"):  # shares of a variance that is nought
            fitted = PCA(most, svd_solver="full", copy=False).fit(scans)
        variances = fitted.explained_variance_
        size = int((variances > LEAST_VARIANCE * variances[0]).sum())
    if not size:
        raise WorkspaceError(f"the {len(scans)} training scans do not differ: add scans, or choose another encoder")
    model = PrincipalComponents(samples.shape, size)
    model.mean = torch.from_numpy(fitted.mean_)
    model.components = torch.from_numpy(fitted.components_[:size].copy())
    return model.eval()
