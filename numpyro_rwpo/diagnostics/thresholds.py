"""The limits beyond which a figure becomes a reason to doubt a run, shared by several modules."""

from statistics import NormalDist

# Probability that one family of scores raises a finding on a sound run. A report has four families
# (correlation, drift, Stein identities, Stein discrepancy), so that chance alone raises a finding
# in one sound run out of 250.
FALSE_ALARM_RATE = 1e-3

# R-hat is a ratio without a unit, 1 at convergence; the limit is the one that Vehtari et al. (2021,
# sec. 4) recommend.
MAX_R_HAT = 1.01

# Effective draws per chain. Below 100, R-hat and ESS are themselves unreliable, and so is every
# Monte Carlo standard error (Vehtari et al. 2021, sec. 4).
MIN_ESS_PER_CHAIN = 100

# Smallest error that matters in practice: of a mean in posterior standard deviations, of a standard
# deviation or a variance relative to it. This is a convention; an error of a tenth of a standard
# deviation can hardly be seen in a plot of posterior intervals.
RELEVANT_ERROR = 0.1


def max_z(number: int) -> float:
    """The limit that ``number`` standard normal scores exceed anywhere with the false-alarm rate.

    By the union bound, so that the scores need not be independent.
    """
    return NormalDist().inv_cdf(1 - FALSE_ALARM_RATE / (2 * number))
