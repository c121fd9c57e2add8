"""What stays of a turn: once, whoever says so first."""

import threading

from omnilib.history import Turn

ASKED = {"role": "user", "content": ["hi"]}


def test_a_turn_is_kept_once_and_may_be_told_again():
    messages = []
    turn = Turn(messages, ASKED)
    turn.keep(" all is good ")
    turn.keep("something else")
    assert messages == [ASKED, {"role": "assistant", "content": "all is good"}] and turn.over
    turn.keep("all is", again=True)
    assert messages == [ASKED, {"role": "assistant", "content": "all is"}]


def test_a_turn_that_was_dropped_is_not_kept():
    messages = []
    turn = Turn(messages, ASKED)
    turn.drop()
    turn.keep("all is good")
    assert messages == [] and turn.over


def test_many_threads_keep_one_turn():
    messages = []
    turn = Turn(messages, ASKED)
    threads = [threading.Thread(target=turn.keep, args=(str(n),)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(messages) == 2


def test_a_handler_that_keeps_the_turn_while_it_is_being_kept_changes_nothing():
    """As Ctrl-C does, in the same thread."""

    class Interrupted(dict):
        def __setitem__(self, key, value):
            super().__setitem__(key, value)
            if value != "again":
                turn.keep("again")

    messages = []
    turn = Turn(messages, ASKED)
    turn.told = Interrupted(turn.told)
    turn.keep("all is good")
    assert messages == [ASKED, {"role": "assistant", "content": "all is good"}]
