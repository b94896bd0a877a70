"""Noise: from the operating system's key, through ChaCha20, with the right law, and never repeated."""

import inspect
import math
import random
import secrets

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from scipy import stats

from fedveil.errors import InvalidValue
from fedveil.privacy import gaussian, release, secure_generator


def key_of(generator: np.random.Generator) -> bytes:
    return generator.bit_generator.state["state"]["keysetup"].astype("<u4").tobytes()


def test_noise_is_not_reproducible() -> None:
    draws = []
    for _ in range(2):
        np.random.seed(7)
        random.seed(7)
        draws.append(gaussian(1000, 1.0, secure_generator()))
    assert not np.any(draws[0] == draws[1])
    assert not inspect.signature(secure_generator).parameters
    keys = {key_of(secure_generator()) for _ in range(50)}
    assert len(keys) == 50


def test_key_is_256_bits_of_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def randbits(bits: int) -> int:
        asked.append(bits)
        return 2**255 + 12345

    monkeypatch.setattr(secrets, "randbits", randbits)
    assert int.from_bytes(key_of(secure_generator()), "little") == 2**255 + 12345
    assert asked == [256]


def test_stream_is_chacha20_under_that_key() -> None:
    generator = secure_generator()
    assert generator.bit_generator.state["state"]["rounds"] == 20
    cipher = Cipher(algorithms.ChaCha20(key_of(generator), bytes(16)), mode=None).encryptor()
    expected = np.frombuffer(cipher.update(bytes(8 * 100)), dtype="<u8")
    assert np.array_equal(generator.bit_generator.random_raw(100), expected)


def test_gaussian_has_the_law_that_accounting_assumes() -> None:
    draws = gaussian((200, 500), 3.0, secure_generator())
    assert draws.shape == (200, 500)
    assert draws.dtype == np.float64
    assert stats.kstest(draws.ravel() / 3.0, "norm").pvalue > 1e-6
    assert abs(draws.var() / 9 - 1) < 6 * math.sqrt(2 / draws.size)
    assert abs(np.corrcoef(draws[:-1].ravel(), draws[1:].ravel())[0, 1]) < 6 / math.sqrt(draws.size)


@pytest.mark.parametrize("std", [-1.0, math.nan, math.inf])
def test_impossible_std_is_refused(std: float) -> None:
    with pytest.raises(InvalidValue, match="standard deviation"):
        gaussian(3, std, secure_generator())


def test_release_adds_noise_and_drops_the_low_bits() -> None:
    total = np.full(100_000, 5.0)
    noisy = release(total, 0.7, secure_generator())
    grid = 2.0**-21
    assert np.array_equal(np.round(noisy / grid) * grid, noisy)
    assert stats.kstest((noisy - 5.0) / 0.7, "norm").pvalue > 1e-6
    assert np.array_equal(total, np.full(100_000, 5.0))


def test_release_without_noise_changes_nothing() -> None:
    total = np.array([1 / 3, 2e-17])
    assert np.array_equal(release(total, 0.0, secure_generator()), total)
