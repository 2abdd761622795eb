"""Data sets: MNIST's files wherever they lie, IDX files that are damaged or lie, downloads."""

import gzip
import hashlib
import os
import struct
import tracemalloc

import chex
import numpy as np
import pytest

import fnnet as fn


class TestDatasets:
    def test_the_embedded_subset(self):
        data = fn.datasets.mnist_subset()
        assert [len(pair[0]) for pair in data] == [4000, 1000, 1000]
        x, y = data.train
        assert x.shape == (4000, 28, 28, 1)
        assert x.dtype == np.float32
        assert (x.min(), x.max()) == (0, 1)
        assert y[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
        assert data.test[1][:5].tolist() == [7, 2, 1, 0, 4]
        assert len(fn.datasets.mnist_subset(validation=0).train[0]) == 5000
        with pytest.raises(
            ValueError, match="expected validation from 0 to 4999 of the 5000 training images, got 5000"
        ):
            fn.datasets.mnist_subset(validation=5000)

    @pytest.mark.skipif("FNNET_DATA" not in os.environ, reason="the whole of MNIST is not at hand (FNNET_DATA)")
    def test_the_whole_of_mnist(self):
        data = fn.datasets.mnist()
        assert [len(pair[0]) for pair in data] == [50_000, 10_000, 10_000]
        subset = fn.datasets.mnist_subset()
        np.testing.assert_array_equal(data.train[0][:4000], subset.train[0])
        np.testing.assert_array_equal(data.test[1][:1000], subset.test[1])

    def test_plain_and_gzipped_files(self, tmp_path, monkeypatch):
        for name in fn.datasets.FILES:
            (tmp_path / name).write_bytes(gzip.decompress((fn.datasets.SUBSET / f"{name}.gz").read_bytes()))
        monkeypatch.setenv("FNNET_DATA", str(tmp_path))
        chex.assert_trees_all_equal(fn.datasets.mnist(validation=1000), fn.datasets.mnist_subset())

    def test_missing_and_damaged_files(self, tmp_path, monkeypatch):
        monkeypatch.delenv("FNNET_DATA", raising=False)
        with pytest.raises(FileNotFoundError, match="mnist: expected a folder with MNIST's four IDX files, got none"):
            fn.datasets.mnist()
        with pytest.raises(
            FileNotFoundError, match=r"expected train-images-idx3-ubyte or .*download_mnist\(folder\) fetches it"
        ):
            fn.datasets.mnist(tmp_path)
        whole = (fn.datasets.SUBSET / "t10k-labels-idx1-ubyte.gz").read_bytes()
        for name, content in {
            "cut.gz": whole[:100],
            "short": gzip.decompress(whole)[:-1],
            "other": b"PNG not an IDX file",
            "empty": b"",
        }.items():
            (tmp_path / name).write_bytes(content)
            with pytest.raises(
                ValueError, match=rf"read_idx: expected an IDX file of unsigned bytes, got .*{name}.* fetch it again"
            ):
                fn.datasets.read_idx(tmp_path / name)

    def test_download_checks_the_sums(self, tmp_path, monkeypatch):
        mirror = fn.datasets.SUBSET.as_uri() + "/"
        with pytest.raises(
            ValueError, match=r"download_mnist: expected train-images-idx3-ubyte with SHA-256 ba89.*another mirror"
        ):
            fn.datasets.download_mnist(tmp_path / "new", mirror)
        assert list((tmp_path / "new").iterdir()) == []
        sums = {
            n: hashlib.sha256(gzip.decompress((fn.datasets.SUBSET / f"{n}.gz").read_bytes())).hexdigest()
            for n in fn.datasets.FILES
        }
        monkeypatch.setattr(fn.datasets, "FILES", sums)
        folder = fn.datasets.download_mnist(tmp_path / "new", mirror)
        chex.assert_trees_all_equal(fn.datasets.mnist(folder, 1000), fn.datasets.mnist_subset())

    @pytest.mark.parametrize(
        "name", ["{}-{}-idx{}-ubyte", "{}-{}.idx{}-ubyte", "{}-{}-idx{}-ubyte.gz", "{}-{}.idx{}-ubyte.gz"]
    )
    @pytest.mark.parametrize("place", ["", "MNIST/raw", "raw"])
    def test_names_and_places(self, name, place, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        folder = tmp_path / "data" / place
        folder.mkdir(parents=True)
        for part, n in (("train", 20), ("t10k", 8)):
            write(folder / name.format(part, "images", 3), np.zeros((n, 28, 28)))
            write(folder / name.format(part, "labels", 1), np.arange(n) % 10)
        assert fn.datasets.mnist("~/data", validation=5).train[1].tolist() == [i % 10 for i in range(15)]
        monkeypatch.setenv("FNNET_DATA", "~/data")
        assert len(fn.datasets.mnist(validation=5).test[0]) == 8

    def test_files_that_do_not_belong_together(self, tmp_path):
        with pytest.raises(FileNotFoundError, match=r"in .*none or its MNIST/raw, got no such folder"):
            fn.datasets.mnist(tmp_path / "none")
        for part in ("train", "t10k"):
            write(tmp_path / f"{part}-images-idx3-ubyte", np.zeros((3, 28, 28)))
            write(tmp_path / f"{part}-labels-idx1-ubyte", np.arange(3) + (part == "t10k") * 8)
        with pytest.raises(
            ValueError, match=r"mnist: expected labels from 0 to 9, got 10 in .*; read others with read_idx"
        ):
            fn.datasets.mnist(tmp_path, 1)
        write(tmp_path / "t10k-labels-idx1-ubyte", np.arange(4))
        with pytest.raises(
            ValueError, match=r"mnist: expected .* as many labels, got \(3, 28, 28\) and \(4,\) .*one data set"
        ):
            fn.datasets.mnist(tmp_path, 1)
        for validation in (-1, 0.5, "3"):
            with pytest.raises(
                ValueError, match=f"mnist: expected validation from 0 to 4999 .* got {validation}; it is how"
            ):
                fn.datasets.mnist_subset(validation)

    def test_a_download_leaves_other_files_alone(self, tmp_path):
        mirror = fn.datasets.SUBSET.as_uri() + "/"
        name = "train-images-idx3-ubyte"
        for content in (b"cut", gzip.compress(b"another data set"), gzip.compress(bytes(100))[:10] + b"\xff" * 20):
            (tmp_path / f"{name}.gz").write_bytes(content)
            with pytest.raises(
                ValueError, match=r"expected train-images.* got .*; move .*ubyte\.gz away and fetch it again"
            ):
                fn.datasets.download_mnist(tmp_path, mirror)
            assert (tmp_path / f"{name}.gz").read_bytes() == content


def idx(array, kind=8, shape=None):
    shape = np.shape(array) if shape is None else shape
    return struct.pack(f">HBB{len(shape)}I", 0, kind, len(shape), *shape) + np.asarray(array, np.uint8).tobytes()


def write(path, array):
    content = idx(array)
    path.write_bytes(gzip.compress(content) if path.name.endswith(".gz") else content)


class TestIDX:
    ARRAY = np.arange(6, dtype=np.uint8).reshape(2, 3)
    REFUSED = r"read_idx: expected an IDX file of unsigned bytes, got .*f \(.*\); fetch it again"

    @pytest.mark.parametrize("shape", [(2, 3), (6,), (1, 2, 1, 3), (0,), (0, 2**32 - 1), ()])
    def test_shapes(self, shape, tmp_path):
        array = np.zeros(shape, np.uint8)
        for content in (
            idx(array),
            gzip.compress(idx(array)),
            gzip.compress(idx(array)[:3]) + gzip.compress(idx(array)[3:]),
        ):
            (tmp_path / "f").write_bytes(content)
            assert fn.datasets.read_idx(tmp_path / "f").shape == shape

    @pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "packed"])
    @pytest.mark.parametrize(
        "content",
        [
            b"", b"\0", b"\0\0\x08", b"\0\0\x08\2\0\0", idx(ARRAY) + b"x", idx(ARRAY)[:-1], idx(ARRAY, kind=13),
            b"\1" + idx(ARRAY)[1:], idx([1], shape=(1,) * 65), idx([1] * 4, shape=(1,) * 255), idx([], shape=(2**31,) * 4),
            idx([], shape=(2**31, 2**31, 4)), idx([], shape=(2**31, 2**31, 4, 4)), idx([1, 2], shape=(2**32 - 1,)),
            idx([], shape=(0,)) + b"x", b"\x1f\x8b", gzip.compress(idx(ARRAY), mtime=0) + b"x",
        ],
        ids=lambda content: repr(content[:12]),
    )  # fmt: skip
    def test_headers_that_lie(self, content, pack, tmp_path):
        (tmp_path / "f").write_bytes(pack(content))
        with pytest.raises(ValueError, match=self.REFUSED):
            fn.datasets.read_idx(tmp_path / "f")

    def test_a_bomb_is_not_unpacked(self, tmp_path):
        (tmp_path / "f").write_bytes(gzip.compress(idx(self.ARRAY) + bytes(2**26)))
        tracemalloc.start()
        with pytest.raises(ValueError, match=r"it holds more bytes for the shape \(2, 3\)"):
            fn.datasets.read_idx(tmp_path / "f")
        (tmp_path / "f").write_bytes(gzip.compress(idx([1, 2, 3], shape=(2**31,))))
        with pytest.raises(ValueError, match=r"too small for the shape \(2147483648,\)"):
            fn.datasets.read_idx(tmp_path / "f")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2**20

    def test_what_is_no_file(self, tmp_path):
        os.mkfifo(tmp_path / "f")
        for path in (tmp_path, tmp_path / "f"):
            with pytest.raises(ValueError, match=r"got .* \(no regular file\)"):
                fn.datasets.read_idx(path)
        with pytest.raises(FileNotFoundError):
            fn.datasets.read_idx(tmp_path / "none")

    def test_a_damaged_file_is_refused_or_right(self, tmp_path):
        rng, refused = np.random.default_rng(0), 0
        whole = gzip.compress(idx(rng.integers(0, 255, (4, 5))))
        for i in range(len(whole)):
            changed = bytearray(whole)
            changed[i] ^= 1 << rng.integers(8)
            for content in (whole[:i], bytes(changed)):
                (tmp_path / "f").write_bytes(content)
                try:
                    assert idx(fn.datasets.read_idx(tmp_path / "f")) == gzip.decompress(whole)
                except ValueError as error:
                    assert str(error).startswith("read_idx: expected an IDX file of unsigned bytes, got ")  # noqa: PT017
                    refused += 1
        assert 1.8 * len(whole) < refused < 2 * len(whole)
