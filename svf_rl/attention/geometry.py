"""A geometric prior over domains: how likely a text is each domain's, by where the mean of its hidden states lies.

    log p(k | q)  =  -(q - c_k)' C^-1 (q - c_k) / 2  +  constant,     q unknown if the least distance is beyond a threshold

c_k are the means of the domains' examples and C the covariance within domains, one for all and shrunk towards a multiple of the
identity by the amount of Ledoit and Wolf, so that it can be inverted with fewer examples than dimensions. The threshold is a
quantile of the distances of held-out texts of the known domains. The prior is added to the gates' scores (`shiftable.prior`); an
unknown text leaves everything to the base. Where the base has texts of its own, they are a domain like the others, the first
(`branch_prior`); else it is as likely as the best specialist (`log_prior`). learn/prior.py fits one to corpora and keeps it.

Source: Herber 2025 (GRCLM); Ledoit and Wolf 2004, A well-conditioned estimator for large-dimensional covariance matrices.
Differs from the source (computermaster0101/shiftable-attention-poc): one score in nats, where it adds a cosine to an unscaled
distance; the mean is subtracted rightly from the covariance; unknown is calibrated, where it is off by default.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

SHUT = -30.0  # the log prior of a branch that is not to be taken


@dataclass(frozen=True)
class Geometry:
    """centres: of the domains, in the order of the specialists. precision: the inverse covariance. threshold: of the distance."""

    centres: Float[Tensor, "K width"]
    precision: Float[Tensor, "width width"]
    threshold: float = torch.inf

    def distances(self, query: Float[Tensor, "rows width"]) -> Float[Tensor, "rows K"]:
        """Squared Mahalanobis distances."""
        gap = query[:, None] - self.centres
        return torch.einsum("rki,ij,rkj->rk", gap, self.precision, gap)

    def unknown(self, query: Float[Tensor, "rows width"]) -> Bool[Tensor, " rows"]:
        return self.distances(query).min(-1).values > self.threshold

    def log_prior(self, query: Float[Tensor, "rows width"]) -> Float[Tensor, "rows n"]:
        """For the base and each specialist. Of a known text, the base is as likely as its best specialist."""
        known = (-self.distances(query) / 2).log_softmax(-1).clamp(min=SHUT)
        known = known - known.max(-1, keepdim=True).values
        known = known.masked_fill(self.unknown(query)[:, None], SHUT)
        return torch.nn.functional.pad(known, (1, 0))

    def branch_prior(self, query: Float[Tensor, "rows width"]) -> Float[Tensor, "rows n"]:
        """For the base, whose texts are the first domain, and each specialist: log p(domain | text). Unknown is the base's."""
        known = (-self.distances(query) / 2).log_softmax(-1).clamp(min=SHUT)
        shut = torch.full_like(known, SHUT)
        shut[:, 0] = 0.0
        return shut.where(self.unknown(query)[:, None], known)


def fit(domains: Sequence[Float[Tensor, "_ width"]]) -> Geometry:
    """The geometry of pooled hidden states, one tensor for each domain. ValueError for a domain without examples."""
    if not domains or any(len(rows) == 0 for rows in domains):
        raise ValueError("a geometry needs examples of every domain")
    centres = torch.stack([rows.mean(0) for rows in domains])
    inside = torch.cat([rows - centre for rows, centre in zip(domains, centres, strict=True)])
    return Geometry(centres, torch.linalg.inv(shrunk_covariance(inside)))


def calibrate(geometry: Geometry, held_out: Float[Tensor, "rows width"], quantile: float = 0.95) -> Geometry:
    """The same with a threshold that `quantile` of held-out texts of the known domains stay below."""
    nearest = geometry.distances(held_out).min(-1).values
    return Geometry(geometry.centres, geometry.precision, float(nearest.quantile(quantile)))


def shrunk_covariance(centred: Float[Tensor, "n width"]) -> Float[Tensor, "width width"]:
    """(1 - a) S + a mu I, with the a of Ledoit and Wolf; S is the covariance of rows of mean 0."""
    n, width = centred.shape
    s = centred.T @ centred / n
    mu = s.diagonal().mean()
    spread = (s - mu * torch.eye(width, dtype=s.dtype, device=s.device)).square().sum()
    noise = (centred.square().sum(1).square().sum() / n - s.square().sum()) / n
    amount = (noise.clamp(min=0) / spread.clamp(min=1e-12)).clamp(max=1)
    return (1 - amount) * s + amount * mu.clamp(min=1e-12) * torch.eye(width, dtype=s.dtype, device=s.device)


@torch.no_grad()
def prefixes(hidden: Float[Tensor, "rows time width"], lengths: Sequence[int]) -> Float[Tensor, "rows lengths width"]:
    """The means over the first tokens of every row, as many as each of the lengths that the rows have: what shorter texts are."""
    sums = hidden.cumsum(1)
    return torch.stack([sums[:, n - 1] / n for n in lengths if n <= hidden.shape[1]], 1)


@torch.no_grad()
def pooled(hidden: Float[Tensor, "rows time width"], real: Bool[Tensor, "rows time"]) -> Float[Tensor, "rows width"]:
    """The mean over the tokens that are no padding."""
    weight = real[..., None].float()
    return (hidden.float() * weight).sum(1) / weight.sum(1).clamp(min=1)
