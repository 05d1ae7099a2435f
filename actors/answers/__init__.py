"""What a model's text means: thoughts, calls of functions, and the rest. Sans-I/O, incremental, no state but
the text.

pieces.py     what a text is taken apart into
thoughts.py   `<think> … </think>`
json_value.py where a JSON value ends, and one call written as a JSON object
calls.py      the formats in which models write calls
formats.py    which of them a model uses, recognised from its chat template
parser.py     all of it together

However a text is cut into deltas, the pieces say the same: each parser holds back just what could still
become something else. So whoever has lost a parser feeds a fresh one the same text.
"""
