"""Reading a model's tokenizer and the files around it."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest
from tokenizers import Tokenizer, models

from actors.tokenizer.codec import Codec, CodecError, load_codec
from actors.tokenizer.model_files import read_chat_templates, read_special_tokens
from protocols.errors import StartError, UserError
from tests.actors.tokenizer import builders
from tests.actors.tokenizer.parts import codec_of

ROOT = pathlib.Path(__file__).resolve().parents[3]


def test_text_gets_the_post_processor_s_tokens_and_a_rendered_chat_does_not() -> None:
    codec = codec_of("llama")
    bos = codec.pieces.tokenizer.token_to_id(builders.BOS)
    assert codec.encode("Hello", add_special=True).tolist()[0] == bos
    assert bos not in codec.encode("Hello", add_special=False).tolist()
    assert codec.encode("<s>Hello", add_special=False).tolist()[0] == bos


def test_the_tokenizer_file_s_truncation_and_padding_are_off(tmp_path: pathlib.Path) -> None:
    tokenizer = Tokenizer.from_str(builders.byte_level().to_str())
    tokenizer.enable_truncation(3)
    tokenizer.enable_padding(length=50)
    codec = load_codec(builders.write_model(tmp_path, tokenizer))
    text = "Hello world, this is"
    assert codec.decode(codec.encode(text, add_special=True).tolist(), skip_special=True) == text


def test_a_directory_is_read(tmp_path: pathlib.Path) -> None:
    codec = load_codec(builders.write_model(tmp_path, builders.byte_level(), pad_token={"content": "<pad>"}))
    assert codec.special_tokens == {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    assert codec.eos == builders.byte_level().token_to_id("</s>")


def test_a_named_special_token_is_special_though_the_vocabulary_has_it_as_a_word(
    tmp_path: pathlib.Path,
) -> None:
    codec = load_codec(builders.write_model(tmp_path, builders.bare(), eos_token="dog"))
    assert codec.eos is not None
    assert codec.decode([codec.eos], skip_special=True) == ""


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, "holds no tokenizer"),
        ({"tokenizer.json": "{}"}, "is not a tokenizer that this version can read"),
        ({"tokenizer.json": "\x00"}, "is not a tokenizer that this version can read"),
        ({"vocab.json": "[]", "config.json": "{}"}, "cannot be converted"),
    ],
)
def test_a_directory_without_a_usable_tokenizer(
    files: dict[str, str], sentence: str, tmp_path: pathlib.Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(StartError, match=sentence):
        load_codec(tmp_path)


def test_an_older_format_is_converted(tmp_path: pathlib.Path) -> None:
    builders.byte_level().model.save(str(tmp_path))
    fields = {"tokenizer_class": "GPT2Tokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(fields))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    text = "Hello wörld 😀"
    ids = load_codec(tmp_path).encode(text, add_special=False).tolist()
    assert ids == codec_of("byte_level").encode(text, add_special=False).tolist()


def test_remote_code_is_never_run(tmp_path: pathlib.Path) -> None:
    builders.byte_level().model.save(str(tmp_path))
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Evil: pass\n")
    auto_map = {"AutoTokenizer": ["evil.Evil", "evil.Evil"], "AutoConfig": "evil.Evil"}
    for name in ("tokenizer_config.json", "config.json"):
        (tmp_path / name).write_text(json.dumps({"auto_map": auto_map, "tokenizer_class": "Evil"}))
    with pytest.raises(StartError):
        load_codec(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_neither_torch_nor_transformers_is_needed(tmp_path: pathlib.Path) -> None:
    builders.write_model(tmp_path, builders.byte_level(), template="x")
    code = (
        "import pathlib, sys, actors.tokenizer.actor\n"
        "from actors.tokenizer.codec import load_codec\n"
        f"load_codec(pathlib.Path({str(tmp_path)!r})).encode('Hello', add_special=True)\n"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_what_is_not_text_is_the_user_s_mistake() -> None:
    with pytest.raises(UserError, match="surrogate"):
        codec_of("byte_level").encode("\ud800", add_special=True)


def test_a_failure_of_the_library_is_an_error_of_ours() -> None:
    """A model without an unknown token cannot encode unknown words: the library raises plain Exception."""
    codec = Codec(Tokenizer(models.WordLevel({"a": 0}, unk_token="missing")), {})
    with pytest.raises(CodecError):
        codec.encode("b", add_special=True)


def test_special_tokens_of_all_files_and_names(tmp_path: pathlib.Path) -> None:
    (tmp_path / "special_tokens_map.json").write_text(
        json.dumps({"bos_token": "<old>", "unk_token": {"content": "<unk>"}, "additional": ["x"]})
    )
    config = {
        "bos_token": {"content": "<new>", "lstrip": False},
        "eos_token": None,
        "image_token": "<image>",
        "add_bos_token": True,
        "extra_special_tokens": {"video_token": "<video>"},
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert read_special_tokens(tmp_path) == {
        "bos_token": "<new>",
        "unk_token": "<unk>",
        "image_token": "<image>",
        "video_token": "<video>",
    }


def test_chat_templates_by_rank_of_their_files(tmp_path: pathlib.Path) -> None:
    assert read_chat_templates(tmp_path) == {}
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "third"}))
    assert read_chat_templates(tmp_path) == {"default": "third"}
    named = [{"name": "default", "template": "second"}, {"name": "tool_use", "template": "tools"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert read_chat_templates(tmp_path) == {"default": "second", "tool_use": "tools"}
    (tmp_path / "chat_template.jinja").write_text("first")
    assert read_chat_templates(tmp_path) == {"default": "first"}
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("with tools")
    assert read_chat_templates(tmp_path) == {"default": "first", "tool_use": "with tools"}


@pytest.mark.parametrize("text", ["[", "[]", '"x"'])
def test_broken_json_is_told(text: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(text)
    with pytest.raises(StartError, match=r"tokenizer_config\.json"):
        read_special_tokens(tmp_path)


def test_a_broken_template_file_is_told(tmp_path: pathlib.Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(StartError, match=r"chat_template\.jinja is not readable text"):
        read_chat_templates(tmp_path)
