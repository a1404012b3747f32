"""The files of sockets, of a service in the sandbox: which are removed at the stop."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from capstore.service import landlock
from tests.tools.command import capstore, serving


def test_sockets_beside_the_state_stay_behind_and_the_next_start_replaces_them() -> None:
    with tempfile.TemporaryDirectory(prefix="capstore-") as name:
        state, metrics = Path(name) / "state", Path(name) / "metrics"
        inner = state / "inner"
        for _ in range(2):
            # The second one finds what the first one left behind.
            more = ("--metrics", f"unix:{metrics}", "--listen", f"unix:{inner}", "--sandbox")
            with serving("m=memory:", "--state", state, *more) as served:
                shown = capstore("top", state, "--once", "--interval", "0.1", "--json")
                assert json.loads(shown.ok())["now"]["connections"] == 0
                beside = [served.socket, metrics]
                assert all(path.is_socket() for path in [inner, *beside])
                assert served.stop() == 0
                assert "Traceback" not in served.log
                told = [f"the socket {path} stays behind at the stop" for path in beside]
                assert [line in served.log for line in told] == [True, True]
                assert served.log.count(" stays behind at the stop") == 2
                if landlock.abi() >= landlock.ABI_MIN:
                    assert all(path.is_socket() for path in beside)
                assert not inner.exists()
                assert not (state / "metrics").exists()
