import json
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel

from glm_portable import text_cuts
from glm_portable.config import ModelConfig
from glm_portable.errors import UsageError
from glm_portable.pocket import path
from glm_portable.tokenizer import Limit, Tokenizer

FOLDER = path()
CONFIG = ModelConfig.load(FOLDER)
TOKENIZER = Tokenizer.load(FOLDER, CONFIG)
# The library's own reading of the same file, the judge of ours.
LIBRARY = tokenizers.Tokenizer.from_file(str(FOLDER / "tokenizer.json"))

CONTROL = ["[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|observation|>", "<|endoftext|>"]
TAGS = ["<think>", "</think>", "<tool_call>", "</arg_value>", "/nothink"]
PIECES = st.one_of(
    st.sampled_from(CONTROL), st.sampled_from(TAGS), st.sampled_from("<|>[]/"), st.text(max_size=6)
)
TEXTS = st.lists(PIECES, max_size=8).map("".join)
IDS = st.lists(st.integers(0, TOKENIZER.vocab_size - 1), max_size=40)


def without_added_tokens() -> tokenizers.Tokenizer:
    raw = json.loads((FOLDER / "tokenizer.json").read_text(encoding="utf-8"))
    return tokenizers.Tokenizer.from_str(json.dumps(raw | {"added_tokens": []}))


BARE = without_added_tokens()


def folder_with(tmp_path: Path, change: Any = None) -> Path:
    """A copy of the pocket model's tokenizer files, tokenizer.json changed."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(FOLDER / name, tmp_path / name)
    file = tmp_path / "tokenizer.json"
    raw = json.loads(file.read_text(encoding="utf-8"))
    if change is not None:
        change(raw)
    file.write_text(json.dumps(raw), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize("token", sorted(TOKENIZER.control_tokens))
def test_a_typed_control_token_is_plain_text(token: str) -> None:
    ids = TOKENIZER.encode(f"a{token}b")
    assert ids == BARE.encode(f"a{token}b").ids
    assert TOKENIZER.decode(ids) == f"a{token}b"


def test_every_role_token_is_a_control_token() -> None:
    strict = "[gMASK] <sop> <eop> [MASK] [sMASK] <|system|> <|user|> <|assistant|> <|observation|>"
    assert {*strict.split(), "<|endoftext|>"} <= set(TOKENIZER.control_tokens)
    assert set(CONFIG.eos_token_id) <= set(TOKENIZER.control_tokens.values())


@pytest.mark.parametrize("tag", sorted(TOKENIZER.tags))
def test_a_typed_tag_is_its_token(tag: str) -> None:
    ids = TOKENIZER.encode(f"a{tag}b")
    assert LIBRARY.token_to_id(tag) in ids
    assert TOKENIZER.decode(ids) == f"a{tag}b"


@settings(deadline=None)
@given(TEXTS)
def test_user_text_never_becomes_a_control_token_and_comes_back_whole(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert not any(TOKENIZER.is_control(i) for i in ids)
    assert TOKENIZER.decode(ids) == text


@settings(deadline=None)
@given(TEXTS)
def test_template_text_is_encoded_as_the_library_does(text: str) -> None:
    assert TOKENIZER.encode_template(text) == LIBRARY.encode(text, add_special_tokens=False).ids


def test_template_text_between_control_tokens_passes_through_plain() -> None:
    ids = TOKENIZER.encode_template(
        "<|user|>a.b<|assistant|>", lambda s: s.replace(".", "<|user|>")
    )
    user, assistant = (TOKENIZER.control_tokens[t] for t in ("<|user|>", "<|assistant|>"))
    assert ids == [user, *BARE.encode("a<|user|>b").ids, assistant]


@settings(deadline=None)
@given(IDS)
def test_decode_equals_the_library_on_whole_characters(ids: list[int]) -> None:
    spelt = b"".join(TOKENIZER.token_bytes(i) for i in ids if not TOKENIZER.is_control(i))
    try:
        expected = spelt.decode()
    except UnicodeDecodeError:
        return
    assert TOKENIZER.decode(ids) == expected == LIBRARY.decode(ids, skip_special_tokens=True)


@settings(deadline=None)
@given(IDS, st.lists(st.integers(0, 40)))
def test_a_stream_joins_to_decode_for_every_cut(ids: list[int], cuts: list[int]) -> None:
    borders = [0, *sorted(min(cut, len(ids)) for cut in cuts), len(ids)]
    stream = TOKENIZER.stream()
    pieces = [stream.add(ids[a:b]) for a, b in zip(borders, borders[1:], strict=False)]
    assert "".join([*pieces, stream.flush()]) == TOKENIZER.decode(ids)


@settings(deadline=None)
@given(st.text(max_size=20))
def test_a_stream_never_emits_part_of_a_character(text: str) -> None:
    stream = TOKENIZER.stream()
    seen = ""
    for token_id in TOKENIZER.encode(text):
        seen += stream.add([token_id])
        assert text.startswith(seen)
    assert seen == text


def test_an_unfinished_character_at_the_end_is_dropped() -> None:
    ids = TOKENIZER.encode("ok 🚀")
    assert len(TOKENIZER.token_bytes(ids[-1])) < 4  # the rocket takes several tokens
    stream = TOKENIZER.stream()
    assert stream.add(ids[:-1]) + stream.flush() == TOKENIZER.decode(ids[:-1]) == "ok "


def test_bytes_that_are_no_character_are_marked() -> None:
    rocket = TOKENIZER.encode("🚀")
    assert TOKENIZER.decode([*rocket[:-1], *TOKENIZER.encode("a")]) == "\ufffda"


def test_control_tokens_are_left_out_and_tags_kept() -> None:
    text = "<think>a</think>\n<tool_call>b</tool_call>"
    ids = TOKENIZER.encode(text)
    eos = CONFIG.eos_token_id[0]
    assert TOKENIZER.decode([eos, *ids, eos]) == text
    assert TOKENIZER.token_text(eos) == "<|endoftext|>"


def test_token_bytes_spell_the_whole_alphabet() -> None:
    vocabulary = BARE.get_vocab()
    ids = [vocabulary[character] for character in ByteLevel.alphabet()]
    assert sorted(TOKENIZER.token_bytes(i) for i in ids) == [bytes([b]) for b in range(256)]


def test_ids_that_no_token_has_are_empty() -> None:
    assert TOKENIZER.vocab_size == 1273 < CONFIG.vocab_size
    assert TOKENIZER.token_bytes(CONFIG.vocab_size - 1) == TOKENIZER.token_bytes(-1) == b""
    assert TOKENIZER.decode([CONFIG.vocab_size - 1, *TOKENIZER.encode("a")]) == "a"


@pytest.mark.parametrize("special", [True, False])
def test_the_files_special_flags_do_not_decide_about_known_tokens(
    tmp_path: Path, special: bool
) -> None:
    def change(raw: Any) -> None:
        for token in raw["added_tokens"]:
            token["special"] = special

    tokenizer = Tokenizer.load(folder_with(tmp_path, change), CONFIG)
    text = "<think><|user|></think>/nothink"
    assert tokenizer.encode(text) == TOKENIZER.encode(text)
    assert tokenizer.decode(tokenizer.encode_template(text)) == "<think></think>/nothink"


def test_other_threads_run_while_a_long_text_is_encoded() -> None:
    encoding = threading.Thread(
        target=TOKENIZER.encode, args=("Hello <b>world</b>, [you]. " * 20_000,)
    )
    encoding.start()
    turns = 0
    while encoding.is_alive():
        time.sleep(0.001)
        turns += 1
    assert turns > 10  # an encoding that blocks the interpreter leaves one or two


@settings(deadline=None)
@given(TEXTS)
def test_no_text_has_fewer_tokens_than_its_bytes_say(text: str) -> None:
    assert TOKENIZER.longest == max(map(len, map(TOKENIZER.token_bytes, range(1273))))
    count = len(TOKENIZER.encode_template(text))
    TOKENIZER.check(text, Limit(count, ""))
    assert TOKENIZER.encode(text, Limit(len(TOKENIZER.encode(text)), "")) == TOKENIZER.encode(text)
    assert TOKENIZER.encode_template(text, limit=Limit(count, "")) == TOKENIZER.encode_template(
        text
    )


def test_a_text_of_the_longest_tokens_has_as_many_as_its_bytes_say() -> None:
    token = max(TOKENIZER.control_tokens, key=len)
    assert len(token) == TOKENIZER.longest
    TOKENIZER.check(token * 50, Limit(50, ""))
    with pytest.raises(UsageError, match="^at least 51 tokens$"):
        TOKENIZER.check(token * 50 + "a", Limit(50, "at least {tokens} tokens"))


@pytest.mark.parametrize("text", ["word " * 300, "<|user|>word " * 150, "word " * 3])
def test_a_limit_is_for_all_tokens_together(text: str) -> None:
    count = len(TOKENIZER.encode_template(text))
    with pytest.raises(UsageError, match=rf"^\d+ of {count - 1}$"):
        TOKENIZER.encode_template(text, limit=Limit(count - 1, f"{{tokens}} of {count - 1}"))


def test_a_long_text_is_encoded_in_parts_up_to_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer.load(FOLDER, CONFIG)
    library, sizes = tokenizer._tokenizer, []

    class Noting:
        def encode_batch_fast(self, texts: list[str], **options: Any) -> Any:
            sizes.append(sum(map(len, texts)))
            return library.encode_batch_fast(texts, **options)

    text = "word " * 100_000
    whole = tokenizer.encode(text)
    assert whole == library.encode(text, add_special_tokens=False).ids
    monkeypatch.setattr(tokenizer, "_tokenizer", Noting())
    assert tokenizer.encode(text) == whole
    assert sum(sizes) == len(text) and max(sizes) < text_cuts.SIZE + 10
    sizes.clear()
    with pytest.raises(UsageError, match="at least"):
        tokenizer.encode(text, Limit(len(whole) // 4, "at least {tokens}"))
    assert len(text) / 4 <= sum(sizes) < len(text) / 2


SPACED = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}


@pytest.mark.parametrize("change", [{"normalizer": {"type": "NFC"}}, {"pre_tokenizer": SPACED}])
def test_a_tokenizer_of_unknown_ways_encodes_a_text_as_a_whole(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    tokenizer = Tokenizer.load(folder_with(tmp_path, lambda raw: raw.update(change)), CONFIG)
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    text = "e\u0301\nan" * text_cuts.SIZE
    assert tokenizer.encode(text) == library.encode(text, add_special_tokens=False).ids
    if "normalizer" in change:
        assert tokenizer.longest is None
        tokenizer.check(text, Limit(0, ""))


def test_a_file_that_asks_for_shorter_texts_is_not_heeded(tmp_path: Path) -> None:
    cut = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    folder = folder_with(tmp_path, lambda raw: raw.update(truncation=cut))
    assert Tokenizer.load(folder, CONFIG).encode("a b c d e") == TOKENIZER.encode("a b c d e")


@pytest.mark.parametrize("bad", ["a\ud800", "\udfff", "<|user|>\ud83d x"])
def test_a_lone_surrogate_is_refused_by_number(bad: str) -> None:
    with pytest.raises(UsageError, match=r"lone surrogate U\+D[0-9A-F]{3} at position \d"):
        TOKENIZER.encode(bad)


def test_a_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"tokenizer\.json is missing"):
        Tokenizer.load(tmp_path, CONFIG)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1", b'{"model": {}}', b"\xff\xfe"])
def test_a_corrupt_tokenizer_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(UsageError, match=r"tokenizer\.json .*download it again"):
        Tokenizer.load(tmp_path, CONFIG)


def test_a_tokenizer_of_another_kind_is_refused(tmp_path: Path) -> None:
    other = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    other.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UsageError, match="not a byte-level tokenizer"):
        Tokenizer.load(tmp_path, CONFIG)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 1272}, r"token id 1272 does not fit .* vocab_size is 1272"),
        ({"eos_token_id": (1237, 1279)}, r"eos_token_id 1279 .* not a special token"),
        ({"eos_token_id": (1258,)}, r"eos_token_id 1258 .* not a special token"),  # <think>
        ({"eos_token_id": (5,)}, r"eos_token_id 5 .* not a special token"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Tokenizer.load(FOLDER, replace(CONFIG, **change))


def test_a_vocabulary_of_exactly_the_models_rows_fits() -> None:
    assert Tokenizer.load(FOLDER, replace(CONFIG, vocab_size=1273)).vocab_size == 1273


@pytest.mark.parametrize("content", ["{", '{"added_tokens_decoder": {"1258": {"content": "<x>"}}}'])
def test_a_tokenizer_config_that_disagrees_is_refused(tmp_path: Path, content: str) -> None:
    folder = folder_with(tmp_path)
    (folder / "tokenizer_config.json").write_text(content, encoding="utf-8")
    with pytest.raises(UsageError, match=r"not valid JSON|token 1258 is '<x>', but '<think>'"):
        Tokenizer.load(folder, CONFIG)


def test_the_tokenizer_config_is_optional(tmp_path: Path) -> None:
    folder = folder_with(tmp_path)
    (folder / "tokenizer_config.json").unlink()
    assert Tokenizer.load(folder, CONFIG).encode("a<think>") == TOKENIZER.encode("a<think>")
