"""Parts of `stages.evaluate`.

    answers       the file of generated answers, and what it says about accuracy
    held_out      one scoring pass over held-out rollouts: KL to the teacher, calibration
    averages      means over tokens with standard errors over prompts, calibration bins
"""
