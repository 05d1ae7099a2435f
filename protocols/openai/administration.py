"""Bodies of the administrative HTTP names, as the tools that call them send them.

A field is called as the verb calls it, and its `name` is what HTTP calls it. What a body does not hold is the
verb's own default; fields of other engines are ignored, as everywhere.
"""

from __future__ import annotations

import enum
from typing import Annotated, Any

import msgspec
from msgspec import field

from protocols.openai.generation import Int
from protocols.orders import Activity
from protocols.standing import Memory, PauseMode


def _words(kind: type[enum.StrEnum]) -> msgspec.Meta:
    """The document names the words; the verb refuses others with a better sentence than a type has."""
    return msgspec.Meta(extra_json_schema={"enum": [each.value for each in kind]})


Mode = Annotated[str, _words(PauseMode)]
Tag = Annotated[str, _words(Memory)]
Work = Annotated[str, _words(Activity)]


class AdminBody(msgspec.Struct, kw_only=True):
    """What every body may hold. timeout: seconds that it may take."""

    timeout: float | None = None


class LoadAdapter(AdminBody, kw_only=True):
    """`/v1/load_lora_adapter`."""

    name: str = field(name="lora_name")
    path: str = field(name="lora_path")
    pinned: bool | None = None
    replace: bool | None = field(default=None, name="load_inplace")


class UnloadAdapter(AdminBody, kw_only=True):
    """`/v1/unload_lora_adapter`."""

    name: str = field(name="lora_name")
    drain: bool | None = None


class PauseGeneration(AdminBody, kw_only=True):
    """`/pause_generation`."""

    mode: Mode | None = None


class ChangeWeights(AdminBody, kw_only=True):
    """What every change of weights may hold; see `actors.control.change.Manner`."""

    version: str | None = field(default=None, name="weight_version")
    mode: str | None = None
    dry_run: bool | None = None
    allow_nonfinite: bool | None = None


class UpdateFromDisk(ChangeWeights, kw_only=True):
    """`/update_weights_from_disk`."""

    source: str = field(name="model_path")
    abort: bool | None = field(default=None, name="abort_all_requests")


class UpdateFromTensor(ChangeWeights, kw_only=True):
    """`/update_weights_from_tensor`. pickled: refused, whatever it is."""

    path: str | None = None
    pickled: Any = field(default=None, name="serialized_named_tensors")


class InitGroup(AdminBody, kw_only=True):
    """`/init_weights_update_group`."""

    group: str = field(name="group_name")
    address: str = field(name="master_address")
    port: Int = field(name="master_port")
    world_size: Int
    rank_offset: Int | None = None
    backend: str | None = None


class DestroyGroup(AdminBody, kw_only=True):
    """`/destroy_weights_update_group`."""

    group: str = field(name="group_name")


class UpdateFromGroup(ChangeWeights, kw_only=True):
    """`/update_weights_from_distributed`."""

    group: str = field(name="group_name")
    names: list[str]
    dtypes: list[str]
    shapes: list[list[Int]]
    receive_timeout: float | None = None


class GetWeights(AdminBody, kw_only=True):
    """`/get_weights_by_name`."""

    name: str
    count: Int | None = field(default=None, name="truncate_size")


class AbortRequest(AdminBody, kw_only=True):
    """`/abort_request`."""

    ids: str | list[str] | None = field(default=None, name="rid")
    all: bool | None = field(default=None, name="abort_all")


class OpenSession(AdminBody, kw_only=True):
    """`/open_session`. capacity: tokens. timeout: seconds for which it is kept when nobody uses it."""

    id: str | None = field(default=None, name="session_id")
    capacity: int | None = field(default=None, name="capacity_of_str_len")


class CloseSession(AdminBody, kw_only=True):
    """`/close_session`."""

    id: str = field(name="session_id")


class Occupation(AdminBody, kw_only=True):
    """`/release_memory_occupation`, `/resume_memory_occupation`."""

    tags: list[Tag] | None = None


class Sleep(AdminBody, kw_only=True):
    """`/sleep`. mode: what becomes of running requests; they may end unless said otherwise."""

    mode: Mode | None = None


class SlowDown(AdminBody, kw_only=True):
    """`/slow_down`."""

    seconds: float | None = field(default=None, name="forward_sleep_time")


class StartProfile(AdminBody, kw_only=True):
    """`/start_profile`."""

    folder: str | None = field(default=None, name="output_dir")
    steps: Int | None = field(default=None, name="num_steps")
    activities: list[Work] | None = None
    stacks: bool | None = field(default=None, name="with_stack")
    shapes: bool | None = field(default=None, name="record_shapes")
    actors: list[str] | None = None


class InternalState(AdminBody, kw_only=True):
    """`/set_internal_state`."""

    settings: dict[str, str | Int | float | None] = field(name="server_args")


class Sleeping(msgspec.Struct, frozen=True):
    """Answer of `/is_sleeping`."""

    is_sleeping: bool


class Carried(msgspec.Struct, frozen=True, kw_only=True):
    """An answer: the verb's own fields stand beside `success`."""

    success: bool
