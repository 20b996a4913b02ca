"""Every finding: figures that must raise it, figures that must not, the form of its sentence."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from numpyro_rwpo.diagnostics.diagnosis import stuck_share
from numpyro_rwpo.diagnostics.evidence import Evidence
from numpyro_rwpo.diagnostics.findings import find, find_remarks
from numpyro_rwpo.diagnostics.importance import Coverage
from numpyro_rwpo.diagnostics.jumps import Jumps
from numpyro_rwpo.diagnostics.measurements import (
    Chain,
    Coordinate,
    CorrectedChain,
    CorrectedCoordinate,
    CorrectedMeasurements,
    Measurements,
    RunSettings,
    SlowestStatistics,
    SteinFigures,
)
from numpyro_rwpo.diagnostics.modes import Mode
from numpyro_rwpo.diagnostics.report import Report
from numpyro_rwpo.diagnostics.stein import SteinDiscrepancy
from numpyro_rwpo.diagnostics.tables import formatted
from numpyro_rwpo.diagnostics.thresholds import max_z

TRANSPORT = {
    "num_gradients": 1000,
    "transport_residual": 0.05,
    "transport_steps": 20,
    "transport_at_rest": True,
}
SETTINGS = RunSettings(
    is_corrected=True,
    attention="copula",
    num_chains=2,
    num_draws=1000,
    num_samples=1000,
    num_particles=64,
    num_warmup=200,
    dim=2,
    target_accept_prob=0.8,
    inverse_temperature=1.0,
    is_normalized=True,
    share_of_finite_draws=1.0,
)
COMMON: dict[str, Any] = {
    "coverage": Coverage(k_hat=0.3, efficiency=0.2, num_proposals=4000, num_fitted=64),
    "evidence": Evidence(
        k_hat=0.2,
        log_evidence=-3.0,
        standard_error=0.01,
        method="importance sampling",
        efficiency=0.8,
    ),
    "stein": SteinFigures(
        discrepancy=SteinDiscrepancy(squared=0.0, upper=0.1, p_value=0.5, num_draws=1000),
        virial=(1.0, 1.05),
        force=(0.0, 0.01),
        worst_virial=1.05,
        worst_virial_z=2.0,
        worst_virial_name="a",
        worst_force=0.01,
        worst_force_z=1.0,
        worst_force_name="b",
    ),
    "laplace_sites": {"a": "known location and scale: split off, closed forms"},
}


def sound() -> Measurements:
    """Figures of a corrected run without fault."""
    chain = CorrectedChain(
        **TRANSPORT,
        r_hat=1.001,
        ess_bulk=900.0,
        ess_tail=850.0,
        accept_prob=0.8,
        num_divergences=0,
        placement="descent",
        warmup_gradients=4000,
        warmup_gradients_in_a_row=60,
        warmup_updates=12,
        is_settled=True,
        metric="dense",
        flow="harmonic",
        step_size=0.5,
        steps_per_trajectory=3,
        is_trajectory_cut=False,
        trajectories_per_draw=2,
        jumps_per_draw=0,
        gradients_per_draw=6,
        share_stuck=0.0,
    )
    values = {"mean": 0.0, "sd": 1.0, "r_hat": 1.001, "ess_bulk": 4e3, "ess_tail": 4e3}
    return CorrectedMeasurements(
        settings=SETTINGS,
        coordinates=[CorrectedCoordinate(name=name, **values) for name in ("a", "b<1>")],
        chains=[chain, chain],
        mixing=SlowestStatistics(
            draws_per_particle=15,
            correlation=0.1,
            correlation_error=0.02,
            slowest="a squared",
            drift_z=1.0,
            drifting="b",
            num_statistics=5,
        ),
        **COMMON,
    )


def noise_free() -> Measurements:
    """Figures of noise-free particles without fault."""
    return Measurements(
        settings=dataclasses.replace(SETTINGS, is_corrected=False),
        coordinates=[Coordinate(name=name, mean=0.0, sd=1.0) for name in ("a", "b<1>")],
        chains=[Chain(**TRANSPORT), Chain(**TRANSPORT)],
        mixing=None,
        **COMMON,
    )


def changed(path: str, value: Any, base: Any = None) -> Any:
    """Figures with one entry, named by fields and indices between dots, set to ``value``."""
    base = sound() if base is None else base
    name, _, rest = path.partition(".")
    if isinstance(base, list):
        index = int(name)
        return [changed(rest, value, x) if k == index else x for k, x in enumerate(base)]
    inner = changed(rest, value, getattr(base, name)) if rest else value
    replace = dataclasses.replace if dataclasses.is_dataclass(base) else type(base)._replace
    return replace(base, **{name: inner})


def bridged() -> Measurements:
    return changed("evidence.method", "bridge sampling")


def deviating() -> Measurements:
    """Figures of a corrected run that violates every one of Stein's identities."""
    figures = changed("stein.worst_force_z", 9.0, changed("stein.worst_virial_z", -9.0))
    return changed("stein.discrepancy.p_value", 0.001, figures)


def biased() -> Measurements:
    """Figures of noise-free particles that are too narrow."""
    return changed("stein.virial", (0.5, 1.0), noise_free())


CASES = [
    ("settings.share_of_finite_draws", 0.99, "finite draws", sound),
    ("settings.num_chains", 1, "chains", sound),
    ("coordinates.1.r_hat", 1.03, "R-hat", sound),
    ("coordinates.1.r_hat", float("nan"), "R-hat", sound),
    ("coordinates.1.sd", 0.0, "constant", sound),
    ("coordinates.0.ess_tail", 150.0, "ESS", sound),
    ("chains.1.is_settled", False, "warm-up", sound),
    ("mixing.correlation", 0.99, "slow particles", sound),
    ("chains.1.share_stuck", 0.02, "stuck particles", sound),
    ("mixing.drift_z", -6.0, "drift", sound),
    ("chains.0.num_divergences", 3, "divergences", sound),
    ("chains.0.accept_prob", 0.3, "acceptance", sound),
    ("chains.0.is_trajectory_cut", True, "step size", sound),
    ("stein.worst_virial_z", -7.0, "Stein identity", sound),
    ("stein.worst_force_z", 7.0, "Stein identity", sound),
    ("stein.discrepancy.p_value", 0.001, "Stein discrepancy", sound),
    ("stein.jumps", Jumps(0.1, 1.5, "a"), "jumps", deviating),
    ("stein.jumps", Jumps(0.1, float("inf"), "a"), "jumps", deviating),
    ("stein.jumps", Jumps(0.1, 1.5, "a"), "jumps", biased),
    ("settings.num_samples", 2000, "repeats", noise_free),
    ("chains.0.transport_at_rest", False, "transport", noise_free),
    ("stein.virial", (0.8, 1.0), "spread", noise_free),
    ("coverage.k_hat", 0.9, "k-hat", noise_free),
    ("evidence.standard_error", float("inf"), "evidence", noise_free),
]
# What concerns the evidence and the fitted densities only, and casts no doubt on the draws.
REMARKS = [
    ("coverage.k_hat", 0.9, "k-hat", sound),
    ("coverage.k_hat", float("inf"), "k-hat", bridged),
    ("coverage.k_hat", float("nan"), "k-hat", sound),
    ("coverage.efficiency", 0.001, "k-hat", sound),
    ("evidence.standard_error", 0.5, "evidence", bridged),
    ("evidence.standard_error", float("nan"), "evidence", bridged),
]


def test_sound_runs_raise_nothing():
    assert find(sound()) == []
    assert find(bridged()) == []
    assert find(noise_free()) == []
    # Tails beyond the outermost particle, in few dimensions: nothing to worry about.
    assert find(changed("coverage.k_hat", 0.9, changed("coverage.efficiency", 0.8))) == []
    assert "Nothing here casts doubt on" in str(Report(sound(), find(sound())))


def assert_has_three_parts(sentence):
    assert sentence.endswith(".")
    seen, *meaning, change = sentence.split("; ")
    assert seen and meaning and change, sentence


@pytest.mark.parametrize(("path", "value", "about", "base"), CASES)
def test_each_fault_is_found_in_a_sentence_of_three_parts(path, value, about, base):
    figures = changed(path, value, base())
    found = find(figures)
    assert [finding.about for finding in found] == [about]
    (sentence,) = (finding.sentence for finding in found)
    assert_has_three_parts(sentence)
    assert find_remarks(figures) == []
    report = Report(figures, found)
    assert about in str(report)
    assert "b&lt;1&gt;" in report._repr_html_()
    assert report.to_dict()["findings"] == [{"about": about, "sentence": sentence}]


@pytest.mark.parametrize(("path", "value", "about", "base"), REMARKS)
def test_what_concerns_the_evidence_is_no_reason_to_doubt_the_draws(path, value, about, base):
    figures = changed(path, value, base())
    assert find(figures) == []
    (remark,) = find_remarks(figures)
    assert remark.about == about
    assert_has_three_parts(remark.sentence)
    report = Report(figures, [], [remark])
    text = str(report)
    assert (
        text.index("Nothing here casts doubt")
        < text.index("not the draws:")
        < text.index(f"[{about}]")
    )
    assert f"<b>{about}</b>" in report._repr_html_()
    assert report.to_dict()["remarks"] == [{"about": about, "sentence": remark.sentence}]
    assert report.to_dict()["findings"] == []


def test_numbers_are_short_however_large():
    """A figure that overflows must not be printed with all its 300 digits."""
    huge = {"worst_virial_z": -4.5e307, "worst_virial": 1e200, "worst_force_z": float("inf")}
    figures = sound()
    for name, value in huge.items():
        figures = changed(f"stein.{name}", value, figures)
    for name in ("mean", "sd", "r_hat", "ess_bulk", "ess_tail"):
        figures = changed(f"coordinates.0.{name}", 1e300, figures)
    figures = changed("mixing.drift_z", 1e250, figures)
    figures = changed("evidence.log_evidence", -1e100, figures)
    text = str(Report(figures, find(figures)))
    assert max(map(len, text.split())) < 40
    assert "-4.50e+307" in text
    assert [formatted(1234.5, ",.1f"), formatted(1e300, "+.1f")] == ["1,234.5", "+1.00e+300"]


def test_divergences_at_a_border_are_those_of_trajectories_across_it():
    border = changed("stein.jumps", Jumps(0.05, float("inf"), "a"), deviating())
    found = find(changed("chains.0.num_divergences", 700, border))
    assert [finding.about for finding in found] == ["divergences", "jumps"]
    assert_has_three_parts(found[0].sentence)
    assert "across a border of the support" in found[0].sentence
    assert "curves" not in found[0].sentence


def test_noise_free_reports_say_that_r_hat_does_not_apply():
    text = str(Report(noise_free(), []))
    assert "R-hat and ESS do not apply" in text
    assert "r_hat" not in text
    assert "R-hat and ESS do not apply" in Report(noise_free(), [])._repr_html_()


def test_the_column_of_the_whole_run_has_what_counts_between_chains():
    figures = changed("coordinates.1.r_hat", 1.234)
    for name, value in {"num_divergences": 2, "accept_prob": 0.7, "flow": "exact"}.items():
        figures = changed(f"chains.1.{name}", value, figures)
    rows = {row[0]: row[1:] for row in Report(figures, []).tables()[0].rows}
    assert rows["R-hat, worst (a chain: its halves)"] == ["1.001", "1.001", "1.234"]
    assert rows["bulk ESS, worst"] == ["900", "900", "4,000"]
    assert rows["divergent draws"] == ["0", "2", "2"]
    assert rows["acceptance"] == ["0.80", "0.70", "0.70 to 0.80"]
    assert rows["gradient evaluations"] == ["1,000", "1,000", "2,000"]
    assert rows["flow"] == ["harmonic", "exact", "mixed"]


def test_limits_on_z_have_the_stated_false_alarm_rate():
    rng = np.random.default_rng(0)
    number, repeats = 20, 50_000
    largest = np.abs(rng.normal(size=(repeats, number))).max(1)
    rate = (largest > max_z(number)).mean()
    assert abs(rate - 1e-3) < 4 * np.sqrt(1e-3 / repeats)


def test_stuck_particles_are_counted_where_chance_cannot_make_them() -> None:
    """Five of 1000; after few trajectories a particle that moves well may have rejected them all.

    Each particle has four draws next to each other, and what counts is the mean over all of them.
    """
    particles = np.repeat(np.arange(1000), 4)
    accept_prob = np.full(4000, 0.8)
    accept_prob[particles < 5] = 0.02
    accept_prob[(particles == 5) & (np.arange(4000) % 4 > 0)] = 0.0  # one good draw in four
    assert stuck_share(accept_prob, particles, 2) == pytest.approx(0.005)
    assert stuck_share(accept_prob, particles, 1) == 0
    # Particles that have not been drawn are not known to move well.
    some = particles < 100
    assert stuck_share(accept_prob[some], particles[some], 2) == pytest.approx(0.05)


def test_everything_is_in_the_dictionary():
    """Plain values by the names of the records, which JSON can hold."""
    report = Report(sound(), [])
    figures = report.to_dict()
    assert figures["chains"][1]["flow"] == "harmonic"
    assert figures["stein"]["discrepancy"]["p_value"] == 0.5
    assert figures["stein"]["virial"] == [1.0, 1.05]
    assert json.loads(json.dumps(figures)) == figures
    with pytest.warns(DeprecationWarning, match="use `Report.measurements`"):
        assert report.figures == {
            k: v for k, v in figures.items() if k not in ("findings", "remarks")
        }


def test_modes_are_judged_by_the_chains_that_found_them_and_by_jumps_that_matter() -> None:
    def mode(found_by, jump_rate=0.5, share=0.5):
        return Mode(
            center={"a": share} if share else {},
            share=share,
            share_error=0.01,
            share_of_chain=(share, share),
            largest_z=1.0,
            jump_rate=jump_rate,
            found_by=found_by,
        )

    def about(*modes):
        return {finding.about for finding in find(changed("modes", modes))}

    both, by_search, empty = mode((0, 1)), mode(()), mode((), jump_rate=0.0, share=0.0)
    assert about(both, by_search, empty) == set()
    assert about(both, mode((1,))) == {"modes"}
    assert about(both, mode((0, 1), jump_rate=0.0)) == {"jumps"}
