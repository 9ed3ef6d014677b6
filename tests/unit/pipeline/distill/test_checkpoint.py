import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.distill.background import BackgroundWriter
from pipeline.distill.checkpoint import CheckpointError, CheckpointStore, safetensors_pieces

META = {"plan_hash": "a" * 64, "plan": {"distill": {"train": {"learning_rate": 0.1}}}, "useful_s": 1.0}


def files(seed: int = 0) -> dict[str, Any]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    tensors = {"w": torch.randn(7, 5, generator=generator), "step": torch.tensor(3.0)}
    return {"model.safetensors": tensors, "state.json": b'{"a": 1}'}


def write_steps(url: str, *steps: int, keep: int = 3) -> CheckpointStore:
    store = CheckpointStore(url, keep)
    for step in steps:
        store.write(step, files(step), META)
    return store


@pytest.fixture(params=["folder", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A local folder, and a file system without rename or local files."""
    return str(tmp_path / "there") if request.param == "folder" else f"memory://{tmp_path.name}"


def test_what_is_written_is_read(url: str, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    found, skipped = write_steps(url, 10, 20).newest(tmp_path / "scratch")
    assert found is not None
    assert (found.step, found.meta, skipped) == (20, META, [])
    assert torch.equal(load_file(found.folder / "model.safetensors")["w"], files(20)["model.safetensors"]["w"])
    assert (found.folder / "state.json").read_bytes() == b'{"a": 1}'


def test_only_the_last_are_kept(url: str) -> None:
    assert write_steps(url, 1, 2, 3, 4, 5, keep=2).names() == ["step-00000004", "step-00000005"]


def test_nothing_there_is_no_error(url: str, tmp_path: Path) -> None:
    assert CheckpointStore(url).newest(tmp_path / "scratch") == (None, [])


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_any_damage_to_the_newest_is_found_and_the_one_before_is_used(
    data: st.DataObject, tmp_path_factory: Any
) -> None:
    folder = tmp_path_factory.mktemp("damage")
    store = write_steps(str(folder / "there"), 1, 2)
    newest = folder / "there" / "step-00000002"
    path = data.draw(st.sampled_from(sorted(newest.iterdir())))
    content = bytearray(path.read_bytes())
    kind = data.draw(st.sampled_from(["cut", "flip", "longer", "gone"]))
    if kind == "cut":
        path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    elif kind == "flip":
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        path.write_bytes(content)
    elif kind == "longer":
        path.write_bytes(bytes(content) + b"x")
    else:
        path.unlink()
    found, skipped = store.newest(folder / "scratch")
    if found is not None and found.step == 2:  # the damage changed nothing that is read: white space of the manifest
        assert path.name == "manifest.json"
        return
    assert found is not None
    assert found.step == 1
    assert [one.name for one in skipped] == ["step-00000002"]
    assert skipped[0].reason
    store.remove_after(1)
    assert store.names() == ["step-00000001"]


def test_a_write_that_was_cut_off_is_no_checkpoint(tmp_path: Path) -> None:
    store = write_steps(str(tmp_path), 1)
    (tmp_path / "step-00000002").mkdir()
    (tmp_path / "step-00000002" / "model.safetensors").write_bytes(b"half")
    found, skipped = store.newest(tmp_path / "scratch")
    assert found is not None
    assert found.step == 1
    assert "cut off" in skipped[0].reason


def test_another_plans_checkpoints_are_refused_with_the_settings_that_differ(url: str) -> None:
    store = write_steps(url, 1)
    store.check_plan("a" * 64, {})
    other = {"distill": {"train": {"learning_rate": 0.2}}}
    with pytest.raises(CheckpointError, match=r"(?s)another run.*learning_rate: 0.1 there, 0.2 here"):
        store.check_plan("b" * 64, other)


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot be written"):
        CheckpointStore(str(tmp_path / "file" / "below")).probe(1000)


def test_an_unknown_kind_of_place_names_the_missing_package() -> None:
    with pytest.raises(CheckpointError, match="s3fs"):
        CheckpointStore("s3://bucket/run")


def test_the_probe_measures_and_leaves_nothing(url: str) -> None:
    store = CheckpointStore(url)
    assert store.probe(100_000) > 0
    assert store.names() == []


def test_small_files_survive_a_damaged_one(url: str) -> None:
    store = CheckpointStore(url)
    assert store.get_json("attempts.json") is None
    store.put_json("attempts.json", [{"a": 1}])
    assert store.get_json("attempts.json") == [{"a": 1}]


def test_the_background_writer_reports_failures_with_the_last_good_checkpoint(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path / "there"))
    told: list[int] = []
    writer = BackgroundWriter(store, lambda one: told.append(one.step))
    writer.submit(1, files(), META)
    writer.wait()
    assert [one.step for one in writer.written] == [1]
    writer.submit(2, {"model.safetensors": {"bad": object()}}, META)
    with pytest.raises(CheckpointError, match="last good one: step 1"):
        writer.wait()
    assert told == [1], "only what is whole is told of"
    assert store.newest(tmp_path / "scratch")[0].step == 1


def test_the_streamed_format_is_safetensors() -> None:
    import torch
    from safetensors.torch import load

    tensors = {
        "half": torch.randn(3, 4).half(),
        "brain": torch.randn(2).bfloat16(),
        "scalar": torch.tensor(1.5),
        "turned": torch.arange(6).reshape(2, 3).T,
        "empty": torch.empty(0, 3),
        "bytes": torch.tensor([1, 2], dtype=torch.uint8),
    }
    loaded = load(b"".join(bytes(piece) for piece in safetensors_pieces(tensors)))
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(loaded[name], tensor)
        assert loaded[name].dtype == tensor.dtype


def test_manifests_hold_no_number_that_json_rounds(tmp_path: Path) -> None:
    store = CheckpointStore(str(tmp_path))
    value = float(np.nextafter(0.1, 1))
    store.write(1, files(), {**META, "useful_s": value})
    found, _ = store.newest(tmp_path / "scratch")
    assert found.meta["useful_s"] == value
    assert json.loads((tmp_path / "step-00000001" / "manifest.json").read_text())["meta"]["useful_s"] == value
