"""The demo model's tokenizer: byte-level BPE with single digits, and its chat template.

Digits are tokens of their own, because sums need them; every other text falls apart into bytes in
the worst case, so that any UTF-8 comes back unchanged. The chat template is ChatML with the
`<tool_call>` convention of Hermes. It renders alike with and without Jinja's `trim_blocks`.
"""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

CONTEXT = 2048
VOCAB_SIZE = 4096

BOS = "<|endoftext|>"
PAD = "<|pad|>"
START = "<|im_start|>"
END = "<|im_end|>"
SPECIAL = (BOS, PAD, START, END)

CHAT_TEMPLATE = """\
{%- macro text(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- elif content is iterable and content is not mapping -%}
        {%- for part in content -%}
            {%- if part is string -%}
                {{- part -}}
            {%- elif part is mapping and part.text is string -%}
                {{- part.text -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- set parts = namespace(system='', rest=messages) -%}
{%- if messages and messages[0].role in ['system', 'developer'] -%}
    {%- set parts.system = text(messages[0].content) -%}
    {%- set parts.rest = messages[1:] -%}
{%- endif -%}
{%- if tools -%}
    {{- '<|im_start|>system\\n' -}}
    {%- if parts.system -%}
        {{- parts.system + '\\n\\n' -}}
    {%- endif -%}
    {{- 'You may call these functions:\\n<tools>\\n' -}}
    {%- for tool in tools -%}
        {{- (tool.function if tool.function is defined else tool) | tojson -}}
        {{- '\\n' -}}
    {%- endfor -%}
    {{- '</tools>\\nTo call one, answer with <tool_call>\\n' -}}
    {{- '{"name": ..., "arguments": {...}}\\n</tool_call><|im_end|>\\n' -}}
{%- elif parts.system -%}
    {{- '<|im_start|>system\\n' + parts.system + '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in parts.rest -%}
    {%- if message.role in ['user', 'system', 'developer', 'tool', 'assistant'] -%}
        {%- set role = 'system' if message.role == 'developer' else message.role -%}
        {{- '<|im_start|>' + role + '\\n' + text(message.content) -}}
        {%- if role == 'assistant' and message.tool_calls -%}
            {%- for call in message.tool_calls -%}
                {%- set function = call.function if call.function is defined else call -%}
                {%- if message.content or not loop.first -%}
                    {{- '\\n' -}}
                {%- endif -%}
                {{- '<tool_call>\\n{"name": ' -}}
                {{- function.name | tojson -}}
                {{- ', "arguments": ' -}}
                {%- if function.arguments is string -%}
                    {{- function.arguments -}}
                {%- else -%}
                    {{- function.arguments | tojson -}}
                {%- endif -%}
                {{- '}\\n</tool_call>' -}}
            {%- endfor -%}
        {%- endif -%}
        {{- '<|im_end|>\\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


def train_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Learn the merges from `texts`; the result has exactly `VOCAB_SIZE` tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        max_token_length=16,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": END,
        "pad_token": PAD,
        "add_bos_token": False,
        "add_eos_token": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
        "chat_template": CHAT_TEMPLATE,
    }
    text = json.dumps(config, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
