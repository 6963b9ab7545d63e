"""Streaming a model's blocks between the device, CPU memory and disk (placement `Offload`)."""

from zolab.optim.offload.memory import free_memory
from zolab.optim.offload.plan import Free, PlanError, TierPlan, plan_tiers

__all__ = ["Free", "PlanError", "TierPlan", "free_memory", "plan_tiers"]
