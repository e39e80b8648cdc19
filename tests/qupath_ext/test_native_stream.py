from pathlib import Path

import pytest

from qupath_ext.errors import FormatError
from qupath_ext.native.emitter import emit_stream
from qupath_ext.native.parser import HEADER, parse_stream
from qupath_ext.native.tokens import RESET, Block, ClassDesc, JObject, JString, RunMember, decode_utf, encode_utf

SHARED = Path(__file__).parents[2] / ".." / "shared"
FILES = sorted([*SHARED.glob("golden/**/data.qpdata"), *SHARED.glob("data/qupath_projects/**/data.qpdata")])
NO_DATA = "the projects written by QuPath (../shared/golden) are not here"


def emit(contents):
    out = bytearray()
    emit_stream(contents, out.extend)
    return bytes(out)


@pytest.mark.skipif(not FILES, reason=NO_DATA)
@pytest.mark.parametrize("path", FILES, ids=lambda p: "-".join(p.parts[-5:-1]))
@pytest.mark.parametrize("fast", [True, False])
def test_every_file_of_qupath_comes_out_byte_for_byte(path, fast):
    data = path.read_bytes()
    contents, parser = parse_stream(data, fast=fast)
    assert emit(contents) == data
    if "cells" in path.parts:
        assert [len(run) for run in parser.runs] == ([3422] if fast else [])


@pytest.mark.skipif(not FILES, reason=NO_DATA)
def test_fast_path_counts_the_same_handles():
    for path in FILES:
        data = path.read_bytes()
        assert parse_stream(data)[1].next_handle == parse_stream(data, fast=False)[1].next_handle


@pytest.mark.skipif(not FILES, reason=NO_DATA)
def test_a_file_cut_anywhere_is_refused_or_stays_whole_at_the_top_level():
    data = next(p for p in FILES if "real" in p.parts).read_bytes()
    whole = len(parse_stream(data)[0])
    refused = 0
    for size in range(0, len(data), 97):
        try:
            n_contents = len(parse_stream(data[:size])[0])
        except FormatError:
            refused += 1
        else:
            assert n_contents < whole
    assert refused > 100


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("7B", "unknown tag 7B at byte 4"),
        ("7D", "unknown tag 7D at byte 4"),
        ("71 007E0000", "unknown handle 0 at byte 4"),
        ("77 05 01", "5 bytes announced, 1 left at byte 6"),
        ("74 0002 C328", "modified UTF-8 at byte 7"),
        ("73 72 0001 41 0000000000000001 05 0000 78 70", "class A with unknown flags 05 at byte 5"),
        ("73 70", "object without class"),
        ("73 74 0001 41", "no class descriptor"),
        ("73 72 0001 41 0000000000000001 12 0000 78 70", "object of class A with flags 12"),
        ("75 72 0001 41 0000000000000001 02 0000 78 70 00000001", "array of class 'A'"),
        ("75 72 0002 5B42 0000000000000001 02 0000 78 70 FFFFFFFF", "-1 bytes announced"),
        ("72 0001 41 0000000000000001 02 0001 51 0001 61 78 70", "unknown type 'Q'"),
        (
            "73 72 0001 41 0000000000000001 02 0001 4C 0001 61 74 0001 62 78 70 77 01 00",
            "block data in place of a field",
        ),
        ("79 7E 72 0001 41 0000000000000001 02 0000 78 70 74 0001 61", "enum constant of class A"),
        ("73 72 0001 41 0000000000000001 0C 0000 78 70 77 01 00", "end of file"),
    ],
)
def test_what_the_grammar_does_not_say_is_refused_with_its_place(body, message):
    with pytest.raises(FormatError, match="byte") as caught:
        parse_stream(HEADER + bytes.fromhex(body))
    assert message in str(caught.value)


def test_no_header():
    with pytest.raises(FormatError, match="no Java serialisation header"):
        parse_stream(b"PK\x03\x04")


def test_nesting_is_bounded():
    desc = bytes.fromhex("72 0001 41 0000000000000001 0C 0000 78 70")
    nested = b"\x73" + desc + b"\x73\x71\x00\x7e\x00\x00" * 400 + b"\x78" * 401
    with pytest.raises(FormatError, match="nested deeper"):
        parse_stream(HEADER + nested)


def test_strings_are_modified_utf8():
    assert encode_utf("a\x00é😐").hex() == "61c080c3a9eda0bdedb890"
    assert decode_utf(bytes.fromhex("61c080c3a9eda0bdedb890")) == "a\x00é😐"


def test_long_strings_and_blocks_take_the_long_tags():
    long = JString.of("x" * 70_000)
    data = emit([long, JString.of("y"), Block(b"z" * 300, long=True), long])
    assert data[4:13].hex() == "7c" + f"{70_000:016x}"
    contents, parser = parse_stream(data)
    assert contents[0] is contents[3]
    assert contents[0].text == "x" * 70_000
    assert contents[2].raw == b"z" * 300
    assert parser.next_handle == 2
    assert emit(contents) == data


def test_reset_forgets_all_handles():
    text = JString.of("shared")
    data = emit([text, RESET, text, text])
    contents, _ = parse_stream(data)
    assert contents[1] is RESET
    assert contents[2] is contents[3]
    assert contents[0] is not contents[2]
    assert data.count(b"shared") == 2
    assert emit(contents) == data


def test_an_object_that_contains_itself():
    desc = ClassDesc("A", bytes(8), 0x0C)
    obj = JObject(desc)
    obj.contents = [obj, Block(b"\x01")]
    contents, _ = parse_stream(emit([obj]))
    assert contents[0].contents[0] is contents[0]


@pytest.mark.skipif(not FILES, reason=NO_DATA)
def test_a_reference_into_a_run_of_cells_keeps_its_target():
    data = next(p for p in FILES if {"v0.5.1", "cells"} <= set(p.parts)).read_bytes()
    contents, parser = parse_stream(data)
    run = parser.runs[0]
    slow, _ = parse_stream(emit([*contents, RunMember(run, 1234)]), fast=False)
    fast, again = parse_stream(emit([*contents, RunMember(run, 1234)]))
    assert fast[-1] == RunMember(again.runs[0], 1234)
    wanted = run.ids()[1234].decode()
    metadata = slow[-1].contents[2]
    assert metadata.contents[2].items[0].text == wanted
