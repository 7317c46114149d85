"""python3 -m unittest, where requirements.txt is installed"""

import asyncio
import unittest

from main import echo, greet


class Main(unittest.TestCase):
    def test_it_greets(self):
        self.assertEqual(asyncio.run(greet("you")), {"hello": "you"})

    def test_it_returns_what_it_was_sent(self):
        self.assertEqual(asyncio.run(echo({"a": 1})), {"you_sent": {"a": 1}})
