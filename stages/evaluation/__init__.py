"""Parts of `stages.evaluate`, and the table of `stages.report`.

- `answers`: the file of generated answers, and what it says about accuracy
- `held_out`: one scoring pass over held-out rollouts: KL to the teacher, calibration
- `averages`: means over tokens with standard errors over prompts, calibration bins
- `table`: rows of metrics as text and Markdown, for one run or over seeds
"""
