"""save and load: what comes back, what is refused, other writers, and files that are damaged or lie."""

import collections
import enum
import io
import json
import os
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import zipfile

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import fnnet as fn

from .cases import cast

KEY = jax.random.key(3)
NARROW = ("bfloat16", "float8_e5m2", "float8_e4m3fn", "float8_e8m0fnu", "float4_e2m1fn", "int4", "uint4", "int2")
DAMAGED = r"load: expected a file written by fn\.save, got .*p\.npz \(.*\); save it again with fn\.save"


def parameters():
    net = fn.Network(fn.Dense(8, fn.sigmoid), fn.Dense(3, fn.softmax))
    return net.init(jax.random.key(0), (5,))


def assert_same(loaded, expected):
    """The same containers, dtypes and bits."""
    one, treedef = jax.tree.flatten(loaded)
    two, wanted = jax.tree.flatten(expected)
    assert treedef == wanted
    for a, b in zip(one, two, strict=True):
        assert isinstance(a, jax.Array)
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = jax.random.key_data(a), jax.random.key_data(b)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


class TestSaving:
    TREE = (
        {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.array([1, 2], jnp.bfloat16)},
        {},
        [jnp.array(True), None, jnp.float32(2.5)],
    )

    def test_round_trip(self, tmp_path):
        path = tmp_path / "params.npz"
        fn.save(path, self.TREE)
        for loaded in (fn.load(path), fn.load(path, self.TREE), fn.load(path, like=jax.eval_shape(lambda: self.TREE))):
            chex.assert_trees_all_equal(loaded, self.TREE)
            assert loaded[0]["b"].dtype == jnp.bfloat16
        fn.save(path, ())
        assert fn.load(path) == ()

    def test_keys_and_named_tuples(self, tmp_path):
        path, tree = (
            tmp_path / "state.npz",
            (KEY, jax.random.key(1, impl="rbg"), fn.sgd(0.1, 0.9).init({"w": jnp.ones(2)})),
        )
        fn.save(path, tree)
        loaded = fn.load(path, tree)
        chex.assert_trees_all_equal(loaded[2], tree[2])
        for ours, theirs in zip(loaded[:2], tree[:2], strict=True):
            assert ours.dtype == theirs.dtype
            np.testing.assert_array_equal(jax.random.key_data(ours), jax.random.key_data(theirs))
        with pytest.raises(ValueError, match=r"load: expected a like= pytree .* containers other than tuples"):
            fn.load(path)

    def test_a_failed_save_leaves_the_old_file_whole(self, tmp_path, monkeypatch):
        path = tmp_path / "params.npz"
        fn.save(path, self.TREE)

        def full_disk(*args, **kwargs):
            args[0].write(b"half")
            raise OSError("no space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(np, "savez", full_disk)
            with pytest.raises(OSError, match="no space left"):
                fn.save(path, ({},))
        chex.assert_trees_all_equal(fn.load(path), self.TREE)
        assert [p.name for p in tmp_path.iterdir()] == ["params.npz"]
        with pytest.raises(TypeError, match="save: expected arrays and numbers, got object"):
            fn.save(path, {"w": object()})
        chex.assert_trees_all_equal(fn.load(path), self.TREE)

    def test_what_does_not_match_is_named(self, tmp_path):
        path = tmp_path / "params.npz"
        params = parameters()
        fn.save(path, params)
        wider = fn.Network(fn.Dense(9, fn.sigmoid), fn.Dense(3, fn.softmax)).init(KEY, (5,))
        with pytest.raises(ValueError, match=r"load: expected \[0\]\['b'\] to be float64\[9\], got float64\[8\]"):
            fn.load(path, wider)
        with pytest.raises(ValueError, match=r"load: expected \[0\]\['b'\] to be float32\[8\], got float64\[8\]"):
            fn.load(path, cast(params, jnp.float32))
        with pytest.raises(
            ValueError, match=r"to hold 2 leaves like those given, got 4: \[1\]\['b'\] differs \(only the file has it\)"
        ):
            fn.load(path, params[:1])
        with pytest.raises(ValueError, match=r"\[2\]\['w'\] differs \(the file lacks it\)"):
            fn.load(path, (*params, {"w": jnp.ones(1)}))
        with pytest.raises(
            TypeError, match=r"load: expected like= to be of arrays and numbers, got str at \[0\]\['b'\]"
        ):
            fn.load(path, ({**params[0], "b": "text"}, *params[1:]))

    def test_damaged_and_missing_files(self, tmp_path):
        path = tmp_path / "params.npz"
        with pytest.raises(FileNotFoundError):
            fn.load(path)
        fn.save(path, self.TREE)
        path.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(ValueError, match=r"load: expected a file written by fn\.save, got .*params\.npz"):
            fn.load(path)
        np.savez(path, w=np.ones(3))
        with pytest.raises(ValueError, match=r"load: expected a file written by fn\.save"):
            fn.load(path)

    def test_float64_is_not_lost_in_silence(self, tmp_path):
        path = tmp_path / "params.npz"
        fn.save(path, {"w": jnp.ones(2)})
        with (
            jax.enable_x64(False),
            pytest.raises(ValueError, match=r"expected to keep \['w'\] in float64, got float32; jax"),
        ):
            fn.load(path)


class TestWhatComesBack:
    @pytest.mark.parametrize("order", [("w", "b"), ("b", "w")])
    def test_an_ordered_dict_keeps_its_names_and_its_order(self, order, tmp_path):
        path, tree = tmp_path / "p.npz", collections.OrderedDict((name, jnp.float32(ord(name))) for name in order)
        fn.save(path, [tree, 1.0])
        loaded = fn.load(path)[0]
        assert type(loaded) is collections.OrderedDict
        assert list(loaded.items()) == list(tree.items())
        assert fn.load(path, [dict(tree), 1.0])[0] == dict(tree)
        assert fn.load(path, [collections.OrderedDict(reversed(tree.items())), 1.0])[0] == dict(tree)

    @pytest.mark.parametrize(
        "tree",
        [
            {("conv", 1): 1.0, ("conv", 2): 2.0},
            dict.fromkeys(np.arange(3), 1.0),
            {(np.int64(1), "a"): 1.0},
            dict.fromkeys(np.array([True, False]), 1.0),
            {-1: 1.0, 10: 2.0, 9: 3.0},
            {0.5: 1.0},
            {None: 1.0},
            {np.str_("a"): 1.0},
            {"\ud800 σ '\"": {"": 1.0}},
            collections.defaultdict(list, b=[1.0]),
        ],
    )
    def test_keys(self, tree, tmp_path):
        tree = jax.tree.map(jnp.asarray, tree)
        fn.save(tmp_path / "p.npz", tree)
        for loaded in (fn.load(tmp_path / "p.npz"), fn.load(tmp_path / "p.npz", tree)):
            assert loaded.keys() == tree.keys()
            chex.assert_trees_all_equal([loaded[key] for key in tree], list(tree.values()))

    def test_numpy_keys_are_those_of_python(self, tmp_path):
        fn.save(tmp_path / "p.npz", {np.int32(1): jnp.ones(2)})
        assert list(fn.load(tmp_path / "p.npz", {1: jnp.ones(2)})) == [1]

    def test_keys_and_depths_without_a_description_need_like(self, tmp_path):
        Kind = enum.Enum("Kind", "A")
        deep = jnp.ones(2)
        for _ in range(600):
            deep = [deep]
        for tree in ({Kind.A: jnp.ones(2)}, {b"a": jnp.ones(2)}, deep):
            fn.save(tmp_path / "p.npz", tree)
            assert_same(fn.load(tmp_path / "p.npz", tree), tree)
            with pytest.raises(ValueError, match="expected a like= pytree"):
                fn.load(tmp_path / "p.npz")

    @pytest.mark.parametrize(
        "dtype", [*NARROW, "bool", "int8", "uint64", "float16", "float64", "complex64", "complex128"]
    )
    @pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
    def test_every_dtype(self, dtype, shape, tmp_path):
        array = np.arange(int(np.prod(shape))).reshape(shape).astype(jnp.dtype(dtype))
        tree = {"numpy": array, "jax": jnp.asarray(array), "fortran": np.asfortranarray(array)}
        fn.save(tmp_path / "p.npz", tree)
        assert_same(fn.load(tmp_path / "p.npz"), tree)
        assert_same(fn.load(tmp_path / "p.npz", tree), tree)

    @pytest.mark.parametrize("dtype", [">f4", ">i2", ">c16", "<f8"])
    def test_big_endian_arrays(self, dtype, tmp_path):
        tree = {"a": np.arange(3).astype(dtype)}
        fn.save(tmp_path / "p.npz", tree)
        for loaded in (fn.load(tmp_path / "p.npz"), fn.load(tmp_path / "p.npz", tree)):
            assert loaded["a"].tolist() == [0, 1, 2]

    def test_abstract_keys(self, tmp_path):
        state = {"key": jax.random.split(KEY, 3), "other": jax.random.key(1, impl="rbg")}
        fn.save(tmp_path / "p.npz", state)
        assert_same(fn.load(tmp_path / "p.npz", jax.eval_shape(lambda: state)), state)
        with pytest.raises(ValueError, match=r"expected \['key'\] to be key<.*\[3\], got key<threefry2x32>\[3\]"):
            fn.load(tmp_path / "p.npz", {**state, "key": jax.random.split(state["other"], 3)})

    @pytest.mark.parametrize(
        ("leaf", "message"),
        [
            (np.ones(2, np.longdouble), "got ndarray of float128 at"),
            (np.ones(2, ml_dtypes.bcomplex32) if hasattr(ml_dtypes, "bcomplex32") else "a", "at \\['a'\\]"),
            (np.zeros(2, [("x", "f4")]), r"got ndarray of \[\('x', '<f4'\)\] at"),
            (np.zeros(2, jax.dtypes.float0), "got ndarray of .*float0"),
            (np.array(["text"]), "got ndarray of <U4 at"),
            ("text", "got str of <U4 at"),
            (np.array("2026-01-01", "M8[D]"), "got ndarray of datetime64"),
            (np.ma.array([1.0, 2.0], mask=[True, False]), "its mask would be lost"),
            (2**70, "got int at"),
            (jax.ShapeDtypeStruct((2,), jnp.float32), "got ShapeDtypeStruct of object"),
            (lambda: 0, "got function of object"),
        ],
    )
    def test_what_would_not_come_back_is_refused(self, leaf, message, tmp_path):
        with pytest.raises(
            TypeError, match=rf"save: expected arrays and numbers, .*{message}.*leave it out of the pytree"
        ):
            fn.save(tmp_path / "p.npz", {"a": leaf})
        assert list(tmp_path.iterdir()) == []

    def test_what_would_be_narrowed_is_refused(self, tmp_path):
        with (
            jax.enable_x64(False),
            pytest.raises(ValueError, match=r"save: expected to keep \['a'\] in int64, got int32; jax\.config\.update"),
        ):
            fn.save(tmp_path / "p.npz", {"a": np.arange(3)})

    def test_keys_that_cannot_be_sorted(self, tmp_path):
        with pytest.raises(TypeError, match="save: expected dicts whose keys can be sorted, got others"):
            fn.save(tmp_path / "p.npz", {1: jnp.ones(2), "a": jnp.ones(2)})

    def test_names_that_are_not_unique(self, tmp_path):
        class Alike(str):
            def __repr__(self):
                return "alike"

        with pytest.raises(TypeError, match=r"save: expected a name for each leaf, got \[alike\] twice"):
            fn.save(tmp_path / "p.npz", {Alike("a"): jnp.ones(2), Alike("b"): jnp.ones(2)})

    def test_a_file_of_version_0_1_with_an_ordered_dict(self, tmp_path):
        """It described the keys sorted, and stored the arrays as they came."""
        leaves = [{"path": f"[{name!r}]", "dtype": "float64", "shape": []} for name in "wb"]
        structure = {"dict": [["b", "*"], ["w", "*"]]}
        archive(
            tmp_path / "p.npz", {"format": 1, "leaves": leaves, "structure": structure}, np.float64(1), np.float64(2)
        )
        assert fn.load(tmp_path / "p.npz") == {"w": 1, "b": 2}


class TestOtherWriters:
    @pytest.mark.parametrize("relative", [True, False])
    def test_a_link_is_followed(self, relative, tmp_path):
        (tmp_path / "runs").mkdir()
        real, link = tmp_path / "runs" / "7.npz", tmp_path / "latest.npz"
        link.symlink_to("runs/7.npz" if relative else real)
        for value in (1.0, 2.0):  # the target is missing at first
            fn.save(link, jnp.array(value))
            assert link.is_symlink()
            assert fn.load(real) == fn.load(link) == value
        assert [p.name for p in real.parent.iterdir()] == ["7.npz"]

    def test_what_is_no_file_stays(self, tmp_path):
        (tmp_path / "folder").mkdir()
        os.mkfifo(tmp_path / "pipe")
        (tmp_path / "circle").symlink_to("circle")
        (tmp_path / "lost").symlink_to("nowhere/p.npz")
        before = {p: p.lstat().st_mode for p in tmp_path.iterdir()}
        for name, message in {
            "folder": "save: expected the path of a file, got .*folder, which is something else",
            "pipe": "save: expected the path of a file",
            "circle": "symbolic links",
            "lost": "save: expected the folder .*nowhere, got none; create it first",
        }.items():
            with pytest.raises(OSError, match=message):
                fn.save(tmp_path / name, jnp.ones(2))
        assert before == {p: p.lstat().st_mode for p in tmp_path.iterdir()}
        for name in ("folder", "pipe", "circle"):
            with pytest.raises(ValueError, match=rf"load: expected a file written by fn\.save, got .*{name}"):
                fn.load(tmp_path / name)

    def test_modes(self, tmp_path):
        path, mask = tmp_path / "p.npz", os.umask(0o027)
        try:
            fn.save(path, jnp.ones(2))
            assert stat.S_IMODE(path.stat().st_mode) == 0o640
            path.chmod(0o604)
            fn.save(path, jnp.ones(2))
            assert stat.S_IMODE(path.stat().st_mode) == 0o604
        finally:
            os.umask(mask)

    def test_home_and_long_names(self, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path))
        name = "n" * 251 + ".npz"
        fn.save(f"~/{name}", jnp.ones(2))
        assert_same(fn.load(f"~/{name}"), jnp.ones(2))
        assert [p.name for p in tmp_path.iterdir()] == [name]

    def test_threads_share_a_path(self, tmp_path):
        path, failed = tmp_path / "p.npz", []

        def write(value):
            try:
                for _ in range(10):
                    fn.save(path, np.full(20_000, value))
            except Exception as error:
                failed.append(error)

        writers = [threading.Thread(target=write, args=(float(i),)) for i in range(4)]
        fn.save(path, np.zeros(20_000))
        for writer in writers:
            writer.start()
        while any(writer.is_alive() for writer in writers):
            assert len(set(np.asarray(fn.load(path)).tolist())) == 1
        assert failed == []
        assert [p.name for p in tmp_path.iterdir()] == ["p.npz"]

    def test_parts_of_killed_writers_go_and_those_of_living_ones_stay(self, tmp_path):
        script = (
            f"import sys; sys.path.insert(0, {os.path.dirname(fn.__file__)!r}); from files import replacing\n"
            f"with replacing('save', {str(tmp_path / 'p.npz')!r}) as file:\n"
            "    file.write(b'half'); file.flush(); print('writing', flush=True); sys.stdin.read()"
        )
        writers = [
            subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(2)
        ]
        for writer in writers:
            assert writer.stdout.readline() == "writing\n"
        (killed, living), parts = writers, list(tmp_path.iterdir())
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
        foreign, old = tmp_path / ".fnnet-elsewhere-0.part", tmp_path / ".fnnet-elsewhere-1.part"
        for part in (foreign, old):
            part.write_bytes(b"half")
        os.utime(old, (time.time() - 1e5,) * 2)
        fn.save(tmp_path / "p.npz", jnp.ones(2))
        left = set(tmp_path.iterdir())
        assert len(parts) == 2
        assert len(left & set(parts)) == 1
        assert left - set(parts) == {tmp_path / "p.npz", foreign}
        assert_same(fn.load(tmp_path / "p.npz"), jnp.ones(2))
        living.communicate("")
        assert living.returncode == 0
        assert (tmp_path / "p.npz").read_bytes() == b"half"


def npy(array, **says):
    """An .npy entry whose header may say something else than the array."""
    about = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape, **says}
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, about)
    return file.getvalue() + array.tobytes()


def archive(path, description, *arrays, compression=zipfile.ZIP_STORED, **says):
    text = description if isinstance(description, bytes) else json.dumps(description).encode()
    with zipfile.ZipFile(path, "w", compression) as file:
        for i, array in enumerate(arrays):
            file.writestr(f"{i}.npy", npy(np.asarray(array), **says))
        file.writestr("fnnet.json.npy", npy(np.frombuffer(text, np.uint8)))


ONE = {"path": "['a']", "dtype": "float32", "shape": [2]}
TWO = np.ones(2, np.float32)
WHOLE = {"format": 1, "leaves": [ONE], "structure": {"dict": [["a", "*"]]}}


class TestFilesThatLie:
    def test_the_whole_one_is_read(self, tmp_path):
        archive(tmp_path / "p.npz", WHOLE, TWO)
        assert_same(fn.load(tmp_path / "p.npz"), {"a": jnp.asarray(TWO)})

    @pytest.mark.parametrize(
        ("changed", "reason"),
        [
            ({"format": 99}, "format 99, where this version reads 1"),
            ({"format": None}, "format None"),
            ({"leaves": None}, "TypeError"),
            ({"leaves": [7]}, "TypeError"),
            ({"leaves": [ONE, ONE]}, "KeyError '1.npy'"),
            ({"leaves": []}, "1 arrays, of which it describes 0"),
            *(({"structure": structure}, "") for structure in (5, "x", [], {}, {"set": ["*"]}, {"dict": {"a": "*"}})),
            ({"structure": {"tuple": ["*", "*"]}}, "a structure of 2 leaves for 1"),
            ({"structure": {"tuple": []}}, "a structure of 0 leaves for 1"),
            ({"structure": {"dict": [["a", "*"], ["a", None]]}}, "a dict with a key twice"),
            ({"structure": {"dict": [[{}, "*"]]}}, "unhashable"),
            ({"structure": {"dict": [[1, "*"], ["a", None]]}}, "sorting"),
            ({"structure": {"tuple": ["*"], "list": []}}, "too many values"),
        ],
    )
    def test_descriptions(self, changed, reason, tmp_path):
        archive(tmp_path / "p.npz", {**WHOLE, **changed}, TWO)
        with pytest.raises(ValueError, match=DAMAGED.replace(r"\(.*\)", rf"\(.*{reason}.*\)")):
            fn.load(tmp_path / "p.npz")

    @pytest.mark.parametrize(
        "entry",
        [
            {"shape": [7]}, {"shape": [-2]}, {"shape": [-1, -2]}, {"shape": [2.0]}, {"shape": [True, 2]}, {"shape": "2"},
            {"shape": None}, {"shape": [1] * 63 + [2, 1]}, {"shape": [2**40]}, {"shape": [2**63, 2]}, {"shape": [2**32] * 4},
            {"shape": [0, 2**62]}, {"shape": [10**300] * 3}, {"shape": [2, 1]}, {"shape": []},
            {"dtype": "float64", "shape": [1]}, {"dtype": "int32"}, {"dtype": "<f4"}, {"dtype": "f4"}, {"dtype": "object"},
            {"dtype": "O"}, {"dtype": "<U2"}, {"dtype": "S1000000000000"}, {"dtype": "f4,f4"}, {"dtype": "(9,)f4"},
            {"dtype": "float128"}, {"dtype": "datetime64"}, {"dtype": "int4", "shape": [8]}, {"dtype": "no"}, {"dtype": 4},
            {"dtype": "key<threefry2x32>", "shape": []}, {"dtype": "key<none>"}, {"dtype": "key<"}, {"path": 0},
        ],
        ids=str,
    )  # fmt: skip
    def test_shapes_and_dtypes(self, entry, tmp_path):
        archive(tmp_path / "p.npz", {**WHOLE, "leaves": [{**ONE, **entry}]}, TWO)
        with pytest.raises(ValueError, match=DAMAGED):
            fn.load(tmp_path / "p.npz")
        with pytest.raises(ValueError, match="load: expected "):
            fn.load(tmp_path / "p.npz", {"a": jnp.asarray(TWO)})

    @pytest.mark.parametrize(
        "says",
        [{"descr": "|O"}, {"descr": "<i4"}, {"descr": ">f4"}, {"shape": (2**38,)}, {"shape": (2, 1)}, {"more": 1}],
    )
    def test_headers(self, says, tmp_path):
        with zipfile.ZipFile(tmp_path / "p.npz", "w") as file:
            header = (
                repr({"descr": "<f4", "fortran_order": False, "shape": (2,), **says}).replace("}", ", }").ljust(117)
                + "\n"
            )
            file.writestr("0.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + header.encode() + TWO.tobytes())
            file.writestr("fnnet.json.npy", npy(np.frombuffer(json.dumps(WHOLE).encode(), np.uint8)))
        with pytest.raises(ValueError, match=DAMAGED):
            fn.load(tmp_path / "p.npz")

    @pytest.mark.parametrize(
        "text",
        [
            b"", b"{", b"[]", b"null", b"\xff\xfe\xfd", b'{"format": 1, "leaves": NaN}', b"9" * 5000,
            b'{"format":1,"leaves":[],"structure":' + b'{"tuple":[' * 100_000 + b"]}" * 100_000 + b"}", b"[" * 1_000_000,
        ],
        ids=lambda text: repr(text[:20]),
    )  # fmt: skip
    def test_texts(self, text, tmp_path):
        archive(tmp_path / "p.npz", text)
        with pytest.raises(ValueError, match=DAMAGED):
            fn.load(tmp_path / "p.npz")

    def test_archives_that_unpack_to_more_than_they_are(self, tmp_path):
        path, leaf = tmp_path / "p.npz", {**ONE, "shape": [2**22]}
        archive(path, {**WHOLE, "leaves": [leaf]}, np.zeros(2**22, np.float32), compression=zipfile.ZIP_DEFLATED)
        tracemalloc.start()
        with pytest.raises(ValueError, match="entries that are compressed, or larger than the file"):
            fn.load(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2**20
        archive(path, WHOLE, TWO)
        whole = bytearray(path.read_bytes())
        at = whole.rindex(b"PK\x01\x02", 0, whole.rindex(b"PK\x01\x02"))
        for sizes in (2**31, 10_000):  # one entry that reaches over the others, and beyond the end
            whole[at + 20 : at + 28] = struct.pack("<II", sizes, sizes)
            path.write_bytes(whole)
            with pytest.raises(ValueError, match="larger than the file"):
                fn.load(path)

    @pytest.mark.parametrize(("offset", "value"), [(8, 1), (6, 0xFF), (10, 99), (8, 0x20), (9, 0x08)])
    def test_flags(self, offset, value, tmp_path):
        """Encrypted, of a later version, of another compression, patched, and names in another encoding."""
        archive(tmp_path / "p.npz", WHOLE, TWO)
        whole = bytearray(tmp_path.joinpath("p.npz").read_bytes())
        whole[whole.index(b"PK\x01\x02") + offset] |= value
        tmp_path.joinpath("p.npz").write_bytes(whole)
        try:
            assert_same(fn.load(tmp_path / "p.npz"), {"a": jnp.asarray(TWO)})
        except ValueError as error:
            assert str(error).startswith("load: expected a file written by fn.save, got ")  # noqa: PT017

    @pytest.mark.filterwarnings("ignore:Duplicate name")
    def test_entries_twice_and_strangers(self, tmp_path):
        path = tmp_path / "p.npz"
        for name, reason in (("0.npy", "two entries of one name"), ("other", "2 arrays, of which it describes 1")):
            archive(path, WHOLE, TWO)
            with zipfile.ZipFile(path, "a") as file:
                file.writestr(name, npy(TWO))
            with pytest.raises(ValueError, match=reason):
                fn.load(path)

    def test_other_formats(self, tmp_path):
        for content in (b"", b"PK", b"\x80\x04N.", b"\x93NUMPY", b"text", bytes(1000)):
            (tmp_path / "p.npz").write_bytes(content)
            with pytest.raises(ValueError, match=DAMAGED):
                fn.load(tmp_path / "p.npz")

    def test_a_damaged_file_is_refused_or_right(self, tmp_path):
        """A whole file cut anywhere, or with any bytes changed: the same values, or the one ValueError."""
        path = tmp_path / "p.npz"
        tree = {"a": jnp.arange(3.0), "b": [jnp.ones(2, jnp.bfloat16), None], "key": KEY}
        fn.save(path, tree)
        whole, rng = path.read_bytes(), np.random.default_rng(0)
        damaged = [whole[: rng.integers(len(whole))] for _ in range(50)]
        for _ in range(250):
            changed = bytearray(whole)
            for at in rng.integers(len(whole), size=rng.integers(1, 4)):
                changed[at] = rng.choice([0, 255, changed[at] ^ 1, changed[at] ^ 128])
            damaged.append(bytes(changed))
        refused = 0
        for content in damaged:
            path.write_bytes(content)
            try:
                assert_same(fn.load(path, like=tree if refused % 2 else None), tree)
            except ValueError as error:
                assert str(error).startswith(f"load: expected a file written by fn.save, got {path} (")  # noqa: PT017
                refused += 1
        assert 200 < refused < 300
