"""PyFilesystem2's own tests of a filesystem, over a connection, for each kind of volume."""

from __future__ import annotations

import shutil
import tempfile
import unittest
from contextlib import ExitStack

import pytest
from fs.test import FSTestCases

from capstore.service.pyfs import CapstoreFS
from capstore.service.uri import CapabilityURI
from tests.service.support import running_service


class _Suite(FSTestCases):
    # unittest dropped this name in Python 3.12.
    assertRaisesRegexp = unittest.TestCase.assertRaisesRegex  # noqa: N815

    spec: str
    tls = False
    uri: CapabilityURI
    held: ExitStack

    @classmethod
    def setUpClass(cls) -> None:
        cls.held = ExitStack()
        folder = tempfile.mkdtemp(prefix="capstore-test-")
        cls.held.callback(shutil.rmtree, folder)
        specs = {"v": cls.spec.format(folder=folder)}
        service = cls.held.enter_context(running_service(specs, tls=cls.tls))
        cls.uri = service.tls_uri("v") if cls.tls else service.uri("v")

    @classmethod
    def tearDownClass(cls) -> None:
        cls.held.close()

    def make_fs(self) -> CapstoreFS:
        filesystem = CapstoreFS(self.uri, timeout=30)
        filesystem.removetree("/")
        return filesystem


class TestMemory(_Suite, unittest.TestCase):
    spec = "memory:"


@pytest.mark.long
class TestMemoryOverTLS(_Suite, unittest.TestCase):
    spec = "memory:"
    tls = True


class TestHostDirectory(_Suite, unittest.TestCase):
    spec = "dir:{folder}"


class TestWf1(_Suite, unittest.TestCase):
    spec = "wf1:{folder}/image,create"


@pytest.mark.long
class TestWf1OfAFixedSize(_Suite, unittest.TestCase):
    spec = "wf1:{folder}/image,create,size=16MiB"
