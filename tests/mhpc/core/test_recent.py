import torch

from mhpc.core.calibration import FLOOR
from mhpc.core.recent import GUARD_AFTER, GUARD_SHARE, RECENT, Recent


def admitted(recent: Recent, *scores: float, guard: bool = True) -> list[bool]:
    return recent.admit(torch.tensor(scores), torch.zeros(len(scores), 4), 1.0, guard).tolist()


def ordinary(n: int) -> Recent:
    recent = Recent()
    admitted(recent, *(5 + 0.01 * (i % 7) for i in range(n)))
    return recent


def test_an_image_far_outside_the_recent_scores_is_not_admitted_unless_the_guard_is_off() -> None:
    assert admitted(ordinary(GUARD_AFTER), 5.0, 50.0) == [True, False]
    assert admitted(ordinary(GUARD_AFTER), 5.0, 50.0, guard=False) == [True, True]
    assert admitted(ordinary(GUARD_AFTER - 1), 50.0) == [True]


def test_where_nearly_all_scores_are_equal_rounding_alone_keeps_nobody_out() -> None:
    recent = Recent()
    admitted(recent, *[5e-7] * GUARD_AFTER)
    assert admitted(recent, 1e-5, FLOOR, 2 * FLOOR) == [True, True, False]


def test_a_lasting_change_is_admitted_in_the_end() -> None:
    recent = ordinary(RECENT)
    kept_out = [not admitted(recent, 50.0)[0] for _ in range(RECENT)]
    assert sum(kept_out) <= 2 * int(GUARD_SHARE * RECENT)
    assert not kept_out[-1]


def test_convergence_is_known_after_some_images_and_says_what_share_is_new() -> None:
    recent = Recent()
    assert recent.convergence(0.01) == (1.0, 0.01)
    distances = torch.full((GUARD_AFTER, 10), 0.5)
    recent.admit(torch.ones(GUARD_AFTER), distances, 1.0, True)
    assert recent.convergence(0.01).outside == 0
    assert recent.convergence(0.01).converged
    assert not recent.convergence(0.5).converged
    distances[:, 0] = 9.0
    recent.admit(torch.ones(GUARD_AFTER), distances, 1.0, True)
    assert abs(recent.convergence(0.0).outside - 0.05) < 1e-6
    assert not recent.convergence(0.0).converged


def test_to_a_bank_that_has_never_been_full_all_is_new() -> None:
    recent = Recent()
    recent.admit(torch.ones(40), torch.zeros(40, 4), 0.0, True)
    assert recent.convergence(0.0).outside == 1


def test_only_the_newest_are_remembered_and_the_state_goes_round() -> None:
    recent = ordinary(3 * RECENT)
    again = Recent.of_state(recent.state_dict())
    for name in Recent.STATE:
        assert len(getattr(recent, name)) == RECENT
        assert torch.equal(getattr(again, name), getattr(recent, name))


def test_who_is_set_aside_does_not_depend_on_how_many_are_judged_at_once() -> None:
    scores = 5 + 0.1 * torch.randn(1024, generator=torch.Generator().manual_seed(0))
    scores[torch.rand(1024, generator=torch.Generator().manual_seed(1)) < 0.08] = 50.0
    found = []
    for size in (8, 128):
        recent = ordinary(GUARD_AFTER)
        found.append(
            torch.cat([recent.admit(part, torch.zeros(len(part), 4), 1.0, True) for part in scores.split(size)])
        )
    assert torch.equal(*found)
    assert int((~found[0]).sum()) > 50
