"""The 2-D scattering transform: convolutions with fixed wavelets, moduli and averages; nothing is learned.

Bruna & Mallat, "Invariant scattering convolution networks" (IEEE TPAMI 2013); Oyallon & Mallat, "Deep
roto-translation scattering for object classification" (CVPR 2015). For an image x, with Morlet wavelets
psi of scale 2^j and direction theta, and a Gaussian phi of scale 2^J, the coefficients of order 0, 1 and
2 are

    x * phi,    |x * psi_{j,t}| * phi,    ||x * psi_{j1,t1}| * psi_{j2,t2}| * phi  with j1 < j2,

sampled every 2^J pixels. They change little under small translations and deformations, and lose little other
information. Scattering with a private linear head beat private CNNs from scratch: Tramer & Boneh (2011.11660).
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from fedveil.learning.encoders.extractor import Features, Images, checked, in_batches, resized

DIRECTIONS = 8
GRID = 4
"""Coefficients are averaged to at most this many positions per side."""
BATCH = 16

Filter: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Scattering:
    """Scattering coefficients of orders 0, 1 and 2 on a coarse grid, each order one block.

    Attributes:
        name: as the study file writes it.
        channels: channels of the images; each is transformed alone.
        size: pixels per side that images are resampled to.
        scales: J, the number of octaves.
        grid: number of positions per side.
        oversampling: octaves by which intermediate signals are sampled more finely than they need to be;
            ``scales`` gives the transform without any aliasing, at many times the cost.
    """

    name: str
    channels: int
    size: int
    scales: int = 3
    grid: int = GRID
    oversampling: int = 0

    @property
    def key(self) -> str:
        """Name of the cached features."""
        settings = f"J{self.scales}-L{DIRECTIONS}-grid{self.grid}-over{self.oversampling}"
        return f"scattering-1-{settings}@{self.size}x{self.channels}"

    @property
    def blocks(self) -> tuple[int, ...]:
        """Number of coefficients of each order."""
        pairs = self.scales * (self.scales - 1) // 2
        paths = (1, self.scales * DIRECTIONS, pairs * DIRECTIONS**2)
        return tuple(count * self.channels * self._positions**2 for count in paths if count)

    @property
    def dimension(self) -> int:
        """Number of coefficients."""
        return sum(self.blocks)

    @property
    def _positions(self) -> int:
        return min(self.grid, math.ceil(self.size / (1 << self.scales)))

    def __call__(self, images: Images) -> Features:
        """Map images (k, channels, h, w) in [0, 1] to (k, dimension).

        Coefficients are ordered by order, then channel, path and position.
        """
        pixels = checked(images, self.channels)
        return in_batches(self._transform, pixels, self.dimension, BATCH)

    def _transform(self, images: torch.Tensor) -> torch.Tensor:
        """Map (k, channels, h, w) to (k, dimension)."""
        before, padded = padding(self.size, self.scales)
        after = padded - self.size - before
        sized = resized(images, self.size)
        signal = torch.nn.functional.pad(sized, (before, after, before, after), mode="reflect")
        signal = signal.flatten(0, 1)  # channels are treated as separate images until the end
        spectrum = torch.fft.fft2(signal)
        orders = [[self._average(signal, 0)[:, None]], [], []]
        for first in range(self.scales):
            coarse = self._coarsening(first)
            envelope = _envelope(spectrum, _wavelets(padded, self.scales, first, 0, coarse))
            orders[1].append(self._average(envelope, coarse))
            again = torch.fft.fft2(envelope.flatten(0, 1))
            for second in range(first + 1, self.scales):
                coarser = self._coarsening(second)
                wavelets = _wavelets(padded, self.scales, second, coarse, coarser)
                paths = self._average(_envelope(again, wavelets), coarser)
                orders[2].append(paths.reshape(len(signal), -1, *paths.shape[2:]))
        blocks = [torch.cat(order, dim=1).reshape(len(images), -1) for order in orders if order]
        return torch.cat(blocks, dim=1)

    def _coarsening(self, scale: int) -> int:
        """Octaves of subsampling of an envelope at this scale."""
        return max(scale - self.oversampling, 0)

    def _average(self, signal: torch.Tensor, coarse: int) -> torch.Tensor:
        """Convolve with phi, sample every 2^J pixels inside the image, average to the grid."""
        rows = _averaging(self.size, self.scales, coarse, self._positions)
        return rows @ signal @ rows.T


def padding(size: int, scales: int) -> tuple[int, int]:
    """Pixels of reflection before the image, and the padded side: a multiple of 2^J, 2^J or more around."""
    step = 1 << scales
    return step, math.ceil(size / step) * step + 2 * step


def wavelet_spectrum(side: int, scale: int, direction: int) -> Filter:
    """Fourier transform of the Morlet wavelet on a periodic grid of ``side`` pixels, before normalisation.

    psi(u) = (exp(i <xi, u>) - beta) exp(-<u, R D R^T u> / 2) with xi = 3 pi / 4 / 2^j along the direction
    t, width 0.8 * 2^j along it and twice that (L / 4) across, and beta such that psi has mean zero. The
    transform of this Gaussian is a Gaussian; summing over frequencies 2 pi apart accounts for sampling.
    """
    theta = np.pi * direction / DIRECTIONS
    along, across = 0.8 * 2**scale, 0.8 * 2**scale * DIRECTIONS / 4
    centre = 0.75 * np.pi / 2**scale
    frequencies = 2 * np.pi * (np.fft.fftfreq(side)[:, None] + np.arange(-3, 4))  # (side, aliases)

    def gaussian(offset: float) -> Filter:
        y, x = frequencies[:, :, None, None], frequencies[None, None]
        u = x * np.cos(theta) + y * np.sin(theta) - offset
        v = -x * np.sin(theta) + y * np.cos(theta)
        bumps: Filter = np.exp(-((along * u) ** 2 + (across * v) ** 2) / 2).sum((1, 3))
        return bumps

    bump, carrier = gaussian(0.0), gaussian(centre)
    wavelet: Filter = carrier - bump * (carrier[0, 0] / bump[0, 0])
    return wavelet


def lowpass(distances: Filter, scales: int) -> Filter:
    """The Gaussian phi in one dimension at these distances in pixels; its width is 0.8 * 2^(J - 1)."""
    width = 0.8 * 2 ** (scales - 1)
    result: Filter = np.exp(-((distances / width) ** 2) / 2) / (np.sqrt(2 * np.pi) * width)
    return result


def filter_bank(side: int, scales: int) -> list[Filter]:
    """Wavelet spectra (directions, side, side) by scale, normalised so that the transform never expands.

    One common factor makes the Littlewood-Paley sum |phi|^2 + sum (|psi(w)|^2 + |psi(-w)|^2) / 2 at most
    1 everywhere; then the energy of all coefficients is at most that of the image (Bruna & Mallat,
    section 2).
    """
    bank = [
        np.stack([wavelet_spectrum(side, scale, direction) for direction in range(DIRECTIONS)])
        for scale in range(scales)
    ]
    power = sum(np.square(filters).sum(0) for filters in bank)
    mirrored = np.roll(np.flip(power, (0, 1)), 1, (0, 1))
    room = 1 - np.square(lowpass_spectrum(side, scales))
    usable = room > 1e-9
    factor = np.sqrt((room[usable] / ((power + mirrored)[usable] / 2)).min())
    return [factor * filters for filters in bank]


def lowpass_spectrum(side: int, scales: int) -> Filter:
    """Fourier transform of phi on a periodic grid, (side, side)."""
    one: Filter = np.fft.fft(_periodic(np.arange(side), side, scales)).real
    return np.outer(one, one)


def _periodic(distances: npt.NDArray[Any], period: int, scales: int) -> Filter:
    """Phi summed over all periods, with sum 1 over one period of pixels."""
    shifts = period * np.arange(-3.0, 4.0)
    values: Filter = lowpass(distances[..., None] + shifts, scales).sum(-1)
    total: float = lowpass(np.arange(period)[:, None] + shifts, scales).sum()
    return values / total


@lru_cache(maxsize=8)
def _bank(side: int, scales: int) -> list[Filter]:
    return filter_bank(side, scales)


@lru_cache(maxsize=64)
def _wavelets(side: int, scales: int, scale: int, coarse: int, coarser: int) -> torch.Tensor:
    """Spectra for a signal sampled every 2^coarse pixels, laid out for `_envelope`.

    Subsampling by s adds up s^2 frequencies of the spectrum, so the filters come as one matrix (s^2,
    directions) for each of the m^2 frequencies that remain: (m^2, s^2, directions).
    """
    samples, times = side >> coarse, 2 ** (coarser - coarse)
    filters = _bank(side, scales)[scale].reshape(DIRECTIONS, 2**coarse, samples, 2**coarse, samples)
    blocks: torch.Tensor = _blocks(torch.from_numpy(filters.sum((1, 3))), times).transpose(1, 2) / times**2
    return blocks.to(torch.complex64)


@lru_cache(maxsize=64)
def _averaging(size: int, scales: int, coarse: int, positions: int) -> torch.Tensor:
    """Matrix (positions, samples): from a signal sampled every 2^coarse pixels to grid averages after phi."""
    before, padded = padding(size, scales)
    inside = math.ceil(size / 2**scales)
    outputs = before + 2**scales * np.arange(inside)
    inputs = 2**coarse * np.arange(padded >> coarse)
    smooth = 2**coarse * _periodic(outputs[:, None] - inputs, padded, scales)
    bounds = np.arange(positions + 1) * inside / positions
    cells = np.arange(inside)
    overlap = np.minimum(cells + 1, bounds[1:, None]) - np.maximum(cells, bounds[:-1, None])
    pooled: Filter = np.maximum(overlap, 0) @ smooth * (positions / inside)
    return torch.from_numpy(pooled).float()


def _envelope(spectrum: torch.Tensor, wavelets: torch.Tensor) -> torch.Tensor:
    """|x * psi|, subsampled: spectra (k, n, n) and wavelets (m^2, s^2, directions) to (k, directions, m, m).

    Multiplying, adding up the frequencies that subsampling identifies, all images and all directions: one
    matrix product for each frequency that remains.
    """
    frequencies, aliases, directions = wavelets.shape
    side, times = math.isqrt(frequencies), math.isqrt(aliases)
    product = _blocks(spectrum, times) @ wavelets
    wave: torch.Tensor = torch.fft.ifft2(product.permute(1, 2, 0).reshape(-1, directions, side, side))
    return (wave.real.square() + wave.imag.square()).sqrt_()  # several times faster than wave.abs()


def _blocks(spectra: torch.Tensor, times: int) -> torch.Tensor:
    """Group frequencies that subsampling identifies: (k, n, n) to (m^2, k, times^2) with m = n / times."""
    side = spectra.shape[-1] // times
    grouped = spectra.reshape(-1, times, side, times, side).permute(2, 4, 0, 1, 3)
    return grouped.reshape(side * side, len(spectra), times * times)
