"""python3 -m unittest, where requirements.txt is installed"""

import unittest

from app import app


class App(unittest.TestCase):
    def test_it_greets(self):
        self.assertEqual(app.test_client().get("/?name=you").text, "hello, you\n")

    def test_it_returns_what_it_was_sent(self):
        self.assertEqual(app.test_client().post("/", json={"a": 1}).json, {"you_sent": {"a": 1}})
