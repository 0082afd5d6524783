import errno
import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from jaxseg.errors import CheckpointError, StorageError
from jaxseg.manifest import write_manifest
from jaxseg.train import Checkpoints, Layout, array_names, checkpoint, read_arrays

ADAM = optax.adam(1e-2)


def make(toy, layout, shift=0.0):
    state = layout.init(lambda: toy.make_state(ADAM))
    return state.replace(params=jax.tree.map(lambda leaf: leaf + shift, state.params))


def equal(left, right):
    for name, one, other in zip(array_names(left), jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(one, other, err_msg=name)


@pytest.fixture
def said():
    return []


@pytest.fixture
def three(toy, tmp_path, said):
    """Checkpoints of steps 10, 20 and 30 whose parameters are shifted by 1, 2 and 3; the first is gone, as two are kept."""
    checkpoints = Checkpoints(tmp_path, Layout("pmap"), say=said.append)
    for number in (1, 2, 3):
        checkpoints.save(10 * number, make(toy, checkpoints.layout, number), {"next": number})
    checkpoints.wait()
    yield checkpoints
    checkpoints.close()


def largest(folder):
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def test_saved_under_pmap_restored_on_a_sharded_mesh_and_back(toy, three, tmp_path):
    mesh = Layout("mesh", fsdp=4, shard_min_bytes=256)
    onto = Checkpoints(tmp_path, mesh)
    restored = onto.restore(make(toy, mesh))
    assert restored is not None and (restored.step, restored.loader_state) == (30, {"next": 3})
    equal(mesh.host(restored.state), three.layout.host(make(toy, three.layout, 3)))
    kernel = restored.state.params["encoder"]["blocks"]["kernel"]
    assert not kernel.is_fully_replicated and kernel.sharding == mesh.shardings(kernel)
    onto.save(40, restored.state, {"next": 4})
    onto.close()
    back = three.restore(make(toy, three.layout))
    assert back is not None and back.step == 40
    equal(three.layout.host(back.state), mesh.host(restored.state))


def test_the_last_two_and_the_best_are_kept(toy, tmp_path):
    checkpoints = Checkpoints(tmp_path, Layout("pmap"))
    for number, best in ((1, None), (2, {"name": "dice", "value": 0.5}), (3, None), (4, None)):
        checkpoints.save(number, make(toy, checkpoints.layout, number), {}, best=best)
    checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["000000002", "000000003", "000000004"]
    assert checkpoints.best == {"step": 2, "name": "dice", "value": 0.5}
    difference = read_arrays(tmp_path, "params.head.bias", best=True)[""] - read_arrays(tmp_path, "params.head.bias")[""]
    np.testing.assert_array_equal(difference, [-2, -2])


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(toy, three, said, damage):
    folder = three.folder / "000000030"
    file = folder / "manifest.json" if damage == "manifest" else largest(folder / "state")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "flip":
        file.write_bytes(data)
    elif damage == "remove":
        file.unlink()
    else:
        file.write_bytes(data[: len(data) // 2])
    restored = three.restore(make(toy, three.layout))
    assert restored is not None and restored.step == 20
    equal(three.layout.host(restored.state), three.layout.host(make(toy, three.layout, 2)))
    assert len(said) == 1 and "000000030" in said[0] and "damaged" in said[0] and "\n" not in said[0]
    assert not folder.exists()


def test_an_unfinished_save_is_as_if_it_never_was(toy, three, said):
    (three.folder / "000000030" / "manifest.json").unlink()
    restored = three.restore(make(toy, three.layout))
    assert restored is not None and restored.step == 20 and not said
    three.save(30, make(toy, three.layout, 5), {"next": 9})
    again = three.restore(make(toy, three.layout))
    assert again is not None and (again.step, again.loader_state) == (30, {"next": 9})


def test_all_damaged_is_an_error_and_none_is_none(toy, three, tmp_path):
    for folder in three.folder.iterdir():
        os.truncate(largest(folder), 1)
    with pytest.raises(CheckpointError, match="all 2 checkpoints are damaged"):
        three.restore(make(toy, three.layout))
    assert Checkpoints(tmp_path / "new", three.layout).restore(make(toy, three.layout)) is None


def test_another_model_is_refused_with_the_differences(toy, three):
    state = make(toy, three.layout)
    params = {
        "encoder": state.params["encoder"],
        "neck": {"kernel": state.params["head"]["kernel"]},
        "head": {"bias": np.zeros(3, np.float32)},
    }
    with pytest.raises(CheckpointError) as error:
        three.restore(state.replace(params=params))
    lines = str(error.value).splitlines()[1:]
    assert any("params.neck.kernel: not in the checkpoint" in line for line in lines)
    assert any("params.head.kernel: only in the checkpoint" in line for line in lines)
    assert any("params.head.bias" in line and "[2]" in line and "[3]" in line for line in lines)


def test_one_part_can_be_read_by_name(toy, three):
    arrays = read_arrays(three.folder, "params.encoder.")
    assert set(arrays) == {"embed.kernel", "embed.bias", "blocks.kernel", "blocks.bias", "blocks.norm.scale"}
    np.testing.assert_array_equal(arrays["blocks.kernel"], toy.params()["encoder"]["blocks"]["kernel"] + 3)
    with pytest.raises(CheckpointError, match=r"no array begins with 'ema\.'"):
        read_arrays(three.folder, "ema.")
    with pytest.raises(CheckpointError, match="no finished checkpoint"):
        read_arrays(three.folder / "nowhere")


@pytest.mark.parametrize("where", ["orbax", "orbax later", "lost later", "manifest"])
def test_a_full_disk_keeps_what_was_there(toy, three, monkeypatch, where):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class Later:
        def result(self):
            raise ValueError("RESOURCE_EXHAUSTED: Error writing local file: No space left on device")

    class Lost(Later):
        def result(self):
            raise ValueError("UNKNOWN: Failed writing: Failed to write 16 bytes to file 9: Input/output error [os_error_code='5']")

    if where == "orbax":
        monkeypatch.setattr(checkpoint.ocp, "save_async", full)
    elif where == "orbax later":
        monkeypatch.setattr(checkpoint.ocp, "save_async", lambda *_: Later())
    elif where == "lost later":
        monkeypatch.setattr(checkpoint.ocp, "save_async", lambda *_: Lost())
    else:
        monkeypatch.setattr(checkpoint, "write_manifest", full)
    with pytest.raises(StorageError, match=r"could not be written \(Input/output error\)" if where == "lost later" else "no space left"):
        three.save(40, make(toy, three.layout, 4), {})
        three.wait()
    monkeypatch.undo()
    assert not (three.folder / "000000040").exists()
    restored = three.restore(make(toy, three.layout))
    assert restored is not None and restored.step == 30


def test_a_full_disk_is_one_line_and_no_traceback(tmp_path):
    """Orbax itself at a limit of the operating system: the largest size of a file, which is refused as a full disk is."""
    program = f"""
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
import jax.numpy as jnp
from jaxseg.errors import StorageError
from jaxseg.train import Checkpoints, Layout
checkpoints = Checkpoints({str(tmp_path)!r}, Layout("pmap"))
checkpoints.save(1, {{"a": jnp.ones(1000)}}, {{}})
checkpoints.wait()
try:
    checkpoints.save(2, {{"a": jnp.ones(1 << 20)}}, {{}})
    checkpoints.close()
except StorageError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = (done.stdout + done.stderr).splitlines()
    assert line.startswith(f"{tmp_path / '000000002'}: no space left on this disk")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000000001"]


def test_the_state_may_be_donated_right_after_the_save(toy, three):
    """The save goes on in the background while the next step overwrites the buffers of the state."""
    state = make(toy, three.layout, 7.0)
    expected = three.layout.host(jax.tree.map(lambda leaf: leaf + 0, state))
    three.save(50, state, {})
    jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 0, tree), donate_argnums=0)(state)
    restored = three.restore(make(toy, three.layout))
    assert restored is not None
    equal(three.layout.host(restored.state), expected)


def test_a_checkpoint_of_an_earlier_version_restores(toy, three):
    """Checkpoints were compressed, in one data file, before they were not; what is on disk says so itself."""
    folder, expected = three.folder / "000000030", make(toy, three.layout, 11)
    shutil.rmtree(folder / "state")
    checkpoint.ocp.save(str(folder / "state"), dict(zip(array_names(expected), jax.tree.leaves(expected))))
    arrays = json.loads((folder / "manifest.json").read_text())["arrays"]
    (folder / "manifest.json").unlink()
    write_manifest(folder, 30, arrays)
    restored = three.restore(make(toy, three.layout))
    assert restored is not None and restored.step == 30
    equal(three.layout.host(restored.state), three.layout.host(expected))


def test_arrays_larger_than_a_data_file_come_back_to_the_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_FILE_BYTES", 1 << 16)
    layout = Layout("mesh", fsdp=4, shard_min_bytes=256)
    rng = np.random.default_rng(0)
    state = layout.place({f"w{i}": rng.integers(0, 2**32, (64, 1024), np.uint32).view(np.float32) for i in range(4)})
    checkpoints = Checkpoints(tmp_path, layout)
    checkpoints.save(1, state, {})
    restored = checkpoints.restore(state)
    checkpoints.close()
    assert restored is not None and len(list((tmp_path / "000000001" / "state").rglob("d/*"))) > 4
    for name, array in state.items():
        np.testing.assert_array_equal(np.asarray(restored.state[name]).view(np.uint32), np.asarray(array).view(np.uint32))


def test_the_manifest_lists_every_file(three):
    folder = three.folder / "000000030"
    manifest = json.loads((folder / "manifest.json").read_text())
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert set(manifest["files"]) == found - {"manifest.json"}
    assert manifest["arrays"]["params.encoder.blocks.kernel"] == [[3, 16, 16], "float32"]
