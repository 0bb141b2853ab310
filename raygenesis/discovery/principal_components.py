"""Fitting principal components to whole scans at the coarse level: the linear baseline of the auto-encoder."""

from __future__ import annotations

import numpy as np
import torch

from raygenesis.errors import WorkspaceError
from raygenesis.networks.principal_components import PrincipalComponents
from raygenesis.training.feeding import Samples

# Of the first component's variance.
LEAST_VARIANCE = 1e-5


def fit_components(samples: Samples, latent_size: int) -> PrincipalComponents:
    """Principal components of all the samples, by scikit-learn, in evaluation mode.

    At most `latent_size` and fewer than there are samples; none whose variance is below LEAST_VARIANCE times the
    first's, as rounding would decide where it points. The largest number of each component is positive. Raises
    WorkspaceError if the samples do not differ.
    """
    scans = samples.batch(np.arange(len(samples))).cubes.flatten(1).numpy()
    mean = scans.mean(0)
    scans -= mean
    most, size = min(latent_size, len(scans) - 1), 0
    if most and scans.any():
        from sklearn.decomposition import KernelPCA  # a fifth of the start of every worker that embeds, were it above

        # The kernel is scans × scans, of which there are fewer than voxels: `PCA` itself takes 30 times as long.
        kernel = (scans @ scans.T).astype(np.float64)
        fitted = KernelPCA(most, kernel="precomputed", eigen_solver="dense").fit(kernel)
        variances = fitted.eigenvalues_
        size = int((variances > LEAST_VARIANCE * variances[0]).sum())
    if not size:
        raise WorkspaceError(f"the {len(scans)} training scans do not differ: add scans, or choose another encoder")
    components = (fitted.eigenvectors_[:, :size] / np.sqrt(variances[:size])).T.astype(np.float32) @ scans
    components *= np.sign(np.take_along_axis(components, np.abs(components).argmax(1)[:, None], 1))
    model = PrincipalComponents(samples.shape, size)
    model.mean, model.components = torch.from_numpy(mean), torch.from_numpy(components)
    return model.eval()
