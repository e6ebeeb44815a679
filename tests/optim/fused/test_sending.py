"""What is sent to a device: tables once, settings from place after place. The device is a pretence: see tests/gpu."""

from array import array
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_pdyn.optim.fused import sending
from hf_pdyn.optim.fused.sending import Here, KnownTables, Mailbox, here

CPU = Here(torch.device("cpu"), 0, capturing=False)
GPU = Here(torch.device("cuda", 0), 0, capturing=False)


def test_tables_are_kept_and_the_oldest_given_up() -> None:
    made: list[int] = []
    tables, many = KnownTables(), sending._MANY_TABLES

    def get(number: int) -> Tensor:
        return tables.get(number, lambda: made.append(number) or torch.tensor(number), CPU)

    for number in (*range(many), 0, many, 0, 1):
        assert get(number).item() == number
    assert made == [*range(many + 1), 1]  # 0 was in use, so 1 was the oldest


class Host:
    """Stands for a table on the host; `sent` for what became of it."""

    def __init__(self) -> None:
        self.sent = torch.empty(0)

    def pin_memory(self) -> "Host":
        return self

    def to(self, device: torch.device, *, non_blocking: bool) -> Tensor:
        assert device.type == "cuda" and non_blocking
        return self.sent


def test_a_stream_has_its_own_tables_and_a_capture_those_that_are_there() -> None:
    tables = KnownTables()
    first, second, third = Host(), Host(), Host()
    assert tables.get("a", lambda: first, GPU) is first.sent
    assert tables.get("a", lambda: second, GPU) is first.sent
    other = GPU._replace(stream=1)
    assert tables.get("a", lambda: second, other) is second.sent
    assert tables.get("a", lambda: third, other) is second.sent
    capture = GPU._replace(stream=2, capturing=True)
    assert tables.get("a", lambda: third, capture) is second.sent
    with pytest.raises(RuntimeError, match=r"must find its tensors where the step before had them.*set_to_none=False"):
        tables.get("b", lambda: third, capture)
    assert tables._for_graphs == {second.sent}


def test_where_kernels_are_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    assert here(torch.device("cpu")) == CPU
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=7))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert here(GPU.device) == Here(GPU.device, 7, capturing=True)


class Event:
    """Stands for an event of the device, whose waits and records go into `seen`."""

    def __init__(self, number: int, seen: list[Any]) -> None:
        self.number, self.seen = number, seen

    def record(self) -> None:
        self.seen.append(("record", self.number))

    def synchronize(self) -> None:
        self.seen.append(("wait", self.number))


def test_a_place_is_written_again_when_its_copy_was_taken() -> None:
    """Each half of the places waits for the record at its own end, and that was half a round ago."""
    seen: list[Any] = []
    mailbox, half = Mailbox(3, CPU.device), sending._PLACES // 2
    mailbox._taken = [Event(number, seen) for number in (0, 1)]
    at = set()
    for number in range(5 * half):
        sent = mailbox.send(array("f", [number] * 3))
        assert mailbox.send(array("f", [number] * 3)) is sent  # as in a second pass: nothing is sent again
        assert sent.tolist() == [number] * 3
        at.add(sent.data_ptr())
        seen.append(number)
    assert len(at) == 1
    marks = [mark for mark in seen if isinstance(mark, tuple)]
    assert marks == [(what, half_of % 2) for half_of in range(5) for what in ("wait", "record")]
    assert seen.index(("record", 0)) == half and seen.index(("wait", 1)) == half + 2
    assert [int(place[0]) for place in mailbox._places[:half]] == list(range(4 * half, 5 * half))
