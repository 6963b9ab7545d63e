"""One cell on several processes: each sees every step, and what they exchange are a few numbers."""

from zolab.parallel.ranks import LostRank, Ranks, join_ranks
from zolab.parallel.share import SharedLoss, SharedPlacement, agree, settle_share, share_of

__all__ = [
    "LostRank",
    "Ranks",
    "SharedLoss",
    "SharedPlacement",
    "agree",
    "join_ranks",
    "settle_share",
    "share_of",
]
