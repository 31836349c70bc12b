"""Models, critics, filters and detectors from addresses: what is made with them is what is made with their folders."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("obstore", reason="pip install 'changeanywhere[cloud]'")

import changeanywhere as ca
from changeanywhere.buckets import BucketStore, local_copy
from changeanywhere.cli import run
from changeanywhere.errors import ModelError
from changeanywhere.legend import load_legend
from changeanywhere.models.detectors import build_detector
from changeanywhere.models.detectors.folder import save_detector
from changeanywhere.models.folder import save_model
from changeanywhere.models.info import find_model, hash_model
from changeanywhere.models.segmenter import Segmenter
from changeanywhere.storage import LocalStore
from conftest import tiny_model, write_source


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CHANGEANYWHERE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def upload(folder: Path, address: str) -> str:
    store = BucketStore(address)
    for name in LocalStore(folder).list():
        store.put(name, (folder / name).read_bytes())
    return address


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_model(tiny_model(), tmp_path / "net")
    return tmp_path / "net"


def test_a_set_painted_and_filtered_by_models_in_a_bucket(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bytes of a run with folders; asked for again it is done, until the model at the address is another one."""
    torch.manual_seed(0)
    Segmenter("unet", load_legend("mini")).save(tmp_path / "reads")
    places = {
        "model": (model, "memory://nets/one/net"),
        "filter.model": (tmp_path / "reads", "memory://nets/one/reads"),
    }
    for folder, address in places.values():
        upload(folder, address)
    source = write_source(tmp_path / "src", num_tiles=4)
    command = ["generate", f"--source={source}", "--num-pairs=4", "--tile-size=64", "--num-steps=2", "--device=cpu"]
    command += ["--dtype=float32", "--num-threads=1", "--events.min-area=16", "--filter.action=score"]
    made = {}
    for number, name in enumerate(("folder", "address")):
        out = tmp_path / name
        models = [f"--{flag}={place[number]}" for flag, place in places.items()]
        assert run([*command, *models, f"--out={out}"]) == 0, capsys.readouterr().err
        images = sorted((out / "B").iterdir())
        made[name] = [image.read_bytes() for image in images]
        assert len(images) == 4 and run(["check", str(out)]) == 0
    assert made["folder"] == made["address"]
    record = json.loads((tmp_path / "address" / "metadata.jsonl").read_text().splitlines()[0])
    assert record["model"] == "net" and record["model_hash"] == hash_model(model)
    capsys.readouterr()
    assert run([*command, *models, f"--out={out}"]) == 0 and "nothing to do" in capsys.readouterr().out
    other = tiny_model()
    next(other.denoiser.parameters()).data += 1
    save_model(other, tmp_path / "other")
    upload(tmp_path / "other", "memory://nets/one/net")
    assert run([*command, *models, f"--out={out}"]) == 2
    assert "painter.model_hash" in capsys.readouterr().err


def test_detectors_in_a_bucket(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_detector(build_detector("fc_ef"), "fc_ef", tmp_path / "detector")
    address = upload(tmp_path / "detector", "memory://nets/detectors/fc")
    source = write_source(tmp_path / "src", num_tiles=2)
    pairs = tmp_path / "pairs"
    command = ["generate", f"--source={source}", f"--out={pairs}", "--method=copy_paste", "--num-pairs=2"]
    assert run([*command, "--tile-size=64", "--events.min-area=16"]) == 0
    for name, place in (("one", str(tmp_path / "detector")), ("two", address)):
        assert run(["predict", f"--detector={place}", str(pairs), f"--out={tmp_path / name}"]) == 0
        assert run(["evaluate", f"--detector={place}", str(pairs), f"--out={tmp_path / name}-scored"]) == 0
    tables = [(tmp_path / name / "changes.csv").read_bytes() for name in ("one", "two")]
    assert tables[0] == tables[1]
    weights = ca.load_detector(address).state_dict()
    assert all(
        torch.equal(value, weights[name])
        for name, value in ca.load_detector(tmp_path / "detector").state_dict().items()
    )


def test_a_copy_whose_bytes_changed_is_fetched_again(model: Path) -> None:
    """Same size and time of another file do not pass for it: weights are held to their hashes."""
    address = upload(model, "memory://nets/two/net")
    copy = find_model(address)
    weights = copy / "denoiser" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4] + bytes(4))
    assert local_copy(address) == copy and weights.read_bytes() != whole, "a source is held to sizes"
    assert find_model(address) == copy and weights.read_bytes() == whole
    assert hash_model(copy) == hash_model(model)


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("memory://nets/nowhere", "nothing is there"),
        ("memory://nets/three", "no model.json"),
        ("ftp://nets/one", "allowed: s3, gs, az, memory"),
        ("s3://name:secret@nets/one", "credentials come from the environment"),
    ],
)
def test_addresses_without_a_model_are_one_line(
    place: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    BucketStore("memory://nets/three").put("weights.pt", b"a pickle, which nobody opens")
    source = write_source(tmp_path / "src", num_tiles=1)
    assert run(["generate", f"--source={source}", f"--out={tmp_path / 'out'}", f"--model={place}"]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and said in lines[0] and "secret@" not in lines[0]


def test_the_library_takes_them_too(model: Path) -> None:
    address = upload(model, "memory://nets/four/net")
    assert ca.ChangePairPipeline.from_pretrained(address).legend.names == load_legend("mini").names
    with pytest.raises(ModelError, match="nothing is there"):
        ca.ChangePairPipeline.from_pretrained("memory://nets/nowhere")
