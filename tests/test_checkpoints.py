"""Other people's files of weights: what trainers write is read, and nothing that stands in one is ever run."""

from __future__ import annotations

import argparse
import datetime
import io
import pathlib
import pickle
import struct
import sys
import types
import typing
import zipfile
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from changeanywhere.cli import run
from changeanywhere.errors import InputError, ModelError
from changeanywhere.legend import load_legend
from changeanywhere.models import unpickling
from changeanywhere.models.checkpoint import read_weights_file
from changeanywhere.models.detectors import build_detector
from changeanywhere.models.detectors.pretrained import load_backbone
from changeanywhere.models.import_ldm import import_ldm
from changeanywhere.models.import_opencd import import_opencd
from conftest import SHARED

GOLDEN = SHARED / "golden" / "ldm" / "tiny_conv.ckpt"
CASE = SHARED / "cases" / "ldm-lightning-callbacks" / "tiny.ckpt"
WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "a.bias": torch.tensor([1.0, -2.0]).half()}


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], type]:
    """Makes classes of packages that are not installed, while a file is written."""

    def make(whole: str) -> type:
        module, _, name = whole.rpartition(".")
        parts = module.split(".")
        for i in range(1, len(parts) + 1):
            part = ".".join(parts[:i])
            if part not in sys.modules:
                monkeypatch.setitem(sys.modules, part, types.ModuleType(part))
        kind = type(name, (), {"__module__": module, "__init__": lambda self, **state: self.__dict__.update(state)})
        monkeypatch.setattr(sys.modules[module], name, kind, raising=False)
        return kind

    return make


def assert_weights(found: dict[str, Tensor]) -> None:
    assert found.keys() == WEIGHTS.keys()
    for name, value in WEIGHTS.items():
        assert found[name].dtype == value.dtype and torch.equal(found[name], value)


def lightning_1_4(make: Callable[[str], type]) -> dict[Any, Any]:
    callback = make("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")
    state = {"monitor": "val/loss", "best_model_score": torch.tensor(0.2), "dirpath": pathlib.Path("x")}
    return {"callbacks": {callback: state}, "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}}]}


def omega_conf(make: Callable[[str], type]) -> dict[Any, Any]:
    node, config = make("omegaconf.nodes.AnyNode"), make("omegaconf.dictconfig.DictConfig")
    inner = config(_content={"lr": node(_val=1e-4)}, _flags=defaultdict(list), _type=typing.Any)
    return {"hyper_parameters": inner, "hparams_name": "kwargs"}


def numpy_scalars(make: Callable[[str], type]) -> dict[Any, Any]:
    return {"best": np.float64(0.5), "seen": np.int64(3), "history": np.arange(5), "flag": np.bool_(True)}


def message_hub(make: Callable[[str], type]) -> dict[Any, Any]:
    buffer = make("mmengine.logging.history_buffer.HistoryBuffer")
    buffer.mean = lambda self: 0  # type: ignore[attr-defined]
    buffer.mean.__module__, buffer.mean.__qualname__ = buffer.__module__, "HistoryBuffer.mean"  # type: ignore[attr-defined]
    scalars = OrderedDict({"train/loss": buffer(_log_history=np.arange(3.0), _statistics={"mean": buffer.mean})})  # type: ignore[attr-defined]
    return {"message_hub": {"log_scalars": scalars, "runtime_info": OrderedDict(cfg="x")}, "meta": {"epoch": 3}}


def ema_hook(make: Callable[[str], type]) -> dict[Any, Any]:
    return {"ema_state_dict": {"steps": torch.tensor(3), "module.a.weight": torch.zeros(2, 3)}}


def arguments(make: Callable[[str], type]) -> dict[Any, Any]:
    seen = {
        "when": datetime.datetime(2024, 1, 1),
        "args": argparse.Namespace(lr=1.0),
        "of": {1, 2},
        "to": frozenset("a"),
    }
    return seen | {
        "config": make("mmcv.utils.config.ConfigDict")(a=1),
        "device": torch.device("cpu"),
        "d": torch.float16,
    }


TRAINERS = (lightning_1_4, omega_conf, numpy_scalars, message_hub, ema_hook, arguments)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("trainer", TRAINERS)
def test_what_trainers_write_beside_weights_is_passed_over(
    tmp_path: Path, foreign: Callable[[str], type], trainer: Callable[..., dict[Any, Any]], legacy: bool
) -> None:
    content = {"state_dict": OrderedDict(WEIGHTS), **trainer(foreign)}
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=not legacy)
    assert_weights(read_weights_file(tmp_path / "x.pth"))


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize(
    "wrap", ["plain", "state_dict", "model", "module.", "_orig_mod.module.", "parameters", "nested"]
)
def test_weights_are_found_where_trainers_put_them(tmp_path: Path, wrap: str, protocol: int) -> None:
    kinds: dict[str, Any] = {
        "plain": WEIGHTS,
        "parameters": {name: nn.Parameter(value) for name, value in WEIGHTS.items()},
        "nested": {"model": {"state_dict": WEIGHTS, "epoch": 1}, "epoch": 1},
    }
    content = kinds.get(wrap, {wrap: WEIGHTS, "epoch": 2})
    if wrap.endswith("."):
        content = {"state_dict": {wrap + name: value for name, value in WEIGHTS.items()}}
    torch.save(content, tmp_path / "x.pt", pickle_protocol=protocol)
    assert_weights(read_weights_file(tmp_path / "x.pt"))


def test_views_and_shared_numbers(tmp_path: Path) -> None:
    whole = torch.arange(24.0).view(4, 6)
    given = {"t": whole.t(), "row": whole[1:3, ::2], "none": torch.empty(0, 3), "one": torch.tensor(7), "b": whole > 5}
    for legacy in (False, True):
        torch.save(given, tmp_path / "x.pt", _use_new_zipfile_serialization=not legacy)
        found = read_weights_file(tmp_path / "x.pt")
        assert all(torch.equal(found[name], value) for name, value in given.items())


CALLED: list[object] = []


class Payload:
    """Unpickled, it would call ``function(*arguments)``."""

    def __init__(self, function: Callable[..., Any], *given: object) -> None:
        self.how = function, given

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[object, ...]]:
        return self.how


def _op(name: str, *values: str) -> bytes:
    """``GLOBAL`` by hand, for names that cannot be pickled."""
    return b"c" + name.encode() + b"\n" + "\n".join(values).encode() + b"\n"


PICKLES: dict[str, bytes] = {
    "os.system": b"cos\nsystem\n(S'touch MARK'\ntR.",
    "posix": b"cposix\nsystem\n(S'touch MARK'\ntR.",
    "eval": b'cbuiltins\neval\n(S\'open("MARK", "w")\'\ntR.',
    "eval of python 2": b'c__builtin__\neval\n(S\'open("MARK", "w")\'\ntR.',
    "inst": b"(S'touch MARK'\nios\nsystem\n.",
    "obj": b"(cos\nsystem\nS'touch MARK'\no.",
    "getattr": b"cbuiltins\ngetattr\n(cbuiltins\n__import__\n(S'os'\ntRS'system'\ntR(S'touch MARK'\ntR.",
    "stack_global": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x0atouch MARK\x85R.",
    "dotted": b"\x80\x04\x8c\x04sys.\x8c\x0cmodules.os.x\x93.",
    "memo": b"cos\nsystem\np7\n0g7\n(S'touch MARK'\ntR.",
    "in a dict": b"(dS'state_dict'\ncsubprocess\nPopen\n((lp0\nS'touch'\naS'MARK'\natRs.",
    "new": b"\x80\x04csubprocess\nPopen\n(S'touch MARK'\nt\x81.",
    "runpy": b"crunpy\nrun_path\n(S'x'\ntR.",
    "ctypes": b"cctypes\nCDLL\n(S'x'\ntR.",
    "pickle in pickle": b"cpickle\nloads\n(S'x'\ntR.",
}
INERT: dict[str, bytes] = {
    "torch.hub": b"(dS'w'\nctorch.hub\nload\n(S'x'\ntRs.",
    "numpy": b"(dS'w'\ncnumpy.testing._private.utils\nrunstring\n(S'open(\"MARK\",\"w\")'\n(dtRs.",
    "setstate": b"(dS'w'\ncsome.where\nKind\n)R(dS'__class__'\nS'x'\nsbs.",
    "getattr on what is passed over": b"(dS'w'\ncbuiltins\ngetattr\n(ctorch\nTensor\nS'__reduce_ex__'\ntR(I2\ntRs.",
    "attributes of a builder": b"(dS'w'\nctorch._utils\n_rebuild_tensor_v2\n(dS'__code__'\nI1\nsbs.",
}
DAMAGED: dict[str, bytes] = {
    "no end": b"(dS'a'\nI1\ns",
    "memo that is not there": b"g5\n.",
    "underflow": b"sss.",
    "extension": b"\x82\x01.",
    "huge text": b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x.",
    "huge number": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"x.",
    "storage of no kind": b"(S'storage'\nI1\nS'0'\nS'cpu'\nI4\ntQ.",
    "out of band": b"\x97.",
    "digits": b"I" + b"9" * 100_000 + b"\n.",
}


def write_zip(file: Path, pickled: bytes, records: dict[str, bytes] | None = None) -> Path:
    """A file as torch writes it, around a pickle made by hand."""
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("x/data.pkl", pickled)
        archive.writestr("x/byteorder", "little")
        for name, content in (records or {}).items():
            archive.writestr(f"x/data/{name}", content)
    return file


def write_legacy(file: Path, pickled: bytes) -> Path:
    head = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
    file.write_bytes(b"".join(pickle.dumps(part, 2) for part in head) + pickled + pickle.dumps([], 2))
    return file


@pytest.mark.parametrize("write", [write_zip, write_legacy])
@pytest.mark.parametrize("name", [*PICKLES, *INERT, *DAMAGED])
def test_nothing_of_a_payload_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, write: Callable[[Path, bytes], Path]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("builtins.__import__", _refusing(__import__))
    file = write(tmp_path / "x.ckpt", {**PICKLES, **INERT, **DAMAGED}[name])
    with pytest.raises(ModelError) as caught:
        read_weights_file(file)
    message = str(caught.value)
    assert "\n" not in message and str(file) in message
    assert not (tmp_path / "MARK").exists()
    if name in PICKLES:
        assert "which no trainer stores" in message and "nothing of it was run" in message
    elif name in DAMAGED:
        assert "not a readable checkpoint" in message


def _refusing(importing: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(name: str, *rest: Any, **more: Any) -> Any:
        assert name not in ("runpy", "some", "some.where", "numpy.testing._private.utils", "torch.hub"), name
        return importing(name, *rest, **more)

    return guarded


@pytest.mark.parametrize(
    "function", [print, exec, CALLED.append, Path.unlink], ids=["print", "exec", "append", "unlink"]
)
def test_payloads_beside_sound_weights_are_never_called(tmp_path: Path, function: Callable[..., Any]) -> None:
    """Whether the weights are read or the file is refused: what python would call stays uncalled."""
    torch.save({"state_dict": WEIGHTS, "extra": Payload(function, "1")}, tmp_path / "x.pt")
    CALLED.clear()
    try:
        assert_weights(read_weights_file(tmp_path / "x.pt"))
    except ModelError as error:
        assert "nothing of it was run" in str(error)
    assert not CALLED


def test_nesting_and_counts_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = b"(d(" + b"(" * 200_000 + b"t" * 200_000 + b"."
    keyed = b"}" + b")" + b"\x85" * 400_000 + b"I1\ns."  # hashing such a key would crash
    for pickled in (deep, keyed):
        with pytest.raises(ModelError):
            read_weights_file(write_zip(tmp_path / "deep.pt", pickled))
    monkeypatch.setattr(unpickling, "MAX_OPERATIONS", 1000)
    with pytest.raises(ModelError, match="more than 1000 objects"):
        read_weights_file(write_zip(tmp_path / "many.pt", b"(" + b"]" * 5000 + b"l."))
    reader = unpickling.Reader(io.BytesIO(b"x" * 100), limit=50)
    with pytest.raises(unpickling.UnreadableError):
        reader.read(51)


def tensor_pickle(count: int, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """``{"w": tensor}`` with claims of our choice, in protocol 0."""

    def numbers(values: tuple[int, ...]) -> str:
        return "(" + "".join(f"I{v}\n" for v in values) + "t"

    storage = f"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI{count}\ntQ"
    made = f"ctorch._utils\n_rebuild_tensor_v2\n({storage}I{offset}\n{numbers(size)}{numbers(stride)}I00\nNtR"
    return f"(dS'w'\n{made}s.".encode()


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (5,), (1,)),
        (1, (4,), (1,)),
        (0, (2, 2), (3, 1)),
        (-1, (2,), (1,)),
        (0, (-2,), (1,)),
        (0, (2**40, 2**40), (0, 0)),
        (0, (2**22,), (0,)),
        (0, (2,), (1, 1)),
        (0, (1,) * 40, (1,) * 40),
    ],
)
def test_tensors_beyond_what_is_stored_are_refused(
    tmp_path: Path, offset: int, size: tuple[int, ...], stride: tuple[int, ...]
) -> None:
    file = write_zip(tmp_path / "x.pt", tensor_pickle(4, 0, (4,), (1,)), {"0": struct.pack("<4f", 1, 2, 3, 4)})
    assert read_weights_file(file)["w"].tolist() == [1, 2, 3, 4]
    for pickled, records in (
        (tensor_pickle(4, offset, size, stride), {"0": struct.pack("<4f", 1, 2, 3, 4)}),
        (tensor_pickle(4, 0, (4,), (1,)), {"0": b"12"}),
        (tensor_pickle(4, 0, (4,), (1,)), {}),
    ):
        with pytest.raises(ModelError, match="not a readable checkpoint"):
            read_weights_file(write_zip(tmp_path / "y.pt", pickled, records))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\x1f\x8b" + b"x" * 80, "gzip"),
        (b"", "neither a zip file of torch nor"),
        (pickle.dumps({"a": 1}), "a pickle, but not one of torch.save"),
        (b"PK\x03\x04" + b"x" * 100, "cut off"),
    ],
)
def test_what_is_taken_for_a_checkpoint_is_named(tmp_path: Path, content: bytes, match: str) -> None:
    (tmp_path / "x.ckpt").write_bytes(content)
    for read in (read_weights_file, lambda file: import_ldm(file, load_legend("mini"), 2), import_opencd):
        with pytest.raises(ModelError, match=match):
            read(tmp_path / "x.ckpt")


def test_a_whole_module_is_named_with_the_mend(tmp_path: Path, foreign: Callable[[str], type]) -> None:
    torch.save({"model": foreign("mmseg.models.Net")(), "epoch": 1}, tmp_path / "x.pth")
    with pytest.raises(ModelError, match=r"holds a whole mmseg\.models\.Net.*save the weights alone"):
        read_weights_file(tmp_path / "x.pth")
    torch.save({"loss": np.float64(1), "epoch": 1}, tmp_path / "y.pth")
    with pytest.raises(ModelError, match=r"it holds loss, epoch; the first thing that is no tensor is a numpy"):
        read_weights_file(tmp_path / "y.pth")


def test_missing_files_and_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        read_weights_file(tmp_path / "x.pth")
    with pytest.raises(ModelError, match="not a file"):
        read_weights_file(tmp_path)


def golden() -> dict[str, Any]:
    if not GOLDEN.is_file():
        pytest.skip(f"golden numbers are not there: {GOLDEN}")
    content: dict[str, Any] = torch.load(GOLDEN, map_location="cpu", weights_only=True)
    return content


@pytest.mark.parametrize("trainer", [lightning_1_4, omega_conf, numpy_scalars])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_import_ldm_of_whole_training_files(
    tmp_path: Path, foreign: Callable[[str], type], trainer: Callable[..., dict[Any, Any]], prefix: str
) -> None:
    content = golden() | trainer(foreign)
    content["state_dict"] = {prefix + name: value for name, value in content["state_dict"].items()}
    torch.save(content, tmp_path / "full.ckpt")
    legend = load_legend("openearthmap")
    found, plain = (import_ldm(file, legend, 4) for file in (tmp_path / "full.ckpt", GOLDEN))
    for part in ("denoiser", "first_stage"):
        own, other = (getattr(model, part).state_dict() for model in (found, plain))
        assert all(torch.equal(own[name], value) for name, value in other.items())


def test_the_reported_checkpoint_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not CASE.is_file():
        pytest.skip(f"the case is not there: {CASE}")
    arguments = ["--legend", "openearthmap", "--num-heads", "4", "--out", str(tmp_path / "out")]
    assert run(["import", "ldm", str(CASE), *arguments]) == 2
    assert "no averaged weights" in capsys.readouterr().err


def test_any_part_of_an_ldm_checkpoint_may_be_missing_or_misshapen(tmp_path: Path) -> None:
    """Every tensor left out, flattened, doubled or NaN in turn: one line that names the file, or the same model."""
    state, legend, rng = golden()["state_dict"], load_legend("openearthmap"), np.random.default_rng(0)
    names = [name for name in state if not name.startswith("model_ema")]
    refused = 0
    changes = (
        lambda value: None,
        lambda value: value.flatten()[:1],
        lambda value: torch.cat([value, value]) if value.dim() else value[None],
        lambda value: value[None],
        lambda value: torch.full_like(value, torch.nan) if value.is_floating_point() else value,
    )
    for name in rng.permutation(names)[:16]:
        for change in changes:
            other = {key: value for key, value in state.items() if key != name}
            changed = change(state[name])
            if changed is not None:
                other[name] = changed
            torch.save({"state_dict": other}, tmp_path / "x.ckpt")
            try:
                import_ldm(tmp_path / "x.ckpt", legend, 4, use_ema=False)
            except InputError as error:
                refused += 1
                assert str(tmp_path / "x.ckpt") in str(error) and "\n" not in str(error)
    assert refused > 40
    for given in (
        {"model.diffusion_model.x": torch.zeros(1)},
        {"model.diffusion_model.input_blocks.x.0": torch.zeros(1)},
    ):
        torch.save({"state_dict": given}, tmp_path / "x.ckpt")
        with pytest.raises(ModelError, match=r"UNet levels|no model"):
            import_ldm(tmp_path / "x.ckpt", legend, 2, use_ema=False)


def test_import_opencd_of_averaged_and_wrapped_weights(tmp_path: Path) -> None:
    net = build_detector("fc_ef")
    state = net.state_dict()
    old_hook = {"ema_" + name.replace(".", "_"): torch.zeros_like(value) for name, value in state.items()}
    siblings = {
        "mmcv": {"state_dict": state | old_hook},
        "mmengine": {"state_dict": state, "ema_state_dict": {f"module.{k}": v * 0 for k, v in state.items()}},
        "parallel": {f"module.{name}": value for name, value in state.items()},
        "lightning": {"state_dict": {f"model.{name}": value for name, value in state.items()}},
    }
    for name, content in siblings.items():
        torch.save(content, tmp_path / f"{name}.pth")
        found, imported = import_opencd(tmp_path / f"{name}.pth")
        assert found == "fc_ef"
        assert all(torch.equal(imported.state_dict()[key], value) for key, value in state.items())


def test_import_opencd_names_what_does_not_fit(tmp_path: Path) -> None:
    state = build_detector("fc_siam_diff").state_dict()
    name = "backbone.conv11.weight" if "backbone.conv11.weight" in state else next(iter(state))
    for other, match in (
        ({key: value for key, value in state.items() if key != name}, f"no {name}"),
        (state | {name: state[name][:1]}, f"{name} is 1x"),
        (state | {"head.more": torch.zeros(1)}, "has head.more"),
        (state | {name: state[name] * torch.nan}, f"{name} is not finite"),
    ):
        torch.save(other, tmp_path / "x.pth")
        with pytest.raises(ModelError, match=match):
            import_opencd(tmp_path / "x.pth")


def test_backbone_from_a_training_file(tmp_path: Path, foreign: Callable[[str], type]) -> None:
    given = build_detector("changer_ex_r18").get_submodule("backbone").state_dict()
    state = {f"module.backbone.{name}": value for name, value in given.items()}
    torch.save({"state_dict": state, **message_hub(foreign)}, tmp_path / "mm.pth")
    assert load_backbone(build_detector("bit_r18"), tmp_path / "mm.pth") == []
    name = "module.backbone.layer1.0.conv1.weight"
    torch.save({"state_dict": state | {name: state[name] * torch.inf}}, tmp_path / "inf.pth")
    with pytest.raises(ModelError, match=r"layer1\.0\.conv1\.weight is not finite"):
        load_backbone(build_detector("bit_r18"), tmp_path / "inf.pth")
