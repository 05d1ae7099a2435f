"""Stream a chat completion over HTTP with the openai client.

python examples/http_stream.py "Tell me a story."
"""

import os
import sys

from openai import OpenAI

client = OpenAI(
    base_url=os.environ.get("TROUPE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("TROUPE_API_KEY", "none"),
)
model = client.models.list().data[0].id
question = " ".join(sys.argv[1:]) or "What is 12 + 30?"

stream = client.chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": question}],
    temperature=0,
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    if chunk.usage:
        print(flush=True)
        print(f"[{chunk.usage.completion_tokens} tokens]", file=sys.stderr)
