"""Three conversations at once over one WebSocket: a lane answers in order, lanes run side by side.

python examples/websocket_lanes.py
"""

import os
from collections import defaultdict

from openai import OpenAI

TALKS = {
    "sums": ["What is 12 + 30?", "What is 20 + 3?"],
    "towns": ["What is the capital of France?", "What is the capital of Italy?"],
    "tales": ["Tell me a story about a river."],
}

client = OpenAI(
    base_url=os.environ.get("TROUPE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("TROUPE_API_KEY", "none"),
)
model = client.models.list().data[0].id


def ask(connection, lane, question, previous=None):
    """Send a turn; what the lane has said before is continued by the id of its last response."""
    connection.send(
        {
            "type": "response.create",
            "stream_id": lane,
            "model": model,
            "input": question,
            "previous_response_id": previous,
            "store": False,
            "temperature": 0,
            "max_output_tokens": 60,
        }
    )


with client.responses.connect() as connection:
    waiting = {lane: list(questions) for lane, questions in TALKS.items()}
    said = defaultdict(str)
    for lane in TALKS:
        ask(connection, lane, waiting[lane].pop(0))
    running = len(TALKS)
    for event in connection:
        lane = event.to_dict().get("stream_id")
        match event.type:
            case "response.output_text.delta":
                said[lane] += event.delta
            case "response.completed" | "response.incomplete":
                print(f"{lane}: {said.pop(lane)}")
                if waiting[lane]:
                    ask(connection, lane, waiting[lane].pop(0), previous=event.response.id)
                else:
                    running -= 1
            case "response.failed" | "error":
                raise SystemExit(f"{lane}: {event.to_dict()}")
        if not running:
            break
