"""python3 -m unittest"""

import types
import unittest

from handler import handle


def event(method="GET", query=None, body=None):
    return types.SimpleNamespace(method=method, query=query or {}, json=lambda: body)


class Handler(unittest.TestCase):
    def test_it_greets(self):
        self.assertEqual(handle(event(query={"name": "you"}), None), "hello, you\n")

    def test_it_returns_what_it_was_sent(self):
        self.assertEqual(handle(event("POST", body={"a": 1}), None), {"you_sent": {"a": 1}})
