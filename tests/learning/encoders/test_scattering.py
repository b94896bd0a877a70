"""The scattering transform against convolutions written out as loops, and the properties that it is used for."""

import numpy as np
import pytest

from fedveil.learning.encoders import feature_extractor
from fedveil.learning.encoders.scattering import (
    DIRECTIONS,
    Scattering,
    filter_bank,
    lowpass,
    lowpass_spectrum,
    padding,
    wavelet_spectrum,
)


def smooth_images(count=2, size=32, seed=0, channels=1):
    """Random images with structure at several scales."""
    generator = np.random.default_rng(seed)
    images = np.zeros((count, channels, size, size))
    for cells in (4, 8, 16, size):
        patches = generator.random((count, channels, cells, cells))
        images += np.kron(patches, np.ones((size // cells, size // cells)))
    return (images / images.max()).astype(np.float32)


def wavelet_in_space(scale, direction):
    """The Morlet wavelet from its formula, on pixels around the origin, with mean zero on the pixels."""
    theta, width = np.pi * direction / DIRECTIONS, 0.8 * 2**scale
    radius = int(12 * width)
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1].astype(float)
    along = x * np.cos(theta) + y * np.sin(theta)
    across = -x * np.sin(theta) + y * np.cos(theta)
    envelope = np.exp(-((along / width) ** 2 + (across / (2 * width)) ** 2) / 2)
    envelope /= envelope.sum()
    wave = envelope * np.exp(0.75j * np.pi / 2**scale * along)
    return wave - envelope * wave.sum(), radius


def convolve(signal, kernel, radius):
    """Periodic convolution from its definition: one shifted copy of the signal a kernel entry."""
    result = np.zeros(signal.shape, dtype=complex)
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            weight = kernel[dy + radius, dx + radius]
            if abs(weight) > 1e-12:
                result += weight * np.roll(signal, (dy, dx), (0, 1))
    return result


def scattering_by_definition(image, scales, grid):
    """Coefficients of one grey image, every convolution at full resolution."""
    size = len(image)
    before, padded = padding(size, scales)
    signal = np.pad(image.astype(float), (before, padded - size - before), mode="reflect")
    kernels = {}
    for scale in range(scales):
        for direction in range(DIRECTIONS):
            kernels[scale, direction] = wavelet_in_space(scale, direction)
    # The common normalisation of all wavelets, from the spectra of the kernels themselves.
    spectra = [np.fft.fft2(convolve(_impulse(padded), *kernel)) for kernel in kernels.values()]
    power = sum(np.abs(spectrum) ** 2 for spectrum in spectra)
    mirrored = np.roll(power[::-1, ::-1], 1, (0, 1))
    room = 1 - lowpass_spectrum(padded, scales) ** 2
    factor = np.sqrt((room[room > 1e-9] / ((power + mirrored)[room > 1e-9] / 2)).min())

    radius = int(8 * 0.8 * 2 ** (scales - 1))
    line = lowpass(np.arange(-radius, radius + 1.0), scales)
    low = np.outer(line, line) / line.sum() ** 2

    def average(values):
        step, inside = 2**scales, size // 2**scales
        smooth = convolve(values, low, radius).real[
            before : before + size : step, before : before + size : step
        ]
        cell = inside // grid
        return smooth.reshape(grid, cell, grid, cell).mean((1, 3)).ravel()

    orders = [[average(signal)], [], []]
    for scale in range(scales):
        for direction in range(DIRECTIONS):
            first = factor * np.abs(convolve(signal, *kernels[scale, direction]))
            orders[1].append(average(first))
    for scale in range(scales):
        for coarser in range(scale + 1, scales):
            for direction in range(DIRECTIONS):
                first = factor * np.abs(convolve(signal, *kernels[scale, direction]))
                for second in range(DIRECTIONS):
                    orders[2].append(average(factor * np.abs(convolve(first, *kernels[coarser, second]))))
    return [np.concatenate(order) for order in orders if order]


def _impulse(side):
    impulse = np.zeros((side, side))
    impulse[0, 0] = 1
    return impulse


def split(features, blocks):
    return np.split(features, np.cumsum(blocks)[:-1], axis=-1)


def test_coefficients_follow_the_definition():
    image = smooth_images(1, 16)
    expected = scattering_by_definition(image[0, 0], scales=2, grid=2)
    exact = Scattering("scattering", 1, 16, scales=2, grid=2, oversampling=2)
    used = Scattering("scattering", 1, 16, scales=2, grid=2)
    assert [len(order) for order in expected] == list(exact.blocks) == [4, 64, 256]
    for order, without_aliasing, subsampled in zip(
        expected, split(exact(image)[0], exact.blocks), split(used(image)[0], used.blocks), strict=True
    ):
        np.testing.assert_allclose(without_aliasing, order, rtol=1e-4, atol=1e-6)
        assert np.linalg.norm(subsampled - order) < 0.03 * np.linalg.norm(order)


@pytest.mark.parametrize(("side", "scales"), [(24, 2), (36, 2), (80, 3)])
def test_filter_bank_never_expands_and_misses_little(side, scales):
    """Littlewood-Paley: at most 1 everywhere, 1 somewhere, and no frequency is lost."""
    power = sum(np.square(filters).sum(0) for filters in filter_bank(side, scales))
    mirrored = np.roll(power[::-1, ::-1], 1, (0, 1))
    total = lowpass_spectrum(side, scales) ** 2 + (power + mirrored) / 2
    assert total.max() == pytest.approx(1, abs=1e-9)
    assert total.min() > 0.1
    assert total[0, 0] == pytest.approx(1)


def test_wavelets_have_mean_zero_and_look_one_way():
    for direction in range(DIRECTIONS):
        spectrum = wavelet_spectrum(64, 1, direction)
        assert abs(spectrum[0, 0]) < 1e-12
        y, x = np.unravel_index(spectrum.argmax(), spectrum.shape)
        angle = np.arctan2(np.fft.fftfreq(64)[y], np.fft.fftfreq(64)[x])
        assert np.cos(angle - np.pi * direction / DIRECTIONS) > 0.98


def test_energy_does_not_grow():
    """All coefficients together, each standing for 2^J x 2^J pixels, carry at most the image's energy."""
    images = smooth_images(4, 32)
    transform = Scattering("scattering", 1, 32, scales=2, grid=8, oversampling=2)
    energy = 4**2 * np.square(transform(images)).sum(axis=1)
    before, padded = padding(32, 2)
    after = padded - 32 - before
    signal = np.pad(images, ((0, 0), (0, 0), (before, after), (before, after)), mode="reflect")
    assert (energy <= np.square(signal).sum((1, 2, 3))).all()


def test_distances_do_not_grow():
    first, second = smooth_images(8, 32), smooth_images(8, 32, seed=1)
    transform = Scattering("scattering", 1, 32, scales=2, grid=8, oversampling=2)
    change = np.sqrt(4**2 * np.square(transform(first) - transform(second)).sum(axis=1))
    before, padded = padding(32, 2)
    after = padded - 32 - before
    difference = np.pad(first - second, ((0, 0), (0, 0), (before, after), (before, after)), mode="reflect")
    assert (change <= np.sqrt(np.square(difference).sum((1, 2, 3)))).all()


def test_small_translations_hardly_change_the_coefficients():
    wide = smooth_images(4, 64)
    here, there = wide[:, :, 8:56, 8:56], wide[:, :, 8:56, 9:57]
    transform = Scattering("scattering", 1, 48)
    moved = np.linalg.norm(transform(here) - transform(there), axis=1) / np.linalg.norm(
        transform(here), axis=1
    )
    pixels = np.linalg.norm((here - there).reshape(4, -1), axis=1) / np.linalg.norm(
        here.reshape(4, -1), axis=1
    )
    assert (moved < 0.25 * pixels).all()


def test_a_constant_image_has_no_waves():
    transform = feature_extractor("scattering", 48, 1)
    mean, first, second = split(
        transform(np.full((1, 1, 48, 48), 0.7, dtype=np.float32))[0], transform.blocks
    )
    np.testing.assert_allclose(mean, 0.7, rtol=1e-5)
    assert np.abs(first).max() < 1e-5
    assert np.abs(second).max() < 1e-5


def test_channels_are_transformed_alone():
    images = smooth_images(3, 32, channels=3)
    colour = feature_extractor("scattering", 32, 3)
    grey = feature_extractor("scattering", 32, 1)
    together = split(colour(images), colour.blocks)
    for order, block in enumerate(together):
        alone = np.stack([split(grey(images[:, [c]]), grey.blocks)[order] for c in range(3)], axis=1)
        np.testing.assert_allclose(block, alone.reshape(3, -1), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("size", [8, 13, 28, 47, 48, 65])
def test_any_size_gives_finite_coefficients_of_the_size_promised(size):
    transform = feature_extractor("scattering", size, 1)
    features = transform(smooth_images(2, 64)[:, :, :size, :size] if size <= 64 else smooth_images(2, 64))
    assert features.shape == (2, transform.dimension)
    assert features.dtype == np.float32
    assert np.isfinite(features).all()
