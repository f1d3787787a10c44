"""The GGUF reader: what it takes, and that all else is one ModelFileInvalid line."""

from __future__ import annotations

import os
import struct
import time
import tracemalloc

import gguf_files as files
import pytest
from effort import assert_takes_less
from gguf_files import ARRAY, BOOL, F32, F64, I32, I64, STRING, U8, U32, U64

from libloader.errors import ModelFileInvalid
from libloader.llama import gguf

ARCHITECTURE = files.key("general.architecture", STRING, "llama")


@pytest.fixture
def written(tmp_path):
    """Write bytes to a file and return its path."""
    return lambda raw, name="model.gguf": files.write(tmp_path / name, raw)


@pytest.fixture
def refusal(written):
    """Return the line with which the reader refuses these bytes."""

    def line(raw: bytes, name: str = "model.gguf") -> str:
        path = written(raw, name)
        with pytest.raises(ModelFileInvalid) as caught:
            gguf.read(path)
        message = str(caught.value)
        assert message.startswith(path) and "\n" not in message
        return message

    return line


# What it reads


def test_the_tiny_llama_is_read_whole(written):
    model = gguf.read(written(files.tiny_llama()))
    assert (model.version, model.architecture) == (3, "llama")
    assert model.of_architecture("block_count") == files.N_LAYER
    assert len(model.tensors) == 2 + 9 * files.N_LAYER
    assert model.n_params > 50_000
    assert model.total_bytes == os.path.getsize(model.path)


def test_version_2_is_read_as_version_3(written):
    assert gguf.read(written(files.header([ARCHITECTURE], version=2))).version == 2


@pytest.mark.parametrize(
    ("kind", "item"),
    [(U8, 255), (I32, -7), (F32, 0.5), (BOOL, True), (U64, 2**64 - 1), (I64, -1), (F64, 1e-300)],
)
def test_every_scalar_comes_back_as_written(written, kind, item):
    model = gguf.read(written(files.header([files.key("k", kind, item)])))
    assert model.metadata["k"] == item


@pytest.mark.parametrize(
    ("kind", "items"), [(U8, [1, 2]), (I32, [-1, 5]), (F64, [0.25]), (U32, [])]
)
def test_numeric_arrays_are_read_when_asked_for(written, kind, items):
    model = gguf.read(written(files.header([files.key("k", kind, items)])))
    assert list(model.numbers("k")) == items


def test_string_arrays_are_read_when_asked_for(written):
    model = gguf.read(written(files.header([files.key("k", STRING, ["", "é", b"\xff"])])))
    assert model.strings("k") == [b"", "é".encode(), b"\xff"]


def test_an_array_that_is_not_there_is_empty(written):
    model = gguf.read(written(files.header([ARCHITECTURE])))
    assert list(model.numbers("k")) == [] and model.strings("k") == []


def test_a_value_per_layer_counts_as_its_largest(written):
    per_layer = files.key("llama.attention.head_count_kv", U32, [2, 8, 4])
    model = gguf.read(written(files.header([ARCHITECTURE, per_layer])))
    assert model.of_architecture("attention.head_count_kv") == 8


def test_a_chat_template_of_100_kilobytes_is_read(written):
    template = files.key(gguf.TEMPLATE_KEY, STRING, "x" * 100_000)
    assert len(gguf.read(written(files.header([template]))).text(gguf.TEMPLATE_KEY)) == 100_000


def test_strings_that_are_not_utf8_are_replaced_not_refused(written):
    model = gguf.read(written(files.header([files.key("general.name", STRING, b"a\xffb")])))
    assert model.text("general.name") == "a\ufffdb"


def test_a_file_may_end_without_the_padding_of_its_last_tensor(written):
    raw = files.with_data([ARCHITECTURE], {"t": ((3,), files.array("f", [1, 2, 3]))})
    assert gguf.read(written(raw[:-20])).n_params == 3


def test_a_tensor_of_a_newer_type_is_listed_without_its_size(written):
    raw = files.padded(files.header([ARCHITECTURE], [files.tensor_info("t", (32,), 999)]))
    assert gguf.describe(gguf.read(written(raw)))[3].endswith("1 type 999")


def test_the_header_of_a_300_000_token_vocabulary_is_read_in_a_second_and_little_memory(written):
    tokens = files.string("Ġtoken") * 300_000
    raw = files.string("tokenizer.ggml.tokens") + struct.pack("<IIQ", ARRAY, STRING, 300_000)
    scores = files.key("tokenizer.ggml.scores", F32, [0.0] * 300_000)
    path = written(files.header([raw + tokens, scores]))
    start = time.process_time()
    model = gguf.read(path)
    assert_takes_less(1.0, start)
    assert model.array("tokenizer.ggml.tokens").length == 300_000
    tracemalloc.start()
    gguf.read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * gguf.WINDOW_BYTES


# What it refuses, and with which words


def test_an_empty_file_is_refused(refusal):
    assert "the file is empty" in refusal(b"")


@pytest.mark.parametrize("n_bytes", [1, 3, 4, 5, 8, 16, 23])
def test_a_file_that_ends_in_the_first_fields_is_refused(refusal, n_bytes):
    line = refusal(files.header([ARCHITECTURE])[:n_bytes])
    assert "truncated" in line or "not a GGUF file" in line


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_model_cut_short_is_called_truncated(refusal, part):
    raw = files.tiny_llama()
    line = refusal(raw[: int(len(raw) * part)])
    assert "truncated" in line and "download it again" in line


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"\n<HTML>", "a web page"),
        (b'{"error": "not found"}', "a JSON file"),
        (b"PK\x03\x04" + b"\0" * 60, "PyTorch"),
        (b"\x7fELF\x02\x01", "a program or library"),
        (struct.pack("<Q", 200) + b'{"__metadata__": {', "a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
        (b"tjgg\x03\0\0\0", "a GGML file from before GGUF"),
        (b"\0" * 4096, "the download did not finish"),
        (b"hello", "not a GGUF file"),
    ],
)
def test_a_file_of_another_kind_is_called_by_its_name(refusal, head, words):
    assert words in refusal(head)


@pytest.mark.parametrize(
    ("version", "words"),
    [(1, "version 1"), (4, "version 4 is unknown"), (3 << 24, "big-endian"), (0, "unknown")],
)
def test_other_versions_are_refused_with_words(refusal, version, words):
    assert words in refusal(files.header([ARCHITECTURE], version=version))


@pytest.mark.parametrize("count", [1, 2**31, 2**64 - 1])
def test_counts_that_the_file_does_not_hold_are_refused(refusal, count):
    refusal(files.header(n_keys=count))
    refusal(files.header(n_tensors=count))


def test_a_string_longer_than_the_limit_is_refused(refusal):
    lie = files.string("k") + struct.pack("<IQ", STRING, 2**40)
    assert "claims 1,099,511,627,776 bytes" in refusal(files.header([lie]))


def test_a_string_longer_than_the_file_is_refused(refusal):
    lie = files.string("k") + struct.pack("<IQ", STRING, 1000)
    assert "truncated" in refusal(files.header([lie]))


@pytest.mark.parametrize("kind", [U8, F64, STRING])
def test_an_array_longer_than_the_file_is_refused(refusal, kind):
    lie = files.string("k") + struct.pack("<IIQ", ARRAY, kind, 2**61)
    assert "truncated" in refusal(files.header([lie]))


def test_an_array_of_arrays_is_refused(refusal):
    lie = files.string("k") + struct.pack("<IIQ", ARRAY, ARRAY, 1)
    assert "array of arrays" in refusal(files.header([lie]))


def test_unknown_value_types_are_refused(refusal):
    refusal(files.header([files.string("k") + struct.pack("<I", 13)]))
    refusal(files.header([files.string("k") + struct.pack("<IIQ", ARRAY, 77, 0)]))


def test_a_key_that_occurs_twice_is_refused(refusal):
    assert "occurs twice" in refusal(files.header([ARCHITECTURE, ARCHITECTURE]))


def test_a_tensor_that_occurs_twice_is_refused(refusal):
    info = files.tensor_info("t", (1,))
    assert "occurs twice" in refusal(files.padded(files.header([], [info, info])) + b"\0" * 64)


@pytest.mark.parametrize("alignment", [0, 3, 48, 2**30])
def test_an_alignment_that_is_no_power_of_two_is_refused(refusal, alignment):
    assert "general.alignment" in refusal(
        files.header([files.key("general.alignment", U32, alignment)])
    )


@pytest.mark.parametrize(
    ("info", "words"),
    [
        (files.tensor_info("t", (1,) * 5), "5 dimensions"),
        (files.tensor_info("t" * 64, (1,)), "64 bytes"),
        (files.tensor_info("t", (0,)), "impossible shape"),
        (files.tensor_info("t", (2**63,)), "impossible shape"),
        (files.tensor_info("t", (2**62, 2**62)), "truncated"),
        (files.tensor_info("t", (33,), 2), "multiples of 32"),
        (files.tensor_info("t", (1,), 0, 4), "not aligned"),
        (files.tensor_info("t", (1,), 0, 2**63), "truncated"),
    ],
)
def test_impossible_tensors_are_refused(refusal, info, words):
    assert words in refusal(files.padded(files.header([], [info])) + b"\0" * 64)


def test_a_missing_file_a_folder_and_a_pipe_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, words in (("none", "No such file"), ("", "directory"), ("pipe", "not a regular")):
        with pytest.raises(ModelFileInvalid, match=words):
            gguf.read(str(tmp_path / name))


def test_a_path_with_a_nul_is_refused():
    with pytest.raises(ModelFileInvalid):
        gguf.read("a\0b")


# Split files


def split_part(number: int, count: int = 3, *keys: bytes) -> bytes:
    own = [files.key("split.no", 2, number - 1), files.key("split.count", 2, count)]
    return files.with_data([*own, *keys], {f"t{number}": ((8,), files.array("f", [1] * 8))})


@pytest.fixture
def split(written):
    """Write three parts and return the path of the first."""
    paths = [
        written(split_part(n, 3, *([ARCHITECTURE] if n == 1 else [])), f"m-{n:05d}-of-00003.gguf")
        for n in (1, 2, 3)
    ]
    return paths[0]


def test_a_split_model_is_read_from_its_first_part(split):
    model = gguf.read(split)
    assert [tensor.name for tensor in model.all_tensors] == ["t1", "t2", "t3"]
    assert model.n_params == 24
    assert "in 3 parts" in gguf.describe(model)[0]


def test_a_missing_part_is_named(split):
    missing = split.replace("00001-of", "00002-of")
    os.remove(missing)
    with pytest.raises(ModelFileInvalid, match="part 2 of 3 of this model is missing") as caught:
        gguf.read(split)
    assert missing in str(caught.value)


def test_a_later_part_is_refused_with_the_name_of_the_first(split):
    with pytest.raises(ModelFileInvalid, match="part 2 of 3") as caught:
        gguf.read(split.replace("00001-of", "00002-of"))
    assert split in str(caught.value)


def test_a_later_part_under_another_name_is_refused(refusal):
    assert "this is part 2 of 3" in refusal(split_part(2), "renamed.gguf")


def test_a_first_part_under_another_name_is_refused(refusal):
    assert "must keep the name" in refusal(split_part(1), "renamed.gguf")


def test_parts_of_different_models_are_not_mixed(split):
    files.write(files.Path(split.replace("00001-of", "00003-of")), split_part(2))
    with pytest.raises(ModelFileInvalid, match="it is not part 3 of 3"):
        gguf.read(split)


# What `show` prints


def test_show_prints_what_the_tiny_llama_is(written):
    lines = gguf.describe(gguf.read(written(files.tiny_llama())))
    facts = {line[:14].strip(): line[15:] for line in lines}
    assert facts["architecture"] == "llama"
    assert facts["quantisation"] == "F32 (20 F32)"
    assert facts["context"] == "512 tokens"
    assert facts["heads"] == "2, 1 for keys and values"
    assert facts["vocabulary"] == "269 tokens, byte-level BPE"
    assert facts["chat template"].startswith("yes, ")


def test_show_prints_recommended_sampling_and_named_templates(written):
    keys = [
        ARCHITECTURE,
        files.key("general.sampling.temp", F32, 0.6),
        files.key("general.sampling.top_k", I32, 20),
        files.key("tokenizer.chat_template.tool_use", STRING, "x"),
    ]
    model = gguf.read(written(files.header(keys)))
    assert gguf.recommended_sampling(model) == {"temperature": 0.6, "top_k": 20}
    lines = "\n".join(gguf.describe(model))
    assert "temperature 0.6, top_k 20" in lines and "also named: tool_use" in lines


def test_show_keeps_control_characters_of_the_file_off_the_terminal(written):
    name = files.key("general.name", STRING, "a\x1b[2J\nb" + "c" * 500)
    lines = gguf.describe(gguf.read(written(files.header([name]))))
    assert all(line.isprintable() and len(line) < 140 for line in lines)
