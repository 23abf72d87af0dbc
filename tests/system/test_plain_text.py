"""What comes out of files is shown to people without speaking to their terminal or their documents."""

import json

import pytest
import yaml

from mcp_server.system.plain_text import json_printable, markdown_code, markdown_inline, one_line, printable

EVERY = "".join(
    map(chr, [*range(0x20), *range(0x7F, 0xA0), 0x202E, 0x2028, 0xD800, 0xAD, 0x61C, 0x200B, 0x2060, 0x206A, 0xFFF9])
) + ("\N{TAG LATIN SMALL LETTER A}\N{VARIATION SELECTOR-17}")


def test_control_characters_are_shown_and_line_breaks_and_tabs_stay():
    assert printable("a\x1b[2J\x07b\tc\nd\r") == "a\\x1b[2J\\x07b\tc\nd\\x0d"
    assert printable(EVERY).replace("\n", "").replace("\t", "").isprintable()


def test_text_that_takes_no_room_is_shown_and_joined_characters_stay_whole():
    hidden = "".join(chr(0xE0000 + ord(letter)) for letter in "approve")
    assert printable(f"linear{hidden[:1]}") == "linear\\U000e0061"
    assert hidden not in json_printable(json.dumps({"note": hidden}, ensure_ascii=False))
    assert (
        printable("\N{WOMAN}\N{ZERO WIDTH JOINER}\N{PERSONAL COMPUTER}") == "\N{WOMAN}\N{ZERO WIDTH JOINER}\N{PERSONAL COMPUTER}"
    )


def test_a_name_cannot_fake_a_second_line():
    assert one_line("model\nverified\t1") == "model\\nverified\\t1"
    assert one_line(EVERY).isprintable()


def test_json_keeps_its_value_and_loses_its_raw_controls():
    raw = json.dumps({"name": EVERY}, ensure_ascii=False)
    shown = json_printable(raw)
    assert json.loads(shown) == {"name": EVERY}
    assert shown.isprintable()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a | b", "a \\| b"),
        ("<script>alert(1)</script>", "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("[x](http://evil)", "\\[x\\](http://evil)"),
        ("name\n## Verified", "name\\\\n## Verified"),
        ("task_arithmetic", "task_arithmetic"),
        ("# Verified", "\\# Verified"),
        ("- done", "\\- done"),
        ("1. done", "1\\. done"),
        ("-0.5", "-0.5"),
        ("1.5", "1.5"),
        ("*bold* `code`", "\\*bold\\* \\`code\\`"),
    ],
)
def test_text_in_markdown_is_no_structure(text, shown):
    assert markdown_inline(text) == shown


def test_a_fenced_block_cannot_be_ended_from_inside():
    block = markdown_code("a: 1\n````\n# Title\n```\n", "yaml").splitlines()
    assert block[0] == "`````yaml" and block[-1] == "`````" and block.count("`````") == 1
    assert yaml.safe_load("a: 1") == {"a": 1}
