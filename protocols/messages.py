"""Every message between actors, and which actor accepts which.

The wire is array-shaped msgpack with a one-byte tag (`protocols.wire`). A request travels down as
Generate (frontend -> tokenizer) and Submit (tokenizer -> [balancer ->] scheduler); what it produced
travels up as Tokens (scheduler -> tokenizer, one message a step) and Deltas (tokenizer ->
frontend). Rows carry *positions*, so that a row seen twice, or late, is recognised and dropped.
"""

from __future__ import annotations

import msgspec

from protocols.errors import ErrorBody
from protocols.grammar import Rules
from protocols.plan import ExecutorReady, Logprobs, Plan, PromptOutput, StepDone
from protocols.request import Finish, OutputOptions, Prompt, Usage
from protocols.sampling import SamplingParams
from protocols.wire import Message as Message


class Generate(Message, frozen=True, array_like=True, tag=1):
    """A validated request, frontend -> tokenizer.

    rids: one id for each of the n choices; the first one names the request. origin: index of the
    frontend that wants the answer. trace: W3C traceparent, "" for none. arrived_ns: monotonic clock.
    client: what a frontend needs to take this answer up after the death of the one that asked, opaque to
    everybody else; b"" where the client's protocol cannot resume. A request with it is answered at once
    by a row without tokens, which says that the ledger has the request. default_tokens: where sampling has no
    max_tokens, so many (or min_tokens) as far as the context goes; 0 for all that it leaves. truncate: only
    the last so many tokens of the prompt count; -1 for as many as fit, 0 for all. rules: what the text must
    be, of which the tokenizer makes `sampling.grammar`. adapter: id of the LoRA adapter, 0 for none.
    """

    rids: tuple[int, ...]
    origin: int
    prompt: Prompt
    sampling: SamplingParams
    output: OutputOptions = OutputOptions()
    priority: int = 0
    salt: str = ""
    trace: str = ""
    arrived_ns: int = 0
    client: bytes = b""
    default_tokens: int = 0
    truncate: int = 0
    rules: Rules = Rules()
    adapter: int = 0


class Submit(Message, frozen=True, array_like=True, tag=2):
    """A tokenised choice, tokenizer -> scheduler, by way of the balancer where there are replicas.

    tokens: prompt ids, little-endian int32. sampling: complete (seed, max_tokens and EOS ids filled in).
    origin: index of the tokenizer that wants the tokens. dispatch: the balancer's running number of
    this submission to this replica, 0 without a balancer. adapter: see Generate. whole: its tokens may come
    many at a time, as nobody looks at them before the last.
    """

    rid: int
    origin: int
    choice: int
    tokens: bytes
    sampling: SamplingParams
    priority: int = 0
    salt: str = ""
    trace: str = ""
    arrived_ns: int = 0
    dispatch: int = 0
    adapter: int = 0
    whole: bool = False


class Abort(Message, frozen=True, array_like=True, tag=3):
    """Nobody wants this choice any more. Down the company on the control ring; idempotent; not answered."""

    rid: int


class StopHere(Message, frozen=True, array_like=True, tag=4):
    """A stop string was found, tokenizer -> scheduler: the choice ends with its first `length` output
    tokens; later ones are waste. The scheduler frees it; the tokenizer has already told the client."""

    rid: int
    length: int


class TokenRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """New tokens of one choice; outside the garbage collector's count, as thousands are made in a step
    and none can be part of a cycle. start: index of the first of them among the output tokens.
    logprobs: one for each token, or empty. cached: prompt tokens served from the prefix cache. prompt_output:
    with the first row, where the request asks for it."""

    rid: int
    start: int
    tokens: tuple[int, ...]
    finish: Finish = Finish.NONE
    cached: int = 0
    logprobs: tuple[Logprobs, ...] = ()
    stop_token: int = -1
    error: ErrorBody | None = None
    prompt_output: PromptOutput | None = None


class Tokens(Message, frozen=True, array_like=True, tag=5):
    """What one step produced for the requests of one tokenizer, scheduler -> tokenizer."""

    rows: tuple[TokenRow, ...]


class TextLogprob(msgspec.Struct, frozen=True, array_like=True):
    """Logprobs of one token in text form: (text, bytes, logprob) of the chosen token and of the top.

    ids: of the chosen token, then of the top. rank: see Logprobs. The first token of a prompt, which nothing
    predicts, has a logprob that is not a number.
    """

    token: tuple[str, bytes, float]
    top: tuple[tuple[str, bytes, float], ...] = ()
    ids: tuple[int, ...] = ()
    rank: int = 0


class TextRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """New text of one choice; like TokenRow, none of the garbage collector's business.

    offset: number of characters of this choice that came before `text`, so that a row replayed after
    a recovery is cut where it overlaps. tokens: output tokens so far. usage comes with the first row
    and the last. stop: the stop string or stop token that ended it. first_token: index of the token that
    logprobs[0] and token_ids[0] speak of.

    Where the request lists its prompt, the rows with `tokens` 0 do, and their `first_token` is one of the
    prompt's. The text of a pooled hidden state is the base64 of its bytes.

    pieces: where `text` comes of several tokens, the number of characters that each settled, so that
    it can be told apart again token by token: of those with text, or of all where the row lists them.
    """

    rid: int
    offset: int
    text: str
    tokens: int
    finish: Finish = Finish.NONE
    stop: str | int | None = None
    usage: Usage | None = None
    first_token: int = 0
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TextLogprob, ...] = ()
    error: ErrorBody | None = None
    pieces: tuple[int, ...] = ()


class Deltas(Message, frozen=True, array_like=True, tag=6):
    """New text for the requests of one frontend, tokenizer -> frontend."""

    rows: tuple[TextRow, ...]


class Refused(Message, frozen=True, array_like=True, tag=7):
    """A request that never ran (bad template, prompt too long), tokenizer -> frontend; all its choices."""

    rid: int
    error: ErrorBody


class Replay(Message, frozen=True, array_like=True, tag=8):
    """A frontend takes up an answer that another process asked for, frontend -> tokenizer: all its rows are
    sent to frontend `origin` from the start, and every new one too. Refused when the request is gone."""

    rid: int
    origin: int


class Encode(Message, frozen=True, array_like=True, tag=9):
    """Tokenise a prompt and nothing more, frontend -> tokenizer; answered by Encoded.

    number: the frontend's own, which no two questions share. add_special: whether text gets the model's
    special tokens, None for as a generation would have it. names: the vocabulary's entries too.
    """

    number: int
    origin: int
    prompt: Prompt
    add_special: bool | None = None
    names: bool = False


class Decode(Message, frozen=True, array_like=True, tag=10):
    """The text of tokens (int32 bytes), frontend -> tokenizer; answered by Decoded. number: see Encode."""

    number: int
    origin: int
    tokens: bytes
    skip_special: bool = False


class Encoded(Message, frozen=True, array_like=True, tag=11):
    """Answer to Encode: int32 ids, and the vocabulary's entry of each where asked for; or why not."""

    number: int
    tokens: bytes = b""
    names: tuple[str, ...] = ()
    error: ErrorBody | None = None


class Decoded(Message, frozen=True, array_like=True, tag=12):
    """Answer to Decode; or why there is none."""

    number: int
    text: str = ""
    error: ErrorBody | None = None


FrontendMail = Deltas | Refused | Encoded | Decoded
TokenizerMail = Generate | Abort | Tokens | Replay | Encode | Decode
BalancerMail = Submit | Abort | StopHere
SchedulerMail = Submit | Abort | StopHere | StepDone | ExecutorReady
ExecutorMail = Plan

CONTROL = (Abort, StopHere)
"""Mail that goes by the small control ring, so that a flood of data never delays it."""
