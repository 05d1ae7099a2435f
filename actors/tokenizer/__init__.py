"""The tokenizer actor: from messages to token ids on the way down, from token ids to text on the way up.

actor.py        mail in, mail out; short prompts on the event loop, long ones in threads
core.py         the state machine: open choices, aborts, refusals, recovery
prompt.py       a request's ids and complete sampling, or why it is refused
template.py     chat templates: messages made to fit, rendered as transformers renders them
sandbox.py      the Jinja environment behind them, in which nothing grows without bound
codec.py        the model's tokenizer, from `tokenizer.json` or converted from an older format
model_files.py  special tokens and chat templates in the files around it
pieces.py       what single tokens decode to, read off the tokenizer's decoder
detokenizer.py  tokens to text, exactly, as soon as it can no longer change
stops.py        stop strings, never leaked in part
stream.py       one choice: rows of tokens in, rows of text out
recovery.py     what the ledger gives back: lost rows, and whole streams after a restart
outgoing.py     mail that never waits, joined while a ring is full
"""
