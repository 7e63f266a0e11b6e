"""Random codecs and random bytes: compiled loops equal the plain ones, and a reader answers or says what is wrong."""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from core.errors import UserError
from core.files import sha256
from core.maxsim import maxsim_packed
from index import cpu, exact, plaid, plaid_build, plain
from index.codec import NBITS, Codec, pack_bits, unpack_bits
from index.common import key_positions
from index.manifest import write_manifest
from index.mapped import load_array, save_array
from index.segment import Segment, SegmentWriter, file_facts
from tests.index_cases import ENCODER, corpus, questions, snapshot

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # random bytes are strange floats
sizes = st.sampled_from([1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 64, 70, 128])
seeds = st.integers(0, 2**32 - 1)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda fd: None)


def random_codec(rng, k: int, dim: int, nbits: int, unit: bool, scale: float) -> Codec:
    centroids = torch.from_numpy(rng.standard_normal((k, dim)) * scale).half().float()
    if unit:
        centroids = torch.nn.functional.normalize(centroids, dim=-1).half().float()
    weights = np.sort(rng.standard_normal(2**nbits) * scale * rng.choice([0.0, 0.1, 1.0])).astype(np.float32)
    cutoffs = (weights[1:] + weights[:-1]) / 2
    return Codec(centroids, torch.from_numpy(cutoffs), torch.from_numpy(weights), unit)


def values(rng, n: int, dim: int, codec: Codec, codes: np.ndarray) -> np.ndarray:
    """Vectors near their centroids, far from them, on the very edge of a bucket, and as large as float16 goes."""
    noise = rng.standard_normal((n, dim)).astype(np.float32) * rng.choice([0.01, 1, 100])
    rows = codec.centroids.numpy()[codes] + noise
    edges = rng.random((n, dim)) < 0.2
    rows[edges] = (codec.centroids.numpy()[codes] + rng.choice(codec.cutoffs.numpy(), (n, dim)))[edges]
    extremes = rng.random((n, dim)) < 0.1
    rows[extremes] = rng.choice([0.0, -0.0, 65504, -65504, 6e-8], extremes.sum())
    return np.ascontiguousarray(rows, np.float32)


@given(seeds, st.integers(1, 40), sizes, st.sampled_from(NBITS))
def test_bits_come_back(seed, n, dim, nbits):
    numbers = torch.from_numpy(np.random.default_rng(seed).integers(0, 2**nbits, (n, dim)).astype(np.uint8))
    packed = pack_bits(numbers, nbits)
    assert packed.shape == (n, -(-dim * nbits // 8))
    assert torch.equal(unpack_bits(packed, nbits, dim), numbers.long())


@given(seeds, st.integers(0, 300), st.integers(1, 40), sizes, st.sampled_from(NBITS), st.sampled_from([1e-3, 1, 300]))
def test_compiled_compression_is_that_of_torch(seed, n, k, dim, nbits, scale):
    rng = np.random.default_rng(seed)
    codec = random_codec(rng, k, dim, nbits, unit=False, scale=scale)
    codes = rng.integers(0, k, n).astype(np.int32)
    rows = values(rng, n, dim, codec, codes)
    wanted = codec.compress(torch.from_numpy(rows), torch.from_numpy(codes.astype(np.int64)))
    assert np.array_equal(plaid_build.compress(codec, rows, codes), wanted.numpy())


def segment_of(rng, path: Path, codec: Codec, documents: int) -> Segment:
    lengths = rng.integers(1, 9, documents)
    n = int(lengths.sum())
    codes = rng.integers(0, len(codec.centroids), n)
    residuals = rng.integers(0, 256, (n, -(-codec.dim * codec.nbits // 8)))
    if spare := -codec.dim * codec.nbits % 8:
        residuals[:, -1] &= 256 - 2**spare
    writer = SegmentWriter(path, plaid_build.arrays(codec))
    half = documents // 2
    cut = int(lengths[:half].sum())
    ids = [f"d{i}" for i in range(documents)]
    for docs, rows in ((slice(0, half), slice(0, cut)), (slice(half, None), slice(cut, None))):
        writer.append(ids[docs], lengths[docs], {"codes": codes[rows], "residuals": residuals[rows]})
    return plaid_build.complete(writer, codec)


@given(seeds, st.integers(1, 70), sizes, st.sampled_from(NBITS), st.booleans(), st.sampled_from([1e-3, 1, 300]), sizes)
def test_compiled_search_of_any_codec_is_the_plain_one(seed, k, dim, nbits, unit, scale, rows):
    """Integer stages bit for bit, the last one to float32 rounding, and that one also as MaxSim of ``decompress``."""
    rng = np.random.default_rng(seed)
    codec = random_codec(rng, k, dim, nbits, unit, scale)
    query = rng.standard_normal((rows, dim)).astype(np.float32) * np.float32(rng.choice([1e-4, 1, 1e3]))
    with tempfile.TemporaryDirectory() as folder:
        segment = segment_of(rng, Path(folder) / "s", codec, 30)
        first, last = sorted(rng.choice(31, 2, replace=False).tolist())
        codecs = cpu.CpuCodec(codec), plain.PlainCodec(codec, torch.device("cpu"))
        parts = (cpu.CpuPart(codecs[0], segment, first, last), plain.PlainPart(codecs[1], segment, first, last))
        answers = []
        for one, part in zip(codecs, parts):
            look = one.look(query)
            found = part.candidates(one.opened(look, 3, -(2**31)), None)
            near = part.shortlist(look, found, 9)
            positions = np.sort(key_positions(near))
            fine = part.refine([look], [positions], 5)[0] if len(positions) else near
            everything = np.arange(first, last)
            scores = [part.rescore(one.floats(query), np.array([0, rows]), everything)[:, 0]]
            scores.append(part.close([look], [everything])[0])
            answers.append((len(found), near.tolist(), fine.tolist(), scores))
        assert answers[0][:3] == answers[1][:3]
        here = slice(int(segment.offsets[first]), int(segment.offsets[last]))
        codes = torch.from_numpy(segment.array("codes")[here].astype(np.int64))
        vectors = codec.decompress(codes, torch.from_numpy(segment.array("residuals")[here].copy()))
        lengths = torch.from_numpy(segment.lengths[first:last].copy())
        truth = maxsim_packed(torch.from_numpy(query), vectors, lengths).reshape(-1).numpy()
        size = float(np.linalg.norm(query, axis=1).sum() * vectors.norm(dim=1).max()) + 1e-30
        for scores in (*answers[0][3], *answers[1][3]):
            assert np.allclose(scores / size, truth / size, atol=3e-6)


# -- readers -----------------------------------------------------------------------------------------------------------

DOCS = corpus(40, dim=16, rows=(1, 6), topics=9)
QUERIES = questions(DOCS, 2, 5)
INDEX = {"plaid": plaid.Index, "exact": exact.Index}
FILES = {"exact": ["vectors.bin"], "plaid": ["codes.bin", "residuals.bin", "ivf.positions.bin", "ivf.starts.npy"]}
SHARED = ["ids.bin", "ids.offsets.npy", "ids.hash.npy", "ids.order.npy", "offsets.npy", "segment.json"]
TARGETS = [
    *((kind, f"seg-00000/{name}") for kind, names in FILES.items() for name in (*names, *SHARED)),
    *((kind, name) for kind in INDEX for name in ("manifest.json", "deleted-00001.npy")),
    ("plaid", "codebook.json"),
    ("plaid", "centroids.npy"),
]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("fuzz")
    for kind, index in INDEX.items():
        index.build(root / kind, DOCS, dim=16, encoder=ENCODER).delete(["doc-3", "doc-8"])
    return root


def answer_or_error(kind: str, path: Path) -> list[str]:
    """Ask everything; only a UserError may come back. What was said."""
    said = []

    def asked(question):
        try:
            return question()
        except UserError as error:
            said.append(str(error))

    index = asked(lambda: INDEX[kind].open(path))
    if index is None:
        return said
    asked(lambda: index.find(["doc-1", "doc-39", "nobody"]))
    asked(lambda: list(index.ids()))
    asked(lambda: list(index.vectors()))
    asked(index.verify)
    asked(index.stats)
    for effort in ("fast", "balanced", "exhaustive") if kind == "plaid" else (None,):
        for allowed in (None, {"doc-1", "doc-30"}):
            asked(lambda e=effort, a=allowed: index.search(QUERIES, 2, a, effort=e))
    if kind == "plaid":
        asked(lambda: index.search(QUERIES, 2, n_probe=2, n_candidates=3))
    asked(lambda: index.add([("new", DOCS[0][1])]))
    asked(lambda: index.delete(["doc-5"]))
    asked(index.compact)
    return said


def sign(path: Path, file: str) -> None:
    """Make every digest fit what a file holds now, so that its reader itself meets it."""
    if file == "manifest.json":
        return
    manifest = json.loads((path / "manifest.json").read_text())
    if file in manifest["files"]:
        manifest["files"][file] = file_facts(path / file)
    elif file.endswith("segment.json"):
        manifest["segments"][0]["sha256"] = sha256(path / file)
    else:
        folder, name = file.split("/")
        facts = json.loads((path / folder / "segment.json").read_text())
        facts["files"][name] = file_facts(path / file)
        (path / folder / "segment.json").write_text(json.dumps(facts))
        manifest["segments"][0]["sha256"] = sha256(path / folder / "segment.json")
    write_manifest(path, manifest)


@given(st.sampled_from(TARGETS), st.data())
def test_random_bytes_are_an_answer_or_an_error(built, target, data):
    kind, file = target
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "i"
        shutil.copytree(built / kind, path)
        content = bytearray((path / file).read_bytes())
        how = data.draw(st.sampled_from(["same length", "any", "changed", "changed behind the header"]))
        if how == "any":
            content = bytearray(data.draw(st.binary(max_size=300)))
        elif how == "same length":
            content = bytearray(np.random.default_rng(data.draw(seeds)).bytes(len(content)))
        else:
            start = 128 if "behind" in how and len(content) > 136 else 0
            for _ in range(data.draw(st.integers(1, 6))):
                content[data.draw(st.integers(start, len(content) - 1))] = data.draw(st.integers(0, 255))
        (path / file).write_bytes(content)
        if data.draw(st.booleans()):
            sign(path, file)
        answer_or_error(kind, path)


STRANGE = [None, True, -1, 0, 1, 1.5, 10**30, float("nan"), "x", "", "int64", [], [[]], [1], {}, {"a": 1}]


@given(
    st.sampled_from([t for t in TARGETS if t[1].endswith(("segment.json", "codebook.json"))]),
    st.sampled_from(STRANGE),
    st.data(),
)
def test_strange_json_is_an_answer_or_an_error(built, target, value, data):
    kind, file = target
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "i"
        shutil.copytree(built / kind, path)
        whole = inner = json.loads((path / file).read_text())
        for depth in itertools.count():
            keys = list(inner) if isinstance(inner, dict) else list(range(len(inner)))
            key = data.draw(st.sampled_from(keys))
            if not isinstance(inner[key], (dict, list)) or not inner[key] or (depth and data.draw(st.booleans())):
                break
            inner = inner[key]
        if data.draw(st.integers(0, 3)):
            inner[key] = value
        else:
            del inner[key]
        (path / file).write_text(json.dumps(whole))
        sign(path, file)
        answer_or_error(kind, path)


@pytest.mark.parametrize("kind, file", TARGETS)
def test_the_undamaged_index_answers_everything(built, tmp_path, kind, file):
    """The readers above do meet their files: an untouched copy, signed again, says nothing."""
    shutil.copytree(built / kind, tmp_path / "i")
    before = snapshot(tmp_path / "i")
    sign(tmp_path / "i", file)
    assert file not in ("manifest.json", "codebook.json", "centroids.npy") or snapshot(tmp_path / "i") == before
    assert answer_or_error(kind, tmp_path / "i") == []


@given(st.binary(max_size=400))
def test_random_bytes_as_an_array(content):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "a.npy"
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"a\.npy' is missing or damaged"):
            load_array(file)


@pytest.mark.parametrize("array", [np.zeros((0, 3), np.float16), np.arange(7), np.array(5), np.ones((2, 3), "uint16")])
def test_arrays_come_back(tmp_path, array):
    save_array(tmp_path / "a.npy", array)
    found = load_array(tmp_path / "a.npy")
    assert found.dtype == array.dtype and np.array_equal(found, array)
    assert np.array_equal(np.load(tmp_path / "a.npy"), array)
    wrong = (tmp_path / "a.npy").read_bytes() + b"\0"
    (tmp_path / "a.npy").write_bytes(wrong)
    with pytest.raises(UserError, match="its size does not fit"):
        load_array(tmp_path / "a.npy")


@given(st.binary(max_size=200), st.integers(0, 10**6))
def test_a_journal_of_random_bytes_loses_no_more_than_itself(content, spot):
    """An unfinished segment goes on from what its journal still says, with whole blocks."""
    arrays = {"vectors": ("float16", [4])}
    block = (["a", "b"], [2, 1], {"vectors": np.ones((3, 4), np.float16)})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s"
        writer = SegmentWriter(path, arrays)
        for i in range(3):
            writer.append([f"{i}{id_}" for id_ in block[0]], *block[1:])
        journal = path / "journal.jsonl"
        text = journal.read_bytes()
        at = spot % len(text)
        journal.write_bytes(text[:at] + content)
        again = SegmentWriter(path, arrays)
        assert again.documents <= 6 and again.documents % 2 == 0
        kept = [id_ for ids in again.ids() for id_ in ids]
        assert kept == [f"{i}{id_}" for i in range(3) for id_ in block[0]][: again.documents]
        again.append(["z"], [1], {"vectors": np.zeros((1, 4), np.float16)})
        segment = again.finish()
        assert segment.ids() == [*kept, "z"] and segment.verify() == []
