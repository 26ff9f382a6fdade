"""Figures of two evaluated models."""

SFT = {
    "accuracy": 0.5,
    "accuracy_se": 0.02,
    "greedy": 0.625,
    "pass@1": 0.5,
    "pass@2": 0.6,
    "pass@4": 0.7,
    "tokens": 31.25,
    "truncated": 0.01,
    "reverse_kl": 0.25,
    "reverse_kl_se": 0.01,
    "reverse_kl_level": "unbiased",
    "forward_kl": 0.5,
    "forward_kl_level": "unbiased",
    "ece": 0.04,
}
STUDENT = {**SFT, "accuracy": 0.91, "greedy": 0.95, "reverse_kl": 0.0123}
