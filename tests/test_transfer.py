"""Weights taken over from another run: predictions of shared structures stay, by name."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_networks import SMALL
from torch import nn

from pants_dist import config
from pants_dist.errors import UserError
from pants_dist.networks import build_network
from pants_dist.optimizers import Average
from pants_dist.settings import Data, Model, Settings
from pants_dist.transfer import Weights, load_weights, read_weights

OLD, NEW = ("liver", "pancreas", "pancreatic_lesion"), ("spleen", "pancreatic_lesion", "liver")


def settings_of(model: Model, structures: tuple[str, ...], patch: tuple[int, int, int] = (8, 8, 8), spacing=None) -> Settings:
    return Settings(data=Data(store="s", patch_zyx=patch, spacing_mm_zyx=spacing), model=replace(model, structures=structures))


def network_of(settings: Settings, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model, data = settings.model, settings.data
    network = build_network(model, len(model.structures), data.patch_zyx, data.spacing_mm_zyx).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("bias"):
                parameter.copy_(torch.randn_like(parameter))  # so that heads differ in their bias, too
    return network


def save_run(run: Path, settings: Settings, network: nn.Module, **more: object) -> Path:
    """A run folder as training leaves it."""
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text(config.dump(settings))
    state = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"state_dict": state, "global_step": 3, **more}, run / "checkpoints" / "last.ckpt")
    return run


@pytest.mark.parametrize("name", ["unet, plain", "dynunet", "dynunet, residual", "segresnet_ds", "swin_unetr", "mednext"])
def test_shared_structures_are_predicted_as_before(name: str, tmp_path: Path) -> None:
    """Through a run folder into other structures in another order: liver and lesion as before, spleen begun anew."""
    model, patch, spacing, *_ = SMALL[name]
    before, after = settings_of(model, OLD, patch, spacing), settings_of(model, NEW, patch, spacing)
    old, new, untouched = network_of(before, 0), network_of(after, 1), network_of(after, 1)
    loaded = load_weights(after, new, read_weights(save_run(tmp_path / "run", before, old)))
    assert (loaded.structures, loaded.fresh_structures, loaded.fresh_tensors) == (NEW[1:], ("spleen",), ())
    assert loaded.tensors == len(new.state_dict())
    image = torch.randn(1, 1, *patch)
    with torch.no_grad():
        predicted, expected = new(image), old(image)
    for structure in NEW[1:]:
        torch.testing.assert_close(predicted[:, NEW.index(structure)], expected[:, OLD.index(structure)])
    heads = [weight for key, weight in new.named_parameters() if len(weight) == 3 and weight.ndim == 1]
    fresh = [weight for key, weight in untouched.named_parameters() if len(weight) == 3 and weight.ndim == 1]
    assert heads and all(torch.equal(head[0], other[0]) for head, other in zip(heads, fresh, strict=True))


def test_output_convolutions_that_mix_structures_are_matched_on_both_sides() -> None:
    """MONAI's residual U-Net ends in a convolution from structures to structures: in another order it predicts alike."""
    model, order = Model(channels=(4, 8), blocks=(1,)), (OLD[2], OLD[0], OLD[1])
    before, after = settings_of(model, OLD), settings_of(model, order)
    old, new = network_of(before, 0), network_of(after, 1)
    load_weights(after, new, Weights(Path("x"), old.state_dict(), OLD))
    image = torch.randn(1, 1, 8, 8, 8)
    torch.testing.assert_close(new(image), old(image)[:, [2, 0, 1]])


def test_without_names_the_heads_begin_anew(tmp_path: Path) -> None:
    """A bare state_dict says nothing of structures: the body is taken, the output channels are not."""
    model = Model(name="dynunet", channels=(4, 8), blocks=(0,))
    settings = settings_of(model, OLD)
    old, new, untouched = (network_of(settings, seed) for seed in (0, 1, 1))
    torch.save(old.state_dict(), tmp_path / "weights.pt")
    loaded = load_weights(settings, new, read_weights(tmp_path / "weights.pt"))
    assert (loaded.structures, loaded.fresh_structures) == ((), OLD)
    assert loaded.fresh_tensors == ("heads.0.conv.conv.weight", "heads.0.conv.conv.bias")
    for name, tensor in new.state_dict().items():
        assert torch.equal(tensor, (untouched if name in loaded.fresh_tensors else old).state_dict()[name])
    assert str(loaded).endswith("begun anew: liver, pancreas, pancreatic_lesion")


def test_the_best_checkpoint_and_its_average_come_first(tmp_path: Path) -> None:
    """Average before weights, best.ckpt before last.ckpt, and a checkpoint named by itself knows its run's structures."""
    settings = settings_of(Model(channels=(4, 8)), OLD)
    network = network_of(settings, 0)
    average = Average(network, 0.9)
    average.weights["model.0.conv.unit0.conv.bias"].fill_(7)
    run = save_run(tmp_path / "run", settings, network, average=average.state_dict())
    last = read_weights(run)
    assert last.path.name == "last.ckpt" and last.structures == OLD
    assert set(last.tensors) == set(network.state_dict()) and (last.tensors["model.0.conv.unit0.conv.bias"] == 7).all()
    torch.save({"state_dict": {"network.a": torch.ones(1)}}, run / "checkpoints" / "best.ckpt")
    assert list(read_weights(run).tensors) == ["a"]
    assert read_weights(run / "checkpoints" / "last.ckpt").structures == OLD


def test_loading_draws_no_random_numbers() -> None:
    """What a run draws afterwards is the same with and without."""
    settings = settings_of(Model(channels=(4, 8)), OLD)
    network = network_of(settings, 0)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    load_weights(settings, network, Weights(Path("x"), network.state_dict(), OLD))
    assert torch.equal(torch.rand(1), expected)


def test_another_architecture_is_refused_and_nothing_is_touched() -> None:
    """The line names a tensor, both shapes or its absence, and the settings to look at."""
    settings, wider = (settings_of(Model(channels=channels), OLD) for channels in ((4, 8), (6, 8)))
    network, untouched = network_of(settings, 0), network_of(settings, 0)
    source = Weights(Path("a.ckpt"), network_of(wider, 1).state_dict(), OLD)
    says = r"a\.ckpt: \d+ of \d+ tensors fit this unet, model\.0.* has the shape \[6.*\] there and \[4.*\] here; give"
    with pytest.raises(UserError, match=says):
        load_weights(settings, network, source)
    with pytest.raises(UserError, match="0 of .* tensors fit this unet, model.0.* is not there"):
        load_weights(settings, network, Weights(Path("a.ckpt"), {"x": torch.ones(1)}, None))
    assert all(torch.equal(tensor, untouched.state_dict()[name]) for name, tensor in network.state_dict().items())


class Evil:
    def __reduce__(self):
        return print, ("run from a checkpoint",)


def test_what_holds_no_weights_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing there, a folder without checkpoints, other files, other contents, and code that would run."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"state_dict": 3}, tmp_path / "three.pt")
    torch.save(Evil(), tmp_path / "evil.pt")
    refusals = {
        "nowhere": "no such file or folder", "empty": "has no checkpoint", "text.pt": "cannot be read as weights",
        "three.pt": "no weights in it", "evil.pt": "cannot be read as weights",
    }  # fmt: skip
    for name, says in refusals.items():
        with pytest.raises(UserError, match=f"train.init_from .*{name}: {says}; give a run folder or a checkpoint"):
            read_weights(tmp_path / name)
    assert capsys.readouterr().out == ""
