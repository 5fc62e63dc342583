import collections
import io
import os
import pickle
import pickletools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas_retrain.errors import NasRetrainError
from nas_retrain.files.safe_pickle import Pairs, Unpickler, load

PATH = Path("some/batch.pickle")


def read(data: bytes):
    return load(io.BytesIO(data), PATH)


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
)


@given(plain, st.integers(2, pickle.HIGHEST_PROTOCOL))
def test_plain_containers_come_back_as_written(value, protocol):
    assert read(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_scalars_come_back_as_written(protocol):
    value = {
        "data": np.arange(12, dtype=np.uint8).reshape(3, 4),
        "mean": np.float64(0.25),
        "order": collections.OrderedDict(a=1),
        "bytes": b"\x00\xff",
        "labels": {1, 2},
    }
    back = read(pickle.dumps(value, protocol))
    np.testing.assert_array_equal(back.pop("data"), value.pop("data"))
    assert back == value


def test_names_as_numpy_1_wrote_them_are_understood():
    data = pickle.dumps({"data": np.arange(3.0)}, 2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    np.testing.assert_array_equal(read(data)["data"], np.arange(3.0))


def test_a_python_2_batch_has_text_keys():
    batch = b"\x80\x02}q\x01(U\x06labelsq\x02]q\x03(K\x00K\x01eU\x05namesq\x04U\x01\xe9q\x05u."
    assert read(batch) == {"labels": [0, 1], "names": "é"}


class Foreign:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_a_foreign_class_is_refused_and_does_not_run(tmp_path, protocol):
    trap = tmp_path / "trap"
    with pytest.raises(NasRetrainError, match=r"some/batch.pickle is refused: it asks for posix.mkdir"):
        read(pickle.dumps([1, Foreign(str(trap))], protocol))
    assert not trap.exists()


def test_other_codecs_than_latin1_are_refused():
    data = pickle.dumps(b"\xff", 2).replace(b"latin1", b"rot_13")
    with pytest.raises(NasRetrainError, match="rot_13"):
        read(data)


@given(st.data())
def test_a_truncated_pickle_is_one_clear_error(data):
    whole = pickle.dumps({"data": np.arange(50), "labels": list(range(20)), "names": ["a", "b"]}, 2)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(NasRetrainError, match=r"some/batch.pickle"):
        read(whole[:cut])


names = st.text(st.sampled_from("ab@é9"), min_size=1, max_size=4)


@given(
    st.lists(st.dictionaries(names | st.integers(0, 300), st.floats(allow_nan=False) | st.integers(0, 9))), st.data()
)
def test_curves_are_read_as_an_ordinary_unpickler_reads_them(curves, data):
    """Also where names are repeated, so that numbers in the memo are not in turn."""
    repeated = [*curves, *({f"ori-test@{epoch}": epoch / 3 for epoch in range(300)} for _ in range(2)), "ori-test@7"]
    shared = data.draw(st.permutations(repeated))
    content = pickle.dumps(shared, data.draw(st.integers(0, pickle.HIGHEST_PROTOCOL)))
    content = pickletools.optimize(content) if data.draw(st.booleans()) else content
    assert read(content) == pickle.loads(content) == shared


def with_pairs(data: bytes):
    return Unpickler(io.BytesIO(data), PATH, pairs=True).load()


columns = st.dictionaries(st.text(max_size=3), st.dictionaries(st.tuples(st.text(), st.integers(0, 9)), st.floats()))


@given(columns, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_dicts_with_tuples_for_keys_come_back_as_pairs(value, protocol):
    found = with_pairs(pickle.dumps(value, protocol))
    assert found.keys() == value.keys()
    for name, column in value.items():
        if column:
            assert isinstance(found[name], Pairs)
            assert found[name].keys == list(column)
            assert [str(number) for number in found[name].values] == [str(number) for number in column.values()]
        else:
            assert found[name] == {}


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_columns_that_share_many_keys_come_back_whole(protocol):
    keys = [(f"h{number // 50}", 0.1, number) for number in range(5000)]
    random = np.random.default_rng(0)
    value = {name: dict(zip(keys, random.random(len(keys)).tolist(), strict=True)) for name in "abc"}
    found = with_pairs(pickle.dumps(value, protocol))
    for name, column in value.items():
        assert dict(zip(*found[name], strict=True)) == column
        assert all(key is other for key, other in zip(found[name].keys, found["a"].keys, strict=True))
    with pytest.raises(pickle.UnpicklingError, match="too many keys are tuples"):
        Unpickler(io.BytesIO(pickle.dumps(value, protocol)), PATH).load()


def test_pairs_are_never_hashed_and_never_mixed_with_other_keys():
    repeated = b"}(" + 2 * (pickle.dumps((1, []))[2:-1] + b"K\x05") + b"u."
    assert with_pairs(b"\x80\x04" + repeated) == Pairs([(1, []), (1, [])], [5, 5])
    for value in ({(1,): 2, "x": 3}, {"x": 3, (1,): 2}):
        with pytest.raises(pickle.UnpicklingError):
            with_pairs(pickle.dumps({**value, **{(n, n): n for n in range(2000)}}))
    with pytest.raises(IndexError):  # a key that was never remembered
        with_pairs(b"\x80\x04}(" + 2 * (b"j\x00\x01\x00\x00G" + bytes(8)) + b"u.")
