"""The frontend actor: the Trio shell around the HTTP server, the engine's mail and the watch over others."""

from __future__ import annotations

import functools

import trio

from actors.frontend.access import Access
from actors.frontend.engine import Engine
from actors.frontend.finder import Finder
from actors.frontend.health import LOOK_EVERY, Health
from actors.frontend.live import Store
from actors.frontend.routes import Routes
from actors.frontend.service import Service, now
from actors.frontend.socket_mode import SocketMode
from protocols.board import Column
from protocols.config import Config
from protocols.errors import VerbError
from protocols.messages import FrontendMail
from protocols.orders import Answer, CountUsers, Done, Drain, Order, SetAdapters, Users
from runtime.actor import Context
from runtime.cores import give_way
from runtime.failpoints import reach
from runtime.http import HttpServer
from runtime.occupancy import Limits
from runtime.tls import server_context

accepts = FrontendMail


async def run(context: Context[FrontendMail]) -> None:
    """Serve `context.listener` until asked to stop, then finish what is open."""
    assert context.listener is not None and context.vault is not None, "a frontend is given both"
    give_way()
    engine = Engine(context.index, context.config, context.ledger, context.outbox, context.log, context.box)
    engine.slots.draining = context.standing.draining
    service = Service(context.config, engine, context.log, now())
    access = Access(context.config, context.vault, context.index)
    finder = Finder(
        engine, Store(), context.ledger, access.account, context.log, context.config.orphan_seconds
    )
    sockets = SocketMode(finder, access)
    health = Health(context.board, context.rows)
    routes = Routes(service, finder, access, sockets, health)
    server = HttpServer(routes, _limits(context.config), context.log, server_context(context.config))
    aborted = await finder.take_over()
    if aborted:
        context.log.info("orphans_aborted", choices=aborted)
    reach("frontend.recovered")
    engine.adapters.set(context.standing.adapters)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_mail, context, engine)
        nursery.start_soon(context.obey, functools.partial(_obey, context, engine))
        nursery.start_soon(engine.slots.reap)
        nursery.start_soon(finder.note)
        if engine.patience:
            nursery.start_soon(engine.expire)
        nursery.start_soon(_watch, context, engine, health, access, server, sockets)
        nursery.start_soon(_stop, context, sockets, server, engine)
        context.ready()
        await server.serve(context.listener)
        nursery.cancel_scope.cancel()


def _limits(config: Config) -> Limits:
    return Limits(
        head_seconds=config.head_seconds,
        body_bytes=config.max_body,
        bodies_bytes=config.max_bodies,
        body_seconds=config.body_seconds,
        idle_seconds=config.idle_seconds,
        write_seconds=config.write_seconds,
        max_connections=config.max_connections,
    )


async def _obey(context: Context[FrontendMail], engine: Engine, order: Order) -> Answer:
    """Carry out an order of the supervisor's."""
    match order:
        case SetAdapters(adapters):
            engine.adapters.set(adapters)
            return Done()
        case CountUsers(adapters):
            return Users(engine.users(adapters))
        case Drain(on):
            engine.slots.draining = on
            context.vitals[Column.OPEN_REQUESTS] = engine.open
            return Done()
        case _:
            raise VerbError("failed", "this is no order for a frontend.")


async def _mail(context: Context[FrontendMail], engine: Engine) -> None:
    while True:
        engine.deliver(await context.inbox.receive())
        context.worked()


async def _watch(
    context: Context[FrontendMail],
    engine: Engine,
    health: Health,
    access: Access,
    server: HttpServer,
    sockets: SocketMode,
) -> None:
    """Look at the board from time to time, and send again what a dead tokenizer may have lost."""
    while True:
        for name in health.look(trio.current_time()):
            if name.startswith("tokenizer."):
                await engine.resend(int(name.removeprefix("tokenizer.")))
        access.look_around()
        context.vitals[Column.CONNECTIONS] = server.connections
        context.vitals[Column.OPEN_REQUESTS] = engine.open
        context.vitals[Column.WEBSOCKETS] = sockets.open
        await trio.sleep(LOOK_EVERY)


async def _stop(
    context: Context[FrontendMail], sockets: SocketMode, server: HttpServer, engine: Engine
) -> None:
    """Finish what is open; what then still runs is left to the next incarnation where it can be resumed."""
    await context.stopping.wait()
    server.stop()
    sockets.stop()
    await trio.sleep(context.config.drain_seconds)
    engine.hand_over()
    server.cut()
