"""`jaxseg doctor` on machines where JAX finds no device or counts in float64: a row that says what to do, never a traceback."""

import jax
import pytest

from jaxseg.doctor import examine


def row(what):
    return next((finding, fine) for name, finding, fine in examine() if name == what)


@pytest.mark.parametrize("error", [AssertionError(), RuntimeError("Unknown backend cuda")])
def test_row_62_a_platform_that_is_not_there_is_named_with_its_extra(monkeypatch, error):
    def refuse():
        raise error

    monkeypatch.setattr(jax, "devices", refuse)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    finding, fine = row("devices")
    assert not fine and "JAX_PLATFORMS is 'cuda'" in finding and "jaxseg[cuda]" in finding and str(error) in finding
    monkeypatch.delenv("JAX_PLATFORMS")
    assert "JAX_PLATFORMS" not in row("devices")[0]


def test_row_62_float64_is_said():
    assert "JAX_ENABLE_X64" not in row("numbers")[0]
    with jax.enable_x64(True):
        assert "JAX_ENABLE_X64" in row("numbers")[0]
