#!/bin/sh
# Ask with curl: the whole answer, then the same streamed as server-sent events, then a part of the stream again.
#
#     sh examples/curl.sh "What is 20 + 3?"
set -eu
url=${TROUPE_URL:-http://127.0.0.1:8000/v1}
question=${1:-What is 12 + 30?}

fetch() {
    path=$1
    shift
    curl -sS --fail-with-body -N "$url/$path" -H "authorization: Bearer ${TROUPE_API_KEY:-none}" \
        -H 'content-type: application/json' "$@"
}

model=$(fetch models | sed 's/.*"data":\[{"id":"\([^"]*\)".*/\1/')
echo "--- the whole answer of $model:"
fetch chat/completions -d "{\"model\": \"$model\", \"temperature\": 0,
    \"messages\": [{\"role\": \"user\", \"content\": \"$question\"}]}"

echo
echo "--- streamed:"
events=$(mktemp)
trap 'rm -f "$events"' EXIT
fetch responses -d "{\"model\": \"$model\", \"temperature\": 0, \"stream\": true, \"input\": \"$question\"}" | tee "$events"

id=$(sed -n 's/.*"id":"\(resp_[0-9a-f_]*\)".*/\1/p' "$events" | head -n 1)
echo "--- the events of $id after number 5, again:"
fetch "responses/$id?stream=true&starting_after=5"
