"""The cloud server: takes RPCs, knows requests, refuses what it must, and lets the engine run.

Whoever sends nonsense is told why and loses its RPC, nothing else: a request belongs to whoever knows its
secret (and has the name under which it was opened, where clients have names), the engine sees checked
messages only, and what one client can hold is limited. An answer is made when it can be sent, of all that is
new, so that a client that does not read costs nothing.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from dsd_env.extras import needs
from dsd_env.sim.events import EventKind
from dsd_env.testbed.drafters import LineMaker
from dsd_env.testbed.engine import Engine, EngineConfig
from dsd_env.testbed.log import EventLog
from dsd_env.testbed.sessions import Session
from dsd_env.testbed.target import PackedTarget
from dsd_env.testbed.wire import SERVICE, Limits, MessageBudget, Prefix, Refused, check_open, pb

with needs("testbed", "the testbed"):
    import grpc
    import grpc.aio

logger = logging.getLogger(__name__)
#: Status of an RPC that ends with a refusal.
STATUS = {
    pb.FOREIGN_SESSION: grpc.StatusCode.PERMISSION_DENIED,
    pb.FLOOD: grpc.StatusCode.RESOURCE_EXHAUSTED,
    pb.TOO_LARGE: grpc.StatusCode.RESOURCE_EXHAUSTED,
    pb.BUSY: grpc.StatusCode.UNAVAILABLE,
    pb.UNEXPECTED: grpc.StatusCode.FAILED_PRECONDITION,
}
#: RPCs that one owner may begin: on the average per second, and at once.
OPENS = Limits(max_messages_per_s=20.0, message_burst=100)
#: Owners whose budget is remembered.
OWNERS = 1024


class _Attachment:
    """One RPC of a session."""

    def __init__(self) -> None:
        self.wake = asyncio.Event()
        self.superseded = False
        self.needs_sync = True
        self.needs_commit = False
        self.closed = ""
        self.heard_s = time.monotonic()
        self.sent = 0


class CloudServer:
    """The service. :meth:`serving` runs it."""

    def __init__(
        self,
        model: Any,
        stop_ids: frozenset[int],
        *,
        limits: Limits | None = None,
        engine: EngineConfig | None = None,
        tokens: Mapping[str, str] | None = None,
        colocated: LineMaker | None = None,
        log: EventLog | None = None,
    ) -> None:
        """Make a server.

        Args:
            model: The target, a transformers causal language model.
            stop_ids: Tokens that end an output.
            limits: What clients may do.
            engine: Caps of the engine.
            tokens: Bearer token of each client by its name; None: none is asked for.
            colocated: Makes drafters that run here.
            log: Where events go.
        """
        self.limits = limits or Limits()
        self.instance = secrets.token_hex(8)
        config = model.config.get_text_config()
        self._vocabulary = int(config.vocab_size)
        self._positions = getattr(config, "max_position_embeddings", None)
        self._failed = False
        self._stop_ids = stop_ids
        self._tokens = None if tokens is None else dict(tokens)
        self._log = log or EventLog(side="cloud")
        self._sessions: dict[str, Session] = {}
        self._attached: dict[str, _Attachment] = {}
        self._left_s: dict[str, float] = {}
        self._quota_of: dict[str, str] = {}
        self._opens: OrderedDict[str, MessageBudget] = OrderedDict()
        self._numbers = 0
        self.port = 0
        self.refusals: Counter[str] = Counter()
        self._engine = Engine(
            PackedTarget(model), stop_ids, engine or EngineConfig(), self._log, self._committed, colocated
        )

    @asynccontextmanager
    async def serving(
        self, address: str = "127.0.0.1:0", credentials: grpc.ServerCredentials | None = None
    ) -> AsyncIterator[int]:
        """Serve at an address, and give its port.

        Args:
            address: Host and port; port 0 takes a free one.
            credentials: TLS, see :func:`server_credentials`; None: none.
        """
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", self.limits.max_message_bytes),
                ("grpc.max_metadata_size", 8192),
                ("grpc.so_reuseport", 0),
            ],
            maximum_concurrent_rpcs=4 * self.limits.max_sessions,
        )
        # The bytes come as they are, so that a message that cannot be read is refused with a reason like any
        # other.
        handlers = {
            "Serve": grpc.stream_stream_rpc_method_handler(
                self._serve, response_serializer=pb.CloudMessage.SerializeToString
            ),
            "Status": grpc.unary_unary_rpc_method_handler(
                self._status,
                request_deserializer=pb.StatusRequest.FromString,
                response_serializer=pb.StatusReply.SerializeToString,
            ),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        if credentials is None:
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, credentials)
        self.port = port
        await server.start()
        tasks = [asyncio.create_task(self._run_engine()), asyncio.create_task(self._sweep())]
        try:
            yield port
        finally:
            await server.stop(None)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _run_engine(self) -> None:
        try:
            await self._engine.run()
        except Exception:
            logger.exception("the engine failed; all requests end")
            self._failed = True
            for request_id in list(self._sessions):
                self._forget(request_id, "the engine failed")

    # ------------------------------------------------------------------ RPCs

    def _name(self, context: Any) -> tuple[str, str]:
        """Return a client's authenticated name, or "", and what its share is counted under.

        Raises:
            PermissionError: It has no valid token where one is asked for.
        """
        host = str(context.peer()).rsplit(":", 1)[0]
        name = ""
        if self._tokens is not None:
            metadata = dict(context.invocation_metadata() or ())
            given = str(metadata.get("authorization", "")).encode()
            for owner, token in self._tokens.items():
                if hmac.compare_digest(given, f"Bearer {token}".encode()):
                    name = f"token:{owner}"
            if not name:
                raise PermissionError("no valid bearer token")
        common = context.auth_context().get("x509_common_name")
        if common:
            name += f"cert:{common[0].decode(errors='replace')}"
        return name, name or host

    async def _status(self, _: pb.StatusRequest, context: Any) -> pb.StatusReply:
        try:
            self._name(context)
        except PermissionError as error:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
        stats = self._engine.stats
        return pb.StatusReply(
            server_instance=self.instance,
            resident_sequences=self._engine.resident,
            waiting_requests=self._engine.waiting,
            iterations=stats.iterations,
            committed_tokens=stats.committed_tokens,
            refused_messages=self.refusals.total(),
        )

    async def _serve(self, _: Any, context: Any) -> None:
        """One RPC, from its first message to its end."""
        try:
            owner, quota = self._name(context)
        except PermissionError as error:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, str(error))
        message = pb.EdgeMessage()
        attachment: _Attachment | None = None
        try:
            self._count_open(quota)
            try:
                raw = await asyncio.wait_for(context.read(), self.limits.handshake_s)
            except TimeoutError:
                raise Refused(pb.UNEXPECTED, "no DraftOpen came in time") from None
            if raw is grpc.aio.EOF:
                return
            message = parse(raw)
            session, attachment = self._open(message, raw, owner, quota)
            await self._converse(session, attachment, context)
        except Refused as refusal:
            self.refusals[pb.RefusalCode.Name(refusal.code)] += 1
            logger.info("refused a message: %s", refusal.reason)
            answer = pb.Refusal(code=refusal.code, reason=refusal.reason, refused_sequence=message.sequence)
            await context.write(pb.CloudMessage(request_id=message.request_id[:64], refusal=answer))
            context.set_code(STATUS.get(refusal.code, grpc.StatusCode.INVALID_ARGUMENT))
            # Once more with the status: a client that is still sending may not get the message.
            context.set_details(f"{pb.RefusalCode.Name(refusal.code)}: {refusal.reason}")
        finally:
            if attachment is not None and self._attached.get(session.request_id) is attachment:
                del self._attached[session.request_id]
                self._left_s[session.request_id] = time.monotonic()

    async def _converse(self, session: Session, attachment: _Attachment, context: Any) -> None:
        """Read messages and write answers until one side ends."""
        reader = asyncio.create_task(self._read(session, attachment, context))
        try:
            while not attachment.superseded:
                answer = self._answer(session, attachment)
                if answer is not None:
                    await context.write(answer)
                    if answer.WhichOneof("body") == "close":
                        return
                    continue
                if reader.done():
                    break
                wake = asyncio.create_task(attachment.wake.wait())
                await asyncio.wait({reader, wake}, return_when=asyncio.FIRST_COMPLETED)
                wake.cancel()
                attachment.wake.clear()
            if reader.done():
                reader.result()
        finally:
            reader.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await reader

    async def _read(self, session: Session, attachment: _Attachment, context: Any) -> None:
        budget = MessageBudget(self.limits, time.monotonic())
        while (raw := await context.read()) is not grpc.aio.EOF:
            budget.spend(time.monotonic())
            if attachment.superseded:
                return
            message = parse(raw)
            if message.request_id != session.request_id:
                raise Refused(pb.FOREIGN_SESSION, "this RPC is for another request")
            attachment.heard_s = time.monotonic()
            if not session.guard.is_new(message.sequence, raw):
                session.counters.duplicates += 1
                self._log.write(EventKind.DUPLICATE, 0, session.number, 0)
                attachment.needs_sync |= message.WhichOneof("body") == "open"
                attachment.needs_commit = True
            elif self._take(session, attachment, message):
                return
            attachment.wake.set()

    def _take(self, session: Session, attachment: _Attachment, message: pb.EdgeMessage) -> bool:
        """Take a new message of a session; return whether it was the last."""
        body = message.WhichOneof("body")
        if body == "close":
            self._forget(session.request_id, "")
            return True
        if body != "drafts":
            raise Refused(pb.UNEXPECTED, f"{body or 'an empty message'} in an RPC that is open")
        drafts = message.drafts
        if drafts.mode == pb.COLOCATED and not self._engine.can_draft:
            raise Refused(pb.UNEXPECTED, "there is no drafter here")
        streamed, late = session.mode == pb.FREE_RUN, session.counters.late_drafts
        if session.take(message.sequence, drafts):
            attachment.needs_sync = True
            return False
        if session.counters.late_drafts > late:
            self._log.write(EventKind.LATE_DRAFTS, 0, session.number, session.counters.late_drafts - late)
        if (session.mode == pb.FREE_RUN) != streamed:
            kind = EventKind.STREAM_CLOSE if streamed else EventKind.STREAM_OPEN
            self._log.write(kind, 0, session.number, session.generation if streamed else session.window)
        behind = drafts.base_committed_len < len(session.prefix)
        # A stream that sends drafts is told of results as they come; others ask because they have missed one.
        attachment.needs_commit |= behind and not (drafts.mode == pb.FREE_RUN and len(drafts.tokens) > 0)
        self._engine.wake()
        return False

    def _answer(self, session: Session, attachment: _Attachment) -> pb.CloudMessage | None:
        """Return what there is to say, if there is anything."""
        answer = pb.CloudMessage(request_id=session.request_id, sequence=attachment.sent + 1)
        if attachment.closed:
            answer.close.reason = attachment.closed
        elif attachment.needs_sync:
            attachment.needs_sync = attachment.needs_commit = False
            answer.sync.CopyFrom(
                pb.DraftSync(
                    server_instance=self.instance,
                    committed_outputs=session.prefix.tokens,
                    committed_digest=session.prefix.digest(),
                    generation=session.generation,
                    finished=session.finished,
                    finish_reason=session.finish_reason,
                    max_window=self.limits.max_window,
                )
            )
        elif attachment.needs_commit:
            attachment.needs_commit = False
            counters, stats = session.counters, self._engine.stats
            answer.commit.CopyFrom(
                pb.VerifyCommit(
                    pre_verify_committed_len=session.acknowledged,
                    committed_tokens=session.prefix.tokens[session.acknowledged :],
                    committed_digest=session.prefix.digest(),
                    generation=session.generation,
                    finished=session.finished,
                    finish_reason=session.finish_reason,
                    drafts_verified=counters.drafts_verified,
                    drafts_accepted=counters.drafts_accepted,
                    iterations=counters.iterations,
                    idle_iterations=counters.idle_iterations,
                    late_drafts=counters.late_drafts,
                    batch_sequences=stats.batch_sequences,
                    resident_sequences=self._engine.resident,
                    waiting_requests=self._engine.waiting,
                    iteration_s=stats.iteration_s,
                    echo_sequence=session.guard.newest,
                    hold_s=time.monotonic() - attachment.heard_s,
                )
            )
        else:
            return None
        attachment.sent += 1
        return answer

    # ------------------------------------------------------------------ sessions

    def _count_open(self, quota: str) -> None:
        """Count an RPC of an owner, who may not begin any number of them."""
        budget = self._opens.pop(quota, None) or MessageBudget(OPENS, time.monotonic())
        self._opens[quota] = budget
        while len(self._opens) > OWNERS:
            self._opens.popitem(last=False)
        budget.spend(time.monotonic())

    def _open(
        self, message: pb.EdgeMessage, raw: bytes, owner: str, quota: str
    ) -> tuple[Session, _Attachment]:
        """Return the session that an RPC is for: a new one, or one taken up again."""
        opened = check_open(message, self.limits, self._vocabulary)
        session = self._sessions.get(message.request_id)
        if session is None:
            session = self._new_session(message.request_id, opened, owner, quota)
        elif not session.knows(opened.secret, owner):
            raise Refused(pb.FOREIGN_SESSION, "the request is somebody else's, or the secret is wrong")
        elif session.prompt != list(opened.prompt_token_ids):
            raise Refused(pb.MALFORMED, "the request is known with another prompt")
        old = self._attached.get(message.request_id)
        if old is not None:
            old.superseded = True
            old.wake.set()
        session.attach()
        session.guard.is_new(message.sequence, raw)
        attachment = self._attached[message.request_id] = _Attachment()
        self._left_s.pop(message.request_id, None)
        return session, attachment

    def _new_session(self, request_id: str, opened: pb.DraftOpen, owner: str, quota: str) -> Session:
        if self._failed:
            raise Refused(pb.UNEXPECTED, "the engine has failed")
        length = len(opened.prompt_token_ids) + opened.max_new_tokens
        if self._positions is not None and length > self._positions:
            raise Refused(pb.TOO_LARGE, f"{length} tokens; the target has {self._positions} positions")
        if len(self._sessions) >= self.limits.max_sessions:
            raise Refused(pb.BUSY, f"{self.limits.max_sessions} requests are known, no more are taken")
        if sum(q == quota for q in self._quota_of.values()) >= self.limits.max_sessions_per_owner:
            raise Refused(
                pb.BUSY, f"{self.limits.max_sessions_per_owner} requests of one owner, no more are taken"
            )
        prompt = list(opened.prompt_token_ids)
        session = Session(
            number=self._numbers,
            request_id=request_id,
            secret=opened.secret,
            owner=owner,
            prompt=prompt,
            max_new_tokens=opened.max_new_tokens,
            temperature=opened.temperature,
            seed=opened.seed,
            limits=self.limits,
            vocabulary=self._vocabulary,
            prefix=Prefix(prompt, opened.committed_outputs),
            prompt_text=(opened.prompt_text, opened.reply_prefix),
        )
        if len(session.prefix) >= session.max_new_tokens:
            session.finish_reason = "length"
        elif not self._engine.fits(session):
            raise Refused(pb.TOO_LARGE, "prompt and output need more KV than there is")
        else:
            self._engine.add(session)
        self._numbers += 1
        self._sessions[request_id] = session
        self._quota_of[request_id] = quota
        self._log.write(EventKind.ARRIVAL, 0, session.number, len(prompt), request_id=request_id)
        return session

    def _forget(self, request_id: str, reason: str) -> None:
        """End a session; ``reason`` is what its client is told, if it is to be told."""
        session = self._sessions.pop(request_id, None)
        if session is None:
            return
        self._quota_of.pop(request_id, None)
        self._left_s.pop(request_id, None)
        self._engine.remove(session)
        attachment = self._attached.get(request_id)
        if attachment is not None and reason:
            attachment.closed = reason
            attachment.wake.set()

    def _committed(self, session: Session) -> None:
        attachment = self._attached.get(session.request_id)
        if attachment is not None:
            attachment.needs_commit = True
            attachment.wake.set()
        if session.finished:
            self._log.write(EventKind.COMPLETE, 0, session.number, len(session.prefix))

    async def _sweep(self) -> None:
        """Forget requests whose clients have not come back, or say nothing (honest ones do: they retry)."""
        while True:
            await asyncio.sleep(min(1.0, self.limits.session_ttl_s / 4))
            now = time.monotonic()
            for request_id, left_s in list(self._left_s.items()):
                if now - left_s > self.limits.session_ttl_s:
                    self._forget(request_id, "")
            for request_id, attachment in list(self._attached.items()):
                if now - attachment.heard_s > self.limits.session_ttl_s:
                    self._forget(request_id, "nothing was heard of the client")


def parse(raw: bytes) -> pb.EdgeMessage:
    """Return a message from its bytes.

    Raises:
        Refused: They are none.
    """
    message = pb.EdgeMessage()
    try:
        message.ParseFromString(raw)
        return message
    except Exception as error:  # protobuf's DecodeError, and what its C library may raise beside it
        raise Refused(pb.MALFORMED, "the bytes are no EdgeMessage") from error


def server_credentials(key: Path, certificate: Path, clients: Path | None = None) -> grpc.ServerCredentials:
    """Return TLS credentials of a server.

    Args:
        key: Its private key, PEM.
        certificate: Its certificate chain, PEM.
        clients: Authority of the clients' certificates, PEM: then every client must have one. None: no
            client is asked for one.
    """
    authority = None if clients is None else clients.read_bytes()
    return grpc.ssl_server_credentials(
        [(key.read_bytes(), certificate.read_bytes())], authority, require_client_auth=authority is not None
    )
