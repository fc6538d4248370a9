"""Offline reinforcement learning that chooses its own degree of conservatism.

Reference:
    Hong, Kumar, Levine (2023). Confidence-Conditioned Value Functions for Offline Reinforcement Learning. ICLR 2023.
"""

__version__ = "0.1.0"
