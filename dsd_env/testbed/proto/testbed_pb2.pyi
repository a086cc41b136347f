from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Mode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODE_UNSPECIFIED: _ClassVar[Mode]
    VERIFY: _ClassVar[Mode]
    FREE_RUN: _ClassVar[Mode]
    PLAIN: _ClassVar[Mode]
    COLOCATED: _ClassVar[Mode]

class RefusalCode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REFUSAL_UNSPECIFIED: _ClassVar[RefusalCode]
    MALFORMED: _ClassVar[RefusalCode]
    FOREIGN_SESSION: _ClassVar[RefusalCode]
    REPLAYED: _ClassVar[RefusalCode]
    CONTRADICTION: _ClassVar[RefusalCode]
    FLOOD: _ClassVar[RefusalCode]
    TOO_LARGE: _ClassVar[RefusalCode]
    BUSY: _ClassVar[RefusalCode]
    UNEXPECTED: _ClassVar[RefusalCode]
MODE_UNSPECIFIED: Mode
VERIFY: Mode
FREE_RUN: Mode
PLAIN: Mode
COLOCATED: Mode
REFUSAL_UNSPECIFIED: RefusalCode
MALFORMED: RefusalCode
FOREIGN_SESSION: RefusalCode
REPLAYED: RefusalCode
CONTRADICTION: RefusalCode
FLOOD: RefusalCode
TOO_LARGE: RefusalCode
BUSY: RefusalCode
UNEXPECTED: RefusalCode

class EdgeMessage(_message.Message):
    __slots__ = ("request_id", "sequence", "open", "drafts", "close")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    DRAFTS_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    sequence: int
    open: DraftOpen
    drafts: DraftTailStream
    close: DraftClose
    def __init__(self, request_id: _Optional[str] = ..., sequence: _Optional[int] = ..., open: _Optional[_Union[DraftOpen, _Mapping]] = ..., drafts: _Optional[_Union[DraftTailStream, _Mapping]] = ..., close: _Optional[_Union[DraftClose, _Mapping]] = ...) -> None: ...

class DraftOpen(_message.Message):
    __slots__ = ("secret", "prompt_token_ids", "committed_outputs", "max_new_tokens", "temperature", "seed", "prompt_text", "reply_prefix")
    SECRET_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TEXT_FIELD_NUMBER: _ClassVar[int]
    REPLY_PREFIX_FIELD_NUMBER: _ClassVar[int]
    secret: bytes
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    committed_outputs: _containers.RepeatedScalarFieldContainer[int]
    max_new_tokens: int
    temperature: float
    seed: int
    prompt_text: str
    reply_prefix: str
    def __init__(self, secret: _Optional[bytes] = ..., prompt_token_ids: _Optional[_Iterable[int]] = ..., committed_outputs: _Optional[_Iterable[int]] = ..., max_new_tokens: _Optional[int] = ..., temperature: _Optional[float] = ..., seed: _Optional[int] = ..., prompt_text: _Optional[str] = ..., reply_prefix: _Optional[str] = ...) -> None: ...

class DraftTailStream(_message.Message):
    __slots__ = ("mode", "window", "generation", "base_committed_len", "base_digest", "start_token_pos", "tokens", "run_until_len")
    MODE_FIELD_NUMBER: _ClassVar[int]
    WINDOW_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    BASE_COMMITTED_LEN_FIELD_NUMBER: _ClassVar[int]
    BASE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    START_TOKEN_POS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    RUN_UNTIL_LEN_FIELD_NUMBER: _ClassVar[int]
    mode: Mode
    window: int
    generation: int
    base_committed_len: int
    base_digest: int
    start_token_pos: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    run_until_len: int
    def __init__(self, mode: _Optional[_Union[Mode, str]] = ..., window: _Optional[int] = ..., generation: _Optional[int] = ..., base_committed_len: _Optional[int] = ..., base_digest: _Optional[int] = ..., start_token_pos: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ..., run_until_len: _Optional[int] = ...) -> None: ...

class DraftClose(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class CloudMessage(_message.Message):
    __slots__ = ("request_id", "sequence", "sync", "commit", "close", "refusal")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SYNC_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    sequence: int
    sync: DraftSync
    commit: VerifyCommit
    close: DraftClose
    refusal: Refusal
    def __init__(self, request_id: _Optional[str] = ..., sequence: _Optional[int] = ..., sync: _Optional[_Union[DraftSync, _Mapping]] = ..., commit: _Optional[_Union[VerifyCommit, _Mapping]] = ..., close: _Optional[_Union[DraftClose, _Mapping]] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ...) -> None: ...

class DraftSync(_message.Message):
    __slots__ = ("server_instance", "committed_outputs", "committed_digest", "generation", "finished", "finish_reason", "max_window")
    SERVER_INSTANCE_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_DIGEST_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    MAX_WINDOW_FIELD_NUMBER: _ClassVar[int]
    server_instance: str
    committed_outputs: _containers.RepeatedScalarFieldContainer[int]
    committed_digest: int
    generation: int
    finished: bool
    finish_reason: str
    max_window: int
    def __init__(self, server_instance: _Optional[str] = ..., committed_outputs: _Optional[_Iterable[int]] = ..., committed_digest: _Optional[int] = ..., generation: _Optional[int] = ..., finished: _Optional[bool] = ..., finish_reason: _Optional[str] = ..., max_window: _Optional[int] = ...) -> None: ...

class VerifyCommit(_message.Message):
    __slots__ = ("pre_verify_committed_len", "committed_tokens", "committed_digest", "generation", "finished", "finish_reason", "drafts_verified", "drafts_accepted", "iterations", "idle_iterations", "late_drafts", "batch_sequences", "resident_sequences", "waiting_requests", "iteration_s", "echo_sequence", "hold_s")
    PRE_VERIFY_COMMITTED_LEN_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_DIGEST_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    DRAFTS_VERIFIED_FIELD_NUMBER: _ClassVar[int]
    DRAFTS_ACCEPTED_FIELD_NUMBER: _ClassVar[int]
    ITERATIONS_FIELD_NUMBER: _ClassVar[int]
    IDLE_ITERATIONS_FIELD_NUMBER: _ClassVar[int]
    LATE_DRAFTS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    WAITING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    ITERATION_S_FIELD_NUMBER: _ClassVar[int]
    ECHO_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    HOLD_S_FIELD_NUMBER: _ClassVar[int]
    pre_verify_committed_len: int
    committed_tokens: _containers.RepeatedScalarFieldContainer[int]
    committed_digest: int
    generation: int
    finished: bool
    finish_reason: str
    drafts_verified: int
    drafts_accepted: int
    iterations: int
    idle_iterations: int
    late_drafts: int
    batch_sequences: int
    resident_sequences: int
    waiting_requests: int
    iteration_s: float
    echo_sequence: int
    hold_s: float
    def __init__(self, pre_verify_committed_len: _Optional[int] = ..., committed_tokens: _Optional[_Iterable[int]] = ..., committed_digest: _Optional[int] = ..., generation: _Optional[int] = ..., finished: _Optional[bool] = ..., finish_reason: _Optional[str] = ..., drafts_verified: _Optional[int] = ..., drafts_accepted: _Optional[int] = ..., iterations: _Optional[int] = ..., idle_iterations: _Optional[int] = ..., late_drafts: _Optional[int] = ..., batch_sequences: _Optional[int] = ..., resident_sequences: _Optional[int] = ..., waiting_requests: _Optional[int] = ..., iteration_s: _Optional[float] = ..., echo_sequence: _Optional[int] = ..., hold_s: _Optional[float] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("code", "reason", "refused_sequence")
    CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    REFUSED_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    code: RefusalCode
    reason: str
    refused_sequence: int
    def __init__(self, code: _Optional[_Union[RefusalCode, str]] = ..., reason: _Optional[str] = ..., refused_sequence: _Optional[int] = ...) -> None: ...

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("server_instance", "resident_sequences", "waiting_requests", "iterations", "committed_tokens", "refused_messages")
    SERVER_INSTANCE_FIELD_NUMBER: _ClassVar[int]
    RESIDENT_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    WAITING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    ITERATIONS_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_MESSAGES_FIELD_NUMBER: _ClassVar[int]
    server_instance: str
    resident_sequences: int
    waiting_requests: int
    iterations: int
    committed_tokens: int
    refused_messages: int
    def __init__(self, server_instance: _Optional[str] = ..., resident_sequences: _Optional[int] = ..., waiting_requests: _Optional[int] = ..., iterations: _Optional[int] = ..., committed_tokens: _Optional[int] = ..., refused_messages: _Optional[int] = ...) -> None: ...
