"""The cache of a batch: it grows without holding itself twice, and says beforehand when it will not fit."""

import pytest
import torch

from omnilib.errors import LimitError
from omnilib.mouth import step
from omnilib.mouth.step import Stepper, one_thread


def test_unused_rows_are_zeros_so_that_a_mask_over_them_is_safe(tiny):
    stepper = Stepper(tiny(4), [torch.randint(11, (n, 5)) for n in (4, 9)], capacity=50)
    for keys, values in stepper.cache:
        assert keys.shape[2] == 59 and not keys[:, :, 9:].any() and not values[:, :, 9:].any()
    assert torch.isfinite(stepper.logits).all()


@pytest.mark.parametrize("lengths", [(9,), (9, 9), (4, 9)])
def test_several_rows_at_once_equal_one_by_one(tiny, lengths):
    model = tiny(4)
    prompts = [torch.randint(11, (n, 5), generator=torch.Generator().manual_seed(n)) for n in lengths]
    rows = torch.randint(11, (len(lengths), 7, 5), generator=torch.Generator().manual_seed(1))
    at_once, single = Stepper(model, prompts), Stepper(model, prompts)
    for row in rows.unbind(1):
        single.advance(row[:, None])
    torch.testing.assert_close(at_once.advance(rows), single.logits, atol=1e-3, rtol=1e-4)


def test_growing_holds_one_block_twice_and_not_the_whole_cache(tiny, monkeypatch):
    stepper = Stepper(tiny(4), [torch.randint(11, (4, 5))], capacity=8)
    held, plain = [], torch.zeros

    def zeros(*args, **kwargs):
        held.append([pair[0].shape[2] for pair in known if pair is not None])
        return plain(*args, **kwargs)

    known = stepper.cache
    monkeypatch.setattr(step.torch, "zeros", zeros)
    stepper.reserve(40)
    assert held == [[12] * n for n in (3, 2, 1)], "a block's old rows are let go before the next one grows"
    assert [keys.shape[2] for keys, _ in stepper.cache] == [40] * 3


def test_a_cache_beyond_memory_is_one_line_and_the_step_can_be_tried_again(tiny, monkeypatch):
    model, prompt = tiny(4), torch.randint(11, (4, 5))
    stepper, other = Stepper(model, [prompt], capacity=1), Stepper(model, [prompt])
    rows = torch.randint(11, (1, 1, 5))
    stepper.advance(rows)
    monkeypatch.setattr(step, "free_memory", lambda device: 1000)
    with pytest.raises(LimitError, match="rows of 1 texts need .* GiB are free") as error:
        stepper.advance(rows)
    assert "\n" not in str(error.value)
    with pytest.raises(LimitError, match="rows of 2 texts"):
        Stepper(model, [prompt, prompt])
    monkeypatch.undo()
    other.advance(rows)
    torch.testing.assert_close(stepper.advance(rows), other.advance(rows))


def test_the_cache_doubles_but_not_beyond_the_positions_of_the_model(tiny):
    model = tiny(4)
    model.config.max_position_embeddings = 1000
    stepper = Stepper(model, [torch.randint(11, (4, 5))], capacity=696)
    stepper.length = 700  # as if so many rows were known
    stepper.advance(torch.zeros(1, 1, 5, dtype=torch.long))
    assert stepper.capacity == 1212


def test_a_small_step_runs_on_one_thread_and_gives_the_others_back():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ZeroDivisionError), one_thread():
            assert torch.get_num_threads() == 1
            raise ZeroDivisionError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
