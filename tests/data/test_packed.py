"""The packed store: the bytes of IHarmony4, resumed or refused after any kill, and whole batches out of it."""

import itertools
import json
import multiprocessing
import os
import pickle
import shutil
import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from malformed import noise, write_malformed
from PIL import Image
from small_dataset import write_dataset
from torch.utils.data import DataLoader

from scsco_fast.data import packing
from scsco_fast.data.crops import boxes_in_crops, crop_and_flip
from scsco_fast.data.iharmony4 import SMALLEST_CROP, IHarmony4
from scsco_fast.data.packed import WORK, PackedDataset, read_ahead, read_index, stores, verify
from scsco_fast.data.packing import pack
from scsco_fast.data.samples import BadSample, Sample, collate
from scsco_fast.errors import ScscoError
from scsco_fast.regions import foreground_boxes

SIZE = 20
PER_SHARD = 4


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("packed") / "data", 22)


@pytest.fixture(scope="module")
def store(root: Path) -> Path:
    pack(root, root.parent / "store", "train", SIZE, records_per_shard=PER_SHARD)
    return root.parent / "store"


@pytest.fixture
def copy(store: Path, tmp_path: Path) -> Path:
    """The split's folder of a copy that may be damaged."""
    return Path(shutil.copytree(store, tmp_path / "copy")) / "train"


def test_samples_are_those_of_the_pictures_bit_for_bit(root: Path, store: Path) -> None:
    raw, packed = IHarmony4(root, "train", SIZE), PackedDataset(store)
    assert len(packed) == len(raw) == 22
    batch = packed.__getitems__(range(22)).to("cpu")
    for index, (one, other) in enumerate(zip(raw, packed, strict=True)):
        assert isinstance(one, Sample)
        assert isinstance(other, Sample)
        for name in ("composite", "real", "mask"):
            assert torch.equal(getattr(one, name), getattr(other, name)), (index, name)
            assert torch.equal(getattr(one, name), getattr(batch, name)[index]), (index, name)
        assert (one.name, one.subset) == (other.name, other.subset) == (batch.names[index], batch.subsets[index])


def test_real_pictures_are_stored_once_and_sizes_are_kept(store: Path) -> None:
    index = read_index(store / "train")
    assert (len(index.names), len(index.real_checksums)) == (22, 11)
    assert sum(path.stat().st_size for path in (store / "train").glob("real-*")) == 11 * 3 * SIZE * SIZE
    assert set(zip(index.widths, index.heights, strict=True)) == {(40 + more, 40) for more in range(5)}
    assert stores(store) == [store / "train"]
    assert sorted(path.name for path in (store / "train").iterdir()) == [
        *(f"composite-{number:05d}.bin" for number in range(6)),
        "index.json",
        *(f"real-{number:05d}.bin" for number in range(3)),
    ]


def test_bytes_do_not_depend_on_the_number_of_workers(root: Path, store: Path, tmp_path: Path) -> None:
    counts = []
    pack(root, tmp_path, "train", SIZE, 2, lambda *count: counts.append(count), PER_SHARD)
    assert contents(tmp_path / "train") == contents(store / "train")
    assert counts == [(done + 1, 33) for done in range(33)]


def in_a_fork(work: Callable[[], object]) -> int:
    """The process that does it; a fork, so that it starts in a millisecond."""
    process = os.fork()
    if process == 0:
        try:
            work()
        finally:
            os._exit(0)
    return process


def test_killed_at_twenty_random_moments_and_resumed_to_the_same_bytes(root: Path, store: Path, tmp_path: Path) -> None:
    wanted = contents(store / "train")
    begun = time.perf_counter()
    pack(root, tmp_path / "timed", "train", SIZE, records_per_shard=PER_SHARD)
    seconds = time.perf_counter() - begun
    rng = np.random.default_rng(0)
    unfinished = 0
    for moment in range(20):
        place = tmp_path / str(moment)
        for part in range(1 + moment % 3):  # some are killed again while they go on
            process = in_a_fork(partial(pack, root, place, "train", SIZE, records_per_shard=PER_SHARD))
            time.sleep(rng.uniform(0, seconds / (1 + part)))
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
        if (place / "train" / "index.json").exists():
            seconds *= 0.7  # other work slowed the timed run down
        else:
            unfinished += 1
            with pytest.raises(ScscoError, match=r"not finished; run the same scsco prepare again|no such store"):
                PackedDataset(place)
        pack(root, place, "train", SIZE, records_per_shard=PER_SHARD)
        assert contents(place / "train") == wanted
    assert unfinished > 3


def test_killed_before_each_step_on_the_disk_and_resumed(root: Path, store: Path, tmp_path: Path) -> None:
    """Every rename and flush of the uninterrupted run is a place to die at."""
    wanted = contents(store / "train")
    replace, fsync, rmtree = os.replace, os.fsync, shutil.rmtree
    calls = multiprocessing.Value("i", 0)

    def counted(function: Callable[..., object], last: int) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            if calls.value == last:
                os.kill(os.getpid(), signal.SIGKILL)
            calls.value += 1
            return function(*arguments, **options)

        return call

    def run(place: Path, last: int) -> None:
        calls.value = 0
        os.replace, os.fsync, shutil.rmtree = (counted(call, last) for call in (replace, fsync, rmtree))
        pack(root, place, "train", SIZE, records_per_shard=PER_SHARD)

    place = tmp_path / "whole"
    os.waitpid(in_a_fork(partial(run, place, -1)), 0)
    steps = calls.value
    assert steps > 40
    assert contents(place / "train") == wanted
    for last in range(0, steps, 3):
        place = tmp_path / str(last)
        _, status = os.waitpid(in_a_fork(partial(run, place, last)), 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
        pack(root, place, "train", SIZE, records_per_shard=PER_SHARD)
        assert contents(place / "train") == wanted, last


def test_a_finished_shard_is_not_made_again_unless_it_is_damaged(
    root: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def stop_after(count: int) -> Callable[[packing.Task], packing.Made]:
        def make(task: packing.Task) -> packing.Made:
            if len(made) == count:
                raise KeyboardInterrupt
            made.append(f"{task.kind} {task.number}")
            return make_record(task)

        return make

    make_record = packing.make_record
    monkeypatch.setattr(packing, "make_record", stop_after(11))
    with pytest.raises(KeyboardInterrupt):
        pack(root, tmp_path, "train", SIZE, records_per_shard=PER_SHARD)
    first = tmp_path / "train" / "composite-00000.bin"
    damaged = bytearray(first.read_bytes())
    damaged[100] ^= 1
    first.write_bytes(damaged)
    made.clear()
    monkeypatch.setattr(packing, "make_record", stop_after(1000))
    pack(root, tmp_path, "train", SIZE, records_per_shard=PER_SHARD)
    assert "composite 0" in made
    assert not {f"composite {number}" for number in range(4, 8)} & set(made)
    assert contents(tmp_path / "train") == contents(store / "train")


def test_a_second_call_at_the_same_time_is_refused(root: Path, store: Path, tmp_path: Path) -> None:
    told: list[str] = []

    def try_again(done: int, total: int) -> None:
        def second() -> None:
            with pytest.raises(ScscoError) as caught:
                pack(root, tmp_path, "train", SIZE, records_per_shard=PER_SHARD)
            told.append(str(caught.value))

        if done == 3:
            thread = threading.Thread(target=second)
            thread.start()
            thread.join()

    pack(root, tmp_path, "train", SIZE, progress=try_again, records_per_shard=PER_SHARD)
    assert told[0].startswith(f"{tmp_path / 'train'}: another run is writing to this folder")
    assert contents(tmp_path / "train") == contents(store / "train")


def test_other_pictures_at_the_same_place_are_refused(root: Path, store: Path, tmp_path: Path) -> None:
    before = contents(store)
    assert pack(root, store, "train", SIZE, records_per_shard=PER_SHARD).index == read_index(store / "train")
    with pytest.raises(ScscoError, match="other pictures or another size"):
        pack(root, store, "train", SIZE + 1, records_per_shard=PER_SHARD)
    (tmp_path / "half/train" / WORK).mkdir(parents=True)
    (tmp_path / "half/train" / WORK / "plan.json").write_text('{"source": "another"}')
    with pytest.raises(ScscoError, match="other pictures or another size"):
        pack(root, tmp_path / "half", "train", SIZE)
    (tmp_path / "half/train" / WORK / "plan.json").write_text("{")
    with pytest.raises(ScscoError, match=r"plan\.json: cannot be read"):
        pack(root, tmp_path / "half", "train", SIZE)
    (tmp_path / "mine/train").mkdir(parents=True)
    (tmp_path / "mine/train/letter.txt").write_text("mine")
    with pytest.raises(ScscoError, match="is not empty and no store"):
        pack(root, tmp_path / "mine", "train", SIZE)
    assert contents(store) == before


def test_too_little_room_is_said_before_the_work(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ScscoError, match=r"the store needs [\d.]+ GB more"):
        pack(root, tmp_path, "train", 1_000_000)


@pytest.mark.parametrize("kind", ["composite", "real"])
def test_a_flipped_byte_is_detected_and_named(copy: Path, kind: str) -> None:
    assert verify(copy) == []
    file = copy / f"{kind}-00001.bin"
    data = bytearray(file.read_bytes())
    length = len(data) // PER_SHARD
    data[2 * length + 7] ^= 0x10
    file.write_bytes(data)
    index = read_index(copy)
    name = index.names[6] if kind == "composite" else index.names[index.real.index(6)]
    (problem,) = verify(copy)
    assert f"{kind}-00001.bin: record 2 (" in problem
    assert name.split("_")[0] in problem
    PackedDataset(copy.parent)  # lengths are right
    with pytest.raises(ScscoError, match=rf"{kind}-00001\.bin: record 2"):
        PackedDataset(copy.parent, verify=True)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "real-00000.bin").unlink(), r"real-00000\.bin: part of the store is missing"),
        (lambda folder: os.truncate(folder / "real-00001.bin", 99), r"real-00001\.bin: is 99 bytes long, wanted 4800"),
        (lambda folder: (folder / "index.json").unlink(), "the store is not finished"),
        (lambda folder: shutil.rmtree(folder), "no such store"),
        (lambda folder: os.truncate(folder / "index.json", 400), "the index has been changed"),
        (lambda folder: (folder / "index.json").write_bytes(b"\xff\xfe"), "cannot be read"),
        (
            lambda folder: (folder / "index.json").write_text(
                (folder / "index.json").read_text().replace("HCOCO", "HC0CO")
            ),
            "the index has been changed",
        ),
    ],
)
def test_a_damaged_store_is_refused(copy: Path, damage: Callable[[Path], object], said: str) -> None:
    damage(copy)
    with pytest.raises(ScscoError, match=said):
        PackedDataset(copy.parent)


def test_bad_samples_keep_their_place_and_their_reason(tmp_path: Path) -> None:
    expected = write_malformed(tmp_path / "data", 60)
    raw = IHarmony4(tmp_path / "data", "train", 16)
    report = pack(tmp_path / "data", tmp_path / "store", "train", 16)
    packed = PackedDataset(tmp_path / "store")
    assert len(packed) == len(raw)
    assert report.index.missing == raw.missing
    assert len(report.index.bad) > 40
    for index in range(len(raw)):
        item = packed[index]
        assert packed.index.names[index] == raw.members[index].composite.name
        assert isinstance(item, BadSample) == (index in report.index.bad)
        if isinstance(item, BadSample):
            assert "\n" not in item.reason
            assert any(file in item.reason for file in expected)
    batch = packed.__getitems__(range(5))
    assert (len(batch.names), len(batch.bad)) == (1, 4)
    assert batch.composite.shape == (1, 16, 16, 3)
    assert verify(tmp_path / "store" / "train") == []
    for augment in (False, True):
        empty = PackedDataset(tmp_path / "store", augment=augment).__getitems__([1, 2]).to("cpu")
        assert (empty.composite.shape, empty.names, len(empty.bad)) == ((0, 3, 16, 16), [], 2)


def test_a_process_that_dies_stops_the_packing_and_names_the_picture(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(function: object, tasks: object, *_: object) -> object:
        yield next(iter(tasks)), packing.Lost("the process that decoded it died (SIGKILL)")  # type: ignore[call-overload]

    monkeypatch.setattr(packing, "run_tasks", lost)
    with pytest.raises(ScscoError, match=r"c0_0_1\.jpg: the process that decoded it died \(SIGKILL\); look at it with"):
        pack(root, tmp_path, "train", SIZE)
    assert not (tmp_path / "train" / "index.json").exists()


def test_inverted_masks_are_suspected(tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "data", 3)
    for path in (root / "HCOCO/masks").iterdir():
        Image.fromarray(255 - np.asarray(Image.open(path)) // 2 * 2).save(path)
    warning = pack(root, tmp_path / "store", "train", SIZE).warning
    assert warning is not None
    assert "probably inverted" in warning


def test_subsets_are_chosen(store: Path) -> None:
    assert len(PackedDataset(store, subsets=["HCOCO"])) == 22
    with pytest.raises(ScscoError, match="'HFlickr' is not in the store; it has HCOCO"):
        PackedDataset(store, subsets=["HFlickr"])
    with pytest.raises(ScscoError, match="split 'val'"):
        PackedDataset(store, "val")
    with pytest.raises(ScscoError, match="seed -1"):
        PackedDataset(store, seed=-1)


def test_crops_are_a_function_of_seed_and_index(store: Path) -> None:
    def draw(indices: list[int], seed: int = 0) -> torch.Tensor:
        return PackedDataset(store, augment=True, seed=seed).__getitems__(indices).to("cpu").composite

    together = draw([5, 27, 3])
    for place, index in enumerate([5, 27, 3]):  # alone or in any company
        torch.testing.assert_close(draw([index])[0], together[place], rtol=0, atol=1e-6)
    assert not torch.equal(together[0], together[1])  # the same sample one pass later
    assert not torch.equal(draw([5], seed=1)[0], together[0])
    item = PackedDataset(store, augment=True)[5]
    assert isinstance(item, Sample)
    torch.testing.assert_close(item.composite, together[0], rtol=0, atol=1e-6)


def test_crops_keep_their_share_and_both_regions(store: Path) -> None:
    dataset = PackedDataset(store, augment=True)
    batch = dataset.__getitems__(range(220))
    assert batch.boxes is not None
    assert batch.flips is not None
    left, top, right, bottom = batch.boxes.unbind(1)
    assert bool((left >= 0).all() and (top >= 0).all() and (right <= SIZE).all() and (bottom <= SIZE).all())
    shares = ((right - left) * (bottom - top)) / SIZE**2
    assert shares.min() >= SMALLEST_CROP
    assert shares.unique().numel() >= 8
    assert 70 < int(batch.flips.sum()) < 150
    masks = batch.to("cpu").mask
    assert set(masks.unique().tolist()) == {0.0, 1.0}
    assert bool((masks.amax((1, 2, 3)) == 1).all() and (masks.amin((1, 2, 3)) == 0).all())


@pytest.mark.parametrize("box", [(0, 0, 24, 24), (3, 1, 24, 22), (0, 2, 20, 24), (1, 1, 23, 23)])
@pytest.mark.parametrize("flip", [False, True])
def test_crop_on_the_device_is_pils(box: tuple[int, int, int, int], flip: bool) -> None:
    picture, mask = noise(0, (24, 24)), Image.fromarray(np.asarray(noise(1, (24, 24)))[:, :, 0] // 128)
    wanted = np.asarray(picture.crop(box).resize((24, 24), Image.Resampling.BILINEAR), dtype=np.float32)
    wanted_mask = np.asarray(mask.crop(box).resize((24, 24), Image.Resampling.NEAREST))
    if flip:
        wanted, wanted_mask = wanted[:, ::-1], wanted_mask[:, ::-1]
    pictures = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float()
    cut, cut_mask = crop_and_flip(
        pictures, torch.from_numpy(np.array(mask))[None, None], torch.tensor([box]), torch.tensor([flip])
    )
    np.testing.assert_allclose(cut[0].permute(1, 2, 0).numpy(), wanted, atol=1.0)  # PIL rounds to bytes, twice
    np.testing.assert_array_equal(cut_mask[0, 0].numpy(), wanted_mask)


@pytest.mark.parametrize("augment", [False, True])
def test_a_batch_knows_where_its_foregrounds_will_be(store: Path, augment: bool) -> None:
    """Every foreground pixel lies in its box, and the box is at most two pixels larger on each side."""
    dataset = PackedDataset(store, augment=augment)
    batch = dataset.__getitems__(range(200))
    exact = foreground_boxes(batch.to("cpu").mask)
    assert exact is not None
    larger = (exact - batch.foreground) * torch.tensor([1, 1, -1, -1])
    assert int(larger.min()) >= 0
    assert int(larger.max()) <= (2 if augment else 0)
    assert int(batch.foreground.min()) >= 0
    assert int(batch.foreground.max()) <= dataset.size


def test_a_box_outside_of_a_crop_is_empty() -> None:
    found, crops = torch.tensor([[0, 0, 2, 2], [0, 0, 0, 0]]), torch.tensor([[8, 8, 16, 16], [0, 0, 16, 16]])
    assert boxes_in_crops(found, crops, torch.tensor([False, True]), 16, 16).tolist() == [[0] * 4, [0] * 4]


def test_loader_reads_whole_batches(store: Path) -> None:
    dataset = PackedDataset(store)
    for workers in (0, 1):
        batches = list(DataLoader(dataset, 8, collate_fn=collate, num_workers=workers))
        assert [len(batch.names) for batch in batches] == [8, 8, 6]
        assert torch.equal(batches[1].real[0], dataset[8].real)  # type: ignore[union-attr]


def test_reading_ahead_keeps_the_order_and_ends(store: Path) -> None:
    dataset = PackedDataset(store)
    order = [[5, 1], [0], [21, 22, 23], *([[number] for number in range(9)])]
    batches = list(read_ahead(dataset, order, depth=2))
    assert [batch.names for batch in batches] == [dataset.__getitems__(indices).names for indices in order]
    endless = read_ahead(dataset, ([number] for number in itertools.count()))
    assert next(endless).names == batches[3].names
    endless.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read_ahead")]
    with pytest.raises(TypeError):
        list(read_ahead(dataset, [[0], ["nonsense"]]))  # type: ignore[list-item]


def test_a_dataset_that_travels_leaves_its_maps_behind(store: Path) -> None:
    dataset = PackedDataset(store)
    before = dataset[3]
    data = pickle.dumps(dataset)
    assert len(data) < 20_000
    after = pickle.loads(data)[3]
    assert isinstance(before, Sample)
    assert torch.equal(before.composite, after.composite)


def test_index_is_what_was_written(store: Path) -> None:
    content = json.loads((store / "train" / "index.json").read_text())["content"]
    assert (
        content["filter"]
        == "pictures: PIL bilinear, antialiased; masks: above 127 at full size, then nearest neighbour"
    )
    assert content["dialect"] == "IHD_train.txt; composite_images, masks, real_images"
    assert len(content["composite_checksums"]) == 22


@pytest.mark.gpu
def test_batches_are_the_same_on_the_device(store: Path) -> None:
    batch = PackedDataset(store, augment=True).__getitems__(range(22))
    for one, other in zip(batch.to("cpu")[:3], batch.to("cuda")[:3], strict=True):
        torch.testing.assert_close(one, other.cpu(), rtol=0, atol=1e-5)
