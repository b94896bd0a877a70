"""Whitening by synthetic images: the formula, and that nothing of a private image is in its constants."""

import numpy as np
import pytest
from scipy import linalg

from fedveil.data.phantom.patients import phantom
from fedveil.learning.encoders import Whitened, feature_extractor
from fedveil.learning.encoders.whitened import PATIENTS, SEED
from fedveil.learning.released.class_statistics import unit_blocks


def images(count=40, channels=1, size=16, seed=0):
    return np.random.default_rng(seed).random((count, channels, size, size), dtype=np.float32)


def by_definition(inner, stack, size, channels):
    """(I + S / rho)^(-1/2) (y - m), with a plain matrix root."""
    drawn = phantom(size, patients=PATIENTS, seed=SEED).images
    public = np.repeat(drawn.read(np.arange(len(drawn))), channels, axis=1)
    y = unit_blocks(inner(public), inner.blocks).astype(np.float64)
    covariance = np.cov(y.T)
    ridge = np.trace(covariance) / len(covariance)
    root = linalg.fractional_matrix_power(np.eye(len(covariance)) + covariance / ridge, -0.5)
    return (unit_blocks(inner(stack), inner.blocks) - y.mean(axis=0)) @ root


@pytest.mark.parametrize("name", ["pixels", "pixels@8+pixels@4", "scattering@8"])
@pytest.mark.parametrize("channels", [1, 3])
def test_features_are_whitened_as_defined(name, channels):
    stack = images(channels=channels)
    extractor = feature_extractor(name, 16, channels, whitened=True)
    inner = feature_extractor(name, 16, channels)
    assert isinstance(extractor, Whitened)
    assert (extractor.name, extractor.dimension) == (name, inner.dimension)
    assert extractor.blocks == (inner.dimension,)
    assert extractor.key != inner.key
    np.testing.assert_allclose(extractor(stack), by_definition(inner, stack, 16, channels), atol=2e-5)


def test_synthetic_images_come_out_without_a_mean_and_less_stretched():
    drawn = phantom(16, patients=PATIENTS, seed=SEED).images
    public = drawn.read(np.arange(len(drawn)))
    plain, extractor = feature_extractor("pixels", 16, 1), feature_extractor("pixels", 16, 1, whitened=True)
    features = extractor(public)
    np.testing.assert_allclose(features.mean(axis=0), 0, atol=1e-4)
    spectra = [
        np.linalg.eigvalsh(np.cov(one.T)) for one in (unit_blocks(plain(public), plain.blocks), features)
    ]
    stretched = [spectrum.max() / spectrum.mean() for spectrum in spectra]
    assert stretched[1] < stretched[0] / 5


def test_whitening_constants_are_public():
    """An image has the same features in any company, and the built-in set's own images have no part in them."""
    stack = images()
    together = feature_extractor("pixels", 16, 1, whitened=True)(stack)
    alone = feature_extractor("pixels", 16, 1, whitened=True)(stack[7:8])
    np.testing.assert_allclose(together[7], alone[0], atol=1e-6)
    of_the_set = phantom(16).images.read(np.arange(50))
    drawn = phantom(16, patients=PATIENTS, seed=SEED).images
    constants = drawn.read(np.arange(len(drawn)))
    assert not any((constants == one).all(axis=(1, 2, 3)).any() for one in of_the_set)


def test_large_images_are_whitened_by_small_ones():
    extractor = feature_extractor("pixels@8", 128, 1, whitened=True)
    assert np.isfinite(extractor(images(3, size=128))).all()
    assert extractor(images(0, size=128)).shape == (0, 64)
