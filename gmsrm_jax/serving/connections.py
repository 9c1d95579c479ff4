"""Connections guarded as by a proxy: from clients that are silent, send nonsense, send on after their answer, or never
read it."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_PATIENCE = 30.0  # seconds that an answered client may go on sending, or read nothing


class Connection(H11Protocol):
  """A connection that is closed unless the head of a request comes within the time between two requests."""

  def connection_made(self, transport: Any) -> None:
    """Starts the clock for the first request, too."""
    super().connection_made(transport)
    self.timeout_keep_alive_task = self.loop.call_later(self.timeout_keep_alive, self.timeout_keep_alive_handler)

  def data_received(self, data: bytes) -> None:
    """Reads on; only a whole head stops the clock, not its first byte."""
    self.conn.receive_data(data)
    self.handle_events()

  def pause_writing(self) -> None:
    """Starts the clock of an answer that waits in memory until the client reads it."""
    super().pause_writing()
    self.loop.call_later(_PATIENCE, self._drop_unread, self.transport.get_write_buffer_size())

  def _drop_unread(self, before: int) -> None:
    """Lets go of an answer of which nothing was read since `before` bytes were left."""
    left = self.transport.get_write_buffer_size()
    if left >= before:
      self.transport.abort()
    elif left:
      self.loop.call_later(_PATIENCE, self._drop_unread, left)

  def send_400_response(self, msg: str) -> None:
    """Refuses what is no HTTP; where an answer is under way or was given, no other can follow."""
    if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
      super().send_400_response(msg)
    if self.cycle:
      self.cycle.disconnected = True
    self.transport.close()


def hear_out(app: Any) -> Any:
  """Wraps an ASGI application: a body that was not read when the answer was sent is read, and dropped.

  A connection that is closed while its client still sends is reset, and many a client then never sees the answer.
  """

  async def wrapped(scope: Any, receive: Any, send: Any) -> None:
    headers = dict(scope.get("headers", ()))
    unread = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers

    async def hear() -> Any:
      nonlocal unread
      message = await receive()
      unread = unread and message.get("more_body", False)
      return message

    async def answer(message: Any) -> None:
      begins = message["type"] == "http.response.start"
      if unread and begins:
        message = message | {"headers": [*message["headers"], (b"connection", b"close")]}
      if not unread or begins or message.get("more_body"):
        return await send(message)
      await send(message | {"more_body": True})
      try:
        async with asyncio.timeout(_PATIENCE):
          while unread:
            await hear()
      except (TimeoutError, asyncio.CancelledError):
        pass  # the server is being ended
      await send({"type": "http.response.body"})

    await app(scope, hear, answer)

  return wrapped
