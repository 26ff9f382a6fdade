"""Parts of `stages.evaluate`.

- `answers`: the file of generated answers, and the accuracies that follow from it
- `measure`: chooses the figures below from the inputs of the job
- `held_out`: one pass over held-out rollouts: KL to the teacher, acceptance, calibration
- `acceptance`: acceptance of speculative decoding, estimated from records
- `text`: one pass over held-out text: loss, calibration, acceptance
- `gradients`: gradients from records against those of the teacher's full distribution
- `positions`: what a model says at each held-out position, kept for the token inspector
- `scoring`: from one pass of a model to these values
- `difficulty`: accuracy by difficulty of the prompt
- `averages`: means over tokens with standard errors over prompts, calibration bins
"""
