"""A watch that goes on: after a cut it resumes; where it can't it lists again and reports only the difference.

    for response in follow(client, WatchRequest(kinds=["port"])):
        …

Nothing is missed and nothing is told twice, on any replica, as long as the process lives.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import grpc

from tealnet.client import ApiError, Client
from tealnet.v1 import system_pb2

_Type = system_pb2.WatchResponse.Type
_AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED)
_FIRST, _LONGEST = 0.1, 5.0  # seconds between tries


def _silent(_: ApiError) -> None:
    pass


def follow(
    client: Client,
    request: system_pb2.WatchRequest,
    *,
    patience: float = 60.0,
    cut: Callable[[ApiError], None] = _silent,
) -> Iterator[system_pb2.WatchResponse]:
    """Changes as `Watch` sends them, over cuts of the connection and of a reader that was too slow.

    `cut` hears of each. Raises ApiError when the request is refused, or when there was no connection for `patience`
    seconds.
    """
    follower = _Follower(request)
    pause, since = _FIRST, time.monotonic()
    while True:
        try:
            for response in client.watch(follower.request()):
                pause, since = _FIRST, time.monotonic()
                yield from follower.take(response)
            return
        except ApiError as error:
            expired = error.code is grpc.StatusCode.OUT_OF_RANGE and error.reason == "RESUME_EXPIRED"
            known = follower.started
            if not known or (error.code not in _AGAIN and not expired) or time.monotonic() - since > patience:
                raise
            cut(error)
            if expired:
                follower.begin_again()
            else:
                time.sleep(pause)
                pause = min(2 * pause, _LONGEST)


class _Follower:
    """What has been told so far."""

    def __init__(self, request: system_pb2.WatchRequest) -> None:
        self._asked = request
        self._revision = request.resume_revision  # everything up to here has been told
        self._objects: dict[str, system_pb2.Object] = {}
        self._listed: set[str] | None = None  # names of a list that is under way
        self._synced = bool(request.resume_revision)
        self._catching_up = False
        self._told_synced = False
        self.started = False

    def request(self) -> system_pb2.WatchRequest:
        """To go on from here; what there is, where there is nothing to go on from."""
        request = system_pb2.WatchRequest()
        request.CopyFrom(self._asked)
        request.resume_revision = self._revision if self._synced else 0
        self._listed = None if request.resume_revision else set()
        self._catching_up = self.started
        return request

    def begin_again(self) -> None:
        """List again: what was missed can no longer be told."""
        self._synced = False

    def take(self, response: system_pb2.WatchResponse) -> Iterator[system_pb2.WatchResponse]:
        """What of a response is news."""
        self.started = True
        if response.type == _Type.TYPE_SYNCED:
            self._revision = max(self._revision, response.revision)
            yield from self._gone(response.revision)
            self._synced, self._catching_up = True, False
            if not self._told_synced:
                self._told_synced = True
                yield response
        elif response.type == _Type.TYPE_BOOKMARK:
            self._revision = max(self._revision, response.revision)
            yield response
        elif self._is_news(response):
            # A transaction has several changes; until a later one comes it may not have been told whole.
            self._revision = max(self._revision, response.revision - 1)
            yield response

    def _is_news(self, response: system_pb2.WatchResponse) -> bool:
        """Notes the object; after a cut, what has been told before is none."""
        which = response.object.WhichOneof("object")
        if which is None:
            return False
        name = getattr(response.object, which).name
        before = self._objects.get(name)
        if response.type == _Type.TYPE_DELETED:
            self._objects.pop(name, None)
            return before is not None or not self._catching_up
        if self._listed is not None:
            self._listed.add(name)
        self._objects[name] = response.object
        if before is not None and response.type == _Type.TYPE_ADDED:
            response.type = _Type.TYPE_MODIFIED
        return not self._catching_up or before != response.object

    def _gone(self, revision: int) -> Iterator[system_pb2.WatchResponse]:
        """What a list that has ended did not hold any more."""
        if self._listed is not None:
            for name in [name for name in self._objects if name not in self._listed]:
                last = self._objects.pop(name)
                yield system_pb2.WatchResponse(type=_Type.TYPE_DELETED, revision=revision, object=last)
        self._listed = None
