"""Published checkpoints are read strictly: what does not fit is refused by its name."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from percoedge.errors import BundleError
from percoedge.export.models.cod_lite.checkpoint import load_network
from percoedge.export.models.cod_lite.config import Config, read_config
from percoedge.export.models.cod_lite.network import Network

# Parameters and tensors by stride and bits, counted in the published classes.
PUBLISHED = {
    (32, 4): (101_996_995, 539),
    (32, 8): (102_027_715, 539),
    (16, 4): (98_750_403, 529),
    (16, 8): (98_781_123, 529),
    (8, 8): (98_191_043, 527),
    (4, 8): (102_027_459, 535),
}
# Ten tensors from all parts of the network, none of them symmetric in its first two axes.
TENSORS = (
    "y_embedder.encoder.conv_in.weight",
    "y_embedder.encoder.down_block_2.0.nin_shortcut.weight",
    "y_embedder.encoder.down_block_4.0.conv1.weight",
    "y_embedder.bottleneck.embedding.weight",
    "y_embedder.decoder.conv_in.weight",
    "s_embedder.proj2.weight",
    "blocks.0.adaLN_modulation.1.weight",
    "blocks.0.conv4.weight",
    "x_embedder.embedder.0.weight",
    "final_layer.linear.weight",
)


def _missing(state: dict[str, Any], name: str) -> None:
    del state[name]


def _renamed(state: dict[str, Any], name: str) -> None:
    state[f"{name}s"] = state.pop(name)


def _transposed(state: dict[str, Any], name: str) -> None:
    state[name] = state[name].transpose(0, 1).contiguous()


def _extra(state: dict[str, Any], name: str) -> None:
    state[f"{name}_copy"] = state[name].clone()


def _nan(state: dict[str, Any], name: str) -> None:
    state[name] = state[name].clone()
    state[name].view(-1)[-1] = float("nan")


TAMPERED = {
    "missing": (_missing, "missing: {name}; unknown: none"),
    "renamed": (_renamed, "missing: {name}; unknown: {name}s"),
    "transposed": (_transposed, "expected {name} of .*transposed"),
    "extra": (_extra, "missing: none; unknown: {name}_copy"),
    "nan": (_nan, "expected finite numbers in {name}"),
}


@pytest.fixture(scope="module")
def config(narrow: Callable[..., Config]) -> Config:
    return narrow(16, 8)


@pytest.fixture(scope="module")
def state(fakes: Any, config: Config) -> dict[str, torch.Tensor]:
    tensors: dict[str, torch.Tensor] = fakes.random_state(config)
    return tensors


@pytest.mark.parametrize(("stride", "bits"), PUBLISHED)
def test_a_network_has_the_tensors_of_the_published_one(stride: int, bits: int) -> None:
    with torch.device("meta"):
        state = Network(Config(stride, bits)).state_dict()
    assert (sum(t.numel() for t in state.values()), len(state)) == PUBLISHED[stride, bits]


@pytest.mark.parametrize("container", ["state_dict", "module", None])
def test_every_tensor_of_a_checkpoint_is_loaded(
    config: Config, state: dict[str, Any], write: Callable[..., Path], container: str | None
) -> None:
    network = load_network(write(state, container), config)
    loaded = network.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_what_only_training_needs_is_left(
    config: Config, state: dict[str, Any], write: Callable[..., Path]
) -> None:
    named = {f"net._orig_mod.{name}": tensor.double() for name, tensor in state.items()}
    named |= {f"{part}.weight": torch.ones(3) for part in ("fake_denoiser", "disc.heads.0")}
    network = load_network(write(named, prefix=""), config)
    name = "final_layer.linear.weight"
    assert torch.equal(network.state_dict()[name], state[name])


@pytest.mark.parametrize(("kind", "tensor"), [*zip([*TAMPERED] * 2, TENSORS, strict=True)])
def test_a_tampered_checkpoint_is_refused(
    config: Config, state: dict[str, Any], write: Callable[..., Path], kind: str, tensor: str
) -> None:
    tamper, message = TAMPERED[kind]
    changed = dict(state)
    tamper(changed, tensor)
    with pytest.raises(BundleError, match=message.format(name=tensor)):
        load_network(write(changed), config)


@pytest.mark.parametrize(
    ("stride", "bits", "tensor"),
    [
        (16, 4, "y_embedder.bottleneck.embedding.weight"),
        (32, 8, "y_embedder.decoder.ada.block"),
        (8, 8, "y_embedder.encoder.down_block_2.2.conv"),
        (4, 8, "y_embedder.decoder.conv_out.0"),
    ],
)
def test_the_checkpoint_of_another_rate_is_refused(
    narrow: Callable[..., Config],
    state: dict[str, Any],
    write: Callable[..., Path],
    stride: int,
    bits: int,
    tensor: str,
) -> None:
    with pytest.raises(BundleError, match=tensor.replace(".", r"\.")):
        load_network(write(state), narrow(stride, bits))


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ({"ema_denoiser.conv.weight": torch.ones(2)}, "not the pre-trained model of many steps"),
        ({"net.blocks.0.lora_A.weight": torch.ones(2)}, "LoRA merged, got net.blocks.0.lora_A"),
        ({"net.a": torch.ones(2), "tower.b": torch.ones(2)}, "got tower.b"),
        ({"net.final_layer.norm.weight": 3}, "final_layer.norm.weight as a tensor of floats"),
        ({"net.final_layer.norm.weight": torch.ones(32).int()}, "got torch.int32"),
        ({}, "expected tensors named net"),
    ],
)
def test_another_network_is_refused(
    config: Config, write: Callable[..., Path], named: dict[str, Any], message: str
) -> None:
    with pytest.raises(BundleError, match=message):
        load_network(write(named, prefix=""), config)


class _Code:
    def __reduce__(self) -> Any:
        return (print, ("unpickled",))


def test_a_checkpoint_runs_no_code(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "evil.pt"
    torch.save({"state_dict": {"net.a": _Code()}}, path)
    with pytest.raises(BundleError, match="holds tensors only"):
        load_network(path, config)
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(BundleError, match=r"evil\.pt"):
        load_network(path, config)
    path.write_bytes(b"PK no archive")
    with pytest.raises(BundleError, match="fetch it again"):
        load_network(path, config)
    assert "unpickled" not in capsys.readouterr().out


def test_sizes_are_read_off_the_file_beside_the_checkpoint(fakes: Any, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    for stride, bits in PUBLISHED:
        config = Config(stride, bits)
        path.write_text(fakes.yaml_of(config))
        assert read_config(path) == config


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("pred: x", "pred: v", "pred to be x"),
        ("up2x: true", "up2x: false", "up2x to be True"),
        ("light: true\n", "\n", "light to be True, .* got None"),
        ("ds: 16", "ds: 64", "expected ds of 4, 8, 16, 32"),
        ("ds: 16", "ds: sixteen", "ds to be an integer, got sixteen"),
        ("codebook_bits: 8\n", "\n", "codebook_bits to be an integer, got None"),
        ("FinetunedOneStepCoD", "OneStepCoD", "noise_level to be 0.0, .* got 1.0"),
        ("ds: 16", "ds: 16\n      noise_level: 0.5", "noise_level to be 0.0, .* got 0.5"),
        ("ds: 16", "ds: 16\n      window: 8", "got window"),
        ("model:", "models:", "expected model.net.init_args, got none"),
        ("model:", "model: [", "expected the YAML file of a checkpoint"),
    ],
)
def test_the_file_of_another_network_is_refused(
    fakes: Any, tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(fakes.yaml_of(Config(16, 8)).replace(old, new))
    with pytest.raises(BundleError, match=message):
        read_config(path)
